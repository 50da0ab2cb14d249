"""Theorem 1 (ownership): the order advantage is carried by the units that change owner.

With unit errors e1(u), e2(u) and disjoint selectivity (every unit of the result is f1(u) or
f2(u)), let S12 be the units that f1 owns in the order f1 -> f2, and S21 those that f1 owns in
f2 -> f1. Under Assumption 1, M = -kappa E with E the sum of the owners' errors, and

    A(f1->f2) = M(f1 first) - M(f2 first)
              = kappa [ sum_{u in S21 \\ S12} (e1 - e2) - sum_{u in S12 \\ S21} (e1 - e2) ].

An identity, not a bound: it holds for every e1, e2, S12, S21 and kappa. Source: Kim et al.,
ICLR 2026 (arXiv 2603.18426), as restated in THEORY.md.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths.ownership import advantage_by_definition, advantage_by_ownership
from theory.statements.ownership import measure, proof

UNITS = 24
FORMS = ("advantage_by_ownership",)
ROWS, GROUPS, WIDTH = 4, 3, 4  # a weight matrix [ROWS, GROUPS * WIDTH], cut at three granularities


# ------------------------------------------------------------------------------ random instances


class Owned(NamedTuple):
    """Units with errors over twelve decades and arbitrary owner sets of any size."""

    e1: Array  # [UNITS]
    e2: Array
    s12: Array  # 0 or 1
    s21: Array
    kappa: Array  # []


def _owned(u: Array) -> Owned:
    take = instances.Take(u)
    e1, e2 = (10 ** (12 * take(UNITS) - 6) for _ in range(2))
    s12, s21 = ((take(UNITS) < take(1)).astype(jnp.float64) for _ in range(2))
    return Owned(e1, e2, s12, s21, instances.log_uniform(take(), 1e-3, 1e3))


def _identity(x: Owned) -> Sides:
    return Sides(
        advantage_by_ownership(*x), advantage_by_definition(*x), x.kappa * jnp.sum(x.e1 + x.e2)
    )


class Cut(NamedTuple):
    """A matrix, pruned by magnitude of its units and rounded, at one granularity.

    size: how many weights make a unit: 1, WIDTH (a group) or GROUPS * WIDTH (a row).
    """

    weight: Array  # [ROWS * GROUPS * WIDTH]
    unit: Array  # [ROWS * GROUPS * WIDTH], the unit that a weight belongs to
    step: Array
    k: Array  # units pruned
    tie: Array  # [ROWS * GROUPS * WIDTH], of the units


def _cut(u: Array) -> Cut:
    take = instances.Take(u)
    n = ROWS * GROUPS * WIDTH
    w = instances.weights(take(n), take(), take())
    size = jnp.array([1, WIDTH, GROUPS * WIDTH])[instances.integer(take(), 0, 2)]
    step = jnp.std(w) * instances.log_uniform(take(), 0.2, 1.5) + 1e-9  # ties, and not all are 0
    k = jnp.floor(take() * (n // size + 1)).astype(jnp.int32)
    return Cut(w, jnp.arange(n) // size, step, k, take(n))


def _measured(x: Cut) -> Sides:
    """A(Q->P) from the final matrices of both orders, against the formula on unit errors; judged by
    the errors where the two matrices differ."""
    n = x.weight.shape[0]
    count = x.unit[-1] + 1

    def per_unit(a: Array) -> Array:
        return jnp.zeros(n).at[x.unit].add(a)

    def prune(w: Array) -> tuple[Array, Array]:
        exists = jnp.arange(n) < count
        norm = jnp.where(exists, per_unit(w**2), jnp.inf)
        gone = instances.smallest(norm, jnp.minimum(x.k, count), x.tie)
        return jnp.where(gone[x.unit], 0, w), gone.astype(jnp.float64)

    def rounded(w: Array) -> Array:
        return x.step * jnp.round(w / x.step)

    p_first, s_pq = prune(x.weight)
    q_last = jnp.where(s_pq[x.unit] > 0, 0, rounded(p_first))
    p_last, s_qp = prune(rounded(x.weight))
    errors = (q_last - x.weight) ** 2, (p_last - x.weight) ** 2
    e_q, e_p = per_unit((rounded(x.weight) - x.weight) ** 2), per_unit(x.weight**2)
    # f1 = Q, f2 = P: Q owns what P does not
    formula = advantage_by_ownership(e_q, e_p, 1 - s_qp, 1 - s_pq, 1.0)
    # where the results are the same the errors are, too, but not to the last bit
    first, last = (jnp.where(q_last != p_last, e, 0) for e in errors)
    return Sides(formula, jnp.sum(first - last), jnp.sum(first + last))


FAMILIES = (
    Family(
        "units",
        f"{UNITS} units, errors log-uniform over 12 decades, owner sets of any size",
        4 * UNITS + 3,
        _owned,
        (Claim("identity", "the formula is the definition", "==", _identity, 0.9),),
        smooth=False,
    ),
    Family(
        "granularity",
        "a matrix pruned by unit norm and rounded to a fixed grid; units are weights, groups or "
        "rows; any number pruned, with ties",
        2 * ROWS * GROUPS * WIDTH + 5,
        _cut,
        (Claim("matrices", "the formula is A of the final weights", "==", _measured, 0.2),),
        smooth=False,
    ),
)


STATEMENT = Statement(
    name="ownership",
    title="Theorem 1: only units whose owner changes with the order carry the advantage",
    source="Kim et al., ICLR 2026 (arXiv 2603.18426), theorem 1",
    assumptions=(
        "(a) the errors of units add up",
        "(b) M(phi) - M(f(phi)) = kappa E(f), kappa > 0",
        "disjoint selectivity: every unit of the result is f1(u) or f2(u)",
    ),
    claim="A(f1->f2) is kappa times the errors that f1 takes over from f2 when it goes last, less "
    "those it gives up",
    latex=r"A(f_1\to f_2)=\kappa\Bigl[\sum_{u\in S_{21}\setminus S_{12}}(e_1-e_2)-"
    r"\sum_{u\in S_{12}\setminus S_{21}}(e_1-e_2)\Bigr]",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
