"""Joint optimality: the derivation, all codes in rational arithmetic, and where it stops."""

from __future__ import annotations

import itertools
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.closed_forms import benefit
from theory.maths.refit import fitted_gain, fitted_step

SIZES = tuple(Fraction(i, 2) for i in range(1, 8))


def _best_gain(w: tuple[Fraction, ...], most: int) -> tuple[Fraction, Fraction]:
    """(of all codes 0, 1, 2 with that many weights kept, of those on the largest weights)."""
    every, largest = Fraction(0), Fraction(0)
    kept = set(range(len(w) - most, len(w)))  # w is sorted
    for codes in itertools.product(range(3), repeat=len(w)):
        used = {i for i, c in enumerate(codes) if c}
        if not used or len(used) > most:
            continue
        product = sum((a * c for a, c in zip(w, codes, strict=True)), Fraction(0))
        gain = fitted_gain(product, Fraction(sum(c * c for c in codes)))
        every = max(every, gain)
        if used <= kept:
            largest = max(largest, gain)
    return every, largest


def exact() -> Exact:
    cases, failure = 0, None
    for w in itertools.combinations_with_replacement(SIZES, 4):
        for most in range(1, 4):
            every, largest = _best_gain(w, most)
            cases += 1
            if every != largest and failure is None:
                failure = f"w = {[str(x) for x in w]}, {most} kept"
    return Exact(
        "4 weights in halves up to 7/2, 1 to 3 kept, all 81 codes of {0, 1, 2}, each with its own "
        "least-squares step: the best are on the largest weights",
        cases,
        failure,
    )


def prove() -> Proof:
    w, a = sympy.symbols("w1:4", positive=True), sympy.symbols("a1:4", positive=True)
    s, u, c, b = sympy.symbols("s u c b", positive=True)
    error = sum((x - s * y) ** 2 for x, y in zip(w, a, strict=True))
    product, square = sum(x * y for x, y in zip(w, a, strict=True)), sum(y**2 for y in a)
    best = fitted_step(product, square)
    energy = sum(x**2 for x in w)
    return Proof(
        (
            symbolic.step(
                "the slope in the step is 0 at (w a)/(a a), 3 weights", error.diff(s).subs(s, best)
            ),
            symbolic.step("and grows with the step: a minimum", error.diff(s, 2), 2 * square),
            symbolic.step(
                "there the error is |w|^2 - (w a)^2/(a a)",
                error.subs(s, best),
                energy - fitted_gain(product, square),
            ),
            symbolic.step(
                "what keeping a weight u > 0 saves at level c grows with u",
                benefit(u, c).diff(u),
                2 * c,
            ),
            symbolic.step(
                "and is largest at the nearest level: the difference to another, b",
                benefit(u, c) - benefit(u, b),
                (u - b) ** 2 - (u - c) ** 2,
            ),
        ),
        beyond="for each step the saving is a maximum of lines of slopes >= 0 in |w| (at the "
        "negative level the slope is the other way, and that level is never the nearest), so it "
        "does not fall in |w| and the magnitude mask is the best of its size for that step "
        "(theorem 2a; without a 0 in the shape the saving may be negative at small |w|, which "
        "changes nothing); min over masks of min over steps = min over steps of min over masks; "
        "between steps at which a weight changes level the error is a parabola no lower than that "
        "of nearest levels, so the least of the parabolas' minima is the minimum over all steps",
    )


def _fit(w: tuple[Fraction, ...], levels: tuple[int, ...]) -> Fraction:
    """The least error over all steps > 0, of all assignments of levels."""
    best = sum((x * x for x in w), Fraction(0))
    for a in itertools.product(levels, repeat=len(w)):
        square = sum(c * c for c in a)
        product = sum((x * c for x, c in zip(w, a, strict=True)), Fraction(0))
        if square and product > 0:
            energy = sum((x * x for x in w), Fraction(0))
            best = min(best, energy - fitted_gain(product, Fraction(square)))
    return best


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    ternary = (-1, 0, 1)
    lone = _fit((f(-9, 10), f(2)), (-1, 0, 2)), _fit((f(1), f(2)), (-1, 0, 2))
    groups = (
        f(19, 10) ** 2 + _fit((f(2), f(4)), ternary) + _fit((f(19, 10),), ternary),
        f(2) ** 2 + _fit((f(4),), ternary) + _fit((f(19, 10), f(19, 10)), ternary),
    )
    absmax = f(3)
    return (
        Counterexample(
            "the grids are one symmetric shape at any step",
            "levels s {-1, 0, 2}, w = (-0.9, 1, 2), one pruned: removing -0.9 leaves (1, 2), "
            "removing 1 leaves (-0.9, 2), which fits better by more",
            "<=",
            f(9, 10) ** 2 + lone[1],
            f(1) + lone[0],
        ),
        Counterexample(
            "units of one mask share the grid",
            "groups (2, 4) and (1.9, 1.9), each with levels s {-1, 0, 1} of its own, one of the "
            "four pruned: removing 1.9 costs more than removing 2, after which 4 fits",
            "<=",
            groups[0],
            groups[1],
        ),
        Counterexample(
            "the fit is the least error over all steps",
            "w = (1, 2, 3), the first pruned, levels s {-1, 0, 1}: the largest weight as "
            "step against 5/2",
            "<=",
            f(1) + (2 - absmax) ** 2,
            f(1) + _fit((f(2), f(3)), ternary),
        ),
        Counterexample(
            "the error weighs all units alike",
            "h = (9, 1), w = (1, 2), one pruned, the other fits: removing 1 costs 9, removing 2 "
            "costs 4",
            "<=",
            f(9),
            f(4),
        ),
        Counterexample(
            "what is pruned stays 0",
            "levels s {-1/2, 1/2}, w = (1, 10), one pruned and rounded up to s/2 again: 81/2 at "
            "the best of steps, 11, against 1 where it stays 0",
            "<=",
            f(81, 2),
            f(1),
        ),
    )
