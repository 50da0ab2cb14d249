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

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths.orders import (
    accumulate,
    additive_loss,
    inversions,
    orders,
    precedence,
    swapped,
)
from theory.statements.ordering import measure, proof

MOST, CONTEXT = 6, 4  # methods in the additive and the context-dependent family


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
    """Against one other order, which costs as much only if its inversions are free."""
    place = _place(x.intensity)
    first = (place[:, None] < place).astype(jnp.float64)  # the sorted order
    own = additive_loss(first, _stronger(x.intensity), x.cost)
    other = _all_losses(x)[x.order]
    return Sides(own, other, other)


def _swap_by_swap(x: Additive) -> Sides:
    """Sorting an order by swaps of neighbours gets back its loss, a cost a swap."""
    place = _place(x.intensity)[jnp.asarray(orders(MOST))[x.order]]  # ranks, in their order
    method = jnp.asarray(orders(MOST))[x.order]
    saved = jnp.zeros(())
    for last in range(MOST - 1, 0, -1):
        for i in range(last):
            wrong = place[i] > place[i + 1]
            saved += jnp.where(wrong, x.cost[method[i], method[i + 1]], 0)
            turn = jnp.arange(MOST).at[jnp.array([i, i + 1])].set(jnp.array([i + 1, i]))
            place, method = (jnp.where(wrong, a[turn], a) for a in (place, method))
    loss = _all_losses(x)[x.order]
    return Sides(saved, loss, loss)


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
    other = loss[jnp.asarray(to)[x.order, x.at]]
    return Sides(loss[x.order] - other, c, loss[x.order] + other)


class Contextual(NamedTuple):
    step: Array  # [CONTEXT!] > 0
    order: Array


def _contextual(u: Array) -> Contextual:
    count = len(orders(CONTEXT))
    return Contextual(10 ** (2 * u[:count] - 1), instances.integer(u[count], 0, count - 1))


def _sorted_is_best_in_context(x: Contextual) -> Sides:
    loss = jnp.stack(accumulate(CONTEXT, x.step))  # orders()[0] is the sorted one
    return Sides(loss[0], jnp.min(loss[1:]), jnp.min(loss[1:]))


def _wins_by(x: Contextual) -> Sides:
    """Each inversion costs at least the least step."""
    loss = jnp.stack(accumulate(CONTEXT, x.step))
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
            Claim("sorted", "no order costs less", "<=", _sorted_is_best, 0.8, 0),
            Claim("exchange", "an adjacent swap changes the loss by +-c", "==", _exchange, 0.2),
            Claim("swap by swap", "a loss is what sorting saves", "==", _swap_by_swap, 0.8),
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
            Claim("in context", "it loses least", "<=", _sorted_is_best_in_context, 0.9, 0.97),
            Claim("wins by", "inversions x least step <= its lead", "<=", _wins_by, 0.9, ATTAINED),
        ),
    ),
)


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
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
FORMS = ("additive_loss", "accumulate")
