"""Robust ordering: what sorting by intensity loses where the premise of theorem 4 is not kept.

Methods are numbered by intensity. Let putting the weaker one first of a neighbouring pair j > i
cost at most eta_ij >= 0 in any context:

    loss(.. i j ..) - loss(.. j i ..) <= eta_ij        for all that comes before and after.

Theorem 4's premise is eta = 0. Sorting the best order by swaps of neighbours (bubble sort) turns
each of its inverted pairs once, the weaker one first after it, so that

    loss(sorted) - loss(any order) <= sum of eta over the inversions of that order,

the regret of sorting among it, at the best order. Attained where swaps cost the same in every
context. eta has to be the largest over contexts: a pair that is harmless in front of all others
may not be behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths.orders import additive_loss, orders, out_of_place, precedence, swapped
from theory.statements.robust import law, proof

METHODS = 4
EVERY = orders(METHODS)
FORMS = ("additive_loss",)  # of theory.maths.orders
STRONGER = np.tril(np.ones((METHODS, METHODS)), -1)
BEFORE = np.stack([precedence(order) for order in EVERY]).astype(float)
INDEX = {order: i for i, order in enumerate(EVERY)}
# every context of every pair: stronger first, weaker first, the stronger, the weaker
CONTEXTS = np.array(
    [
        (INDEX[order], INDEX[swapped(order, i)], order[i], order[i + 1])
        for order in EVERY
        for i in out_of_place(order)
    ]
)


class Losses(NamedTuple):
    loss: Array  # [METHODS!], of all orders
    order: Array  # one of them


def _losses(u: Array) -> Losses:
    """Costs of inversions of any sign, plus as much as 10 or as little as 1e-6 of anything."""
    take = instances.Take(u)
    cost = 2 * take(METHODS, METHODS) - 1
    anything = instances.log_uniform(take(), 1e-6, 10.0) * take(len(EVERY))
    loss = 1 + METHODS**2 + additive_loss(jnp.asarray(BEFORE), jnp.asarray(STRONGER), cost)
    return Losses(loss + anything, instances.integer(take(), 0, len(EVERY) - 1))


def eta(x: Losses) -> Array:
    """[stronger, weaker]: the most that putting the weaker first costs, over contexts."""
    cost = x.loss[CONTEXTS[:, 1]] - x.loss[CONTEXTS[:, 0]]
    return jnp.zeros((METHODS, METHODS)).at[CONTEXTS[:, 2], CONTEXTS[:, 3]].max(cost)


def _against(x: Losses, order: Array) -> Sides:
    bound = additive_loss(jnp.asarray(BEFORE)[order], jnp.asarray(STRONGER), eta(x))
    # losses are of size METHODS^2, and differences of them rounded by that
    return Sides(x.loss[0] - x.loss[order], bound, jnp.maximum(bound, 1e-2))


def _regret(x: Losses) -> Sides:
    return _against(x, jnp.argmin(x.loss))


def _any_order(x: Losses) -> Sides:
    return _against(x, x.order)


FAMILIES = (
    Family(
        "losses",
        f"{METHODS} methods, all orders; inversions that cost or gain up to 1, plus anything up to "
        "10",
        METHODS**2 + len(EVERY) + 2,
        _losses,
        (
            Claim("regret", "of sorting <= eta over the best order", "<=", _regret, 0.5, 0.999),
            Claim("any order", "the lead of any order likewise", "<=", _any_order, 0.5, 0.999),
        ),
        smooth=False,
        share=0.2,
    ),
)

STATEMENT = Statement(
    name="robust",
    title="Robust ordering: sorting loses at most what the best order's inversions cost",
    source="derived here, from theorem 4 of Kim et al., ICLR 2026 (arXiv 2603.18426)",
    assumptions=(
        "eta is the most that putting the weaker of two neighbours first costs, over all contexts",
    ),
    claim="loss(sorted) - loss(order) <= the sum of eta over the inversions of the order, for "
    "every order, the best one among them",
    latex=r"\ell(\text{sorted})-\min_\pi\ell(\pi)\le\sum_{(i,j)\text{ inverted in }\pi^*}\eta_{ij}",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
)
