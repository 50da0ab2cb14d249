"""Theorem 1: the derivation, the enumeration in rational arithmetic and the counterexamples."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.ownership import (
    advantage_by_definition,
    advantage_by_ownership,
    total_error,
)


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

    def unit(f: Callable[..., sympy.Expr]) -> sympy.Expr:
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
