"""Theorems 3 to 5: closed forms against quadrature and sampling, enumerations, what is special."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import laplace, norm, t, uniform

from perturb.state import fresh
from perturb.types import Problem
from theory.compressors import LowRank
from theory.engine.sweep import check
from theory.maths import orders, scales, swaps
from theory.maths.densities import DENSITIES, Normal
from theory.statements.composability import claims as composability
from theory.statements.composability import proof as composability_proof
from theory.statements.composability import vectors
from theory.statements.interference import claims as interference
from theory.statements.interference import measure as interference_measure
from theory.statements.ordering import claims as ordering
from theory.statements.ordering import measure as ordering_measure

SCIPY = dict(zip(DENSITIES, (norm, laplace, t(4), uniform(-1, 2)), strict=True))
STATEMENTS = (interference.STATEMENT, ordering.STATEMENT, composability.STATEMENT)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.name)
def test_proved_enumerated_and_every_assumption_needed(statement):
    assert statement.prove().holds
    assert statement.exact().holds
    examples = statement.necessity()
    assert examples
    assert all(e.violates for e in examples)
    names = [c.name for f in statement.families for c in f.claims]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.name)
def test_a_thousand_instances(statement):
    found = check(statement, 1000, jax.random.key(3))
    assert found.holds
    # bounds that are 0 <= 0 on every instance would hold whatever they say
    assert all(c.vacuous < 0.9 * c.instances for c in found.claims)


# -------------------------------------------------------------------------------- interference


@pytest.mark.parametrize("density", DENSITIES, ids=lambda d: d.name)
@pytest.mark.parametrize("n", [1, 2, 7, 32, 128])
def test_the_largest_square_is_the_integral(density, n):
    upper = 1.0 if density.name == "uniform" else np.inf

    def tail(x):
        inside = -2 * SCIPY[density].sf(x)
        return 2 * x * -np.expm1(n * np.log1p(inside)) if x else 0.0

    whole = sum(
        quad(tail, a, b, epsabs=1e-12, epsrel=1e-12, limit=300)[0]
        for a, b in itertools.pairwise([x for x in (0, 1, 3, 10) if x < upper] + [upper])
    )
    heavy = density.name.startswith("student")  # cut at 10^4: n c / 10^8 is missing
    found = float(scales.max_square(density, jnp.asarray(float(n))))
    assert found == pytest.approx(whole, rel=1e-6 if heavy else 1e-10)


def test_the_larger_of_two_normal_squares():
    found = scales.max_square(Normal(), jnp.array([0.0, 1.0, 2.0]))
    assert np.asarray(found) == pytest.approx([0, 1, 1 + 2 / np.pi], abs=1e-12)


def changes(n, k, bits, groups, seed):
    """The change of k survivors' squared error, of normal groups of n: [groups]."""
    w = np.random.default_rng(seed).normal(size=(groups, n))
    left = w[:, :k]  # iid: the first k are k at random
    top = 2 ** (bits - 1) - 1
    error = []
    for step in (abs(w).max(1, keepdims=True) / top, abs(left).max(1, keepdims=True) / top):
        error.append(((left - step * np.rint(left / step)) ** 2).sum(1))
    return error[0] - error[1]


@pytest.mark.parametrize(("n", "k"), [(4, 1), (8, 4), (16, 12), (64, 8)])
def test_random_pruning_agrees_with_sampling_within_five_standard_errors(n, k):
    bits = 8  # errors are uniform to far below the standard error
    sample = changes(n, k, bits, 40_000, n)
    law = float(scales.random_pruning_on_grid(Normal(), bits, float(n), float(k)))
    error = sample.std(ddof=1) / np.sqrt(sample.size)
    assert abs(sample.mean() - law) < 5 * error
    assert law > 20 * error  # a law of 0 would not agree


def test_the_largest_weight_makes_the_plain_law_fall_short():
    sample = changes(8, 4, 8, 40_000, 0)
    error = sample.std(ddof=1) / np.sqrt(sample.size)
    plain = float(scales.random_pruning(Normal(), 8, 8.0, 4.0))
    assert sample.mean() > plain + 10 * error


def test_the_law_of_a_row_is_the_sample(monkeypatch):
    monkeypatch.setattr(interference_measure, "SIZES", (32,))
    monkeypatch.setattr(interference_measure, "BITS", (8,))
    found = interference_measure.sample(jax.random.key(5))["interference"][2, :, 0, 0]  # random
    law = interference_measure.random_law(refined=True)[:, 0, 0]
    error = found.std(-1, ddof=1) / np.sqrt(found.shape[-1])
    assert np.all(abs(found.mean(-1) - law) < 5 * error)
    assert np.all(law > 10 * error)


# --------------------------------------------------------------------------------- composability


def attaining(c):
    """Two weights at the edges of the cell of c, and the maximum of their block; D = 1, 3 bits."""
    w, q = (c + 0.5, c - 0.5, 3.0), (c, c, 3.0)
    return composability_proof.rational_errors(w, q, (0, 1, 0), (1, 0, 0), 3)


@pytest.mark.parametrize("power", [1, 0.8, 0.5, 1 / 3, 0.01, 0])
def test_two_weights_attain_the_excess_bound_of_one_block(power):
    def length(v):
        return np.linalg.norm(v.astype(float), 1 / power if power else np.inf)

    e = attaining(1)
    excess = length(e["sq"]) - length(e["s"]) - length(e["q"])
    sharp, general = (f(1, 1.0, power) for f in (swaps.one_block_bound, swaps.swap_bound))
    assert excess == pytest.approx(sharp, abs=1e-12)
    assert sharp == pytest.approx(general) if power in (0, 1) else sharp < general
    # of a higher cell the two weights are nearer to one another, for their size
    e = attaining(2)
    assert length(e["sq"]) - length(e["s"]) - length(e["q"]) <= sharp + 1e-12


@pytest.mark.parametrize(("coarse", "share"), [(2, 0.84), (100, 0.996)])
def test_several_blocks_approach_the_general_bound(coarse, share):
    """A coarse block's 3/2 steps against coarse - 1/2 fine ones: both are rounded to ``coarse``."""
    x_i, x_j = 1.5 * coarse, coarse - 0.5
    excess = np.hypot(x_i, 0.5) - x_j - np.hypot(coarse / 2, 0.5)
    assert share < excess / swaps.swap_bound(1, 1.0, 0.5) < 1


def test_the_square_bound_is_attained():
    e = attaining(2)
    excess = (e["sq"] ** 2).sum() - (e["qs"] ** 2).sum()
    assert excess == pytest.approx(swaps.square_bound(1, 2.0), abs=1e-12)


@pytest.mark.parametrize("groups", [0.0, 1.0])
@pytest.mark.parametrize("k", [0, 1, 3])
def test_masks_of_the_family_have_their_size(groups, k):
    rng = np.random.default_rng(k)
    score = jnp.asarray(rng.integers(0, 3, vectors.UNITS) * 1.0)  # with ties
    x = vectors.Vector(score, 0.0, groups, k, 3.0, score, score)  # type: ignore[arg-type]
    gone = np.asarray(vectors._gone(x, score, jnp.zeros(vectors.UNITS)))
    if groups < 0.5:
        assert (gone.reshape(-1, vectors.GROUP).sum(1) == k).all()
    else:
        assert gone.sum() == k
        assert k == 0 or score[gone].max() <= score[~gone].min()


# -------------------------------------------------------------------------------------- ordering


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_low_rank_is_the_nearest_matrix_then_masked(rank):
    w = np.random.default_rng(rank).normal(size=(8, 8))
    u, s, v = np.linalg.svd(w)
    near = (u[:, :rank] * s[:rank]) @ v[:rank]
    method = LowRank(rank)
    layer = fresh(jnp.asarray(w))
    done = method(layer, Problem(layer.weight), jax.random.key(0)).matrix
    assert np.asarray(done.weight) == pytest.approx(near, abs=1e-12)
    mask = jnp.asarray(w > 0)
    done = method(layer._replace(mask=mask), Problem(layer.weight), jax.random.key(0)).matrix
    assert np.asarray(done.weight) == pytest.approx(np.where(w > 0, near, 0), abs=1e-12)
    assert done.grid is None


def test_additive_losses_count_the_inversions():
    intensity = jnp.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0])
    cost = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (6, 6)))
    found = ordering._all_losses(ordering.Additive(intensity, cost, 0, 0))  # type: ignore[arg-type]
    for order, loss in zip(orders.orders(6), np.asarray(found), strict=True):
        pairs = [(a, b) for a, b in itertools.combinations(order, 2) if intensity[a] > intensity[b]]
        assert loss == pytest.approx(sum(float(cost[a, b]) for a, b in pairs), rel=1e-12)


def test_losses_in_context_grow_along_every_swap_away_from_the_sorted_order():
    steps = np.random.default_rng(1).uniform(0.1, 1, 24)
    every = orders.orders(ordering.CONTEXT)
    loss = dict(
        zip(every, map(float, orders.accumulate(ordering.CONTEXT, jnp.asarray(steps))), strict=True)
    )
    assert all(holds for _, holds in orders.premise(loss))
    assert len(orders.premise(loss)) == 24 * 3 / 2
    assert min(loss, key=loss.__getitem__) == (0, 1, 2, 3)
    loss[0, 1, 2, 3] = max(loss.values()) + 1
    assert [order for order, holds in orders.premise(loss) if not holds] == [
        (0, 1, 3, 2),
        (0, 2, 1, 3),
        (1, 0, 2, 3),
    ]


def table(values):
    """One instance of three methods, their intensities 1 < 2 < 3."""
    loss = {(i,): np.array([float(i + 1)]) for i in range(3)}
    return loss | {o: np.array([v]) for o, v in zip(orders.orders(3), values, strict=True)}


def test_judging_an_instance_where_sorting_is_right_and_one_where_it_is_not():
    right = ordering_measure.judge(table([1.0, 2.0, 2.0, 3.0, 3.0, 4.0]), (0, 1, 2))
    assert right["everywhere"] == right["pairs"] == right["sorted: optimal"] == 1
    assert right["sorted: regret"] == 0
    assert right["strongest first: regret"] == pytest.approx(3)
    assert right["random: optimal"] == pytest.approx(1 / 6)
    wrong = ordering_measure.judge(table([2.0, 1.0, 3.0, 3.0, 3.0, 4.0]), (0, 1, 2))
    assert wrong["everywhere"] == wrong["sorted: optimal"] == 0
    assert wrong["pairs"] == pytest.approx(5 / 6)
    assert wrong["sorted: regret"] == pytest.approx(1)
    assert wrong["sorted: rank"] == pytest.approx(1 / 5)
