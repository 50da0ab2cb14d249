"""Theorem 2c: the derivation, the enumeration and the counterexamples."""

from __future__ import annotations

import itertools
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.closed_forms import benefit
from theory.maths.rational import masked_error


def exact() -> Exact:
    """Five units with all errors in {0, 1, 3}: the aware choice against every set of its size."""
    cases, failure = 0, None
    for gains in itertools.combinations_with_replacement((-3, -2, -1, 0, 1, 2, 3), 5):
        for k in range(6):
            totals = [sum(gains[i] for i in c) for c in itertools.combinations(range(5), k)]
            cases += len(totals)
            if sum(sorted(gains)[:k]) != min(totals) and failure is None:
                failure = f"gains {gains}, k = {k}"
    return Exact("5 units, e2 - e1 in -3..3: the k smallest against every set of k", cases, failure)


def prove() -> Proof:
    s2, v, x, tau, a = sympy.symbols("s2 v x tau a", positive=True)
    e1i, e2i, e1j, e2j = sympy.symbols("e1i e2i e1j e2j")
    g = sympy.symbols("g", positive=True)
    s, r = sympy.sqrt(s2), sympy.sqrt(v)
    density = sympy.exp(-x / 2) / 2  # of rho^2
    a0 = sympy.symbols("a0", positive=True)
    curve = s2 * sympy.cos(a) ** 2 - v * sympy.sin(a) ** 2
    inside = sympy.integrate(2 * curve, (a, a0, sympy.pi / 2)) * 2 / sympy.pi
    # at a0 = arctan(s / r): cos = r / sqrt(s2 + v), sin = s / sqrt(s2 + v)
    at_zero = sympy.expand_trig(inside).subs({sympy.sin(2 * a0): 2 * sympy.sin(a0) * sympy.cos(a0)})
    at_zero = at_zero.subs(
        {sympy.cos(a0): r / sympy.sqrt(s2 + v), sympy.sin(a0): s / sympy.sqrt(s2 + v)}
    )
    closed = 2 / sympy.pi * ((s2 - v) * (sympy.pi / 2 - a0) - s * r)
    h11, h12, h22, w1, w2, y = sympy.symbols("h11 h12 h22 w1 w2 y", real=True)
    c = w2 + h12 / h22 * w1  # of (0, w2)
    residual = (h11 - h12**2 / h22) * w1**2
    return Proof(
        (
            symbolic.step(
                "exchanging unit i (owned by f2) for j changes E by (e2j - e1j) - (e2i - e1i)",
                (e1i + e2j) - (e2i + e1j),
                (e2j - e1j) - (e2i - e1i),
            ),
            symbolic.step(
                "P(rho^2 <= tau/g) = 1 - exp(-tau/(2 g))",
                sympy.integrate(density, (x, 0, tau / g)),
                1 - sympy.exp(-tau / (2 * g)),
            ),
            symbolic.step(
                "E[rho^2 g; rho^2 g <= tau] = 2 g [1 - (1 + x) e^-x], x = tau/(2 g)",
                sympy.integrate(x * g * density, (x, 0, tau / g)),
                2 * g * (1 - (1 + tau / (2 * g)) * sympy.exp(-tau / (2 * g))),
            ),
            symbolic.step(
                "(0, y) is off by R + h22 (y - c)^2: who aims at the dense row aims at c",
                h11 * w1**2 - 2 * h12 * w1 * (y - w2) + h22 * (y - w2) ** 2,
                residual + h22 * (y - c) ** 2,
            ),
            symbolic.step("E[d; d < 0] = (2/pi)[(s2 - v)(pi/2 - a0) - s sqrt(v)]", at_zero, closed),
        ),
        beyond="a set from which no exchange pays has the least sum (exchange argument); "
        "independent normals in polar coordinates have a uniform angle and rho^2 exponential of "
        "mean 2",
    )


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    w = (f(6, 10), f(8, 10))
    q = (f(1), f(1))
    d = [benefit(a, b) for a, b in zip(w, q, strict=True)]
    c = f(-9, 10)
    x, y = (f(145, 100), f(155, 100)), (f(1), f(2))

    def quadratic(*dw: Fraction) -> Fraction:
        """dw^T H dw with H = [[1, c], [c, 1]]."""
        return dw[0] ** 2 + dw[1] ** 2 + 2 * c * dw[0] * dw[1]

    gains = [benefit(a, b) for a, b in zip(x, y, strict=True)]
    return (
        Counterexample(
            "f2 minimises the final error to the dense model",
            "f2 = magnitude pruning of Q(w), w = (0.6, 0.8), step 1: Q = (1, 1) ties and the "
            f"second goes, while d = ({d[0]}, {d[1]}) says the first",
            "<=",
            masked_error(w, q, (0, 1)) - masked_error(w, q, (1, 0)),
            f(0),
        ),
        Counterexample(
            "the same number of units in both orders",
            "w = (0.6, 0.8), step 1: P->Q removes none, Q->P must remove one",
            "<=",
            masked_error(w, q, (1, 0)) - masked_error(w, q, (0, 0)),
            f(0),
        ),
        Counterexample(
            "errors of units add up",
            "H = [[1, -0.9], [-0.9, 1]], w = (1.45, 1.55), step 1: Q = (1, 2); by the diagonal "
            f"d = ({float(gains[0])}, {float(gains[1])}) removes the first, P->Q may remove the "
            f"second",
            "<=",
            quadratic(-x[0], y[1] - x[1]) - quadratic(y[0] - x[0], -x[1]),
            f(0),
        ),
    )
