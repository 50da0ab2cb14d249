"""Closed forms of theorems 2a to 2c: what the order of a pruner and a quantizer changes.

Errors and advantages are per weight, in the units of the variances given; A(Q->P) > 0 means that
quantizing first is better. Elementwise jax in float64 unless a docstring says otherwise; call
them under ``jax.enable_x64(True)``. The theorems are in :mod:`theory.statements.rounding` (2a),
:mod:`theory.statements.affine` (2b) and :mod:`theory.statements.aware` (2c).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.maths import densities
from theory.maths.algebra import Number
from theory.maths.densities import Density
from theory.maths.gaussian import prune_error, prune_threshold
from theory.maths.quadrature import integrate

BISECTIONS = 60


def benefit(w: Number, q: Number) -> Any:
    """d = w^2 - (w - q)^2 = q (2 w - q): what keeping a weight at its level q saves."""
    return q * (2 * w - q)


def expected_advantage(density: Density, p: Array, step: Array, top: Array | int) -> Array:
    """A(Q->P)/(kappa n), in units of the density's scale squared: <= 0.

    p: fraction pruned; step: of the grid step * {-top..top}, > 0; both ``[...]``. Ties are broken
    uniformly. Limit of many weights; exact for :class:`~theory.maths.densities.Empirical` ones.
    """
    t = density.threshold(p)
    code = jnp.minimum(jnp.ceil(t / step - 0.5), top)  # the cell of the threshold
    low, high = densities.cell(step, code, top)
    level = step * code

    def one_side(a: Array, b: Array) -> Array:
        """E[d; a < w < b] within the cell, d linear there."""
        return 2 * level * density.moment(1, a, b) - level**2 * density.moment(0, a, b)

    mass = 2 * density.moment(0, low, high)
    gone = 2 * density.moment(0, low, t)
    theta = jnp.where(mass > 0, gone / jnp.where(mass > 0, mass, 1), 0)
    gap = theta * 2 * one_side(low, high) - 2 * one_side(low, t)
    return jnp.where(code == 0, 0, -gap)


def order_free_below(density: Density, step: Array) -> Array:
    """The zone's edge: A = 0 for every p up to P(|w| < step / 2)."""
    return density.moment(0, -step / 2, step / 2)


def noise_prune_first(p: Array, s2: Array, v: Array) -> Array:
    """Error per weight of P -> Q: s^2 m(p) + v (1 - p)."""
    return s2 * prune_error(p) + v * (1 - p)


def noise_quantize_first(p: Array, s2: Array, v: Array) -> Array:
    """Error per weight of Q -> P, which prunes the smallest |w + noise|: v + m(p) (s^2 - v)."""
    return v + prune_error(p) * (s2 - v)


def noise_advantage(p: Array, v: Array) -> Array:
    """A(Q->P)/(kappa n) = -2 v t phi(t), in the units of v; p in [0, 1)."""
    t = prune_threshold(p)
    return -2 * v * t * norm.pdf(t)


def noise_gap(p: Array, s2: Array, v: Array) -> Array:
    """G(Q,P)/(kappa n) = s^2 m(p) - v: positive where pruning is the stronger."""
    return s2 * prune_error(p) - v


def small_noise_advantage(density: Density, p: Array, v: Array) -> Array:
    """A(Q->P)/(kappa n) to first order in v: -2 v t f(t), any even density f, t its threshold.

    Swaps happen within a noise's width of +-t, where they cost E int 2 t u f(t) du = f(t) t v a
    side."""
    t = density.threshold(p)
    return -2 * v * t * density.pdf(t)


def laplace_correction(t: Number, v: Number) -> Any:
    """3 v / (4 t): what :func:`small_noise_advantage` understates A of Laplace weights by.

    Relatively; exact but for normal noise that reaches from the threshold t to 0. Operators only.
    """
    return 3 * v / (4 * t)


def _over_angles(part: int, tau: Array, s2: Array, v: Array) -> Array:
    """E of one of :func:`_per_angle`'s values over an angle uniform on (0, pi/2).

    Where g changes sign, at a0, it goes as exp(-|tau / g|): flat, then steep within |tau|, which
    a = a0 -+ (length) y^4 and two intervals resolve to rounding for |tau| >= 1e-3 s2."""
    a0 = jnp.arctan2(jnp.sqrt(s2), jnp.sqrt(v))
    length = jnp.stack([-a0, jnp.pi / 2 - a0])  # below a0 g > 0, above g < 0

    def at(y: Array) -> Array:
        side = length[:, None, None, None]
        a = a0 + side * y**4
        g = s2 * jnp.cos(a) ** 2 - v * jnp.sin(a) ** 2
        return jnp.abs(side) * 4 * y**3 * _per_angle(g, tau)[part]

    edges = jnp.broadcast_to(jnp.array([0.0, 0.25, 1.0]), (2, 3))
    return 2 / jnp.pi * jnp.sum(integrate(at, edges[:, :-1], edges[:, 1:]))


def _per_angle(g: Array, tau: Array) -> tuple[Array, Array]:
    """P(rho^2 g <= tau) and E[rho^2 g; rho^2 g <= tau] given the angle, rho^2 ~ exponential(2).

    With x = tau / (2 g): g and tau of one sign leave e^-x and (1 + x) e^-x beyond tau.
    """
    same = g * tau > 0
    x = jnp.where(same, tau / jnp.where(same, 2 * g, 1), 0)
    beyond, tail = jnp.exp(-x), (1 + x) * jnp.exp(-x)
    mass = jnp.where(same, jnp.where(g > 0, 1 - beyond, beyond), jnp.where(g < 0, tau >= 0, 0.0))
    part = jnp.where(same, jnp.where(g > 0, 1 - tail, tail), jnp.where(g < 0, tau >= 0, 0.0))
    return mass, 2 * g * part


def aware_mass(tau: Array, s2: Array, v: Array) -> Array:
    """P(w^2 - e^2 <= tau), all arguments []."""
    return _over_angles(0, tau, s2, v)


def aware_sum(tau: Array, s2: Array, v: Array) -> Array:
    """E[w^2 - e^2; w^2 - e^2 <= tau], all arguments []."""
    return _over_angles(1, tau, s2, v)


def zero_threshold_sum(s2: Array, v: Array) -> Array:
    """E[w^2 - e^2; w^2 < e^2] = (2/pi) [(s2 - v) arctan(sqrt(v/s2)) - sqrt(s2 v)]."""
    return 2 / jnp.pi * ((s2 - v) * jnp.arctan2(jnp.sqrt(v), jnp.sqrt(s2)) - jnp.sqrt(s2 * v))


def aware_threshold(p: Array, s2: Array, v: Array) -> Array:
    """tau with P(w^2 - e^2 <= tau) = p, by bisection; 0 < p < 1."""
    most = 80 * jnp.maximum(s2, v)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = aware_mass(middle, s2, v) < p
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (-most, most))
    return (low + high) / 2


def aware_advantage(p: Array, s2: Array, v: Array) -> Array:
    """A(Q->P)/(kappa n) with a pruner that knows the dense weights: >= 0."""
    best = aware_sum(aware_threshold(p, s2, v), s2, v)
    return s2 * prune_error(p) - v * p - best
