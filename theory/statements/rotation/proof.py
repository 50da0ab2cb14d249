"""Rotation and pruning: the two facts that the bound is made of, and where it stops."""

from __future__ import annotations

import math
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Proof


def prove() -> Proof:
    z, t, x = sympy.symbols("z t x", positive=True)
    s = sympy.symbols("s1:4", positive=True)
    a = sympy.symbols("a1:4", positive=True)  # shares
    phi, cdf = symbolic.normal_pdf, symbolic.normal_cdf
    inside = sympy.integrate(z**2 * phi(z), (z, -t, t))
    fixed = sum(p * q**2 * inside for p, q in zip(a, s, strict=True))
    energy = sum(p * q**2 for p, q in zip(a, s, strict=True))
    error = sympy.integrate((q := s[0]) ** 2 * z**2 * phi(z), (z, -x / q, x / q))
    at = x / s[0]
    return Proof(
        (
            symbolic.step(
                "E[sigma^2 z^2; |z| <= t] = E w^2 (p - 2 t phi(t)), three scales",
                fixed,
                energy * (2 * cdf(t) - 1 - 2 * t * phi(t)),
            ),
            symbolic.step(
                "a scale's part of the error: s^2 [2 Phi(x/s) - 1 - 2 (x/s) phi(x/s)]",
                error,
                s[0] ** 2 * (2 * cdf(at) - 1 - 2 * at * phi(at)),
            ),
        ),
        beyond="of all sets of mass p, that of the smallest |w| has the least E[w^2; set]; "
        "{|z| <= t} is another of that mass; Laplace weights are the mixture with sigma^2 "
        "exponential, Student's t that with 1/sigma^2 gamma; any mixture is a limit of finite ones",
    )


def necessity() -> tuple[Counterexample, ...]:
    half = Fraction(1, 2)
    t = 0.6744897501960817  # Phi^-1(3/4)
    normal = 0.5 - 2 * t * math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    return (
        Counterexample(
            "weights are a scale mixture of normal ones",
            "uniform weights, half of them pruned: p^3 of the energy against p - 2 t phi(t)",
            "<=",
            float(half**3),
            normal,
        ),
        Counterexample(
            "the rotated weights are normal",
            "w = (1, 1), turned by 45 degrees to (sqrt 2, 0), one pruned: 1 before, 0 after",
            "<=",
            Fraction(1),
            Fraction(0),
        ),
        Counterexample(
            "pruning is by magnitude",
            "w = (1, 3), the larger one pruned, against the mean of both weights' energies, what a "
            "fixed choice costs after a random rotation",
            "<=",
            Fraction(9),
            Fraction(5),
        ),
    )
