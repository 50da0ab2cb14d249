"""Theorem 4: n methods. When is sorting them by intensity, the weakest first, the best order?

Premise: for every adjacent pair, in every context, the order with the weaker of the two first is
the better one. Then the sorted order is optimal among all n!: any other order has an adjacent pair
out of place, swapping it improves M and leaves one inversion less, and only the sorted order has
none (exchange argument). Two families, from the special to the general:

additive           loss(order) = base + sum of c_ij >= 0 over the inversions, the pairs with the
                   stronger one first: a swap of neighbours changes it by +-c_ij, whatever else;
context-dependent  any loss that grows along every swap away from the sorted order. All of them are
                   loss(order) = max over its improving swaps of their loss + g(order), g > 0: an
                   order is worse than each order that it can be improved to, by what it may.

The sorted order then wins by at least (number of inversions) min g. Source: Kim et al., ICLR 2026
(arXiv 2603.18426), appendix B.3 (its statement was not available); the argument is made here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from theory.engine import instances, symbolic
from theory.engine.statement import (
    Claim,
    Counterexample,
    Exact,
    Family,
    Finding,
    Proof,
    Sides,
    Statement,
)

Array = jax.Array
Order = tuple[int, ...]
MOST, CONTEXT = 6, 4  # methods in the additive and the context-dependent family

# --------------------------------------------------------------------------------- permutations


def orders(n: int) -> list[Order]:
    return list(itertools.permutations(range(n)))


def swapped(order: Order, at: int) -> Order:
    """The order with positions at and at + 1 exchanged."""
    return (*order[:at], order[at + 1], order[at], *order[at + 2 :])


def inversions(order: Sequence[int]) -> int:
    """Pairs with the larger number, the stronger method, first."""
    return sum(a > b for a, b in itertools.combinations(order, 2))


def precedence(order: Sequence[int]) -> np.ndarray:
    """[n, n] of 0 and 1: whether the row's method comes before the column's."""
    place = np.argsort(order)
    return (place[:, None] < place[None, :]).astype(int)


# ---------------------------------------------------------------------------------- closed forms


def additive_loss(before: Any, stronger: Any, cost: Any) -> Any:
    """sum of cost over the inversions. before: see :func:`precedence`, [..., n, n]; stronger
    [n, n]: whether the row's method is stronger than the column's; cost [n, n]."""
    return (before * stronger * cost).sum((-2, -1))


def accumulate(step: Any) -> list[Any]:
    """The context-dependent loss of every order of CONTEXT methods numbered by intensity.

    step: g of every order, in the order of :func:`orders`; that of the sorted order is its loss.
    """
    every = orders(CONTEXT)
    loss: dict[Order, Any] = {}
    for order in sorted(every, key=inversions):
        better = [loss[swapped(order, i)] for i in _out_of_place(order)]
        most = better[0] if better else 0 * step[0]
        for other in better[1:]:
            most = jnp.maximum(most, other)
        loss[order] = most + step[every.index(order)]
    return [loss[order] for order in every]


def _out_of_place(order: Order) -> list[int]:
    """Positions of the adjacent inversions."""
    return [i for i in range(len(order) - 1) if order[i] > order[i + 1]]


# ------------------------------------------------------------------------------ random instances


class Additive(NamedTuple):
    intensity: Array  # [MOST], any
    cost: Array  # [MOST, MOST] >= 0; 0 for methods beyond n, which then make no difference
    order: Array  # which of the orders
    at: Array  # position of the swap


def _additive(u: Array) -> Additive:
    take = instances.Take(u)
    intensity = take(MOST)
    n = instances.integer(take(), 2, MOST)
    cost = 10 ** (6 * take(MOST, MOST) - 3) * (take(MOST, MOST) < 0.8)
    present = jnp.arange(MOST) < n
    count = len(orders(MOST))
    return Additive(
        intensity,
        cost * present * present[:, None],
        instances.integer(take(), 0, count - 1),
        instances.integer(take(), 0, MOST - 2),
    )


def _place(intensity: Array) -> Array:
    """Rank by intensity, ties by number: [n]."""
    return jnp.argsort(jnp.argsort(intensity))


def _stronger(intensity: Array) -> Array:
    place = _place(intensity)
    return (place[:, None] > place).astype(jnp.float64)


def _all_losses(x: Additive) -> Array:
    """The loss of every order, [MOST!]."""
    every = jnp.asarray(np.stack([precedence(order) for order in orders(MOST)]), jnp.float64)
    return additive_loss(every, _stronger(x.intensity), x.cost)


def _sorted_is_best(x: Additive) -> Sides:
    place = _place(x.intensity)
    first = (place[:, None] < place).astype(jnp.float64)  # the sorted order
    own = additive_loss(first, _stronger(x.intensity), x.cost)
    return Sides(own, jnp.min(_all_losses(x)), jnp.sum(x.cost))


def _exchange(x: Additive) -> Sides:
    """loss(order) - loss(swapped) = +c if the stronger of the two comes first, else -c."""
    every = orders(MOST)
    index = {order: i for i, order in enumerate(every)}
    to = np.array([[index[swapped(order, i)] for i in range(MOST - 1)] for order in every])
    loss = _all_losses(x)
    order = jnp.asarray(every)[x.order]
    a, b = order[x.at], order[x.at + 1]
    place = _place(x.intensity)
    c = jnp.where(place[a] > place[b], x.cost[a, b], -x.cost[b, a])
    change = loss[x.order] - loss[jnp.asarray(to)[x.order, x.at]]
    return Sides(change, c, jnp.sum(x.cost))


class Contextual(NamedTuple):
    step: Array  # [CONTEXT!] > 0
    order: Array


def _contextual(u: Array) -> Contextual:
    count = len(orders(CONTEXT))
    return Contextual(10 ** (2 * u[:count] - 1), instances.integer(u[count], 0, count - 1))


def _sorted_is_best_in_context(x: Contextual) -> Sides:
    loss = jnp.stack(accumulate(x.step))
    return Sides(loss[0], jnp.min(loss), jnp.sum(x.step))  # orders()[0] is the sorted one


def _wins_by(x: Contextual) -> Sides:
    """Each inversion costs at least the least step."""
    loss = jnp.stack(accumulate(x.step))
    count = jnp.asarray([inversions(order) for order in orders(CONTEXT)])[x.order]
    worse = loss[x.order] - loss[0]
    return Sides(count * jnp.min(x.step), worse, worse)


FAMILIES = (
    Family(
        "additive",
        f"2 to {MOST} methods of any intensities; costs of inversions over six decades, some 0; "
        "all orders",
        MOST + 2 * MOST**2 + 3,
        _additive,
        (
            Claim("sorted", "the sorted order has the least loss of all", "==", _sorted_is_best),
            Claim("exchange", "an adjacent swap changes the loss by +-c", "==", _exchange),
        ),
        smooth=False,
        share=0.2,
    ),
    Family(
        "in context",
        f"{CONTEXT} methods; losses that grow along every adjacent swap away from the sorted order "
        "by amounts over two decades",
        25,
        _contextual,
        (
            Claim("in context", "it has the least loss of all", "==", _sorted_is_best_in_context),
            Claim("wins by", "inversions x least step <= its lead", "<=", _wins_by),
        ),
    ),
)

# ---------------------------------------------------------------------------------- exact, proof


def exact() -> Exact:
    """The exchange argument on all permutations of 2 to 6 methods."""
    cases, failure = 0, None
    for n in range(2, MOST + 1):
        for order in orders(n):
            places = _out_of_place(order)
            right = bool(places) == (inversions(order) > 0) == (order != tuple(range(n)))
            for i in places:
                right = right and inversions(swapped(order, i)) == inversions(order) - 1
            cases += 1
            if not right and failure is None:
                failure = f"{order}"
    return Exact(
        "2 to 6 methods, all orders: an unsorted one has an adjacent inversion, and swapping any "
        "leaves one inversion less",
        cases,
        failure,
    )


def prove() -> Proof:
    """The exchange identity for 4 methods, costs left symbolic: +c_ij for every order and place."""
    n = 4
    cost = np.array([[sympy.Symbol(f"c{i}{j}") for j in range(n)] for i in range(n)])
    stronger = np.array([[int(i > j) for j in range(n)] for i in range(n)])

    def loss(order: Order) -> sympy.Expr:
        return additive_loss(precedence(order), stronger, cost)

    residuals, total = [], []
    for order in orders(n):
        for i in _out_of_place(order):
            a, b = order[i], order[i + 1]
            residuals.append(loss(order) - loss(swapped(order, i)) - cost[a, b])
        total.append(loss(order) - sum(cost[a, b] for a, b in _inverted(order)))
    steps = [
        symbolic.step(
            f"{len(residuals)} improving swaps of 4 methods: each changes the loss by its c",
            sum(sympy.expand(r) ** 2 for r in residuals),
        ),
        symbolic.step(
            "24 orders: the loss is the sum over inversions, 0 for the sorted order",
            sum(sympy.expand(r) ** 2 for r in total),
        ),
    ]
    return Proof(
        tuple(steps),
        beyond="every unsorted order has an adjacent inversion (enumerated to n = 6; else it would "
        "rise throughout); swaps end, inversions being finite, and only the sorted order has none",
    )


def _inverted(order: Order) -> list[tuple[int, int]]:
    return [(a, b) for a, b in itertools.combinations(order, 2) if a > b]


def premise(loss: Mapping[Order, Any], tolerance: float = 0.0) -> list[tuple[Order, bool]]:
    """Every context of every adjacent pair: (the order with the stronger one first, whether the
    other is at least as good). Methods are numbered by intensity; ``loss`` has all orders."""
    found = []
    for order in loss:
        for i in _out_of_place(order):
            other = loss[swapped(order, i)]
            found.append((order, bool(other <= loss[order] + tolerance * abs(loss[order]))))
    return found


def necessity() -> tuple[Counterexample, ...]:
    """Three methods 0 < 1 < 2 by intensity; the loss of all six orders."""
    f = Fraction
    empty: dict[Order, Fraction] = {
        (0, 1, 2): f(1),
        (1, 0, 2): f(2),
        (0, 2, 1): f(0),  # after 0, the stronger of 1 and 2 had better come first
        (2, 0, 1): f(3),
        (1, 2, 0): f(2),
        (2, 1, 0): f(3),
    }
    failing = [order for order, holds in premise(empty) if not holds]
    at_the_front = [order for order in failing if order[0] > order[1]]
    cost = np.array([[f(0), f(0), f(0)], [f(-1), f(0), f(0)], [f(2), f(2), f(0)]])
    stronger = np.array([[int(i > j) for j in range(3)] for i in range(3)])
    signed = {order: additive_loss(precedence(order), stronger, cost) for order in orders(3)}
    start = (0, 1, 2)
    return (
        Counterexample(
            "in every context",
            "M = -(1, 2, 0, 3, 2, 3) for the orders 012, 102, 021, 201, 120, 210: the weaker first "
            f"is better in {len(premise(empty)) - len(failing)} of {len(premise(empty))} contexts, "
            f"in all where nothing precedes ({len(at_the_front)} fail), not in 0|21",
            "<=",
            empty[start],
            min(empty.values()),
        ),
        Counterexample(
            "the sign of every pair",
            "additive costs c_10 = -1, c_20 = c_21 = 2: 102 is better than 012",
            "<=",
            signed[start],
            min(signed.values()),
        ),
    )


def measure(key: Array) -> tuple[Finding, ...]:
    """See :mod:`theory.statements.ordering.measure`."""
    from theory.statements.ordering.measure import findings

    return findings(key)


STATEMENT = Statement(
    name="ordering",
    title="Theorem 4: n methods, sorted by intensity, are in the best order if every pair agrees",
    source="Kim et al., ICLR 2026 (arXiv 2603.18426), appendix B.3; the argument is made here",
    assumptions=(
        "swapping two adjacent methods changes M with the sign of I_j - I_i, the weaker first "
        "being better, for every pair",
        "and in every context: whatever comes before and after",
    ),
    claim="the order sorted by intensity is optimal among all n!",
    latex=r"M(\dots f_i f_j\dots)\ge M(\dots f_j f_i\dots)\ \forall\,I_i<I_j,\ \text{contexts}"
    r"\ \Rightarrow\ f_{(1)}\to\dots\to f_{(n)}\ \text{optimal}",
    families=FAMILIES,
    prove=prove,
    necessity=necessity,
    exact=exact,
    measure=measure,
)
FORMS = ("additive_loss", "accumulate")
