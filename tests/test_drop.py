"""Which units go by what their readers are given, and what the rest makes up for."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from flax import nnx

from perturb import RTN, Drop, LowRank, Magnitude, layerwise
from perturb.architecture import Axis, Space, columns, entries, rows
from perturb.compression import Opened
from perturb.methods.structure.compensate import DAMP, cheapest, reader, refitted
from perturb.policy import Policy
from perturb.stage import Versions, expand
from perturb.types import Moments

from .test_structure import CONFIGS, Subject, applied, build, inputs_for, of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Floats = npt.NDArray[np.float64]


def data(seed: int, tokens: int, width: int, mean: float = 0.5) -> Floats:
    """Correlated inputs of unequal variance."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(width) + rng.normal(size=(width, width)) / np.sqrt(width)
    return rng.normal(size=(tokens, width)) @ mixing * np.exp(rng.normal(size=width) / 2) + mean


def moments(x: Floats) -> Moments:
    mean = x.mean(0)
    values: Any = ((x - mean).T @ (x - mean), np.float32(len(x)), mean)
    return Moments(*values)


def damped(x: Floats) -> Floats:
    """The data, and such of its own that its second moment is damped [tokens + in, in]."""
    live = (x**2).mean(0)
    extra = np.sqrt(DAMP * live[live > 0].mean() * len(x))
    return np.concatenate([x, extra * np.eye(x.shape[1])])


def least_squares(x: Floats, w: Floats, kept: npt.NDArray[np.int64]) -> Floats:
    """W' [out, in] on the kept columns, nearest to W on the data."""
    new = np.zeros_like(w)
    new[:, kept] = np.linalg.lstsq(x[:, kept], x @ w.T, rcond=None)[0].T
    return new


def lost(x: Floats, w: Floats, s: npt.NDArray[np.int64], tokens: int) -> float:
    """What removing the columns s costs at least, a token."""
    new = least_squares(x, w, np.setdiff1d(np.arange(x.shape[1]), s))
    return float((((new - w) @ x.T) ** 2).sum() / tokens)


CASES = {  # (per, repeats) of each reader
    "neurons": [(1, 1)],
    "heads": [(3, 1)],
    "filters": [(1, 4)],
    "two readers": [(2, 1), (1, 3)],
}


@pytest.mark.parametrize("case", CASES)
def test_units_go_as_brute_force_has_it(case: str) -> None:
    """One: the cheapest of all after a refit of the rest; more: one after another."""
    size, rng = 6, np.random.default_rng(1)
    xs, ws, axes = [], [], []
    for i, (per, repeats) in enumerate(CASES[case]):
        axes.append(columns("w", per, repeats))
        xs.append(data(i, 300, size * per * repeats))
        ws.append(rng.normal(size=(5, size * per * repeats)))
    held = list(zip(xs, ws, axes, strict=True))
    readers = [reader(w, moments(x), a, size) for x, w, a in held]
    gone: list[int] = []
    for count in (1, 2, 3):
        costs = {}
        for u in set(range(size)) - set(gone):
            mark = np.isin(np.arange(size), [*gone, u])
            places = [np.flatnonzero(np.tile(np.repeat(mark, a.per), a.repeats)) for a in axes]
            costs[u] = sum(
                lost(damped(x), w, s, len(x)) for (x, w, _), s in zip(held, places, strict=True)
            )
        gone.append(min(costs, key=lambda u: costs[u]))
        found = cheapest(readers, np.zeros(size, bool), count)
        assert np.flatnonzero(found).tolist() == sorted(gone)
    after = cheapest(readers, np.isin(np.arange(size), gone[:2]), 3)  # some were gone before
    assert np.flatnonzero(after).tolist() == sorted(gone)
    np.testing.assert_array_equal(cheapest(readers, after, 2), after)


def test_what_others_make_up_for_goes_first() -> None:
    """Two of the largest inputs say the same: what ranks units one by one would keep both."""
    x = np.random.default_rng(0).normal(size=(400, 5))
    x[:, 1] = 1.1 * x[:, 0]
    w = np.ones((3, 5))
    w[:, :2] = 2.0
    own = reader(w, moments(x), columns("w"), 5)
    assert np.argmin((w**2).sum(0) * (x**2).mean(0)) > 1
    assert np.flatnonzero(cheapest([own], np.zeros(5, bool), 1))[0] < 2


def test_dead_inputs_cost_nothing_and_pull_nothing() -> None:
    x, w = data(2, 200, 6), np.random.default_rng(0).normal(size=(4, 6))
    x[:, 3] = 0
    w[:, 3] = 100
    own = reader(w, moments(x), columns("w"), 6)
    assert np.flatnonzero(cheapest([own], np.zeros(6, bool), 1)).tolist() == [3]
    allowed = np.ones(w.shape, bool)
    allowed[:, 3] = False
    np.testing.assert_array_equal(refitted(own, allowed), np.where(allowed, w, 0))
    silent = reader(w, moments(0 * x), columns("w"), 6)  # no input at all: by magnitude
    smallest = int(np.argmin((w**2).sum(0)))
    assert np.flatnonzero(cheapest([silent], np.zeros(6, bool), 1)).tolist() == [smallest]


def test_kept_columns_are_refitted_within_the_mask_of_each_row() -> None:
    x, w = data(3, 250, 8), np.random.default_rng(4).normal(size=(6, 8))
    mask = np.random.default_rng(5).random(w.shape) > 0.3
    mask[1] = mask[0]
    w = np.where(mask, w, 0)
    own = reader(w, moments(x), columns("w"), 8)
    allowed = mask & (np.arange(8) != 2)
    found = refitted(own, allowed)
    for i in range(6):
        expected = least_squares(damped(x), w[i : i + 1], np.flatnonzero(allowed[i]))
        np.testing.assert_allclose(found[i : i + 1], expected, rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {k: Subject(build(of(c)), inputs_for(k)) for k, c in CONFIGS.items()}


def patches(x: Any) -> Floats:
    """Of images [B, H, W, C] the 3x3 windows at every place, padded with 0 [B H W, 9 C]."""
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, h, w, _ = x.shape
    views = [padded[:, i : i + h, j : j + w] for i, j in itertools.product(range(3), range(3))]
    return np.concatenate(views, -1).reshape(-1, 9 * x.shape[-1])


@nnx.jit
def filtered(model: Any, inputs: Any) -> Any:
    """What the second convolution of the first block is given."""
    block = model.layer1[0]
    x = nnx.relu(model.bn1(model.conv1(inputs)))
    return nnx.relu(block.bn1(block.conv1(x)))


@nnx.jit
def hidden(model: Any, inputs: Any) -> Any:
    """What the first MLP's last matrix is given."""
    block = model.layers[0]
    x = model.embed_tokens(inputs)
    x = x + block.self_attn(block.input_layernorm(x))
    x = block.post_attention_layernorm(x)
    return nnx.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x)


def given(subject: Subject, kind: str) -> tuple[str, str, Axis, Floats]:
    """A space, its reader, the axis, and what the reader is given."""
    if kind == "resnet":
        x = patches(filtered(subject.model, subject.inputs))
        return "layer1.0.filters", "layer1.0.conv2", columns("", 1, 9), x
    x = np.asarray(hidden(subject.model, subject.inputs), np.float64).reshape(-1, 20)
    return "layers.0.mlp", "layers.0.mlp.down_proj", columns(""), x


def gone_of(version: Versions, layer: str, axis: Axis, size: int) -> npt.NDArray[np.bool_]:
    stays = np.asarray(version.one(0).matrices[layer].mask).any(0)
    return np.asarray(axis.gathered(jnp.asarray(stays, jnp.int32), size)) == 0


@pytest.mark.parametrize("kind", ["llama", "resnet"])
def test_a_models_reader_is_the_least_squares_fit(subjects: dict[str, Subject], kind: str) -> None:
    subject = subjects[kind]
    space, layer, axis, x = given(subject, kind)
    policy = Policy(norms="keep")
    opened, after = applied(subject, Drop(space, 0.5, "obs"), policy=policy)
    size = opened.context.architecture.spaces[space].size
    dense = np.asarray(opened.network.weights[layer], np.float64)
    gone = gone_of(after, layer, axis, size)
    assert gone.sum() == size // 2
    kept = np.flatnonzero(~np.asarray(axis.spread(jnp.asarray(gone))))
    found = np.asarray(after.one(0).matrices[layer].weight, np.float64)
    expected = least_squares(damped(x), dense, kept)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(dense).max())
    plain = np.where(np.isin(np.arange(dense.shape[1]), kept), dense, 0)
    errors = [float((((w - dense) @ x.T) ** 2).sum()) for w in (found, plain)]
    assert errors[0] < 0.9 * errors[1]
    own = reader(dense, moments(x), axis, size)
    np.testing.assert_array_equal(cheapest([own], np.zeros(size, bool), size // 2), gone)
    again = expand(after, [Drop(space, 0.75, "obs")], opened.context, 1).versions
    more = gone_of(again, layer, axis, size)
    assert more.sum() == round(0.75 * size)
    assert more[gone].all()  # and none came back
    writer = {"llama": "layers.0.mlp.up_proj", "resnet": "layer1.0.conv1"}[kind]
    np.testing.assert_array_equal(after.one(0).matrices[writer].mask.any(1), ~gone)


@pytest.mark.parametrize("space", ["layers.1.heads", "layers.1.mlp"])
def test_wanda_is_its_naive_loop(subjects: dict[str, Subject], space: str) -> None:
    opened, after = applied(subjects["llama"], Drop(space, 0.5, "wanda"))
    layer, per = {
        "layers.1.heads": ("layers.1.self_attn.o_proj", 12),
        "layers.1.mlp": ("layers.1.mlp.down_proj", 1),
    }[space]
    held = opened.context.start().moments[layer]
    energy = np.diagonal(np.asarray(held.gram)) / float(held.count)
    w = np.asarray(opened.network.weights[layer])
    size = w.shape[1] // per
    score = [
        sum(w[i, j] ** 2 * energy[j] for i in range(len(w)) for j in range(u * per, u * per + per))
        for u in range(size)
    ]
    gone = gone_of(after, layer, columns("", per), size)
    assert np.flatnonzero(gone).tolist() == sorted(np.argsort(score)[: size // 2].tolist())


def test_compensation_keeps_masks_and_asks_before_it_leaves_a_grid(
    subjects: dict[str, Subject],
) -> None:
    subject, down = subjects["llama"], "layers.0.mlp.down_proj"
    drop = Drop("layers.0.mlp", 0.3, "obs")
    _, after = applied(subject, layerwise(Magnitude(0.4), down), drop)
    _, before = applied(subject, layerwise(Magnitude(0.4), down))
    new, old = (v.one(0).matrices[down] for v in (after, before))
    mask = np.asarray(new.mask)
    assert not np.asarray(new.weight)[~mask].any()
    left = np.asarray(old.mask)[:, mask.any(0)]
    np.testing.assert_array_equal(mask[:, mask.any(0)], left)
    assert np.asarray(new.weight)[mask].any()
    assert (np.asarray(new.weight) != np.where(mask, old.weight, 0))[mask].all()
    on_grid = layerwise(RTN(4), "*.mlp.*")
    with pytest.raises(ValueError, match=r"destroy the grid of 1 .*down_proj.* release=True"):
        applied(subject, on_grid, drop)
    _, released = applied(subject, on_grid, Drop("layers.0.mlp", 0.3, "obs", release=True))
    state = released.one(0)
    assert state.matrices[down].grid is None
    assert state.matrices["layers.0.mlp.up_proj"].grid is not None
    _, kept = applied(subject, on_grid, Drop("layers.0.mlp", 0.3, "wanda"))
    assert kept.one(0).matrices[down].grid is not None


def test_of_a_product_the_factor_that_reads_makes_up_for_it(subjects: dict[str, Subject]) -> None:
    """The same weight as if it were one matrix."""
    subject, down = subjects["llama"], "layers.0.mlp.down_proj"
    opened, thin = applied(subject, LowRank(0.0, where=down))
    _, _, _, x = given(Subject(opened.network.model(thin.parameters(0)), subject.inputs), "llama")
    dense = np.asarray(thin.parameters(0).weights[down], np.float64)
    after = expand(thin, [Drop("layers.0.mlp", 0.3, "obs")], opened.context, 1).versions
    found = np.asarray(after.parameters(0).weights[down], np.float64)
    kept = np.flatnonzero(np.asarray(after.one(0).matrices[f"{down}.v"].mask).any(0))
    assert len(kept) == 14
    expected = least_squares(damped(x), dense, kept)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(dense).max())


class Table(nnx.Module):
    """A space that a table of vectors reads, which no layer hears."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.table = nnx.Param(jnp.ones((2, 4)))

    def __call__(self, x: Any) -> Any:
        return self.layer(x) @ self.table[...].T

    def architecture(self) -> Any:
        return [Space("units", 4, (rows("layer"),), (entries("Table.table"),))], []


def test_scores_without_a_reading_layer_are_refused() -> None:
    subject = Subject(Table(), jnp.ones((2, 3)))
    for score in ("wanda", "obs"):
        with pytest.raises(ValueError, match=r"units is not read by layers alone.*'magnitude'"):
            applied(subject, Drop("units", 0.5, score))  # type: ignore[arg-type]
    applied(subject, Drop("units", 0.5))
    with pytest.raises(ValueError, match="score must be one of 'magnitude', 'wanda', 'obs'"):
        Drop(score="taylor")  # type: ignore[arg-type]
    plain = build(of(CONFIGS["resnet"]))
    with pytest.raises(ValueError, match="drop looks at the layers' inputs"):
        Opened(plain, None, Policy()).context.check([Drop(ratio=0.5, score="wanda")])
