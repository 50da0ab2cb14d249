"""Symmetric weight distributions by their partial moments, from which every closed form is made.

A density f is even, in units of its own scale parameter. What a closed form needs of it is

    moment(k, a, b) = integral of w^k f(w) over (a, b),  k = 0, 1, 2

and the threshold of magnitude pruning, P(|w| <= threshold(p)) = p. All functions are elementwise
jax in float64 (call them under ``jax.enable_x64(True)``); infinite limits are fine.

Formulas: elementary integrals, derived in the docstrings and checked by quadrature in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc
from jax.scipy.stats import norm

from perturb.trees import register_tree

BISECTIONS = 80  # halvings of [0, 2^40]: to the last bit


class Density(Protocol):
    """An even density; ``variance`` in units of the scale parameter squared."""

    @property
    def name(self) -> str: ...

    @property
    def variance(self) -> float: ...

    def pdf(self, x: Array) -> Array: ...

    def moment(self, k: int, a: Array, b: Array) -> Array: ...

    def threshold(self, p: Array) -> Array: ...


def _by_parity(half: Array, x: Array, k: int) -> Array:
    """The integral of w^k f from 0 to x, given that from 0 to |x|: odd in x for even k."""
    return half if k % 2 else jnp.sign(x) * half


def _times(x: Array, y: Array) -> Array:
    """x y with inf * 0 = 0, safe under differentiation."""
    finite = jnp.isfinite(x)
    return jnp.where(finite, jnp.where(finite, x, 0) * y, 0)


@dataclass(frozen=True)
class Normal:
    """N(0, 1): m0 = Phi(b) - Phi(a), m1 = phi(a) - phi(b), m2 = m0 + a phi(a) - b phi(b)."""

    name: str = "normal"
    variance: float = 1.0

    def pdf(self, x: Array) -> Array:
        return norm.pdf(x)

    def moment(self, k: int, a: Array, b: Array) -> Array:
        a, b = jnp.asarray(a, jnp.float64), jnp.asarray(b, jnp.float64)
        if k == 1:
            return norm.pdf(a) - norm.pdf(b)
        # Phi(b) - Phi(a) from the tail on the near side: 1 - tiny would lose the tail's digits.
        mass = jnp.where(a > 0, norm.cdf(-a) - norm.cdf(-b), norm.cdf(b) - norm.cdf(a))
        return mass if k == 0 else mass + _times(a, norm.pdf(a)) - _times(b, norm.pdf(b))

    def threshold(self, p: Array) -> Array:
        return norm.ppf((1 + p) / 2)


@dataclass(frozen=True)
class Laplace:
    """exp(-|w|) / 2.

    From 0 to x > 0: (1 - e^-x)/2, (1 - (1 + x) e^-x)/2, 1 - (1 + x + x^2/2) e^-x.
    """

    name: str = "laplace"
    variance: float = 2.0

    def pdf(self, x: Array) -> Array:
        return jnp.exp(-jnp.abs(x)) / 2

    def moment(self, k: int, a: Array, b: Array) -> Array:
        return self._from_zero(k, b) - self._from_zero(k, a)

    def _from_zero(self, k: int, x: Array) -> Array:
        x = jnp.asarray(x, jnp.float64)
        y = jnp.abs(x)
        decay = jnp.exp(-y)
        half = {
            0: lambda: -jnp.expm1(-y) / 2,
            1: lambda: (-jnp.expm1(-y) - _times(y, decay)) / 2,
            2: lambda: -jnp.expm1(-y) - _times(y, decay) - _times(y, _times(y, decay)) / 2,
        }[k]()
        return _by_parity(half, x, k)

    def threshold(self, p: Array) -> Array:
        return -jnp.log1p(-p)


@dataclass(frozen=True)
class StudentT:
    """Student's t with df > 2 degrees of freedom, f(w) = c (1 + w^2/df)^(-(df+1)/2).

    Since d/dw [(1 + w^2/df) f] = -(df-1)/df w f, the first moment from a to b is df/(df-1)
    [(1 + a^2/df) f(a) - (1 + b^2/df) f(b)]. And w^2 f = df [(1 + w^2/df) f - f], where
    (1 + w^2/df) f is (df-1)/(df-2) times the density of sqrt(df/(df-2)) T', T' with df-2.
    """

    df: float = 4.0

    def __post_init__(self) -> None:
        if not self.df > 2:
            raise ValueError(f"df must be above 2 for a finite variance, got {self.df}")

    @property
    def name(self) -> str:
        return f"student-t {self.df:g}"

    @property
    def variance(self) -> float:
        return self.df / (self.df - 2)

    def pdf(self, x: Array) -> Array:
        v = self.df
        log_c = math.lgamma((v + 1) / 2) - math.lgamma(v / 2) - math.log(v * math.pi) / 2
        return jnp.exp(log_c - (v + 1) / 2 * jnp.log1p(jnp.asarray(x, jnp.float64) ** 2 / v))

    def moment(self, k: int, a: Array, b: Array) -> Array:
        a, b = jnp.asarray(a, jnp.float64), jnp.asarray(b, jnp.float64)
        v = self.df
        if k == 1:

            def tail(x: Array) -> Array:
                y = jnp.where(jnp.isfinite(x), x, 0)
                return jnp.where(jnp.isfinite(x), (1 + y**2 / v) * self.pdf(y), 0)

            return v / (v - 1) * (tail(a) - tail(b))
        mass = _half_t(b, v) - _half_t(a, v)
        if k == 0:
            return mass
        ratio = math.sqrt((v - 2) / v)
        wide = _half_t(b * ratio, v - 2) - _half_t(a * ratio, v - 2)
        return v * ((v - 1) / (v - 2) * wide - mass)

    def threshold(self, p: Array) -> Array:
        return _invert(lambda t: 2 * _half_t(t, self.df), p)


def _half_t(x: Array, df: float) -> Array:
    """P(0 < T < x) of Student's t, odd in x: half of I_{x^2/(df + x^2)}(1/2, df/2).

    Elementary for 2 and 4 degrees of freedom, with s = x / sqrt(df + x^2): s/2 and (3 s - s^3)/4.
    """
    finite = jnp.isfinite(x)
    y = jnp.where(finite, x, 1.0)
    if df in (2, 4):
        s = jnp.where(finite, y / jnp.sqrt(df + y**2), jnp.sign(x))
        return s / 2 if df == 2 else (3 * s - s**3) / 4
    inside = betainc(0.5, df / 2, y**2 / (df + y**2)) / 2
    return jnp.sign(x) * jnp.where(finite, inside, 0.5)


@dataclass(frozen=True)
class Uniform:
    """Uniform on (-1, 1): from 0 to x, x^(k+1) / (2 (k + 1))."""

    name: str = "uniform"
    variance: float = 1 / 3

    def pdf(self, x: Array) -> Array:
        return jnp.where(jnp.abs(x) <= 1, 0.5, 0.0)

    def moment(self, k: int, a: Array, b: Array) -> Array:
        a, b = (jnp.clip(jnp.asarray(x, jnp.float64), -1.0, 1.0) for x in (a, b))
        return (b ** (k + 1) - a ** (k + 1)) / (2 * (k + 1))

    def threshold(self, p: Array) -> Array:
        return jnp.asarray(p, jnp.float64)


@register_tree
@dataclass(frozen=True)
class Empirical:
    """The weights of a real layer, each with mass 1/n; values [n].

    Moments count a weight on a limit by half, so that intervals that share a limit add up. The
    density is a kernel estimate with a box of half-width ``spread`` times the standard deviation.
    """

    values: Array
    spread: float = 0.05

    @property
    def name(self) -> str:
        return "empirical"

    @property
    def variance(self) -> float:
        return float(jnp.mean(self.values**2))

    def pdf(self, x: Array) -> Array:
        width = self.spread * jnp.std(self.values)
        near = jnp.abs(self.values - jnp.asarray(x)[..., None]) < width
        far = jnp.abs(self.values + jnp.asarray(x)[..., None]) < width
        return (jnp.mean(near, -1) + jnp.mean(far, -1)) / (4 * width)

    def moment(self, k: int, a: Array, b: Array) -> Array:
        a, b = jnp.asarray(a)[..., None], jnp.asarray(b)[..., None]
        v = self.values
        inside = ((v > a) & (v < b)) + 0.5 * ((v == a) | (v == b)) * (a != b)
        return jnp.mean(inside * v**k, -1)

    def threshold(self, p: Array) -> Array:
        return jnp.quantile(jnp.abs(self.values), p, method="linear")


def _invert(increasing: Callable[[Array], Array], p: Array) -> Array:
    """x >= 0 with increasing(x) = p, by bisection in log x: bits of the mantissa, not of 1."""
    p = jnp.asarray(p, jnp.float64)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = increasing(jnp.exp(middle)) < p
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = (jnp.full(p.shape, -50.0), jnp.full(p.shape, 50.0))
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, start)
    return jnp.where(p > 0, jnp.exp((low + high) / 2), 0)


DENSITIES: tuple[Density, ...] = (Normal(), Laplace(), StudentT(4.0), Uniform())


def prune_error(density: Density, p: Array) -> Array:
    """E[w^2; |w| <= t], t = threshold(p): magnitude pruning of the fraction p, per weight."""
    t = density.threshold(p)
    return density.moment(2, -t, t)


def round_error(density: Density, step: Array, top: Array | int, most: int = 127) -> Array:
    """E(w - Q(w))^2 of nearest rounding to step * {-top, ..., top}, per weight.

    On the cell (a, b) of level c: moment 2 - 2 c moment 1 + c^2 moment 0; outer cells are open.
    step, top: [...], may be traced; ``most`` >= top is the number of cells that are laid out.
    """
    step, top = jnp.asarray(step, jnp.float64)[..., None], jnp.asarray(top)[..., None]
    code = jnp.arange(most + 1)
    level = step * code  # [..., most + 1]
    low, high = cell(step, code, top)
    m0, m1, m2 = (density.moment(k, low, high) for k in range(3))
    each = m2 - 2 * level * m1 + level**2 * m0
    twice = jnp.where(code == 0, 1, 2)  # f is even
    return jnp.sum(jnp.where(code <= top, twice * each, 0), -1)


def cell(step: Array, code: Array, top: Array | int) -> tuple[Array, Array]:
    """Limits of the cell of ``code`` >= 0; that of code 0 straddles 0, that of ``top`` is open."""
    return step * (code - 0.5), jnp.where(code == top, jnp.inf, step * (code + 0.5))


def turning_threshold(density: Density) -> float:
    """Where t f(t) stops growing: t with t f'(t)/f(t) = -1; inf if it never does.

    Normal: 1. Laplace: 1. Student's t: 1 for every df. Uniform: never.
    """
    if isinstance(density, Uniform):
        return math.inf
    if isinstance(density, (Normal, Laplace, StudentT)):
        return 1.0
    t = jnp.linspace(0, density.threshold(jnp.asarray(0.99)), 2000)
    return float(t[jnp.argmax(t * density.pdf(t))])
