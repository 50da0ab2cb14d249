"""Closed forms for the weights of a layer: the errors of pruning and of a uniform grid, in SNR.

phi and Phi are the standard normal density and distribution function, errors are per weight in
units of s^2, SNR = 10 log10(s^2 / error) in dB. The same numbers for Laplace, Student's t, uniform
and empirical weights come from :mod:`theory.maths.densities`. Call everything under
``jax.enable_x64(True)``: pruning little cancels (c - 2 t phi(t) is 7e-5 at c = 0.05).

Source: Kuzmin et al., NeurIPS 2023 (arXiv 2307.02973) for the comparison; the formulas are
derived here, see THEORY.md, "Closed forms to reproduce" and theorem 2b.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import sympy
from jax.scipy.stats import norm

from theory.engine import instances, symbolic
from theory.engine.statement import Claim, Counterexample, Family, Finding, Proof, Sides, Statement
from theory.maths import densities
from theory.maths.densities import DENSITIES, Density
from theory.maths.quadrature import integrate

Array = jax.Array
Function = Callable[[Array], Array]

# dB as THEORY.md prints them: text, because the number of digits is part of the claim.
PRUNE_SNR = {
    0.05: "41.8",
    0.10: "32.8",
    0.25: "20.8",
    0.40: "14.5",
    0.50: "11.5",
    0.75: "5.58",
    0.875: "3.03",
}
GRID_SNR = {2: "8.26", 3: "13.9", 4: "19.26", 5: "24.5", 6: "29.8", 8: "40.6"}
FORMS = ("prune_error", "grid_error")

MOST_BITS = 8  # cells that are laid out whatever the width: one program serves all
SCAN = 64  # steps tried before the search by golden section
GOLDEN = 60  # each step keeps 0.618 of the bracket: to rounding
INVERSE_PHI = (5**0.5 - 1) / 2


def snr_db(error: Array) -> Array:
    """10 log10(1 / error), in dB, of an error in units of s^2."""
    return -10 * jnp.log10(error)


def prune_threshold(c: Array) -> Array:
    """t = Phi^-1((1 + c) / 2): the fraction c of |w| <= t s, 0 <= c < 1."""
    return norm.ppf((1 + c) / 2)


def prune_error(c: Array) -> Array:
    """E[w^2; |w| <= t s] / s^2 = c - 2 t phi(t): magnitude pruning of the fraction c."""
    t = prune_threshold(c)
    return c - 2 * t * norm.pdf(t)


def grid_error(step: Array, bits: Array | int) -> Array:
    """E(w - Q(w))^2 / s^2 of nearest rounding to step * {-2^(b-1), ..., 2^(b-1) - 1}.

    With the cells (a_k, a_k+1) between the midpoints a_k = (k - 1/2) step, the outer ones open,
    integrating (w - k step)^2 phi(w) cell by cell and using that the cells cover the line:

        1 + sum_k [(k step)^2 (Phi(a_k+1) - Phi(a_k)) + 2 k step (phi(a_k+1) - phi(a_k))].

    step [...] > 0 in units of s; bits <= MOST_BITS, may be traced; returns [...].
    """
    step = jnp.asarray(step, jnp.float64)[..., None]
    half = 2 ** (jnp.asarray(bits) - 1)
    code = jnp.arange(-(2 ** (MOST_BITS - 1)), 2 ** (MOST_BITS - 1))
    level = step * code
    lower = jnp.where(code == -half, -jnp.inf, step * (code - 0.5))
    upper = jnp.where(code == half - 1, jnp.inf, step * (code + 0.5))
    weight = densities.Normal()
    mass, first = (weight.moment(k, lower, upper) for k in (0, 1))
    each = jnp.where((code >= -half) & (code < half), level**2 * mass - 2 * level * first, 0)
    return 1 + jnp.sum(each, -1)


def _least(error: Function, low: Array, high: Array) -> tuple[Array, Array]:
    """The minimiser of a function of a positive step between low and high, and its value.

    The bracket is the best of SCAN logarithmic steps with its neighbours; golden section from
    there."""
    steps = low * (high / low) ** jnp.linspace(0, 1, SCAN)
    best = jnp.clip(jnp.argmin(jax.lax.map(error, steps)), 1, SCAN - 2)

    def shrink(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        width = INVERSE_PHI * (high - low)
        left, right = error(jnp.stack([high - width, low + width]))
        return jnp.where(left < right, low, high - width), jnp.where(
            left < right, low + width, high
        )

    low, high = jax.lax.fori_loop(0, GOLDEN, shrink, (steps[best - 1], steps[best + 1]))
    step = (low + high) / 2
    return step, error(step)


def optimal_step(bits: int) -> tuple[Array, Array]:
    """The step of least :func:`grid_error`, and that error, in units of s and s^2.

    Raises ValueError for bits outside 2..MOST_BITS.
    """
    if bits not in range(2, MOST_BITS + 1):
        raise ValueError(f"bits must be a whole number from 2 to {MOST_BITS}, got {bits}")
    return _optimal_step(jnp.asarray(bits))


@jax.jit
def _optimal_step(bits: Array) -> tuple[Array, Array]:
    unit = 0.5**bits
    return _least(lambda step: grid_error(step, bits), 2 * unit, 16 * unit)


@partial(jax.jit, static_argnames=("density",))
def best_symmetric_step(density: Density, top: Array) -> Array:
    """The step of least error of the grid step * {-top, ..., top} on a density; top [] <= 127."""
    size = density.variance**0.5 / (top + 1)
    return _least(lambda step: densities.round_error(density, step, top), 0.25 * size, 20 * size)[0]


@jax.jit
def _prune_snr_db(c: Array) -> Array:
    return snr_db(prune_error(c))


def prune_snr_db(c: float) -> float:
    """SNR in dB of magnitude pruning, in float64 whatever the caller's default."""
    with jax.enable_x64(True):
        return float(_prune_snr_db(jnp.asarray(c, jnp.float64)))


def grid_snr_db(bits: int) -> float:
    """SNR in dB of the MSE-optimal b-bit uniform grid, in float64."""
    with jax.enable_x64(True):
        return float(snr_db(optimal_step(bits)[1]))


def reproduces(value: float, printed: str) -> bool:
    """Whether a value rounds to a printed number, digit by digit."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


# ------------------------------------------------------------------------------ random instances


class Setting(NamedTuple):
    p: Array
    step: Array  # in standard deviations


def _setting(u: Array) -> Setting:
    return Setting(0.005 + 0.985 * u[0], instances.log_uniform(u[1], 0.05, 2.0))


def _pruning(x: Setting) -> Sides:
    """Judged by c, of which nearly all cancels when little is pruned."""
    true = integrate(lambda w: 2 * w**2 * norm.pdf(w), jnp.zeros(()), prune_threshold(x.p))
    return Sides(prune_error(x.p), true, x.p)


def _pruning_any(x: Setting) -> Sides:
    """Laplace, Student's t and uniform: the largest difference of the three."""
    worst = jnp.zeros(())
    for density in DENSITIES[1:]:
        t = density.threshold(x.p)

        def second(w: Array, density: Density = density) -> Array:
            return 2 * w**2 * density.pdf(w)

        true = integrate(second, jnp.zeros(()), t)
        error = jnp.abs(densities.prune_error(density, x.p) - true)
        worst = jnp.maximum(worst, error / jnp.maximum(x.p, t**2))
    return Sides(worst, jnp.zeros(()), jnp.ones(()))


BITS = 3


def _rounding(x: Setting) -> Sides:
    level = x.step * jnp.arange(-(2 ** (BITS - 1)), 2 ** (BITS - 1))
    edge = jnp.concatenate([jnp.array([-14.0]), (level[1:] + level[:-1]) / 2, jnp.array([14.0])])
    cells = integrate(lambda w: (w - level[:, None, None]) ** 2 * norm.pdf(w), edge[:-1], edge[1:])
    return Sides(grid_error(x.step, BITS), jnp.sum(cells), jnp.ones(()))


FAMILIES = (
    Family(
        "ratios and steps",
        "any fraction pruned, steps of 0.05 to 2 standard deviations at 3 bits",
        2,
        _setting,
        (
            Claim(
                "pruning, normal",
                "c - 2 t phi(t) is the integral, relative to c",
                "==",
                _pruning,
            ),
            Claim(
                "pruning, others",
                "the partial moments of Laplace, t and uniform are the integrals",
                "==",
                _pruning_any,
            ),
            Claim("rounding, normal", "the sum over cells is the integral", "==", _rounding),
        ),
        smooth=False,
        share=0.1,
    ),
)


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


def measure(key: Array) -> tuple[Finding, ...]:
    pruned = {c: prune_snr_db(c) for c in PRUNE_SNR}
    rounded = {b: grid_snr_db(b) for b in GRID_SNR}
    rows = [
        (f"prune {c:.1%}", f"{pruned[c]:.6f}", printed, reproduces(pruned[c], printed))
        for c, printed in PRUNE_SNR.items()
    ] + [
        (f"{b}-bit grid", f"{rounded[b]:.6f}", printed, reproduces(rounded[b], printed))
        for b, printed in GRID_SNR.items()
    ]
    same = sum(bool(r[3]) for r in rows)
    return (
        Finding(
            "closed-form SNR table of THEORY.md",
            "holds" if same == len(rows) else "false",
            f"{same} of {len(rows)} entries to the last digit printed. Kuzmin et al. give 5.6 dB "
            f"for 75 % (here {prune_snr_db(0.75):.2f}) and 19.1 dB for INT4 (here "
            f"{grid_snr_db(4):.2f}, the optimum)",
            {"entries": float(len(rows)), "same digits": float(same)},
            ("weights N(0, 1)", "SNR, dB", "printed", "same digits"),
            tuple((a, b, c, "yes" if d else "NO") for a, b, c, d in rows),
            required=True,
        ),
    )


STATEMENT = Statement(
    name="gaussian",
    title="Closed forms: the errors of pruning and of a uniform grid",
    source="derived here; compared with Kuzmin et al., NeurIPS 2023 (arXiv 2307.02973)",
    assumptions=("weights are normal",),
    claim="magnitude pruning of a fraction c costs c - 2 t phi(t) of the variance; the best b-bit "
    "uniform grid what the sum over its cells says",
    latex=r"\mathbb E[w^2;|w|\le t]=s^2\bigl(c-2t\varphi(t)\bigr),\quad "
    r"t=\Phi^{-1}\bigl(\tfrac{1+c}2\bigr)",
    families=FAMILIES,
    prove=prove,
    necessity=necessity,
    measure=measure,
)
