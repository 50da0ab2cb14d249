"""Theorem 1 (ownership): the order advantage is carried by the units that change owner.

With unit errors e1(u), e2(u) and disjoint selectivity (every unit of the result is f1(u) or
f2(u)), let S12 be the units that f1 owns in the order f1 -> f2, and S21 those that f1 owns in
f2 -> f1. Under Assumption 1, M = -kappa E with E the sum of the owners' errors, and

    A(f1->f2) = M(f1 first) - M(f2 first)
              = kappa [ sum_{u in S21 \\ S12} (e1 - e2) - sum_{u in S12 \\ S21} (e1 - e2) ].

An identity, not a bound: it holds for every e1, e2, S12, S21 and kappa. Source: Kim et al.,
ICLR 2026 (arXiv 2603.18426), as restated in THEORY.md. Written with operators only, so that one
definition runs on floats, jax arrays, exact Fractions and sympy symbols.
"""

from __future__ import annotations

import itertools
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
UNITS = 24
FORMS = ("advantage_by_ownership",)
ROWS, GROUPS, WIDTH = 4, 3, 4  # a weight matrix [ROWS, GROUPS * WIDTH], cut at three granularities


def total_error(e1: Any, e2: Any, owned: Any) -> Any:
    """E = sum_u [f1 owns u] e1(u) + [f2 owns u] e2(u); owned [..., n] of 0 and 1."""
    return (owned * e1 + (1 - owned) * e2).sum(-1)


def advantage_by_definition(e1: Any, e2: Any, s12: Any, s21: Any, kappa: Any) -> Any:
    """A(f1->f2) = M(f2 o f1) - M(f1 o f2) = kappa [E(f2->f1) - E(f1->f2)]."""
    return kappa * (total_error(e1, e2, s21) - total_error(e1, e2, s12))


def advantage_by_ownership(e1: Any, e2: Any, s12: Any, s21: Any, kappa: Any) -> Any:
    """Theorem 1's right-hand side: only units whose owner changes with the order count."""
    gained, lost = s21 * (1 - s12), s12 * (1 - s21)  # S21 \ S12 and S12 \ S21
    return kappa * ((gained * (e1 - e2)).sum(-1) - (lost * (e1 - e2)).sum(-1))


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
    step = jnp.std(w) * instances.log_uniform(take(), 0.05, 3.0) + 1e-9
    k = jnp.floor(take() * (n // size + 1)).astype(jnp.int32)
    return Cut(w, jnp.arange(n) // size, step, k, take(n))


def _measured(x: Cut) -> Sides:
    """A(Q->P) from the final matrices of both orders, against the formula on unit errors."""
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
    measured = jnp.sum((q_last - x.weight) ** 2) - jnp.sum((p_last - x.weight) ** 2)
    e_q, e_p = per_unit((rounded(x.weight) - x.weight) ** 2), per_unit(x.weight**2)
    # f1 = Q, f2 = P: Q owns what P does not
    formula = advantage_by_ownership(e_q, e_p, 1 - s_qp, 1 - s_pq, 1.0)
    return Sides(formula, measured, jnp.sum(e_q + e_p))


FAMILIES = (
    Family(
        "units",
        f"{UNITS} units, errors log-uniform over 12 decades, owner sets of any size",
        4 * UNITS + 3,
        _owned,
        (Claim("identity", "the formula is the definition", "==", _identity),),
        smooth=False,
    ),
    Family(
        "granularity",
        "a matrix pruned by unit norm and rounded to a fixed grid; units are weights, groups or "
        "rows; any number pruned, with ties",
        2 * ROWS * GROUPS * WIDTH + 5,
        _cut,
        (Claim("matrices", "the formula is A measured on the final weights", "==", _measured),),
        smooth=False,
    ),
)


# ---------------------------------------------------------------------------------- exact, proof


def exact(units: int = 4, seed: int = 0) -> Exact:
    """The identity in rational arithmetic over ALL 4^units pairs of owner sets.

    Random rational errors (numerators -9..9: the identity needs no sign); equality is exact.
    """
    rng = np.random.default_rng(seed)

    def rationals(size: int) -> np.ndarray:
        top, bottom = rng.integers(-9, 10, size), rng.integers(1, 10, size)
        return np.array([Fraction(int(a), int(b)) for a, b in zip(top, bottom, strict=True)])

    e1, e2 = rationals(units), rationals(units)
    kappa = Fraction(int(rng.integers(1, 10)), int(rng.integers(1, 10)))
    masks = [np.array(bits, object) for bits in itertools.product((0, 1), repeat=units)]
    failure = None
    for s12, s21 in itertools.product(masks, masks):
        found = advantage_by_ownership(e1, e2, s12, s21, kappa)
        true = advantage_by_definition(e1, e2, s12, s21, kappa)
        if found != true and failure is None:
            failure = f"S12 {s12.tolist()}, S21 {s21.tolist()}: {found}, not {true}"
    return Exact(f"all pairs of owner sets of {units} units", len(masks) ** 2, failure)


def prove() -> Proof:
    """One unit's term of the formula is one unit's term of the definition; sums are linear."""
    e1, e2, kappa = sympy.symbols("e1 e2 kappa")
    a, b = sympy.symbols("a b")  # membership of the unit in S12 and S21

    def unit(f: Any) -> sympy.Expr:
        cells = [np.array([s], object) for s in (e1, e2, a, b)]
        return f(*cells, kappa)

    return Proof(
        (
            symbolic.step(
                "a unit's term of the formula equals its term of the definition, for any a, b",
                unit(advantage_by_ownership),
                unit(advantage_by_definition),
            ),
            symbolic.step(
                "a unit that keeps its owner (a = b in {0, 1}) contributes nothing",
                sum(unit(advantage_by_ownership).subs({a: v, b: v}) ** 2 for v in (0, 1)),
            ),
        )
    )


def necessity() -> tuple[Counterexample, ...]:
    """Two units, e1 = (1, 4), e2 = (2, 3), S12 = {first}, S21 = {second}, kappa = 1."""
    e1, e2 = np.array([Fraction(1), Fraction(4)]), np.array([Fraction(2), Fraction(3)])
    s12, s21 = np.array([1, 0], object), np.array([0, 1], object)
    formula = advantage_by_ownership(e1, e2, s12, s21, Fraction(1))
    e12, e21 = total_error(e1, e2, s12), total_error(e1, e2, s21)
    cross = Fraction(1, 2) * 2  # an interaction of 1/2 between the units when f1 owns the first
    return (
        Counterexample(
            "(a) units' errors add up",
            "e1 = (1, 4), e2 = (2, 3), f1 owns {1} in f1->f2 and {2} in f2->f1; the errors "
            "interact: E gains 1 when f1 owns the first unit",
            "==",
            formula,
            e21 - (e12 + cross),
        ),
        Counterexample(
            "(b) M is linear in E",
            "the same units and owners with M = -E^2",
            "==",
            formula,
            e21**2 - e12**2,
        ),
        Counterexample(
            "disjoint selectivity",
            "one weight 3; f1 rounds down to an even number, f2 subtracts 1: alone, both leave 2 "
            "(e1 = e2 = 1, so the formula is 0 whoever owns it); f1->f2 leaves 1, f2->f1 leaves 2",
            "==",
            Fraction(0),
            Fraction((2 - 3) ** 2 - (1 - 3) ** 2),
        ),
    )


def _measure(key: Array) -> tuple[Finding, ...]:
    return (
        Finding(
            "Theorem 1 of Kim et al. (ownership)",
            "holds" if exact().holds else "false",
            "an identity for any errors, owner sets and granularity; it says nothing about the "
            "sign of A, and needs the interference term wherever scales are refitted",
            {},
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
    prove=prove,
    necessity=necessity,
    exact=exact,
    measure=_measure,
)
