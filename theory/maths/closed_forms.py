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
from jax.scipy.stats import norm

from theory.maths import densities
from theory.maths.densities import Density
from theory.maths.quadrature import integrate
from theory.statements.gaussian.claims import prune_error, prune_threshold

Array = jax.Array
BISECTIONS = 60


def benefit(w: Any, q: Any) -> Any:
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


# Where the integral of max_square is cut; weights beyond 10^4 scale parameters are left out.
MAX_EDGES = (0, 1, 2, 4, 8, 20, 100, 1e3, 1e4)


def scale_step(absmax: Any, bits: Any) -> Any:
    """D = absmax / (2^(b-1) - 1), the "full" convention: the largest weight is on the grid."""
    return absmax / (2 ** (bits - 1) - 1)


def interference_bound(survivors: Any, step: Any) -> Any:
    """survivors D^2 / 4: every error is at most half a step."""
    return survivors * step**2 / 4


def expected_interference(survivors: Any, step: Any, step_after: Any) -> Any:
    """survivors (D^2 - D'^2) / 12, error before minus error after, for uniform errors."""
    return survivors * (step**2 - step_after**2) / 12


def max_square(density: Density, n: Array) -> Array:
    """E max_{i <= n} w_i^2 of n >= 0 iid weights, in units of the scale squared; n ``[...]``.

    For densities with a smooth distribution function (not the empirical one); about 1e-12 relative
    for tails that decay exponentially, 1e-6 for Student's t with 4 degrees of freedom.
    """
    n = jnp.asarray(n, jnp.float64)[..., None, None, None]
    edges = jnp.asarray(MAX_EDGES, jnp.float64)

    def tail(x: Array) -> Array:
        inside = density.moment(0, -x, x)
        return 2 * x * -jnp.expm1(n * jnp.log(inside))  # 2 x (1 - F^n)

    return jnp.sum(integrate(tail, edges[:-1], edges[1:]), -1)


def random_pruning(density: Density, bits: Array, n: Array, k: Array) -> Array:
    """E of the change, a group of n, k of which survive at random, by the expected law.

    k (E max_n^2 - E max_k^2) / (12 (2^(b-1)-1)^2); all ``[...]``.
    """
    unit = scale_step(1.0, bits) ** 2
    return k * unit * (max_square(density, n) - max_square(density, k)) / 12


def random_pruning_on_grid(density: Density, bits: Array, n: Array, k: Array) -> Array:
    """The same, less what the law gets wrong: the largest weight has no error, at either scale.

    Before, a survivor is the group's largest with probability 1/n; after, one survivor is:
    [k (1 - 1/n) E max_n^2 - (k - 1) E max_k^2] / (12 (2^(b-1)-1)^2), k >= 1.
    """
    unit = scale_step(1.0, bits) ** 2
    before = k * (1 - 1 / n) * max_square(density, n)
    return unit * (before - (k - 1) * max_square(density, k)) / 12


def disjoint_square(eps_s: Any, eps_q: Any, kept: Any) -> Any:
    """||eps_s||^2 + ||eps_q on the kept||^2: the squared error of sparsifying first."""
    return (eps_s**2).sum() + (kept * eps_q**2).sum()


def swap_bound(swaps: Any, step: Any, power: Any) -> Any:
    """r^(1/p) D / 2, what quantizing first exceeds the sum by in Lp; ``power`` is 1/p."""
    return swaps**power * step / 2


def one_block_bound(swaps: Any, step: Any, power: Any) -> Any:
    """r^(1/p) (D/2) [(3^p + 1)^(1/p) - 1 - 2^(1/p)], the sharp bound of a single block in Lp.

    The factor is 1 in L1 and Linf, 0.748 in L2."""
    p = 1 / power if power else 0
    factor = (3**p + 1) ** power - 1 - 2**power if power else 1
    return swap_bound(swaps, step, power) * factor


def square_bound(swaps: Any, level_step: Any) -> Any:
    """2 r max |q| D: what quantizing first costs in squares over sparsifying first."""
    return 2 * swaps * level_step
