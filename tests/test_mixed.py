"""Mixed precision: the best allocation by enumeration, budgets kept, sensitivities by hand."""

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
    LowRank,
    Magnitude,
    MixedPrecision,
    MixedSparsity,
    NofM,
    Wanda,
    chain,
    compress,
)
from perturb.compression import Opened
from perturb.methods.mixed.allocate import allocate
from perturb.methods.mixed.sensitivity import hutchinson
from perturb.naming import parse
from perturb.policy import Policy
from perturb.stage import Sight, per_layer
from perturb.state import Parameters

from .conftest import numpy_init

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CHOICES = (2, 3, 4, 8)


class Net(nnx.Module):
    """The middle layer's outputs hardly count."""

    def __init__(self) -> None:
        options: Any = {"kernel_init": numpy_init, "rngs": nnx.Rngs(0)}
        self.first = nnx.Linear(12, 16, **options)
        self.middle = nnx.Linear(16, 16, **options)
        self.last = nnx.Linear(16, 5, **options)

    def __call__(self, x: Any) -> Any:
        h = jnp.tanh(self.first(x))
        return 3 * self.last(h + 0.01 * self.middle(h))


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


X = jnp.asarray(np.random.default_rng(0).normal(size=(40, 12)), jnp.float32)
NAMES = ("first", "middle", "last")
PROBES = 2000


@pytest.mark.parametrize("seed", range(25))
def test_the_allocation_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, choices = int(rng.integers(1, 5)), int(rng.integers(2, 5))
    costs, weights = rng.exponential(size=(2, layers, choices))
    least, most = weights.min(1).sum(), weights.max(1).sum()
    budget = least + rng.uniform() * (most - least)
    found = allocate(costs, weights, budget)
    rows = np.arange(layers)
    assert weights[rows, found].sum() <= budget * (1 + 1e-9)
    best = min(
        costs[rows, list(c)].sum()
        for c in itertools.product(range(choices), repeat=layers)
        if weights[rows, list(c)].sum() <= budget
    )
    assert costs[rows, found].sum() == pytest.approx(best, rel=1e-9)


def test_a_budget_that_nothing_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="less than the 2 of the lightest"):
        allocate([[1.0, 0.0]], [[2.0, 3.0]], 1.0)
    with pytest.raises(ValueError, match="not finite"):
        allocate([[np.nan, 0.0]], [[2.0, 3.0]], 4.0)


def kl(net: Net, weights: dict[str, Any]) -> float:
    """Mean KL from the model with these layers' matrices instead of its own."""
    other = nnx.clone(net)
    for name, w in weights.items():
        getattr(other, name).kernel[...] = jnp.asarray(w).T
    p, q = (jax.nn.log_softmax(m(X)) for m in (net, other))
    return float((jnp.exp(p) * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("sensitivity", ["outputs", "hessian"])
@pytest.mark.parametrize("budget", [2.0, 3.2, 5.0, 8.0])
def test_the_budget_is_kept_and_spent_where_it_counts(
    net: Net, sensitivity: Any, budget: float
) -> None:
    stage = MixedPrecision(budget, CHOICES, sensitivity=sensitivity, probes=64)
    done = compress(net, stage, X)
    bits = {n: int(done.matrices[n].grid.bits) for n in NAMES}
    sizes = {n: done.matrices[n].weight.size for n in NAMES}
    assert set(bits.values()) <= set(CHOICES)
    assert sum(bits[n] * sizes[n] for n in NAMES) <= budget * sum(sizes.values())
    assert done.storage.bits == sum(bits[n] * sizes[n] for n in NAMES)
    assert bits["middle"] == min(bits.values())
    alone = {b: compress(net, RTN(b)).matrices for b in CHOICES}
    for n in NAMES:
        np.testing.assert_array_equal(done.matrices[n].weight, alone[bits[n]][n].weight)
    if sensitivity == "outputs":  # no other choice within the budget has a smaller sum
        cost = {
            (n, b): kl(net, {n: alone[b][n].weight}) for n, b in itertools.product(NAMES, CHOICES)
        }
        fitting = (
            c
            for c in itertools.product(CHOICES, repeat=3)
            if sum(b * sizes[n] for n, b in zip(NAMES, c, strict=True))
            <= budget * sum(sizes.values())
        )
        best = min(sum(cost[n, b] for n, b in zip(NAMES, c, strict=True)) for c in fitting)
        assert sum(cost[n, bits[n]] for n in NAMES) == pytest.approx(best, rel=1e-3, abs=1e-7)


def test_mixed_is_better_than_uniform_at_the_same_budget(net: Net) -> None:
    mixed = compress(net, MixedPrecision(3.0, CHOICES), X)
    uniform = compress(net, RTN(3))
    assert mixed.storage.bits <= uniform.storage.bits
    found = [kl(net, {n: d.matrices[n].weight for n in NAMES}) for d in (mixed, uniform)]
    assert found[0] < 0.8 * found[1]


def test_hutchinsons_trace_is_that_of_the_gauss_newton_matrix(net: Net) -> None:
    """By the Jacobian of every logit, in full."""
    run = Opened(net, [X[:30], X[30:]], Policy())
    start = run.context.start()
    state = start.one(0)
    sight = Sight(run.context, jax.random.key(0), start.reference, start, 0)
    found = hutchinson(state, sight, PROBES)
    weights = dict(run.network.weights)

    def logits(w: dict[str, Any]) -> Any:
        return run.network.outputs(run.network.state(Parameters(w, {})), X)

    jacobian = jax.jacrev(logits)(weights)
    p = jax.nn.softmax(logits(weights), -1)
    h = p[:, :, None] * jnp.eye(5) - p[:, :, None] * p[:, None, :]
    whole = jnp.concatenate([jacobian[n].reshape(40, 5, -1) for n in jacobian], -1)
    g = np.asarray(jnp.einsum("nkw,nkl,nlv->wv", whole, h, whole), np.float64) / 40
    at = 0
    for name, j in jacobian.items():
        mine = slice(at, at := at + j[0, 0].size)
        own, inside = g[mine, mine], np.zeros(len(g), bool)
        inside[mine] = True
        variance = 2 * ((own**2).sum() - (np.diag(own) ** 2).sum())
        variance += (g[mine][:, ~inside] ** 2).sum()  # what other layers' probes leave
        assert abs(found[name] - np.trace(own)) < 5 * np.sqrt(variance / PROBES)
        precise = np.sqrt(variance / PROBES) < 0.02 * np.trace(own)
        assert precise == (name != "middle")  # which hardly counts


def test_it_follows_a_pruner_and_takes_gptq(net: Net) -> None:
    done = compress(net, chain(Magnitude(0.5), MixedPrecision(4.0, (3, 4, 8), GPTQ(4))), X)
    kept = {n: int(np.sum(done.matrices[n].mask)) for n in NAMES}
    assert sum(kept.values()) == done.storage.kept
    assert done.storage.bits <= 4.0 * done.storage.kept
    assert done.sparsity == pytest.approx(0.5, abs=0.01)
    assert set(done.reports[1]) == set(NAMES)


def test_the_orders_of_allocation_are_chains_of_widths(net: Net) -> None:
    """Each width from the model that the widths before it left: by hand, a chain of layer rules.
    With a quantizer that looks at no inputs the orders are one."""
    settings: dict[str, Any] = {"choices": (3, 8), "quantizer": GPTQ(4)}
    found = {
        order: compress(net, MixedPrecision(5.0, **settings, order=order), X)
        for order in ("at-once", "strong-last", "strong-first")
    }
    bits = {n: int(m.grid.bits) for n, m in found["at-once"].matrices.items()}
    assert set(bits.values()) == {3, 8}
    for order, widths in (("strong-last", (8, 3)), ("strong-first", (3, 8))):
        rules = [per_layer({n: GPTQ(w) for n in NAMES if bits[n] == w}) for w in widths]
        by_hand = compress(net, chain(*rules), X)
        for n in NAMES:
            np.testing.assert_allclose(
                found[order].matrices[n].weight, by_hand.matrices[n].weight, atol=1e-6
            )
    assert any(
        np.any(np.asarray(found["strong-last"].matrices[n].weight) != other.matrices[n].weight)
        for n in NAMES
        for other in (found["strong-first"], found["at-once"])
    )
    blind = [
        compress(net, MixedPrecision(5.0, (3, 8), order=o), X) for o in ("at-once", "strong-first")
    ]
    for n in NAMES:
        np.testing.assert_array_equal(blind[0].matrices[n].weight, blind[1].matrices[n].weight)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_mixed_sparsity_prunes_where_it_costs_least(net: Net, budget: float) -> None:
    choices = (0.25, 0.5, 0.75, 0.875)
    done = compress(net, MixedSparsity(budget, choices, Wanda(0.5)), X)
    gone = {n: 1 - float(np.mean(np.asarray(done.matrices[n].mask))) for n in NAMES}
    sizes = {n: done.matrices[n].weight.size for n in NAMES}
    alone = {s: compress(net, Wanda(s), X).matrices for s in choices}
    chosen = {n: min(choices, key=lambda s: abs(s - gone[n])) for n in NAMES}
    for n in NAMES:
        np.testing.assert_array_equal(done.matrices[n].weight, alone[chosen[n]][n].weight)
    total = sum(sizes.values())
    assert sum(chosen[n] * sizes[n] for n in NAMES) >= budget * total
    cost = {(n, s): kl(net, {n: alone[s][n].weight}) for n, s in itertools.product(NAMES, choices)}
    fitting = (
        c
        for c in itertools.product(choices, repeat=3)
        if sum(s * sizes[n] for n, s in zip(NAMES, c, strict=True)) >= budget * total
    )
    best = min(sum(cost[n, s] for n, s in zip(NAMES, c, strict=True)) for c in fitting)
    assert sum(cost[n, chosen[n]] for n in NAMES) == pytest.approx(best, rel=1e-3, abs=1e-7)


def test_layers_that_are_products_are_refused_and_not_passed_over(net: Net) -> None:
    with pytest.raises(ValueError, match=r"mixed: first is made of first\.u first\.v, no single"):
        compress(net, chain(LowRank(0.2), MixedPrecision()), X)


def test_what_sees_all_layers_at_once_says_so_under_sequential(net: Net) -> None:
    told = "gptq sees the inputs of all layers at once"
    stage = MixedPrecision(4.0, (3, 4, 8), GPTQ(4))
    assert any(told in n for n in compress(net, stage, X, calibrate="sequential").notes)
    assert not any(told in n for n in compress(net, stage, X).notes)
    assert not any(told in n for n in compress(net, GPTQ(4), X, calibrate="sequential").notes)


def test_wrong_settings_are_refused(net: Net) -> None:
    assert parse("mixed:3,sensitivity=hessian") == MixedPrecision(3, sensitivity="hessian")
    for wrong, told in (
        ({"budget": 9.0}, r"budget must lie in \[2, 8\]"),
        ({"choices": (4,)}, "at least two widths"),
        ({"choices": (1, 4)}, "from 2 to 16"),
        ({"sensitivity": "loss"}, "sensitivity must be one of"),
        ({"probes": 0}, "probes must be a whole number"),
        ({"order": "8 to 2"}, "order must be one of"),
    ):
        with pytest.raises(ValueError, match=told):
            MixedPrecision(**wrong)  # type: ignore[arg-type]
    for wrong, told in (
        ({"budget": 0.9}, r"budget must lie in \[0.3, 0.7\]"),
        ({"choices": (0.5, 1.0)}, "sparsity"),
        ({"pruner": Wanda(scope=NofM(2, 4))}, "sparsity|N:M"),
    ):
        with pytest.raises(ValueError, match=told):
            MixedSparsity(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pattern 'x' of mixed has no layer"):
        compress(net, MixedPrecision(where="x"), X)
    with pytest.raises(ValueError, match="mixed looks at the layers' inputs"):
        compress(net, MixedPrecision())
