"""Laws of the engine: families, chains and patterns of stages; adapters trained between them."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import (
    GPTQ,
    RTN,
    Distill,
    GlobalMagnitude,
    LowRank,
    Magnitude,
    SparseGPT,
    Wanda,
    chain,
    compress,
)
from perturb.compression import Opened
from perturb.grid import round_to_grid
from perturb.measure.distance import distance
from perturb.methods.adapt.lora import LoRA
from perturb.policy import CHOICES, Policy
from perturb.stage import Layerwise, Versions, as_stage, expand, layerwise, per_layer
from perturb.state import State, fresh

from .conftest import numpy_init

Array = jax.Array
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
B = {"block": 16}


class Net(nnx.Module):
    """Tokens [batch, 6] -> logits [batch, 6, 8]: two blocks around a norm with statistics."""

    def __init__(self) -> None:
        options: Any = {"rngs": nnx.Rngs(0), "kernel_init": numpy_init}
        self.embed = nnx.Embed(30, 12, embedding_init=numpy_init, rngs=nnx.Rngs(1))
        self.blocks = nnx.List([nnx.Linear(12, 12, **options) for _ in range(2)])
        self.norm = nnx.BatchNorm(12, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(12, 8, use_bias=False, **options)

    def __call__(self, tokens: Array) -> Array:
        x = 2 * self.embed(tokens)
        for block in self.blocks:
            x = x + nnx.gelu(block(x))
        return self.head(self.norm(x))


BATCHES = list(jnp.asarray(np.random.default_rng(0).integers(0, 30, (3, 16, 6))))


@pytest.fixture(scope="module")
def net() -> Net:
    """In evaluation mode; nothing may change it."""
    model = Net()
    model.eval()
    return model


def opened(model: Any, policy: Policy | None = None, **options: Any) -> Opened:
    return Opened(model, BATCHES, policy or Policy(), **options)


def follow(run: Opened, *stages: Any) -> Versions:
    """Single stages, one after another."""
    run.context.check(stages)
    current = run.context.start()
    for i, stage in enumerate(stages):
        current = expand(current, [stage], run.context, i).versions
    return current


def same(a: State, b: State, rtol: float = 0.0) -> None:
    """The very same masks and codes; weights and vectors to rounding."""
    assert a.terms == b.terms
    assert a.matrices.keys() == b.matrices.keys()
    assert a.vectors.keys() == b.vectors.keys()
    for name, one in a.matrices.items():
        other = b.matrices[name]
        np.testing.assert_array_equal(one.mask, other.mask, err_msg=name)
        scale = float(np.abs(np.asarray(one.weight)).max()) or 1.0
        np.testing.assert_allclose(one.weight, other.weight, rtol=rtol, atol=rtol * scale)
        assert (one.grid is None) == (other.grid is None)
        if one.grid is not None and other.grid is not None:
            assert int(one.grid.bits) == int(other.grid.bits)
    for name, vector in a.vectors.items():
        np.testing.assert_allclose(vector, b.vectors[name], rtol=rtol, atol=rtol)


# ------------------------------------------------------------------------- families, chains

PRUNED = [Wanda(0.3), Wanda(0.5)]
FAMILIES = {  # the second family looks at inputs
    "recalibrate": (PRUNED, [GPTQ(4, **B), GPTQ(3, **B), GPTQ(2, **B)]),
    "sequential": ([RTN(4), RTN(3)], [Wanda(0.3), Wanda(0.5), Wanda(0.7)]),
    "dense": ([RTN(4), RTN(3)], [Wanda(0.3), Wanda(0.5), Wanda(0.7)]),
}


@pytest.mark.parametrize("calibrate", CHOICES["calibrate"])
def test_a_family_is_a_loop_over_single_chains(net: Net, calibrate: Any) -> None:
    first, then = FAMILIES[calibrate]
    run = opened(net, Policy(calibrate))
    before = expand(run.context.start(), first, run.context, 0).versions
    both = expand(before, then, run.context, 1)
    assert both.versions.size == 6
    assert both.reports.keys() == (run.network.specs.keys() if then[0].name == "gptq" else set())
    for r, pair in enumerate(itertools.product(first, then)):
        same(both.versions.one(r), follow(run, *pair).one(0), 1e-5)
    every = [np.asarray(both.versions.one(r).matrices["head"].weight) for r in range(6)]
    assert all(np.any(a != b) for a, b in itertools.combinations(every, 2))


def test_stages_that_are_no_family_are_the_same_loop(net: Net) -> None:
    """A family of different methods, and one of stages on the whole model."""
    run = opened(net)
    pruned = expand(run.context.start(), PRUNED, run.context, 0).versions
    family = [LoRA(2, 2, 1e-2), LoRA(2, 2, 1e-1)]
    both = expand(pruned, family, run.context, 1).versions
    for r, pair in enumerate(itertools.product(PRUNED, family)):
        same(both.one(r), follow(run, *pair).one(0), 1e-5)
    mixed = expand(pruned, [Magnitude(0.6), SparseGPT(0.6, **B)], run.context, 1)
    assert not mixed.reports  # the first has none
    same(mixed.versions.one(2), follow(run, PRUNED[1], Magnitude(0.6)).one(0), 1e-5)
    moved = [np.asarray(mixed.versions.one(r).matrices["head"].weight) for r in (0, 1)]
    assert not np.array_equal(*moved)
    for other in (LoRA(2, 0, where="head"), LoRA(3, 0)):
        with pytest.raises(ValueError, match=r"lora: stages of one axis .* different structure"):
            expand(pruned, [LoRA(2, 0), other], run.context, 1)


def test_a_chain_of_three_is_its_stages_one_after_another(net: Net) -> None:
    stages = (Wanda(0.4), LoRA(2, 3, 1e-2), layerwise(RTN(4), "blocks.*"))
    run = opened(net)
    done = compress(net, chain(stages[0], chain(*stages[1:])), BATCHES)
    same(done.state, follow(run, *stages).one(0))
    found = nnx.jit(done.model)(BATCHES[0])
    network = run.network
    after = follow(run, *stages)
    expected = network.outputs(network.state(after.parameters(0)), BATCHES[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_same_key_gives_the_same_result(net: Net) -> None:
    stages = (RTN(3), LoRA(2, 0), Magnitude(0.5))  # ties are random

    def result(key: int) -> State:
        run = Opened(net, BATCHES, Policy(), key)
        return follow(run, *stages).one(0)

    same(result(0), result(0))
    one, other = result(0), result(1)
    for name in ("blocks.0", "blocks.0+lora.a"):
        assert np.any(np.asarray(one.matrices[name].weight != other.matrices[name].weight))


# -------------------------------------------------------------------------------- patterns


def test_the_first_pattern_that_matches_counts(net: Net) -> None:
    rules = per_layer({"blocks.0": RTN(8), "blocks.*": RTN(4)})
    after = follow(opened(net), rules).one(0)
    bits = {n: None if m.grid is None else int(m.grid.bits) for n, m in after.matrices.items()}
    assert bits == {"blocks.0": 8, "blocks.1": 4, "head": None}
    assert after.matrices["head"].mask.all()
    # a layer's own result does not depend on which other layers there are
    same_as = follow(opened(net), layerwise(RTN(4), "blocks.1")).one(0)
    np.testing.assert_array_equal(
        after.matrices["blocks.1"].weight, same_as.matrices["blocks.1"].weight
    )
    ratios = per_layer({"head": Magnitude(0.25), "*": Magnitude(0.5)})
    masks = {
        n: float(m.mask.mean()) for n, m in follow(opened(net), ratios).one(0).matrices.items()
    }
    assert masks == {"blocks.0": 0.5, "blocks.1": 0.5, "head": 0.75}
    with pytest.raises(ValueError, match=r"'blocks\.1' of rtn has no layer .*first pattern"):
        follow(opened(net), per_layer({"blocks.*": RTN(8), "blocks.1": RTN(4)}))
    with pytest.raises(ValueError, match=r"'nothing\*' of magnitude has no layer"):
        follow(opened(net), layerwise(Magnitude(0.5), "nothing*"))
    with pytest.raises(ValueError, match="at least one pattern"):
        per_layer({})


def test_a_whole_model_method_ranks_the_layers_that_its_pattern_names(net: Net) -> None:
    after = follow(opened(net), layerwise(GlobalMagnitude(0.5), "blocks.*")).one(0)
    kept = {n: int(m.mask.sum()) for n, m in after.matrices.items()}
    assert kept["blocks.0"] + kept["blocks.1"] == 144
    assert kept["head"] == 96


def test_what_is_no_stage_is_refused(net: Net) -> None:
    assert isinstance(as_stage(RTN(4)), Layerwise)
    assert as_stage(LoRA()) == LoRA()
    with pytest.raises(ValueError, match="'rtn' is neither a method on matrices"):
        as_stage("rtn")
    run = Opened(net, None, Policy())
    with pytest.raises(ValueError, match="lora looks at the layers' inputs: give calibration"):
        run.context.check([LoRA()])
    run.context.check([LoRA(steps=0)])


# --------------------------------------------------------------------------------- storage


def test_storage_is_by_the_final_grid_and_mask(net: Net) -> None:
    weights = 2 * 144 + 96

    def layers_ratio(*stages: Any) -> float:
        run = opened(net)
        return run.storage(follow(run, *stages).one(0)).layers_ratio

    assert layers_ratio(RTN(8), RTN(4)) == 4
    assert layers_ratio(Magnitude(0.5), RTN(8), RTN(4)) == 8
    assert layers_ratio(per_layer({"head": RTN(8), "*": RTN(4)})) == pytest.approx(
        16 * weights / (8 * 96 + 4 * 288)
    )
    adapters = 2 * 2 * 24 + 2 * 20  # rank 2
    with_adapters = 16 * weights / (4 * weights + 16 * adapters)
    assert layers_ratio(RTN(4), LoRA(2, 0)) == pytest.approx(with_adapters)
    assert layers_ratio(LoRA(2, 0), RTN(4)) == pytest.approx(with_adapters)
    both = 16 * weights / (4 * weights + 8 * adapters)
    assert layers_ratio(LoRA(2, 0), per_layer({"*+*": RTN(8), "*": RTN(4)})) == pytest.approx(both)


# -------------------------------------------------------------------------------- adapters


def away(run: Opened, version: Versions) -> float:
    """Mean KL from the reference over the calibration data."""
    network, total, count = run.network, 0.0, 0.0
    dense = network.state(version.reference.parameters)
    state = network.state(version.parameters(0))
    for batch in BATCHES:
        pair = distance(network.outputs(dense, batch), network.outputs(state, batch))
        total, count = total + float(pair[0]), count + float(pair[1])
    return total / count


def test_untrained_adapters_change_nothing(net: Net) -> None:
    run = opened(net)
    before = follow(run, Wanda(0.5))
    after = expand(before, [LoRA(3, 0)], run.context, 1).versions
    for name, w in before.parameters(0).weights.items():
        np.testing.assert_array_equal(after.parameters(0).weights[name], w)
    assert after.one(0).products("head") == (("head",), ("head+lora.b", "head+lora.a"))
    again = expand(after, [LoRA(1, 0, where="head")], run.context, 2).versions.one(0)
    assert again.products("head")[2] == ("head+lora2.b", "head+lora2.a")


def test_adapters_may_start_as_what_compensates_for_the_error(net: Net) -> None:
    """The rank-r part of the error in the norm of the inputs, by numpy; of full rank all of it."""
    run = opened(net)
    before = follow(run, Wanda(0.6))
    after = expand(before, [LoRA(2, 0, start="error")], run.context, 1).versions
    for name, dense in run.network.weights.items():
        moments = before.moments[name]
        h = np.asarray(moments.gram, np.float64).reshape(dense.shape[1], -1)
        h = h / float(np.ravel(moments.count)[0])
        h += 0.01 * np.trace(h) / len(h) * np.eye(len(h))
        error = np.asarray(dense - before.parameters(0).weights[name], np.float64)
        root = np.linalg.cholesky(h)
        u, s, v = np.linalg.svd(error @ root, full_matrices=False)
        best = (u[:, :2] * s[:2]) @ v[:2] @ np.linalg.inv(root)
        added = after.parameters(0).weights[name] - before.parameters(0).weights[name]
        np.testing.assert_allclose(added, best, atol=2e-4)
    assert away(run, after) < 0.8 * away(run, before)
    full = expand(before, [LoRA(99, 0, start="error")], run.context, 1).versions
    for name, dense in run.network.weights.items():
        np.testing.assert_allclose(full.parameters(0).weights[name], dense, atol=1e-4)
    with pytest.raises(ValueError, match="start must be one of"):
        LoRA(start="half")  # type: ignore[arg-type]


def test_trained_adapters_bring_the_outputs_back(net: Net) -> None:
    """Between two stages: the base stays as it was, to the bit; what comes later can see them."""
    run = opened(net)
    before = follow(run, Wanda(0.6))
    after = expand(before, [LoRA(2, 60, 2e-2)], run.context, 1).versions
    assert away(run, after) < 0.5 * away(run, before)
    base, state = before.one(0).matrices, after.one(0).matrices
    for name in run.network.specs:
        np.testing.assert_array_equal(state[name].weight, base[name].weight)
        np.testing.assert_array_equal(state[name].mask, base[name].mask)
        b, a = state[f"{name}+lora.b"], state[f"{name}+lora.a"]
        assert (b.weight.shape[1], a.weight.shape[0]) == (2, 2)
        assert float(jnp.abs(b.weight).max()) > 0
        expected = state[name].weight + b.weight @ a.weight
        np.testing.assert_allclose(after.parameters(0).weights[name], expected, atol=1e-6)
    quantized = expand(after, [RTN(8)], run.context, 2).versions
    for name in run.network.specs:
        same(
            State({n: quantized.one(0).matrices[f"{name}+lora.{n}"] for n in "ab"}),
            State({n: state[f"{name}+lora.{n}"] for n in "ab"}),
        )
    assert away(run, quantized) < 0.6 * away(run, before)
    rules = per_layer({"*+lora.?": GPTQ(8, **B)})
    adapters = expand(after, [rules], run.context, 2).versions.one(0).matrices
    assert all((m.grid is not None) == ("+" in n) for n, m in adapters.items())
    assert away(run, expand(after, [rules], run.context, 2).versions) < 0.6 * away(run, before)


def test_distillation_brings_the_outputs_back_and_leaves_masks(net: Net) -> None:
    """After a pruner, and its factors after a factoring; later stages go on from there."""
    run = opened(net)
    before = follow(run, Wanda(0.6))
    after = expand(before, [Distill(60, 5e-3)], run.context, 1).versions
    assert away(run, after) < 0.4 * away(run, before)
    one, two = before.one(0).matrices, after.one(0).matrices
    assert one.keys() == two.keys()
    for name, matrix in two.items():
        np.testing.assert_array_equal(matrix.mask, one[name].mask)
        assert not np.asarray(matrix.weight)[~np.asarray(matrix.mask)].any()
        assert np.any(np.asarray(matrix.weight) != one[name].weight)
    head = expand(before, [Distill(5, 5e-3, "head")], run.context, 1).versions.one(0).matrices
    moved = {n for n, m in head.items() if np.any(np.asarray(m.weight) != one[n].weight)}
    assert moved == {"head"}
    thin = follow(run, LowRank(0.5))
    trained = expand(thin, [Distill(60, 5e-3)], run.context, 1).versions
    assert away(run, trained) < 0.7 * away(run, thin)  # all that this rank has room for
    assert trained.one(0).products("head") == (("head.u", "head.v"),)
    same(expand(before, [Distill(0)], run.context, 1).versions.one(0), before.one(0))
    small = Opened(net, [b[i : i + 8] for b in BATCHES for i in (0, 8)], Policy())
    own = expand(follow(small, Wanda(0.6)), [Distill(9, 5e-3)], small.context, 1).versions.one(0)
    split = Distill(9, 5e-3, examples=8)  # the same steps, of batches cut in two
    for matrix, other in zip(
        expand(before, [split], run.context, 1).versions.one(0).matrices.values(),
        own.matrices.values(),
        strict=True,
    ):
        np.testing.assert_allclose(matrix.weight, other.weight, atol=1e-4)


def test_distillation_stays_on_a_grid_or_is_released_from_it(net: Net) -> None:
    """Straight through the rounding: grids stay, weights move between their points, zeros of a
    mask stay, and the outputs that are trained are those of the rounded weights."""
    run = opened(net)
    rounded = follow(run, Wanda(0.3), RTN(3))
    aware = expand(rounded, [Distill(60, 5e-3)], run.context, 2).versions
    assert away(run, aware) < 0.6 * away(run, rounded)
    for name, matrix in aware.one(0).matrices.items():
        before = rounded.one(0).matrices[name]
        assert matrix.grid is not None
        assert matrix.quantizer is not None
        same(State({name: matrix._replace(weight=before.weight)}), State({name: before}))
        on_grid = round_to_grid(matrix.weight, matrix.grid)
        np.testing.assert_array_equal(matrix.weight, jnp.where(matrix.mask, on_grid, 0))
        assert np.any(np.asarray(matrix.weight) != before.weight)
    rounded = follow(run, RTN(3))
    free = expand(rounded, [Distill(40, 5e-3, on_grid="release")], run.context, 1).versions
    assert all(m.grid is None for m in free.one(0).matrices.values())
    assert away(run, free) < 0.5 * away(run, rounded)
    again = expand(free, [RTN(3)], run.context, 2).versions
    assert all(m.grid is not None for m in again.one(0).matrices.values())
    for wrong in ({"steps": -1}, {"learning_rate": 0.0}, {"on_grid": "snap"}, {"examples": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Distill(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pattern 'x' of distill has no layer"):
        run.context.check([Distill(where="x")])


def test_adapters_train_on_the_tokens_that_count(net: Net) -> None:
    """Padding has no part in it, whatever it holds; a batch of another shape is told of."""

    def trained(padding: int) -> Any:
        padded = [jnp.concatenate([b, jnp.full((16, 2), padding)], 1) for b in BATCHES]
        mask = np.concatenate([np.ones((16, 6)), np.zeros((16, 2))], 1)
        run = Opened(net, padded, Policy(norms="keep"), token_weights=lambda _: mask)
        return follow(run, Magnitude(0.6, tie="index"), LoRA(2, 5, 1e-2)).one(0)

    same(trained(3), trained(17), 1e-6)
    run = Opened(net, [*BATCHES, BATCHES[0][:5]], Policy())
    follow(run, LoRA(1, 1))
    assert any("3 of 4 calibration batches" in note for note in run.context.notes)


def test_a_single_output_is_compared_by_squares() -> None:
    draws = np.random.default_rng(0)
    a, b = (jnp.asarray(draws.normal(size=(5, 1)), jnp.float32) for _ in range(2))
    total, count = distance(a, b)
    assert float(total) == pytest.approx(float(((a - b) ** 2).sum()))
    assert count == 5
    p, q = (draws.normal(size=(5, 3)) for _ in range(2))
    logs = [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q)]
    kl = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)
    weights = np.array([1, 0, 2, 1, 1.0])
    total, count = distance(
        jnp.asarray(p, jnp.float32), jnp.asarray(q, jnp.float32), jnp.asarray(weights)
    )
    assert float(total) == pytest.approx((weights * kl).sum(), rel=1e-5)
    assert count == 5
    near = jnp.asarray(p, jnp.float32)
    tiny, _ = distance(near, near + 1e-4 * jnp.asarray([1.0, -1, 0]))
    assert float(tiny) > 0  # log p - log q alone drowns here


def test_lora_refuses_what_it_cannot_do(net: Net) -> None:
    for settings, told in (
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"steps": -1}, "steps must be"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ):
        with pytest.raises(ValueError, match=told):
            LoRA(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'x' of lora has no layer"):
        opened(net).context.check([LoRA(where="x")])
    both = opened(net, forward=lambda model, batch: (model(batch), 0))
    with pytest.raises(ValueError, match=r"lora compares logits .* returns tuple: give forward="):
        follow(both, LoRA(1, 1))


def test_a_layer_that_is_made_anew_takes_its_adapters_along() -> None:
    w = {n: fresh(jnp.ones((2, 2))) for n in ("a", "b", "a+lora.b", "a+lora.a")}
    state = State(w).with_terms("a", (("a",), ("a+lora.b", "a+lora.a")))
    assert state.matrices.keys() == w.keys()
    assert state.with_terms("a", ()).matrices.keys() == {"b"}
    assert state.with_terms("a", (("b",),)).matrices.keys() == {"b"}
