"""Theorem 3: the derivation, the enumeration and the counterexamples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths import scales as forms
from theory.maths.rational import rounding_error


def rational_change(
    w: Sequence[Fraction],
    kept: Sequence[int],
    bits: int,
    steps: tuple[Fraction, Fraction] | None = None,
) -> tuple[Fraction, Fraction, Fraction]:
    """(change, D, D') of one group; ``steps`` replaces absmax scales."""
    left = [x for x, keep in zip(w, kept, strict=True) if keep]
    before, after = steps or (
        forms.scale_step(max(abs(x) for x in some) if some else Fraction(0), bits)
        for some in (w, left)
    )
    top = 2 ** (bits - 1) - 1
    change = rounding_error(left, before, top) - rounding_error(left, after, top)
    return change, before, after


def exact() -> Exact:
    """All groups of 3 weights from -1 to 2 in quarters (up to order), all masks, 2 and 3 bits."""
    cases, failure = 0, None
    values = [Fraction(i, 4) for i in range(-4, 9)]
    for w in itertools.combinations_with_replacement(values, 3):
        for kept, bits in itertools.product(itertools.product((0, 1), repeat=3), (2, 3)):
            change, before, after = rational_change(w, kept, bits)
            low = -forms.interference_bound(max(sum(kept) - 1, 0), after)
            right = after <= before and low <= change <= forms.interference_bound(sum(kept), before)
            right = right and (change == 0 or after < before)
            cases += 1
            if not right and failure is None:
                failure = f"w = {[str(x) for x in w]}, kept {kept}, {bits} bits"
    return Exact("3 weights in quarters, all masks, 2 and 3 bits", cases, failure)


def prove() -> Proof:
    step, after, e, x, w = sympy.symbols("Delta Delta' e x w", positive=True)
    j, n, top = sympy.symbols("j n c", integer=True, positive=True)
    f = sympy.Function("F")(x)
    attained = [Fraction(1), Fraction(2), Fraction(3)]
    mean = sympy.integrate(e**2 / step, (e, -step / 2, step / 2))
    return Proof(
        (
            symbolic.step("the mean square of an error uniform on a cell", mean, step**2 / 12),
            symbolic.step(
                "its change from D to D' is the law, a survivor",
                mean - mean.subs(step, after),
                forms.expected_interference(1, step, after),
            ),
            symbolic.step(
                "a weight of (j + 1/2) D has the largest error, D^2/4",
                ((j + sympy.Rational(1, 2)) * step - j * step) ** 2,
                forms.interference_bound(1, step),
            ),
            symbolic.step("the largest survivor has none at D' = w / top", w - top * (w / top)),
            symbolic.step(
                "the lower end is attained by w = (1, 2, 3), 3 bits, the 3 removed",
                sympy.Rational(rational_change(attained, (1, 1, 0), 3)[0]),
                -sympy.Rational(
                    forms.interference_bound(1, rational_change(attained, (1, 1, 0), 3)[2])
                ),
            ),
            symbolic.step(
                "by parts: E max^2 = integral of x^2 d(F^n) = integral of 2 x (1 - F^n)",
                sympy.diff(x**2 * (1 - f**n), x),
                2 * x * (1 - f**n) - x**2 * sympy.diff(f**n, x),
            ),
            symbolic.step(
                "for uniform weights it is n / (n + 2)",
                sympy.integrate(2 * x * (1 - x**n), (x, 0, 1)),
                n / (n + 2),
            ),
        ),
        beyond="the maximum over fewer weights is no larger; what survives magnitude pruning is no "
        "smaller than what goes, so the absmax of a group with a survivor survives",
    )


def necessity() -> tuple[Counterexample, ...]:
    """2 bits, so that D is the scale itself: levels {-D, 0, D}."""
    f = Fraction
    clipped = [f(2), f(2), f(5)]
    best = min((rounding_error(clipped, f(i, 10), 1), f(i, 10)) for i in range(1, 51))[1]
    change, before, after = rational_change(clipped, (0, 0, 1), 2, (best, f(5)))
    random, d, shrunk = rational_change([f(1), f(2)], (1, 0), 2)
    units, *_ = rational_change([f(3), f(3), f(4), f(0)], (1, 1, 0, 0), 2)
    says = f"w = (2, 2, 5) at its best scale, {best}; magnitude pruning leaves the 5 and its scale"
    return (
        Counterexample(
            "no clipping (the change)", says, "<=", abs(change), forms.interference_bound(1, before)
        ),
        Counterexample("no clipping (the step)", says, "<=", after, before),
        Counterexample(
            "the criterion keeps the absmax",
            "w = (1, 2); a random criterion removes the 2, and 1 is on the new grid",
            "==",
            random,
            f(0),
        ),
        Counterexample(
            "single weights are pruned",
            "pairs (3, 3) and (4, 0) of one group, by norm: the pair of the absmax goes",
            "==",
            units,
            f(0),
        ),
        Counterexample(
            "rounding errors are uniform (the expected law)",
            "w = (1, 2), the 2 removed: 1 was half way between two levels",
            "==",
            random,
            forms.expected_interference(1, d, shrunk),
        ),
    )
