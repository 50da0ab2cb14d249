"""Steps of a derivation, checked: what should vanish is simplified, and has to be 0."""

from __future__ import annotations

import sympy

from theory.engine.statement import Step


def step(says: str, left: sympy.Expr, right: sympy.Expr | int = 0) -> Step:
    """The claim ``left = right`` as a step; its residual is the simplified difference."""
    difference = sympy.sympify(left) - sympy.sympify(right)
    residual = sympy.expand(difference)
    return Step(says, residual if residual == 0 else sympy.simplify(residual))


def normal_pdf(x: sympy.Expr) -> sympy.Expr:
    return sympy.exp(-(x**2) / 2) / sympy.sqrt(2 * sympy.pi)


def normal_cdf(x: sympy.Expr) -> sympy.Expr:
    return (1 + sympy.erf(x / sympy.sqrt(2))) / 2
