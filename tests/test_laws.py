"""Laws that every compressor obeys, over the registry in ``cases.py``, in float32.

Each compressor runs on a stack of layers in three states (vmapped, one compilation a structure):
``fresh``; ``pruned``, a quarter of every row gone; ``quantized``, on a 2-bit grid, where most
scores tie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import (
    GPTQ,
    OBR,
    RTN,
    GlobalMagnitude,
    GridSpec,
    Joint,
    Magnitude,
    NofM,
    SparseGPT,
    Wanda,
    chain,
    compress,
)
from perturb.composition import Chain, stages_of
from perturb.family import run_family
from perturb.grid import expand, fit_grid, round_to_grid
from perturb.measure.errors import measures
from perturb.registry import methods
from perturb.state import State, fresh, versions
from perturb.storage import storage_of
from perturb.types import Grid, Matrix, MatrixMethod, Moments, Problem, Solved

from . import reference
from .cases import BLOCK, compressors

OUT, IN = 16, 40
CASES = compressors()
NAMES = sorted(CASES)
STATES = ("fresh", "pruned", "quantized")
KEY = jax.random.key(0)
FULL_TENSOR = GridSpec(per="tensor", convention="full")
TIED = 3  # the index of the layer with tied weights, which the laws about rows leave out
F32 = np.finfo(np.float32).eps


def _stack() -> tuple[Matrix, Moments]:
    """Heavy-tailed with dead inputs; correlated inputs; rank deficient; few levels (ties)."""
    rng = np.random.default_rng(7)
    w = rng.normal(size=(4, OUT, IN))
    w[0] = rng.standard_t(3, size=(OUT, IN))
    w[TIED] = np.clip(np.rint(2 * w[TIED]), -2, 2) / 2
    x = rng.normal(size=(4, 120, IN)) * np.exp(0.4 * rng.normal(size=IN))
    x[0][:, [3, 17, 39]] = 0
    x[1] = 0.2 * x[1] + rng.normal(size=(120, 1))
    x[2, 30:] = 0
    gram = jnp.asarray(np.einsum("lti,ltj->lij", x, x), jnp.float32)
    weight = jnp.asarray(w, jnp.float32)
    return jax.vmap(fresh)(weight), Moments(gram, jnp.full(4, 120.0))


FRESH, STATS = _stack()
DENSE = FRESH.weight


@jax.jit
def _run(method: Any, layers: Matrix, problems: Problem, key: jax.Array) -> Solved:
    return jax.vmap(lambda layer, p: method(layer, p, key))(layers, problems)


def run(
    method: Any, layers: Matrix, stats: Moments, key: jax.Array, dense: jax.Array = DENSE
) -> Solved:
    """A method on a stack of layers; compiled once per method's statics and layer structure.

    Quantizers lay a new grid and do not look at an old one: without it, one program less.
    """
    if isinstance(stages_of(method)[0], RTN | GPTQ | Joint | OBR):
        layers = layers._replace(grid=None)
    return _run(method, layers, Problem(dense, stats), key)


def in_order(*stages: Any, layer: Matrix = FRESH) -> Matrix:
    """The stages one after another, each compiled once for all tests (a chain is no more: see
    test_a_chain_is_its_stages_in_sequence)."""
    for i, stage in enumerate(stages):
        layer = run(stage, layer, STATS, jax.random.fold_in(KEY, i)).matrix
    return layer


@cache
def state(name: str) -> Matrix:
    if name == "fresh":
        return FRESH
    method = Wanda(0.25) if name == "pruned" else RTN(2)
    return run(method, FRESH, STATS, KEY).matrix


@cache
def result(name: str, before: str) -> Solved:
    return run(CASES[name], state(before), STATS, KEY)


def same(a: Any, b: Any) -> bool:
    """The same to the last bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in pairs)


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    expected = np.asarray(expected)
    scale = np.abs(expected).max() or 1.0
    np.testing.assert_allclose(np.asarray(actual), expected, atol=tolerance * scale, rtol=tolerance)


def codes(weight: Any, grid: Grid) -> np.ndarray:
    """What ``weight / scale + zero`` is, [layers, out, in], in float64."""
    scale, zero = (np.asarray(a, np.float64) for a in jax.vmap(lambda g: expand(g, IN))(grid))
    return np.asarray(weight, np.float64) / scale + zero


def assert_on_grid(layer: Matrix) -> None:
    assert layer.grid is not None
    code = codes(layer.weight, layer.grid)
    if np.asarray(layer.grid.zero).flat[0] % 1:  # no 0: what is pruned is 0 by the mask, and
        scale, _ = jax.vmap(lambda g: expand(g, IN))(layer.grid)  # groups of zeros have no scale
        code = np.where(np.asarray(layer.mask) & (np.asarray(scale) > 1e-30), code, 0)
    np.testing.assert_allclose(code, np.rint(code), atol=1e-4)
    top = 2.0 ** np.asarray(layer.grid.bits)[:, None, None] - 1
    code = np.where(np.asarray(layer.mask), np.rint(code), 0)
    assert np.all((code >= 0) & (code <= top))


def setting(name: str, what: str, default: Any = None) -> Any:
    return getattr(CASES[name], what, default)


def names(*kinds: type, **settings: Any) -> list[str]:
    return [
        n
        for n, c in CASES.items()
        if isinstance(c, kinds) and all(getattr(c, k, None) == v for k, v in settings.items())
    ]


PRUNERS = names(Magnitude, GlobalMagnitude, Wanda, SparseGPT, Joint, OBR)
SCORE_PRUNERS = names(Magnitude, GlobalMagnitude, Wanda)
QUANTIZERS = names(RTN, GPTQ)
FREE = names(RTN, GPTQ, mask="free")

# ------------------------------------------------------------------------- the registry itself


def test_every_registered_method_has_a_case() -> None:
    stages = {type(s) for c in CASES.values() for s in stages_of(c)}
    missing = {name for name, cls in methods().items() if cls not in stages}
    assert not missing, f"add {sorted(missing)} to tests/cases.py"


@pytest.mark.parametrize("name", NAMES)
def test_protocol(name: str) -> None:
    c = CASES[name]
    assert isinstance(c, MatrixMethod)
    assert c.name
    assert c.granularity
    assert not hasattr(c, "ratio")  # storage is the only source of ratios
    assert hash(c) == hash(c)
    leaves = jax.tree.leaves(c)
    assert all(isinstance(leaf, float | int) for leaf in leaves)


# ------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("name", NAMES)
def test_storage_is_that_of_the_final_masks_and_bits(name: str, before: str) -> None:
    layer = result(name, before).matrix
    first = jax.tree.map(lambda a: a[0], layer)
    found = storage_of(State({"a": first}), {"a": (OUT, IN)}, 2 * OUT * IN)
    kept = int(np.sum(np.asarray(first.mask)))
    last = next((s for s in stages_of(CASES[name])[::-1] if hasattr(s, "bits")), None)
    bits = 16 if last is None else last.bits
    if last is None and before == "quantized":
        bits = 16 if setting(name, "on_grid") == "release" else 2
    assert (found.weights, found.kept, found.bits) == (OUT * IN, kept, kept * bits)
    assert found.layers_ratio == pytest.approx(16 / bits * OUT * IN / kept)
    assert found.ratio == pytest.approx(32 * OUT * IN / (16 * OUT * IN + kept * bits))


def test_ratios_of_chains_are_not_products() -> None:
    def ratio(*stages: Any) -> float:
        layer = jax.tree.map(lambda a: a[0], in_order(*stages))
        return storage_of(State({"a": layer}), {"a": (OUT, IN)}).layers_ratio

    assert ratio(RTN(8), RTN(4)) == 4
    assert ratio(Magnitude(0.5), RTN(4), Magnitude(0.5)) == 8
    assert ratio(RTN(4), SparseGPT(0.5, block=BLOCK, on_grid="release")) == 2


# ------------------------------------------------------------------------------ masks and grids


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_consistent(name: str, before: str) -> None:
    """Pruned is 0, kept is on the grid, dense is untouched, nothing returns unless free."""
    layer = result(name, before).matrix
    weight, mask = np.asarray(layer.weight), np.asarray(layer.mask)
    assert np.all(np.isfinite(weight))
    assert np.all(weight[~mask] == 0)
    if layer.grid is not None:
        assert_on_grid(layer)
    if name not in FREE:
        assert not np.any(mask & ~np.asarray(state(before).mask))


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("before", ["fresh", "quantized"])
def test_counts_are_exact_whatever_ties(name: str, before: str) -> None:
    gone = ~np.asarray(result(name, before).matrix.mask)
    sparsity, scope = setting(name, "sparsity"), setting(name, "scope")
    if isinstance(scope, NofM):
        groups = gone.reshape(4, OUT, -1, scope.m)
        assert np.all(groups.sum(-1) == scope.m - scope.n)
    elif scope == "row":
        assert np.all(gone.sum(-1) == reference.exact_count(IN, sparsity))
    else:
        assert np.all(gone.sum((1, 2)) == reference.exact_count(OUT * IN, sparsity))
        if scope == "block":  # every block has its share
            ends = [*range(0, IN, BLOCK), IN]
            share = np.diff([reference.exact_count(OUT * e, sparsity) for e in ends])
            blocks = np.stack([b.sum((1, 2)) for b in np.split(gone, ends[1:-1], axis=2)], -1)
            assert np.all(blocks == share)


@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_on_a_pruned_layer_removes_more_and_forgets_nothing(name: str) -> None:
    gone = ~np.asarray(result(name, "pruned").matrix.mask)
    before = ~np.asarray(state("pruned").mask)
    assert np.all(gone[before])
    sparsity, scope = setting(name, "sparsity"), setting(name, "scope")
    if isinstance(scope, NofM):
        shape = (4, OUT, -1, scope.m)
        most = np.maximum(before.reshape(shape).sum(-1), scope.m - scope.n)
        assert np.all(gone.reshape(shape).sum(-1) == most)
    elif scope == "row":
        assert np.all(gone.sum(-1) == np.maximum(10, reference.exact_count(IN, sparsity)))
    else:  # no block holds more than its share already
        assert np.all(gone.sum((1, 2)) == reference.exact_count(OUT * IN, sparsity))


@pytest.mark.parametrize("name", names(SparseGPT) + SCORE_PRUNERS)
def test_survivors_stay_on_the_grid_unless_released(name: str) -> None:
    """After Q -> P. Score pruners do not even move them."""
    before, after = state("quantized"), result(name, "quantized").matrix
    if setting(name, "on_grid") == "release":
        assert after.grid is None
        assert np.abs(codes(after.weight, before.grid) % 1 - 0.5).min() < 0.4  # it did move off
        return
    assert_on_grid(after)
    if setting(name, "on_grid") != "refit":
        assert same(after.grid, before.grid)
    if name in SCORE_PRUNERS:
        kept = np.asarray(after.mask)
        assert np.array_equal(np.asarray(after.weight), np.where(kept, before.weight, 0))


def test_a_free_mask_lets_gptq_return_weights_and_says_so() -> None:
    before = np.asarray(state("pruned").mask)
    free, enforced = (result(n, "pruned").matrix for n in ("gptq-free", "gptq"))
    returned = np.asarray(free.mask) & ~before
    assert returned.any()
    assert np.all(np.asarray(free.weight)[returned] != 0)
    assert np.all(np.asarray(free.mask)[before])  # the mask only grows
    assert np.array_equal(np.asarray(enforced.mask), before)


# -------------------------------------------------------------------------------- idempotence


@pytest.mark.parametrize("before", ["fresh", "quantized"])
@pytest.mark.parametrize("name", SCORE_PRUNERS + names(SparseGPT))
def test_pruning_again_at_the_same_sparsity_changes_nothing(name: str, before: str) -> None:
    """SparseGPT too: what it would remove is 0 already, so there is no error to compensate.

    Not SparseGPT(target="dense"): it starts again from the dense weights each time.
    """
    once = result(name, before).matrix
    twice = run(CASES[name], once, STATS, jax.random.key(99)).matrix
    assert same(twice.mask, once.mask)
    if name != "sparsegpt-reference-aware":
        assert same(twice.weight, once.weight)


@pytest.mark.parametrize("name", names(RTN))
def test_rounding_to_its_own_grid_again_changes_nothing(name: str) -> None:
    once = result(name, "fresh").matrix
    again = jax.vmap(round_to_grid)(once.weight, once.grid)
    assert same(again, once.weight)


@pytest.mark.parametrize("kind", [RTN, GPTQ])
@pytest.mark.parametrize("spec", [GridSpec(), GridSpec(False, "tensor")])
def test_quantizing_twice_with_a_dense_scale_is_quantizing_once(kind: Any, spec: GridSpec) -> None:
    """The grid is the same both times. A grid refitted to the rounded weights is another one,
    except where the range lies on the grid: see the next test."""
    method = kind(3, spec, scale_source="dense")
    once = run(method, FRESH, STATS, KEY).matrix
    twice = run(method, once, STATS, KEY).matrix
    dead = np.asarray(jax.vmap(jnp.diagonal)(STATS.gram)) == 0
    assert dead.any()
    assert same(twice.weight, once.weight)
    assert same(twice.grid, once.grid)


@pytest.mark.parametrize(
    "spec",
    [GridSpec(convention="full"), GridSpec(False), GridSpec(False, 8), FULL_TENSOR],
)
def test_rtn_refits_the_same_grid_where_the_range_lies_on_it(spec: GridSpec) -> None:
    once = run(RTN(4, spec), FRESH, STATS, KEY).matrix
    twice = run(RTN(4, spec), once, STATS, KEY).matrix
    close(twice.weight, once.weight, 4 * F32)


@pytest.mark.parametrize("per", ["row", "tensor", 8])
@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_a_midrise_grid_is_half_a_step_beside_that_of_half_and_has_no_0(
    per: Any, clip: Any
) -> None:
    spec = GridSpec(per=per, clip=clip, convention="midrise")
    w = jnp.where(DENSE[0] == 0, 1e-3, DENSE[0])
    grid = fit_grid(w, 3, spec)
    q, scale = np.asarray(round_to_grid(w, grid)), np.asarray(grid.scale)
    levels = (np.arange(8) - 3.5) * scale[..., None]  # [out, groups, 8]
    shaped = np.asarray(w).reshape(*scale.shape, -1)
    nearest = np.abs(shaped[..., None] - levels[..., None, :]).argmin(-1)
    close(q.reshape(shaped.shape), np.take_along_axis(levels, nearest, -1), 4 * F32)
    assert not (q == 0).any()
    if clip == "absmax":
        assert same(grid.scale, fit_grid(w, 3, GridSpec(per=per)).scale)
        close(np.abs(q).max(), np.abs(np.asarray(w)).max(), 4 * F32)
    nothing = jnp.zeros_like(w)
    assert np.all(np.asarray(round_to_grid(nothing, fit_grid(nothing, 3, spec))) == 0)


def test_rtn_with_the_half_convention_shrinks_when_refitted() -> None:
    """Its absmax lies half way between two codes, so it is never on its own grid."""
    once = run(RTN(3), FRESH, STATS, KEY).matrix
    twice = run(RTN(3), once, STATS, KEY).matrix
    assert not same(twice.weight, once.weight)


# ----------------------------------------------------------------------------- keys and symmetry


@pytest.mark.parametrize("name", NAMES)
def test_same_key_same_result_and_the_key_matters_for_random_ties_only(name: str) -> None:
    before = state("quantized")
    white = STATS._replace(scatter=jnp.broadcast_to(120 * jnp.eye(IN), STATS.scatter.shape))
    once = run(CASES[name], before, white, KEY)  # inputs that are alike leave ties among weights
    assert same(run(CASES[name], before, white, KEY), once)
    other = run(CASES[name], before, white, jax.random.key(1))
    draws = any(getattr(s, "tie", "index") == "random" for s in stages_of(CASES[name]))
    assert same(other.matrix.mask, once.matrix.mask) != draws
    assert same(other.matrix.weight, once.matrix.weight) != draws


@pytest.mark.parametrize("name", names(Magnitude, GlobalMagnitude, tie="random"))
def test_random_ties_decide_among_equals_only(name: str) -> None:
    """Whatever the key, the same multiset of scores is removed."""
    before = np.abs(np.asarray(state("quantized").weight))
    removed = [
        [np.sort(s[~m]) for s, m in zip(before, np.asarray(mask), strict=True)]
        for mask in (
            run(CASES[name], state("quantized"), STATS, jax.random.key(k)).matrix.mask
            for k in range(2)
        )
    ]
    for a, b in zip(*removed, strict=True):
        np.testing.assert_array_equal(a, b)


def test_dense_ties_remove_the_smaller_dense_weight() -> None:
    before, after = state("quantized"), result("magnitude-dense-ties", "quantized").matrix
    size, dense = (np.abs(np.asarray(a)) for a in (before.weight, DENSE))
    gone = ~np.asarray(after.mask)
    for row in np.ndindex(4, OUT):
        last = size[row][gone[row]].max()
        tied = size[row] == last
        removed, kept = dense[row][tied & gone[row]], dense[row][tied & ~gone[row]]
        assert not kept.size or removed.max() <= kept.min()


@pytest.mark.parametrize("before", ["fresh", "pruned"])
@pytest.mark.parametrize("name", NAMES)
def test_permuting_rows_permutes_the_result(name: str, before: str) -> None:
    """Rows only meet in counts and per-tensor scales.

    Not where scores tie across rows (the first index goes): the layer with tied weights is left
    out. Not to the last bit: a matmul may sum in another order.
    """
    order = np.random.default_rng(3).permutation(OUT)

    def permute(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[:, order] if a.ndim > 1 else a, tree)

    got = run(CASES[name], permute(state(before)), STATS, KEY, permute(DENSE)).matrix
    expected = permute(result(name, before).matrix)
    for a, b in ((got.mask, expected.mask), (got.weight, expected.weight)):
        close(a[:TIED], b[:TIED], 1e-4)


# --------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("name", names(Chain))
@pytest.mark.parametrize("before", ["fresh", "quantized"])
def test_a_chain_is_its_stages_in_sequence(name: str, before: str) -> None:
    layer = in_order(*CASES[name].stages, layer=state(before))
    got = result(name, before).matrix
    assert same(got.mask, layer.mask)
    close(got.weight, layer.weight)
    assert jax.tree.structure(got) == jax.tree.structure(layer)


def test_a_chain_of_chains_is_flat_and_an_empty_one_is_refused() -> None:
    p, q, r = Magnitude(0.5), RTN(4), Wanda(0.5)
    assert chain(chain(p, q), r) == chain(p, chain(q, r)) == chain(p, q, r)
    assert isinstance(chain(chain(p)), Chain)
    assert chain(p, q).name == "magnitude>rtn"
    with pytest.raises(ValueError, match="at least one"):
        chain()


@pytest.mark.parametrize(
    "spec", [GridSpec(), GridSpec(False, 8), GridSpec(per="tensor", clip="mse")]
)
@pytest.mark.parametrize("pruner", [Magnitude(0.6), Magnitude(scope=NofM(2, 4)), Wanda(0.3)])
def test_on_a_fixed_grid_rounding_and_masking_commute(spec: GridSpec, pruner: Any) -> None:
    """Q(P(w)) = mask Q(w), to the last bit, when the scale comes from the dense weights."""
    q = RTN(3, spec, scale_source="dense")
    both, mask, alone = in_order(pruner, q), in_order(pruner).mask, in_order(q)
    assert same(both.mask, mask)
    assert np.array_equal(np.asarray(both.weight), np.where(mask, alone.weight, 0))


def test_the_grid_is_the_same_where_the_absmax_survives() -> None:
    """Magnitude pruning keeps the largest weight of a row unless the whole row goes."""
    for method in (RTN(3), RTN(3, GridSpec(convention="full")), RTN(2, GridSpec(per=8))):
        both, alone = in_order(Magnitude(0.5, "row"), method), in_order(method)
        largest = np.abs(np.asarray(DENSE)).reshape(4, OUT, both.grid.scale.shape[-1], -1)
        kept = np.asarray(both.mask).reshape(largest.shape)
        survives = np.any(kept & (largest == largest.max(-1, keepdims=True)), -1)
        assert survives.any()
        if not isinstance(method.grid.per, int):
            assert survives.all()
        weight, rounded = (np.asarray(x.weight).reshape(largest.shape) for x in (both, alone))
        expected = np.where(kept, rounded, 0)
        assert np.array_equal(weight[survives], expected[survives])


@pytest.mark.parametrize("spec", [GridSpec(convention="full"), FULL_TENSOR])
def test_the_order_is_free_where_the_second_stage_does_nothing(spec: GridSpec) -> None:
    """Theorem 2a: if all that is pruned rounds to 0, both orders give Q(w), and A = 0 exactly."""
    p, q = Magnitude(0.25, "row"), RTN(2, spec)
    pq, qp, alone = in_order(p, q), in_order(q, p), in_order(q)
    mask = np.asarray(in_order(p).mask)
    free = np.all((np.asarray(alone.weight) == 0) | mask, axis=(1, 2))
    assert free[:TIED].all()
    for i in np.flatnonzero(free):
        stats = jax.tree.map(lambda a, i=i: a[i], STATS)
        loss = [float(measures(DENSE[i], x.weight[i], stats)["out_err"]) for x in (pq, qp, alone)]
        assert loss[0] - loss[1] == 0.0
        assert same(pq.weight[i], qp.weight[i])
        assert same(pq.weight[i], alone.weight[i])


@pytest.mark.parametrize("q", [RTN(3), GPTQ(3, block=BLOCK)], ids=lambda q: q.name)
def test_with_nothing_to_prune_both_orders_are_quantizing(q: Any) -> None:
    alone = in_order(q)
    for p in (Magnitude(0.0), Wanda(0.0), SparseGPT(0.0, block=BLOCK)):
        for both in (in_order(p, q), in_order(q, p)):
            close(both.weight, alone.weight)


def loss(layer: Matrix) -> np.ndarray:
    """Output error of each layer of the stack."""
    errors = [
        measures(DENSE[i], layer.weight[i], jax.tree.map(lambda a, i=i: a[i], STATS))
        for i in range(4)
    ]
    return np.array([float(e["out_err"]) for e in errors])


PAIRS_P = {
    "magnitude": Magnitude(0.5, "row"),
    "global": GlobalMagnitude(0.5),
    "wanda": Wanda(0.5),
    "sparsegpt": SparseGPT(0.5, block=BLOCK),
    "sparsegpt-2:4": SparseGPT(scope=NofM(2, 4), block=BLOCK),
    "release": SparseGPT(0.5, block=BLOCK, on_grid="release"),
}
PAIRS_Q = {
    "rtn": RTN(16),
    "rtn-dense-scale": RTN(16, GridSpec(False), scale_source="dense"),
    "gptq": GPTQ(16, block=BLOCK),
    "gptq-group": GPTQ(16, GridSpec(per=8), block=BLOCK),
}


def advantage(p: Any, q: Any) -> np.ndarray:
    """A(Q->P) of the layers without tied weights (what ties across rows, rounding decides)."""
    return (loss(in_order(p, q)) - loss(in_order(q, p)))[:TIED]


@pytest.mark.parametrize("q", PAIRS_Q)
@pytest.mark.parametrize("p", PAIRS_P)
def test_the_advantage_vanishes_as_the_bits_grow(p: str, q: str) -> None:
    """Rounding that changes nothing leaves nothing to be ordered. At 16 bits a near-tie of two
    scores may still fall the other way: one weight of 640."""
    alone = loss(in_order(PAIRS_P[p]))[:TIED]
    assert np.all(np.abs(advantage(PAIRS_P[p], PAIRS_Q[q])) < 0.01 * alone)


@pytest.mark.parametrize("q", ["rtn", "gptq-group"])
def test_snapping_to_the_old_grid_keeps_an_advantage_at_any_width(q: str) -> None:
    """The control of the law above: what it clips is the protocol's doing, not the order's."""
    snap = SparseGPT(0.5, block=BLOCK, on_grid="snap")
    alone = loss(in_order(snap))[:TIED]
    assert np.min(advantage(snap, PAIRS_Q[q]) / alone) < -0.05
    dense = GPTQ(16, scale_source="dense", on_grid="snap", block=BLOCK)
    clipped = loss(in_order(PAIRS_P["sparsegpt"], dense))[:TIED]
    assert np.max(clipped / alone) > 1.05


@pytest.mark.parametrize("q", [RTN(3), GPTQ(3, block=BLOCK)], ids=lambda q: q.name)
@pytest.mark.parametrize("p", [Magnitude(0.002), SparseGPT(0.007, block=BLOCK)])
def test_the_advantage_vanishes_with_the_ratio(p: Any, q: Any) -> None:
    """One weight of a layer, or of a block, is pruned: a grid is laid anew only where it must."""
    assert np.all(np.abs(advantage(p, q)) < 0.01 * loss(in_order(q))[:TIED])


def test_joint_becomes_sparsegpt_as_the_bits_grow() -> None:
    alone = loss(in_order(PAIRS_P["sparsegpt"]))[:TIED]
    refit, snap = (
        loss(in_order(Joint(0.5, 16, on_grid=g, block=BLOCK)))[:TIED] for g in ("refit", "snap")
    )
    assert np.all(np.abs(refit - alone) < 0.01 * alone)
    assert np.max(snap / alone) > 1.05


def test_a_tie_rule_that_is_fair_to_positions_is_the_default() -> None:
    """After 3-bit rounding most scores tie: by index, the left of a row goes first."""
    w = jax.random.normal(jax.random.key(5), (64, 128))
    layer = RTN(3)(fresh(w), None, KEY).matrix

    def kept_left_and_right(method: Any) -> tuple[float, float]:
        mask = np.asarray(method(layer, Problem(w), KEY).matrix.mask)
        return float(mask[:, :64].mean()), float(mask[:, 64:].mean())

    left, right = kept_left_and_right(Magnitude(0.5, "row", "index"))
    assert right - left > 0.2
    left, right = kept_left_and_right(Magnitude(0.5, "row"))
    assert abs(right - left) < 0.03
    for kind in (Magnitude, GlobalMagnitude, Wanda, SparseGPT, Joint, OBR):
        assert kind(0.5).tie == "random"


def test_dead_columns_are_treated_alike_by_all_quantizers() -> None:
    """A large weight of a dead input widens RTN's scale and GPTQ's: alike, and it is kept."""
    w = DENSE[0].at[:, 3].set(30.0)
    stats = jax.tree.map(lambda a: a[0], STATS)
    done = [q(fresh(w), Problem(w, stats), KEY).matrix for q in (RTN(4), GPTQ(4, block=BLOCK))]
    assert same(done[0].grid, done[1].grid)
    assert same(done[0].weight[:, 3], done[1].weight[:, 3])
    assert np.all(np.asarray(done[1].weight[:, 3]) > 20)


@pytest.mark.parametrize("target", ["current", "dense"])
@pytest.mark.parametrize("kind", [Wanda, SparseGPT])
def test_of_dead_inputs_the_smallest_weights_go_whatever_the_draw(kind: Any, target: str) -> None:
    """They cost nothing where calibration looks, and may cost elsewhere: chance must not choose."""
    dead = np.arange(IN) % 2 == 1
    x = np.where(dead, 0, np.random.default_rng(0).normal(size=(200, IN)))
    stats = Moments(jnp.asarray(x.T @ x, jnp.float32), jnp.float32(200))
    for scope in ("row", NofM(3, 4)) if kind is Wanda else ("block", NofM(3, 4)):
        method = kind(0.25, scope, target=target)
        first, second = (
            np.asarray(method(fresh(DENSE[0]), Problem(DENSE[0], stats), key).matrix.mask)
            for key in jax.random.split(KEY)
        )
        np.testing.assert_array_equal(first, second)
        assert np.all(first[:, ~dead])
        size = np.abs(np.asarray(DENSE[0]))[:, dead]
        if isinstance(scope, NofM):  # one of the two dead weights of each group
            part = size.reshape(len(size), -1, 2)
            goes = part == part.min(-1, keepdims=True)
        elif scope == "row":
            goes = size <= np.sort(size, axis=1)[:, [IN // 4 - 1]]
        else:  # IN columns are one block: half of all its dead weights
            goes = size <= np.median(size)
        np.testing.assert_array_equal(~first[:, dead], goes.reshape(size.shape))


@pytest.mark.parametrize("size", [1e-3, 1e-12, 1e12])
@pytest.mark.parametrize("method", [GPTQ(3, block=BLOCK), SparseGPT(0.5, block=BLOCK)])
def test_the_scale_of_the_inputs_does_not_matter(method: Any, size: float) -> None:
    """With dead inputs: their place-holder on the diagonal must not weigh in the damping."""
    stats = jax.tree.map(lambda a: a[0], STATS)
    expected = method(fresh(DENSE[0]), Problem(DENSE[0], stats), KEY).matrix
    scaled = stats._replace(scatter=size * stats.scatter)
    got = method(fresh(DENSE[0]), Problem(DENSE[0], scaled), KEY).matrix
    assert np.mean(np.asarray(got.mask) == np.asarray(expected.mask)) > 0.99
    agree = np.isclose(got.weight, expected.weight, rtol=1e-3, atol=1e-4)
    assert agree.mean() > 0.98  # a rounding may flip


@pytest.mark.parametrize("method", [GPTQ(3, block=BLOCK), SparseGPT(0.5, block=BLOCK), Wanda(0.5)])
@pytest.mark.parametrize("count", [0.0, 50.0])
def test_a_layer_that_saw_nothing_is_compressed_as_if_its_inputs_were_white(
    method: Any, count: float
) -> None:
    nothing = Moments(jnp.zeros((IN, IN)), jnp.float32(count))
    white = Moments(50 * jnp.eye(IN), jnp.float32(50.0))
    got, expected = (
        method(fresh(DENSE[1]), Problem(DENSE[1], s), KEY).matrix for s in (nothing, white)
    )
    assert same(got.mask, expected.mask)
    close(got.weight, expected.weight)


def test_half_precision_weights_are_solved_in_float32() -> None:
    w = DENSE[1].astype(jnp.bfloat16)
    stats = jax.tree.map(lambda a: a[1], STATS)
    for method in (RTN(4), GPTQ(4, block=BLOCK), SparseGPT(0.5, block=BLOCK), RTN(16)):
        got = method(fresh(w), Problem(w, stats), KEY).matrix
        expected = method(
            fresh(w.astype(jnp.float32)), Problem(w.astype(jnp.float32), stats), KEY
        ).matrix
        assert got.weight.dtype == jnp.float32
        assert same(got.weight, expected.weight)


@pytest.mark.parametrize("s", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_in_weight_error_pruning_first_never_loses_on_one_fixed_grid(s: float, bits: int) -> None:
    """Theorem 2a: A(Q -> P) <= 0 for magnitude masks, in every population with ONE grid.

    The grid has to be symmetric in fact (convention "full"), and the mask must not compare rows
    of different steps: per-layer masks on per-row grids, or the "half" convention, break it.
    """
    p, q = Magnitude(s, "row"), RTN(bits, GridSpec(convention="full"), scale_source="dense")
    pq, qp = (np.asarray(x.weight, np.float64) for x in (in_order(p, q), in_order(q, p)))
    pq, qp = (np.sum((x - np.asarray(DENSE)) ** 2, -1) for x in (pq, qp))  # [layers, rows]
    assert np.all(pq <= qp * (1 + 1e-6))
    assert bits == 2 or np.any(pq < qp * (1 - 1e-6))  # at 2 bits most of a row rounds to 0


# --------------------------------------------------------------------------------- compilation


def compilations(members: list[Any]) -> int:
    """How many programs running the members on fresh layers adds."""
    run(members[0], FRESH, STATS, KEY)
    before = _run._cache_size()
    for method in members[1:]:
        run(method, FRESH, STATS, KEY)
    return _run._cache_size() - before


@pytest.mark.parametrize("name", names(Magnitude, GlobalMagnitude, Wanda, SparseGPT, Joint, OBR))
def test_one_program_serves_every_sparsity(name: str) -> None:
    if isinstance(setting(name, "scope"), NofM):
        return
    make = dataclasses.replace
    assert compilations([make(CASES[name], sparsity=s) for s in (0.1, 0.5, 0.73, 0.0)]) == 0


@pytest.mark.parametrize("name", names(RTN, GPTQ, Joint, OBR))
def test_one_program_serves_every_width(name: str) -> None:
    make = dataclasses.replace
    assert compilations([make(CASES[name], bits=b) for b in (2, 3, 8, 16)]) == 0


@pytest.mark.parametrize(
    "members",
    [
        [GPTQ(b, block=BLOCK) for b in (2, 4, 16)],
        [SparseGPT(s, tie="index", block=BLOCK) for s in (0.1, 0.6)],
        [Magnitude(s, "row", "index") for s in (0.1, 0.6)],
        [GlobalMagnitude(0.1)],
    ],
    ids=lambda m: m[0].name,
)
def test_a_family_is_its_members(members: list[Any]) -> None:
    """``run_family`` on four layers (stacked rows, shared factors) against one at a time."""
    layers = {str(i): jax.tree.map(lambda a, i=i: a[i], FRESH) for i in range(4)}
    stats = {str(i): jax.tree.map(lambda a, i=i: a[i], STATS) for i in range(4)}
    problems = {n: Problem(x.weight, stats[n]) for n, x in layers.items()}
    family = run_family(members, {n: versions(x) for n, x in layers.items()}, problems, KEY)
    if isinstance(members[0], GlobalMagnitude):  # one ranking over all four
        gone = sum(int(jnp.sum(~r.matrix.mask)) for r in family.values())
        assert gone == reference.exact_count(4 * OUT * IN, members[0].sparsity)
        return
    for f, member in enumerate(members):
        alone = in_order(member)
        for i, r in enumerate(family.values()):
            assert same(r.matrix.mask[0, f], alone.mask[i])
            close(r.matrix.weight[0, f], alone.weight[i])


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", [Magnitude, GlobalMagnitude, Wanda, SparseGPT, Joint, OBR])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, 1, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(kind: Any, sparsity: float) -> None:
    with pytest.raises(ValueError, match=str(sparsity)):
        kind(sparsity)


@pytest.mark.parametrize("kind", [RTN, GPTQ, lambda b: Joint(0.5, b), lambda b: OBR(0.5, b)])
@pytest.mark.parametrize("bits", [1, 17, 2.5, 0, -4])
def test_unsupported_bits_are_refused(kind: Any, bits: float) -> None:
    with pytest.raises(ValueError, match=f"2 to 16, got {bits}"):
        kind(bits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Magnitude(), "needs a sparsity"),
        (lambda: SparseGPT(0.3, NofM(2, 4)), "2:4 mask has sparsity 0.5, got 0.3"),
        (lambda: Magnitude(0.5, "column"), "scope must be one of 'layer', 'row'; got 'column'"),
        (lambda: Wanda(0.5, tie="first"), "tie must be one of .*'first'"),
        (lambda: SparseGPT(0.5, on_grid="stay"), "on_grid must be one of .*'stay'"),
        (lambda: RTN(4, mask="maybe"), "mask must be one of .*'maybe'"),
        (lambda: GPTQ(4, scale_source="sparse"), "scale_source must be one of .*'sparse'"),
        (lambda: GridSpec(per=0), "group size > 0, got 0"),
        (lambda: GridSpec(per="channel"), "per must be .*'channel'"),
        (lambda: GridSpec(clip="percentile"), "'percentile'"),  # type: ignore[arg-type]
        (lambda: GridSpec(convention="third"), "'third'"),  # type: ignore[arg-type]
        (lambda: GridSpec(False, convention="midrise"), "'midrise' is a symmetric grid"),
        (lambda: GPTQ(4, GridSpec(per=8), act_order=True), "static_groups=True"),
    ],
)
def test_a_choice_that_does_not_exist_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Nine(nnx.Module):
    """Widths 9 and 8: neither 2:4 nor groups of 4 divide the first layer."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(9, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(nnx.relu(self.first(x)))


class NoLayer(nnx.Module):
    def __init__(self) -> None:
        self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


X9 = np.random.default_rng(0).normal(size=(32, 9)).astype(np.float32)


@pytest.mark.parametrize(
    ("method", "calibration", "options", "message"),
    [
        (Magnitude(scope=NofM(2, 4)), X9, {}, "layer first: its 9 inputs .* groups of 4"),
        (RTN(4, GridSpec(per=4)), None, {}, "layer first: group size 4 does not divide its 9"),
        (chain(RTN(4), GPTQ(4, GridSpec(per=4))), X9, {}, "layer first: group size 4"),
        (Wanda(0.5), None, {}, "wanda looks at the layers' inputs: give calibration"),
        (chain(RTN(4), SparseGPT(0.5)), None, {}, "sparsegpt looks at"),
        (Wanda(0.5), [], {}, "calibration set is empty"),
        (Wanda(0.5), X9[:0], {}, "calibration set is empty"),
        (Wanda(0.5), [X9, X9[:0]], {}, "batch 1 has no examples"),
        (RTN(4), [], {}, "calibration set is empty"),
        (RTN(4), None, {"exclude": ["thrid"]}, "'thrid' matches no layer.*first, second"),
        (RTN(4), None, {"exclude": ["*"]}, "Nine has no compressible layer"),
        (Wanda(0.5), X9, {"calibrate": "online"}, "calibrate must be .*'online'"),
        (Wanda(0.5), np.full_like(X9, np.inf), {}, "layer first: its inputs .* not finite"),
    ],
)
def test_compress_refuses_by_name_and_value(
    method: Any, calibration: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compress(Nine(), method, calibration, **options)


def test_compress_refuses_weights_that_are_not_finite() -> None:
    model = Nine()
    model.second.kernel[...] = model.second.kernel[...].at[2, 1].set(jnp.nan).at[0, 0].set(jnp.inf)
    with pytest.raises(ValueError, match="layer second: 2 of its 32 weights are not finite"):
        compress(model, RTN(4))


def test_compress_refuses_a_model_without_layers() -> None:
    with pytest.raises(ValueError, match="NoLayer has no compressible layer"):
        compress(NoLayer(), RTN(4))


def test_an_excluded_layer_may_have_any_width() -> None:
    done = compress(Nine(), Magnitude(scope=NofM(2, 4)), exclude=["first"])
    assert set(done.matrices) == {"second"}
    assert "first" in done.skipped
    assert done.sparsity == 0.5


def test_global_magnitude_ranks_the_whole_model() -> None:
    model = Nine()
    model.first.kernel[...] = 100 * model.first.kernel[...]
    done = compress(model, GlobalMagnitude(0.25))
    assert bool(jnp.all(done.matrices["first"].mask))
    assert int(jnp.sum(~done.matrices["second"].mask)) == (9 * 8 + 8 * 4) // 4


def test_the_fitted_grid_is_what_grid_says() -> None:
    spec = GridSpec(False, 8)
    assert fit_grid(DENSE[0], 3, spec).scale.shape == (OUT, spec.groups(IN))
