"""Theorem 1 (ownership): the order advantage is carried by the units that change owner.

With unit errors e1(u), e2(u) and disjoint selectivity (every unit of the result is f1(u) or
f2(u)), let S12 be the units that f1 owns in the order f1 -> f2, and S21 those that f1 owns in
f2 -> f1. Under Assumption 1, M = -kappa E with E the sum of the owners' errors, and

    A(f1->f2) = M(f1 first) - M(f2 first)
              = kappa [ sum_{u in S21 \\ S12} (e1 - e2) - sum_{u in S12 \\ S21} (e1 - e2) ].

An identity, not a bound: it holds for every e1, e2, S12, S21 and kappa. Source: Kim et al.,
ICLR 2026 (arXiv 2603.18426), as restated in THEORY.md. Written with operators only, so that one
definition runs on floats, jax arrays and exact Fractions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

ROUNDINGS = 4.0  # float64: |difference| <= ROUNDINGS n eps kappa sum(|e1| + |e2|)

# (e1, e2, s12, s21, kappa): errors and 0/1 ownership along the last axis
Formula = Callable[[Any, Any, Any, Any, Any], Any]


class Check(NamedTuple):
    """Outcome of a check over instances.

    margin: the smallest of (allowed - |formula - definition|) / allowed over the instances, 1
    where all agree exactly, negative if one fails; exact checks allow nothing, and have margin
    1 or -inf. failures: instances that fail; counterexample: the first of them.
    """

    instances: int
    failures: int
    margin: float
    counterexample: str | None

    @property
    def holds(self) -> bool:
        return self.instances > 0 and self.failures == 0


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


def check_random(
    instances: int = 10_000,
    units: int = 64,
    seed: int = 0,
    *,
    formula: Formula = advantage_by_ownership,
) -> Check:
    """Compare formula and definition in float64 on random instances.

    e1, e2 >= 0 over twelve orders of magnitude, ownership with a random density an instance,
    kappa log-uniform. What rounding may do: ROUNDINGS n eps kappa sum(|e1| + |e2|), n units.
    """
    rng = np.random.default_rng(seed)
    shape = (instances, units)
    e1, e2 = (10.0 ** rng.uniform(-6, 6, shape) for _ in range(2))
    s12, s21 = (
        (rng.random(shape) < rng.random((instances, 1))).astype(np.float64) for _ in range(2)
    )
    kappa = 10.0 ** rng.uniform(-3, 3, instances)
    difference = np.abs(
        formula(e1, e2, s12, s21, kappa) - advantage_by_definition(e1, e2, s12, s21, kappa)
    )
    allowed = ROUNDINGS * units * np.finfo(np.float64).eps * kappa * (e1 + e2).sum(-1)
    failed = np.flatnonzero(~(difference <= allowed))
    example = None
    if failed.size:
        i = failed[0]
        example = f"seed {seed}, instance {i}: differs by {difference[i]:.3g}, {allowed[i]:.3g} may"
    margin = float(np.min((allowed - difference) / allowed)) if instances else float("nan")
    return Check(instances, int(failed.size), margin, example)


def check_exact(
    units: int = 4, seed: int = 0, *, formula: Formula = advantage_by_ownership
) -> Check:
    """Compare in rational arithmetic over ALL pairs of owner sets S12, S21 of a small model.

    4^units pairs on random rational errors (numerators -9..9: the identity needs no sign).
    Equality is exact: a single digit of difference is a failure.
    """
    rng = np.random.default_rng(seed)

    def rationals(size: int) -> np.ndarray:
        top, bottom = rng.integers(-9, 10, size), rng.integers(1, 10, size)
        return np.array([Fraction(int(a), int(b)) for a, b in zip(top, bottom, strict=True)])

    e1, e2 = rationals(units), rationals(units)
    kappa = Fraction(int(rng.integers(1, 10)), int(rng.integers(1, 10)))
    masks = [np.array(bits, object) for bits in itertools.product((0, 1), repeat=units)]
    count, failures, example = 0, 0, None
    for s12, s21 in itertools.product(masks, masks):
        count += 1
        found = formula(e1, e2, s12, s21, kappa)
        true = advantage_by_definition(e1, e2, s12, s21, kappa)
        if found != true:
            failures += 1
            example = example or f"S12 {s12.tolist()}, S21 {s21.tolist()}: {found}, not {true}"
    return Check(count, failures, -float("inf") if failures else 1.0, example)
