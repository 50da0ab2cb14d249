"""PIH's sign from ownership: two units with symbols, all small errors, and what one change does."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.ownership import advantage_by_ownership, contested_share


def exact() -> Exact:
    """Three units with whole errors 0..3, the second's at least the first's: all contested sets."""
    cases, failure = 0, None
    pairs = [(a, b) for a in range(4) for b in range(a, 4)]
    for units in itertools.product(pairs, repeat=3):
        e1, e2 = (np.array(e, object) for e in zip(*units, strict=True))
        gap = (e2 - e1).sum()
        for bits in itertools.product((0, 1), repeat=3):
            contested = np.array(bits, object)
            for owned in itertools.product((0, 1), repeat=3):
                base = np.array(owned, object) * (1 - contested)
                a = advantage_by_ownership(e1, e2, base + contested, base, 1)
                cases += 1
                if not 0 <= a <= gap and failure is None:
                    failure = f"e1 = {e1}, e2 = {e2}, contested {bits}, base {base}"
    return Exact("3 units, errors 0 to 3, e2 >= e1, all contested and owned sets", cases, failure)


def prove() -> Proof:
    a, b, c, d, k, factor = sympy.symbols("a b c d kappa lambda", positive=True)
    e1, e2 = np.array([a, c], object), np.array([b, d], object)
    contested, both = np.array([1, 0], object), np.array([1, 1], object)
    nobody = np.array([0, 0], object)
    first = advantage_by_ownership(e1, e2, contested, nobody, k)
    share = contested_share(e1, contested)
    part = advantage_by_ownership(e1, factor * e1, contested, nobody, k)
    return Proof(
        (
            symbolic.step("A = kappa (e2 - e1) of the contested unit, of two", first, k * (b - a)),
            symbolic.step(
                "all contested: A is the gap",
                advantage_by_ownership(e1, e2, both, nobody, k),
                k * ((e2 - e1).sum()),
            ),
            symbolic.step("in proportion: A = c G", part, share * k * (factor - 1) * e1.sum()),
            symbolic.step(
                "the last owner keeps: every sign is turned",
                advantage_by_ownership(e1, e2, nobody, contested, k),
                -first,
            ),
        ),
        beyond="sums of terms of one sign: a part of them has that sign and is no larger than all",
    )


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    one, two = np.array([f(1)]), np.array([f(2)])
    yes, no = np.array([1]), np.array([0])
    e1, e2 = np.array([f(1), f(2)]), np.array([f(4), f(1)])
    second, neither = np.array([0, 1]), np.array([0, 0])
    shrinks = f(3, 2)
    return (
        Counterexample(
            "contested units belong to the method that goes first",
            "one unit, e1 = 1, e2 = 2, kept by the method that goes last: G = 1, 0 <= A",
            "<=",
            f(0),
            advantage_by_ownership(one, two, no, yes, 1),
        ),
        Counterexample(
            "one method does at least as much harm as the other to every unit",
            "e1 = (1, 2), e2 = (4, 1), the second contested: G = 2, f1 is harsher there, 0 <= A",
            "<=",
            f(0),
            advantage_by_ownership(e1, e2, second, neither, 1),
        ),
        Counterexample(
            "disjoint selectivity",
            "one unit, e1 = 1, e2 = 2, contested, but f2 after f1 leaves an error of 3/2 more than "
            "f1's on it: 0 <= A",
            "<=",
            f(0),
            advantage_by_ownership(one, two, yes, no, 1) - shrinks,
        ),
    )
