"""Scalings over spaces: the same function, the best of AWQ's exponents, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import (
    AWQ,
    RTN,
    Activations,
    Drop,
    GridSpec,
    RemoveBlocks,
    Rotate,
    SmoothQuant,
    Wanda,
    layerwise,
)
from perturb.architecture import Axis
from perturb.compression import Opened
from perturb.methods.scale.common import groups
from perturb.naming import parse
from perturb.policy import Policy
from perturb.stage import Versions, expand

from .test_structure import CONFIGS, Subject, applied, build, inputs_for, of, outputs

STAGES = (AWQ(RTN(3)), SmoothQuant(), SmoothQuant(0.8))
SMALL: dict[str, Any] = {
    "llama": replace(CONFIGS["llama"], num_layers=2, tie_word_embeddings=False),
    "vit": CONFIGS["vit"],
    "resnet": replace(CONFIGS["resnet"], stage_blocks=(1,), widths=(4,)),
}


def subject_of(kind: str, dtype: Any = jnp.float32) -> Subject:
    """With loud channels in its norms."""
    config = replace(SMALL[kind], dtype=jnp.dtype(dtype).name)
    subject = Subject(build(of(config), dtype), inputs_for(kind, dtype))
    draws = np.random.default_rng(8)
    parameters = nnx.state(subject.model, nnx.Param)
    for path, leaf in nnx.to_flat_state(parameters):
        if path[-1] == "scale":
            loud = np.exp(draws.normal(size=leaf.shape))
            leaf.set_value(leaf[...] * jnp.asarray(loud, dtype))
    nnx.update(subject.model, parameters)
    return subject


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {kind: subject_of(kind) for kind in SMALL}


def moved(before: Versions, after: Versions) -> set[str]:
    """Matrices of which more than a tenth of a weight has changed."""
    old, new = (v.one(0).matrices for v in (before, after))
    return {n for n in old if np.abs(np.asarray(new[n].weight) / old[n].weight - 1).max() > 0.1}


# ------------------------------------------------------------------------- the function


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_a_scaling_keeps_the_outputs_to_rounding(kind: str) -> None:
    with jax.enable_x64(True):
        subject = subject_of(kind, jnp.float64)
        opened = Opened(subject.model, subject.inputs, Policy())
        start = opened.context.start()
        dense = outputs(opened, start, subject.inputs)
        assert dense.dtype == np.float64
        for stage in STAGES:
            after = expand(start, [stage], opened.context, 0).versions
            found = outputs(opened, after, subject.inputs)
            assert np.abs(found - dense).max() <= 1e-12 * np.abs(dense).max()
            reference = opened.network.state(after.reference.parameters)
            expected = np.asarray(opened.network.outputs(reference, subject.inputs))
            np.testing.assert_array_equal(expected, found)
            for name, w in after.reference.weights.items():
                np.testing.assert_array_equal(w, after.one(0).matrices[name].weight)
            mine = groups(opened.context.architecture, "*", "awq")
            readers = {a.parameter for g in mine for a in g.axes if a.dim >= 0}
            assert len(moved(start, after)) > len(readers) / 2
            assert moved(start, after) <= readers


def test_a_convolutions_filters_are_scaled_through_their_norm(subjects: Any) -> None:
    """A ReLU hands positive factors on; the statistics of the norm stay."""
    subject = subjects["resnet"]
    opened, after = applied(subject, AWQ(RTN(2)))
    expected = outputs(opened, opened.context.start(), subject.inputs)
    np.testing.assert_allclose(outputs(opened, after, subject.inputs), expected, rtol=1e-4)
    found = moved(opened.context.start(), after)
    assert found
    assert all(n.endswith("conv2") for n in found)


def test_what_each_group_is(subjects: Any) -> None:
    architecture = applied(subjects["llama"])[0].context.architecture
    found = {g.name: g for g in groups(architecture, "*", "awq")}
    assert len(found) == 2 * 4 + 1
    values = found["layers.0.values"]
    assert [a.parameter for a in values.writes] == ["layers.0.self_attn.v_proj"]
    mlp = found["layers.1.mlp"]
    assert [a.parameter for a in mlp.writes] == ["layers.1.mlp.up_proj"]  # and not gate
    norm = found["layers.1.input_layernorm"]
    assert [a.parameter.rpartition(".")[2] for a in norm.reads] == ["q_proj", "k_proj", "v_proj"]
    tied = build(of(replace(SMALL["llama"], tie_word_embeddings=True)))
    own = Opened(tied, inputs_for("llama"), Policy()).context.architecture
    assert {g.name for g in groups(own, "*", "awq")} == found.keys() - {"norm"}


def test_an_axis_of_parts_spreads_and_gathers() -> None:
    """Two parts of two units: each part's stretch three times, as query heads share values."""
    one = Axis("o", 1, repeats=3, parts=2)
    spread = np.asarray(one.spread(jnp.arange(4.0)))
    np.testing.assert_array_equal(spread, [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3])
    np.testing.assert_array_equal(one.gathered(jnp.asarray(spread), 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(one.largest(jnp.arange(12.0), 4), [4, 5, 10, 11])


# ------------------------------------------------------------------------------- AWQ


def rounded(w: np.ndarray, bits: int) -> np.ndarray:
    """Symmetric, a scale for each row, absmax half a step beyond the last level."""
    top = 2**bits - 1
    half = 2 ** (bits - 1)
    scale = np.abs(w).max(1, keepdims=True) / (half - 0.5)
    code = np.clip(np.rint(w / scale) + half, 0, top)
    return scale * (code - half)


def brute_force(
    weights: list[np.ndarray], x: list[np.ndarray], spread: Any, gather: Any, bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the 20 exponents from the inputs themselves, and the factors of the best."""
    size = np.sqrt(np.mean([gather((t**2).mean(0)) for t in x], 0))
    errors, tried = [], []
    for i in range(20):
        s = np.maximum(size ** (i / 20), 1e-4)
        s = s / np.sqrt(s.max() * s.min())
        d = [rounded(w * spread(s), bits) / spread(s) - w for w in weights]
        errors.append(sum(((t @ e.T) ** 2).sum() / len(t) for t, e in zip(x, d, strict=True)))
        tried.append(s)
    return np.array(errors), tried[int(np.argmin(errors))]


def factors(before: Versions, after: Versions, layer: str) -> np.ndarray:
    """By how much each column grew."""
    old, new = (np.asarray(v.one(0).matrices[layer].weight, np.float64) for v in (before, after))
    return np.median(new / old, 0)


def test_the_exponent_is_the_best_of_twenty_by_brute_force() -> None:
    """Of every kind of group, in float64, from inputs that are recomputed by the model's parts."""
    with jax.enable_x64(True):
        subject = subject_of("llama", jnp.float64)
        opened = Opened(subject.model, subject.inputs, Policy())
        start = opened.context.start()
        after = expand(start, [AWQ(RTN(3))], opened.context, 0).versions
        model, config = subject.model, SMALL["llama"]
        w = {n: np.asarray(m.weight) for n, m in start.one(0).matrices.items()}
        block, at = model.layers[0], "layers.0"
        stream = model.embed_tokens(subject.inputs)
        first = block.input_layernorm(stream)
        values = np.asarray(block.self_attn.v_proj(first))
        assert values.shape[-1] == config.num_kv_heads * config.head_size
        stream = stream + block.self_attn(first)
        second = block.post_attention_layernorm(stream)
        hidden = nnx.silu(block.mlp.gate_proj(second)) * block.mlp.up_proj(second)

        def flat(x: Any) -> np.ndarray:
            x = np.asarray(x)
            return x.reshape(-1, x.shape[-1])

        qkv = [f"{at}.self_attn.{n}_proj" for n in "qkv"]
        pair = [f"{at}.mlp.{n}_proj" for n in ("gate", "up")]
        down = f"{at}.mlp.down_proj"
        chosen = []
        for names, x in ((qkv, first), (pair, second), ([down], hidden)):
            mine = [flat(x)] * len(names)
            errors, s = brute_force([w[n] for n in names], mine, lambda s: s, lambda e: e, 3)
            chosen.append(int(np.argmin(errors)))
            found = factors(start, after, names[0])
            np.testing.assert_allclose(found, s, rtol=1e-8)
        assert any(chosen)
        for name, one in ((f"{at}.mlp.up_proj", down), (f"{at}.self_attn.v_proj", None)):
            rows = np.asarray(after.one(0).matrices[name].weight) / w[name]
            if one is not None:  # divided by what its reader is multiplied by
                column = factors(start, after, pair[1])
                by = 1 / factors(start, after, one)
                np.testing.assert_allclose(rows, by[:, None] * column, rtol=1e-8)


def test_query_heads_share_the_factors_of_their_values() -> None:
    with jax.enable_x64(True):
        subject = subject_of("llama", jnp.float64)
        opened = Opened(subject.model, subject.inputs, Policy())
        start = opened.context.start()
        after = expand(start, [AWQ(RTN(2), "*.values")], opened.context, 0).versions
        config, chosen = SMALL["llama"], 0
        kv, size = config.num_kv_heads, config.head_size
        heads = (kv, config.num_heads // kv, size)
        for i in range(config.num_layers):
            layer = f"layers.{i}.self_attn.o_proj"
            moments = start.moments[layer]
            h = np.asarray(moments.gram) / float(moments.count)
            root = np.linalg.cholesky(h + 1e-13 * np.eye(len(h)) * np.trace(h)).T
            x = root * np.sqrt(len(root))  # inputs with these second moments
            errors, s = brute_force(
                [np.asarray(start.one(0).matrices[layer].weight)],
                [x],
                lambda s: np.broadcast_to(s.reshape(kv, 1, size), heads).ravel(),
                lambda e: e.reshape(heads).mean(1).ravel(),
                2,
            )
            chosen = max(chosen, int(np.argmin(errors)))
            found = factors(start, after, layer).reshape(heads)
            np.testing.assert_allclose(found, found[:, :1] * np.ones(heads), rtol=1e-10)
            np.testing.assert_allclose(found[:, 0].ravel(), s, rtol=1e-6)
            v = f"layers.{i}.self_attn.v_proj"
            rows = np.asarray(after.one(0).matrices[v].weight)
            rows = rows / np.asarray(start.one(0).matrices[v].weight)
            np.testing.assert_allclose(rows, np.ones_like(rows) / s[:, None], rtol=1e-6)
        assert chosen > 0
        assert moved(start, after) <= {
            f"layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "vo"
        }


@pytest.mark.parametrize(
    ("grid", "pruned"), [(GridSpec(), False), (GridSpec(False, 2, clip="mse"), True)]
)
def test_rounding_after_it_never_costs_a_group_more(
    subjects: Any, grid: GridSpec, pruned: bool
) -> None:
    """The calibration error of each group's readers, in what their outputs were before."""
    subject = subjects["llama"]
    before = (Wanda(0.3),) if pruned else ()
    for bits in (2, 3):
        q = RTN(bits, grid)
        opened, start = applied(subject, *before)
        at = len(before)
        scaled = expand(start, [AWQ(q)], opened.context, at).versions
        alone = expand(start, [q], opened.context, at).versions.one(0).matrices
        both = expand(scaled, [q], opened.context, at + 1).versions.one(0).matrices
        handed, mid = start.one(0).matrices, scaled.one(0).matrices
        gained = 0
        for group in groups(opened.context.architecture, "*", "awq"):
            error = np.zeros(2)
            for one in group.reads:
                name = one.parameter
                w, w_mid, q_alone, q_both = (
                    np.asarray(m[name].weight, np.float64) for m in (handed, mid, alone, both)
                )
                kept = np.asarray(handed[name].mask)
                np.testing.assert_array_equal(mid[name].mask, kept)
                # w_mid = by * w: what the factors of rows and columns are, where w is not 0
                by = np.where(w != 0, w_mid / np.where(w != 0, w, 1), 1)
                moments = start.moments[name]
                h = np.asarray(moments.gram, np.float64)
                h = (h[0] if h.ndim == 3 else h) / np.asarray(moments.count).ravel()[0]
                for i, d in enumerate((q_alone - w, (q_both - w_mid) / by)):
                    error[i] += np.trace(d @ h @ d.T)
            assert error[1] <= error[0] * (1 + 1e-5)
            gained += error[1] < 0.95 * error[0]
        assert gained > 2


# ------------------------------------------------------------------------- SmoothQuant


def test_smoothquant_is_its_formula(subjects: Any) -> None:
    subject = subjects["vit"]
    opened, after = applied(subject, SmoothQuant(0.3, "residual"))
    start = opened.context.start()
    for layer in ("blocks.0.attn.qkv", "blocks.1.mlp.fc1"):
        w = np.asarray(start.one(0).matrices[layer].weight, np.float64)
        energy = np.asarray(start.moments[layer].energy, np.float64)
        s = np.sqrt(energy) ** 0.3 / np.abs(w).max(0) ** 0.7
        np.testing.assert_allclose(factors(start, after, layer), s, rtol=1e-4)
    heads = [
        np.abs(np.asarray(start.one(0).matrices[n].weight)).max(0) for n in ("head", "head_dist")
    ]
    energy = sum(np.asarray(start.moments[n].energy, np.float64) for n in ("head", "head_dist")) / 2
    s = np.sqrt(energy) ** 0.3 / np.maximum(*heads) ** 0.7
    np.testing.assert_allclose(factors(start, after, "head"), s, rtol=1e-4)
    np.testing.assert_allclose(factors(start, after, "head_dist"), s, rtol=1e-4)
    vectors = after.one(0).vectors
    for kind in ("scale", "bias"):
        dense = np.asarray(getattr(subject.model.norm, kind)[...])
        np.testing.assert_allclose(vectors[f"norm.{kind}"], dense / s, rtol=1e-4)


# ------------------------------------------------------------------- masks, grids, refusals


def test_masks_are_kept_and_what_was_dropped_stays_dropped(subjects: Any) -> None:
    subject = subjects["llama"]
    before = (Drop("*.mlp", 0.3), RemoveBlocks(1, "layers.1"), Wanda(0.5))
    opened, start = applied(subject, *before)
    expected = outputs(opened, start, subject.inputs)
    for stage in STAGES:
        after = expand(start, [stage], opened.context, 3).versions
        for name, matrix in start.one(0).matrices.items():
            np.testing.assert_array_equal(after.one(0).matrices[name].mask, matrix.mask)
        found = outputs(opened, after, subject.inputs)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        assert opened.storage(after.one(0)) == opened.storage(start.one(0))


@pytest.mark.parametrize("stage", STAGES[:2], ids=lambda s: s.name)
def test_grids_are_refused_unless_released(subjects: Any, stage: Any) -> None:
    opened, before = applied(subjects["vit"], layerwise(RTN(8), "*.fc1"))
    with pytest.raises(ValueError, match=rf"{stage.name} would destroy the grid of 2 .*fc1.*"):
        expand(before, [stage], opened.context, 1)
    free = type(stage)(release=True)
    after = expand(before, [free], opened.context, 1).versions
    assert all(m.grid is None for m in after.one(0).matrices.values())
    expected = outputs(opened, before, subjects["vit"].inputs)
    found = outputs(opened, after, subjects["vit"].inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES[:2], ids=lambda s: s.name)
def test_what_cannot_be_scaled_is_refused(subjects: Any, stage: Any) -> None:
    plain = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"Sequential has no space '\*' to scale .*architecture"):
        applied(Subject(plain, jnp.ones((2, 3))), stage)
    subject = subjects["llama"]
    with pytest.raises(ValueError, match=r"no space '\*\.heads' to scale"):
        applied(subject, type(stage)(space="*.heads"))
    with pytest.raises(ValueError, match=f"{stage.name}: in the spaces 'layers.0.mlp' all"):
        applied(subject, type(stage)(space="layers.0.mlp"), exclude=["layers.0.mlp.up_proj"])
    run = Opened(subject.model, subject.inputs, Policy())
    two = expand(run.context.start(), [Wanda(0.3), Wanda(0.5)], run.context, 0).versions
    with pytest.raises(ValueError, match=f"{stage.name} scales a model by what it is"):
        expand(two, [stage], run.context, 1)


def test_groups_that_lack_nothing_are_scaled_beside_those_that_do(subjects: Any) -> None:
    subject = subjects["vit"]
    opened, after = applied(subject, SmoothQuant(), exclude=["blocks.0.mlp.fc1", "head"])
    start = opened.context.start()
    expected = outputs(opened, start, subject.inputs)
    found = outputs(opened, after, subject.inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert moved(start, after) == {"blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"}


def test_inputs_that_are_rounded_or_turned_are_not_scaled(subjects: Any) -> None:
    for first, told in (
        (Activations(8), r"awq would change what the inputs of .* are rounded to"),
        (Rotate(online=True), "turned"),
    ):
        with pytest.raises(ValueError, match=told):
            applied(subjects["llama"], first, AWQ(RTN(3)))


def test_wrong_settings_are_refused_and_names_are_read(subjects: Any) -> None:
    assert parse("smoothquant:0.7") == SmoothQuant(0.7)
    assert parse("awq,space=*.mlp") == AWQ(space="*.mlp")
    for alpha in (-0.1, 1.1, True, "x"):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
            SmoothQuant(alpha)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantizer must be an RTN"):
        AWQ("rtn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group size 5 does not divide"):
        applied(subjects["llama"], AWQ(RTN(4, GridSpec(per=5))))
    run = Opened(subjects["llama"].model, None, Policy())
    with pytest.raises(ValueError, match="awq looks at the layers' inputs"):
        run.context.check([AWQ()])
