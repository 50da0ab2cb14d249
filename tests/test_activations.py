"""Input maps: rounding per token, and rotations, as a model runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import resnet
from experiments.models.llama import LlamaConfig, rope_frequencies
from perturb import (
    RTN,
    Activations,
    Drop,
    LoRA,
    RemoveBlocks,
    Rotate,
    Wanda,
    chain,
    compress,
    layerwise,
    network,
    score,
)
from perturb.compression import Opened
from perturb.inputs import InputMap, mapped, rounded, turned
from perturb.methods.rotate.residual import online_turn
from perturb.naming import parse
from perturb.network.apply import _outputs
from perturb.network.mapped import Mapped
from perturb.policy import Policy
from perturb.registry import to_config
from perturb.stage import Versions, expand
from perturb.state import Parameters

from .conftest import UserModel
from .test_structure import build, of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONFIG = LlamaConfig(20, 16, 20, 1, 4, 2, head_dim=6, tie_word_embeddings=False)
TOKENS = np.random.default_rng(3).integers(0, 20, (6, 9))
Floats = np.ndarray


def follow(model: Any, *stages: Any, x: Any = TOKENS, **options: Any) -> tuple[Opened, Versions]:
    run = Opened(model, [x], Policy(**options))
    run.context.check(stages)
    current = run.context.start()
    for i, stage in enumerate(stages):
        current = expand(current, [stage], run.context, i).versions
    return run, current


def outputs(run: Opened, version: Versions, index: int = 0, x: Any = TOKENS) -> Floats:
    net = run.network
    return np.asarray(net.outputs(net.state(version.parameters(index)), x))


@pytest.fixture(scope="module")
def model() -> Any:
    return build(of(CONFIG))


# ------------------------------------------------------------------- written by hand, in numpy


def on_grid(x: Floats, bits: int, clip: float) -> Floats:
    """Each row by itself."""
    out = np.empty_like(x)
    most = 2 ** (bits - 1) - 1
    for i in np.ndindex(x.shape[:-1]):
        step = clip * max(abs(v) for v in x[i]) / most
        out[i] = [min(max(np.round(v / step), -most - 1), most) * step for v in x[i]]
    return out


class ByHand:
    """The Llama with what is done before each matrix product: ``before(name, x)``."""

    def __init__(self, weights: dict[str, Floats], model: Any, before: Any) -> None:
        self.w, self.model, self.before = weights, model, before
        self.seen: dict[str, Floats] = {}

    def product(self, name: str, x: Floats) -> Floats:
        self.seen[name] = x = self.before(name, x)
        return x @ self.w[name].T

    def __call__(self, tokens: Floats) -> Floats:
        config = self.model.config
        x = np.asarray(self.model.embed_tokens.embedding[...], np.float64)[tokens]
        for i, layer in enumerate(self.model.layers):
            at = f"layers.{i}"
            x = x + self.attention(f"{at}.self_attn", self.norm(layer.input_layernorm, x))
            h = self.norm(layer.post_attention_layernorm, x)
            gate = self.product(f"{at}.mlp.gate_proj", h)
            up = self.product(f"{at}.mlp.up_proj", h)
            x = x + self.product(f"{at}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
        assert not config.tie_word_embeddings
        return self.product("lm_head", self.norm(self.model.norm, x))

    def norm(self, norm: Any, x: Floats) -> Floats:
        size = np.sqrt((x**2).mean(-1, keepdims=True) + self.model.config.rms_norm_eps)
        return x / size * np.asarray(norm.scale[...], np.float64)

    def attention(self, at: str, x: Floats) -> Floats:
        config = self.model.config
        d, share = config.head_size, config.num_heads // config.num_kv_heads
        q, k, v = (self.product(f"{at}.{n}_proj", x).reshape(*x.shape[:2], -1, d) for n in "qkv")
        angle = np.arange(x.shape[1])[:, None, None] * rope_frequencies(d, config.rope_theta)

        def turn(y: Floats) -> Floats:
            a, b = y[..., : d // 2], y[..., d // 2 :]
            cos, sin = np.cos(angle), np.sin(angle)
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        q, k = turn(q), turn(k)
        mixed = np.zeros_like(q)
        for b, t, h in np.ndindex(*q.shape[:3]):
            logits = k[b, : t + 1, h // share] @ q[b, t, h] / np.sqrt(d)
            weights = np.exp(logits - logits.max())
            mixed[b, t, h] = weights / weights.sum() @ v[b, : t + 1, h // share]
        return self.product(f"{at}.o_proj", mixed.reshape(*x.shape[:2], -1))


@pytest.fixture
def exact() -> Any:
    """The model in float64, for comparisons with what is written by hand."""
    with jax.enable_x64(True):
        yield build(of(replace(CONFIG, dtype="float64")), jnp.float64)


def by_hand(model: Any, run: Opened, version: Versions, before: Any) -> ByHand:
    weights = {n: np.asarray(w, np.float64) for n, w in version.parameters(0).weights.items()}
    return ByHand(weights, model, before)


@pytest.mark.parametrize(
    "stage", [Activations(4), Activations(3, 0.9), Activations(8, where="*_proj")]
)
def test_rounding_is_that_of_a_forward_pass_by_hand(exact: Any, stage: Activations) -> None:
    run, after = follow(exact, stage)

    def before(name: str, x: Floats) -> Floats:
        mine = name.endswith("_proj") or stage.where == "*"
        return on_grid(x, stage.width, stage.clip) if mine else x

    hand = by_hand(exact, run, after, before)
    found, expected = outputs(run, after), hand(TOKENS)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-9 * scale
    plain = by_hand(exact, run, after, lambda _, x: x)(TOKENS)
    assert np.abs(expected - plain).max() > 1e-3 * scale
    # and a Gram is that of the vectors that the matrices act on
    moments = after.moments
    for name, x in hand.seen.items():
        rows = x.reshape(-1, x.shape[-1])
        gram = np.asarray(take_first(moments[name]).gram)
        np.testing.assert_allclose(gram, rows.T @ rows, atol=1e-8 * np.abs(gram).max())


def take_first(moments: Any) -> Any:
    return jax.tree.map(lambda a: a[0], moments)


def test_sixteen_bits_are_nearly_none(model: Any) -> None:
    run, after = follow(model, Activations(16))
    dense = outputs(run, run.context.start())
    errors = [np.abs(outputs(run, follow(model, Activations(b))[1]) - dense).max() for b in (16, 8)]
    scale = np.abs(dense).max()
    assert errors[0] < 1e-3 * scale < errors[1]
    assert run.storage(after.one(0)) == run.storage(run.context.start().one(0))


def test_vectors_of_zeros_and_several_axes_are_rounded() -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype(np.float32)
    x[1] = 0
    bits, clip = jnp.int32(3), jnp.float32(1.0)
    np.testing.assert_array_equal(rounded(jnp.asarray(x), bits, clip)[1], 0)
    joint = mapped(jnp.asarray(x), InputMap(None, bits, clip), (1, 3))
    one = on_grid(np.moveaxis(x, 2, 1)[0].reshape(4, 10).astype(np.float64), 3, 1.0)
    np.testing.assert_allclose(np.moveaxis(joint, 2, 1)[0].reshape(4, 10), one, atol=1e-6)
    gradient = jax.grad(lambda y: jnp.sum(rounded(y, bits, clip) ** 2))(jnp.asarray(x))
    np.testing.assert_allclose(gradient, 2 * rounded(jnp.asarray(x), bits, clip), rtol=1e-6)


# ----------------------------------------------------------------------------------- programs


def test_one_program_serves_all_widths() -> None:
    model = build(of(replace(CONFIG, intermediate_size=18)))  # that no program is known of
    run = Opened(model, [TOKENS], Policy())
    start = run.context.start()
    family = [Activations(b, c) for b, c in ((8, 1.0), (4, 0.9), (3, 1.0))]
    after = expand(start, family, run.context, 0).versions
    outputs(run, start)
    program = run.network._run
    assert program._cache_size() == 1
    found = [outputs(run, after, i) for i in range(3)]
    assert program._cache_size() == 2
    assert not np.array_equal(found[0], found[1])
    for i, stage in enumerate(family):
        np.testing.assert_array_equal(found[i], outputs(*follow(model, stage)))


def test_a_model_without_maps_runs_the_program_that_it_ran(model: Any) -> None:
    run, after = follow(model, RTN(8))
    net = run.network
    parameters = after.parameters(0)
    assert parameters.inputs == {}
    state = net.state(parameters)
    assert not isinstance(state, Mapped)
    assert jax.tree.structure(state) == jax.tree.structure(net.state(Parameters({}, {})))
    found = jax.make_jaxpr(lambda s: _outputs(net.graphdef, s, TOKENS, net.forward))(state)
    direct = jax.make_jaxpr(lambda s: nnx.merge(net.graphdef, s)(TOKENS))(state)
    assert str(found) == str(direct)
    net.outputs(state, TOKENS)
    outputs(*follow(model, Activations(8)))
    size = net._run._cache_size()
    net.outputs(state, TOKENS)
    net.outputs(net.state(Parameters({}, {})), TOKENS)
    outputs(*follow(model, Wanda(0.5)))
    assert net._run._cache_size() == size


# ----------------------------------------------------------------------------- online rotations


@pytest.mark.parametrize("size", [1, 5, 8, 20, 24, 64, 176])
def test_an_online_turn_is_orthogonal_and_small(size: int) -> None:
    turn = online_turn(size, "layer", jax.random.key(0))
    whole = np.kron(*turn)
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=1e-13)
    if size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(whole), size**-0.5, rtol=1e-13)
    x = np.random.default_rng(0).normal(size=(2, 3, size)).astype(np.float32)
    np.testing.assert_allclose(
        turned(x, [jnp.asarray(f, x.dtype) for f in turn]), x @ whole.T, atol=2e-5
    )


@pytest.mark.parametrize("width", [16, 12])
def test_online_rotations_keep_the_outputs(exact: Any, width: int) -> None:
    """Of a model 16 wide, and one of no power of two; hidden units and heads are none, too."""
    subject = exact
    if width != 16:
        config = replace(CONFIG, hidden_size=width, intermediate_size=14, dtype="float64")
        subject = build(of(config), jnp.float64)
    run, after = follow(subject, Rotate(kind="hadamard", online=True))
    dense = outputs(run, run.context.start())
    scale = np.abs(dense).max()
    assert np.abs(outputs(run, after) - dense).max() <= 1e-10 * scale
    reference = run.network.state(after.reference.parameters)
    assert np.abs(run.network.outputs(reference, TOKENS) - dense).max() <= 1e-10 * scale
    _, offline = follow(subject, Rotate(kind="hadamard"))
    inner = {"layers.0.mlp.down_proj", "layers.0.self_attn.o_proj"}
    assert set(after.one(0).inputs) == set(after.reference.parameters.inputs) == inner
    for name, w in after.reference.weights.items():
        other = np.asarray(offline.reference.weights[name])
        assert (np.abs(np.asarray(w) - other).max() > 0.01) == (name in inner)
    # what the weights act on is turned with them
    name = "layers.0.mlp.down_proj"
    whole = np.kron(*(np.asarray(f) for f in after.reference.parameters.inputs[name].turn))
    gram = np.asarray(offline.reference.moments[name].gram)
    found = np.asarray(after.reference.moments[name].gram)
    np.testing.assert_allclose(found, whole @ gram @ whole.T, atol=1e-9 * np.abs(gram).max())
    # so that the same change of a layer costs as much
    change = np.zeros_like(np.asarray(offline.reference.weights[name]))
    change[1, :3] = 1.0
    turned_change = change @ whole.T
    cost = np.trace(change @ gram @ change.T)
    np.testing.assert_allclose(np.trace(turned_change @ found @ turned_change.T), cost, rtol=1e-9)


def test_an_online_rotation_spreads_hidden_outliers(model: Any) -> None:
    """Rounding in 4 bits costs less: of a model with an outlying hidden unit and channel."""
    wild = nnx.clone(model)
    for layer in wild.layers:
        for of_, at in ((layer.mlp.up_proj, 7), (layer.self_attn.v_proj, 4)):
            of_.kernel[...] = of_.kernel[...].at[:, at].multiply(30.0)
    lost = {}
    for name, stages in {
        "plain": [],
        "offline": [Rotate(kind="hadamard")],
        "online": [Rotate(kind="hadamard", online=True)],
    }.items():
        run, after = follow(wild, *stages, Activations(4, where="*.[do]*_proj"))
        dense = outputs(run, run.context.start())
        lost[name] = float(((outputs(run, after) - dense) ** 2).mean())
    assert lost["online"] < 0.5 * min(lost["plain"], lost["offline"])


# -------------------------------------------------------------------------- everything that runs


def test_block_by_block_is_running_everything_again(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (Rotate(online=True), Activations(4))
    every = (*stages, Wanda(0.5))
    _, in_parts = follow(model, *every, calibrate="sequential")
    monkeypatch.setattr(network.Network, "segments", lambda *_: None)
    _, again = follow(model, *every, calibrate="sequential")
    for name, matrix in again.one(0).matrices.items():
        found = in_parts.one(0).matrices[name]
        np.testing.assert_allclose(found.weight, matrix.weight, rtol=1e-5, atol=1e-5)
    _, unaware = follow(model, *stages[:-1], Wanda(0.5), calibrate="sequential")
    assert any(
        np.any(unaware.one(0).matrices[n].weight != m.weight)
        for n, m in again.one(0).matrices.items()
    )


def test_norms_are_estimated_behind_rounded_inputs() -> None:
    config = resnet.ResNetConfig(2, 3, (1,), (4,))
    model = build(of(config))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32)
    run, after = follow(model, Activations(3), x=x)
    found = after.one(0).vectors
    first = next(n for n in found if n.endswith(".mean"))
    assert np.any(np.asarray(found[first]) != np.asarray(run.context.start().one(0).vectors[first]))
    # of a convolution each position is rounded by itself: as a model whose inputs are on the grid
    stem, other = follow(model, Activations(3, where="conv1"), x=x)
    own = run.network
    given = own.state(Parameters({}, dict(other.parameters(0).vectors)))
    expected = own.outputs(given, on_grid(x.astype(np.float64), 3, 1.0).astype(np.float32))
    np.testing.assert_allclose(outputs(stem, other, x=x), expected, rtol=1e-4, atol=1e-4)


def test_training_and_removing_run_the_mapped_model(model: Any) -> None:
    """What trains passes through rounding; what compares outputs compares rounded ones."""
    run, before = follow(model, Activations(3))
    _, after = follow(model, Activations(3), LoRA(2, 30, 3e-3))
    dense = outputs(run, run.context.start())
    lost = [((outputs(run, v) - dense) ** 2).mean() for v in (before, after)]
    assert lost[1] < 0.8 * lost[0]
    assert set(after.one(0).inputs) == set(run.network.specs)
    removed = follow(model, Activations(3), RemoveBlocks(1))[1]
    assert set(removed.parameters(0).inputs) == set(run.network.specs)


def test_the_compressed_model_maps_its_inputs_itself(model: Any) -> None:
    stages = (Rotate(online=True), Activations(4), RTN(4))
    run, after = follow(model, *stages)
    done = compress(model, chain(*stages), [TOKENS])
    expected = outputs(run, after)
    np.testing.assert_allclose(nnx.jit(done.model)(TOKENS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(done.model(TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert all(
        isinstance(m, nnx.Linear) for m in (done.model.lm_head, done.model.layers[0].mlp.down_proj)
    )
    assert type(model.lm_head) is nnx.Linear
    graph, state = nnx.split(done.model)
    np.testing.assert_array_equal(nnx.merge(graph, state)(TOKENS), done.model(TOKENS))
    # it is a model like any other
    again = Opened(done.model, [TOKENS], Policy())
    moments = again.context.start().reference.moments
    x = np.asarray(take_first(after.moments["lm_head"]).gram)
    np.testing.assert_allclose(moments["lm_head"].gram, x, atol=1e-3 * np.abs(x).max())
    assert again.coverage.parameters == run.coverage.parameters


def test_layers_of_all_kinds_are_rounded_where_their_matrix_acts(
    user_model: UserModel, images: Any
) -> None:
    """Einsums, general linear layers, convolutions, and what a subclass does before and after."""
    run = Opened(user_model, [images], Policy(), exclude=["depthwise"])
    after = expand(run.context.start(), [Activations(4)], run.context, 0).versions
    parameters = after.parameters(0)
    assert set(parameters.inputs) == set(run.network.specs)
    found = outputs(run, after, x=images)
    dense = outputs(run, run.context.start(), x=images)
    assert 0.01 < np.abs(found - dense).max() / np.abs(dense).max() < 1
    exported = run.network.model(parameters)
    np.testing.assert_allclose(exported(images), found, rtol=1e-4, atol=1e-4)


def test_scores_compare_what_the_models_compute(model: Any) -> None:
    found = score(model, [Activations(4), RTN(8)], [TOKENS])
    assert found.outputs["A"].kl > 10 * found.outputs["B"].kl
    assert found.total["A"].out_rel == 0  # no weight has changed
    assert found.total["AB"].out_rel == found.total["BA"].out_rel == found.total["B"].out_rel


def test_records_of_rotations_before_online_ones_are_the_same() -> None:
    assert to_config(Rotate()) == {"name": "rotate", "seed": 0, "kind": "random", "release": False}
    assert to_config(Rotate(online=True))["online"] is True
    assert to_config(parse("activations:4")) == {
        "name": "activations",
        "width": 4,
        "clip": 1.0,
        "where": "*",
    }


# ----------------------------------------------------------------------------------- refusals


def test_what_cannot_be_mapped_is_refused(model: Any, user_model: UserModel, images: Any) -> None:
    for bad, line in (
        ({"width": 1}, "width must be"),
        ({"width": 4.5}, "width must be"),
        ({"clip": 0.0}, r"clip must lie in \(0, 1\]"),
        ({"clip": float("nan")}, "clip must lie"),
    ):
        with pytest.raises(ValueError, match=line):
            Activations(**bad)
    with pytest.raises(ValueError, match=r"depthwise is a convolution in 12 groups, .*exclude"):
        follow(user_model, Activations(8), x=images)
    with pytest.raises(ValueError, match=r"'nothing' of activations has no layer"):
        follow(model, Activations(8, where="nothing"))
    with pytest.raises(ValueError, match=r"inputs of lm_head are rounded already"):
        follow(model, Activations(8, where="lm_head"), Activations(4))
    with pytest.raises(ValueError, match=r"rotate would change what .* put it before activations"):
        follow(model, Activations(8), Rotate())
    with pytest.raises(ValueError, match=r"rotate would change .*down_proj"):
        follow(model, Activations(8, where="*.down_proj"), Rotate(online=True))
    follow(model, Activations(8, where="*.down_proj"), Rotate())  # which does not touch them
    with pytest.raises(ValueError, match=r"are turned already"):
        follow(model, Rotate(online=True), Rotate(seed=1, online=True))
    with pytest.raises(
        ValueError, match=r"layers.0.mlp: .*down_proj are turned .* apply this before"
    ):
        follow(model, Rotate(online=True), Drop("*.mlp", 0.3))
    with pytest.raises(ValueError, match=r"destroy the mask of .*down_proj.* release=True"):
        follow(model, layerwise(Wanda(0.5), "*.down_proj"), Rotate(online=True))
    alone = Opened(model, [TOKENS], Policy(), exclude=["*down_proj", "*o_proj"])
    with pytest.raises(ValueError, match="leave online=True out"):
        alone.context.check([Rotate(online=True)])
