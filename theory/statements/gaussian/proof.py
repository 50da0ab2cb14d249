"""The closed forms of normal weights: the derivation and the counterexamples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Proof
from theory.maths import densities
from theory.maths.densities import DENSITIES
from theory.maths.gaussian import prune_error


def prove() -> Proof:
    t, w, a, b, x = sympy.symbols("t w a b x", positive=True)
    phi, cdf = symbolic.normal_pdf, symbolic.normal_cdf
    laplace = sympy.exp(-w) / 2
    level = sympy.symbols("level", real=True)
    cell = sympy.integrate((w - level) ** 2 * phi(w), (w, a, b))
    m0, m1 = cdf(b) - cdf(a), phi(a) - phi(b)
    return Proof(
        (
            symbolic.step(
                "E[w^2; |w| < t] = (2 Phi(t) - 1) - 2 t phi(t)",
                sympy.integrate(w**2 * phi(w), (w, -t, t)),
                2 * cdf(t) - 1 - 2 * t * phi(t),
            ),
            symbolic.step(
                "a cell's error = m2 - 2 c m1 + c^2 m0 with m1 = phi(a) - phi(b)",
                cell,
                m0 + a * phi(a) - b * phi(b) - 2 * level * m1 + level**2 * m0,
            ),
            symbolic.step(
                "Laplace: E[w^2; 0 < w < x] = 1 - (1 + x + x^2/2) e^-x",
                sympy.integrate(w**2 * laplace, (w, 0, x)),
                1 - (1 + x + x**2 / 2) * sympy.exp(-x),
            ),
            symbolic.step(
                "Student's t: d/dw [(1 + w^2/v) f] = -(v-1)/v w f, up to f's constant",
                *_student_first(w),
            ),
        )
    )


def _student_first(w: sympy.Symbol) -> tuple[sympy.Expr, sympy.Expr]:
    v = sympy.Symbol("v", positive=True)
    f = (1 + w**2 / v) ** (-(v + 1) / 2)
    return ((1 + w**2 / v) * f).diff(w) / f, -(v - 1) / v * w


def necessity() -> tuple[Counterexample, ...]:
    """The normal formula on other weights, at p = 1/2, in units of the variance."""
    with jax.enable_x64(True):
        others = jax.jit(lambda p: [densities.prune_error(f, p) for f in DENSITIES[1:]])
        half = jnp.asarray(0.5)
        normal, true = float(jax.jit(prune_error)(half)), others(half)
    return tuple(
        Counterexample(
            "weights are normal",
            f"{density.name} weights, half of them pruned",
            "==",
            normal,
            float(error) / density.variance,
        )
        for density, error in zip(DENSITIES[1:], true, strict=True)
    )
