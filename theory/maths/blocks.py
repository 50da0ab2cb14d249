"""Blocks of m normal weights pruned by norm: chi-squared laws and the closed forms of their order.

q is the threshold of the squared norm in units of the variance, p = F_m(q) the fraction pruned,
``inside`` = F_{m+2}(q), as E[chi^2_m; chi^2_m <= q] = m F_{m+2}(q). Errors are per block. The
theorem is :mod:`theory.statements.structured`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf, gammainc, gammaln

from theory.maths.algebra import Number

SMALL, TERMS = 64.0, 160  # (q/2)^k / (a + 1)...(a + k) is below 1e-16 of the sum beyond
NEWTON = 24


def chi2_cdf(m: Array, q: Array) -> Array:
    return gammainc(m / 2, q / 2)


def chi2_cdf_small(m: Array, q: Array) -> Array:
    """F_m(q) for q <= SMALL to rounding of itself, by terms that are all positive:

    (q/2)^a e^(-q/2) sum_k (q/2)^k / Gamma(a + k + 1), a = m/2. A loop of known length: many times
    faster than one that waits for the last of many elements."""
    a, x = m / 2, q / 2

    def add(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        term, total = state
        term = term * x / (a + k)
        return term, total + term

    one = jnp.ones(jnp.broadcast_shapes(a.shape, x.shape))
    _, total = jax.lax.fori_loop(1, TERMS, add, (one, one))
    return jnp.exp(a * jnp.log(x) - x - gammaln(a + 1)) * total


def chi2_quantile(m: Array, p: Array) -> Array:
    """q with F_m(q) = p, [], by Newton's steps on log F_m(e^z) = log p.

    log F_m is concave in z: from the left, where F_m is next to (q/2)^a / Gamma(a + 1), they rise
    to the root and stop there. p < 1; q <= SMALL."""
    z = jnp.log(2.0) + (jnp.log(p) + gammaln(m / 2 + 1)) * 2 / m

    def rise(_: int, z: Array) -> Array:
        q = jnp.exp(z)
        value = chi2_cdf_small(m, q)
        return z - (jnp.log(value) - jnp.log(p)) * value / (q * chi2_pdf(m, q))

    return jnp.exp(jax.lax.fori_loop(0, NEWTON, rise, z))


def chi2_pdf(m: Array, q: Array) -> Array:
    return jnp.exp((m / 2 - 1) * jnp.log(q) - q / 2 - m / 2 * jnp.log(2.0) - gammaln(m / 2))


def odd_cdfs(y: Array) -> tuple[Array, Array, Array]:
    """F_1, F_3, F_5 at y >= 0, elementary: F_{k+2}(y) = F_k(y) - (2 y / k) f_k(y)."""
    root = jnp.sqrt(y)
    one = erf(root / jnp.sqrt(2.0))
    three = one - jnp.sqrt(2 / jnp.pi) * root * jnp.exp(-y / 2)
    return one, three, three - jnp.sqrt(2 / jnp.pi) / 3 * root**3 * jnp.exp(-y / 2)


def blocks_prune_first(m: Number, p: Number, inside: Number, s2: Number, v: Number) -> Any:
    """E(P->Q): s^2 m F_{m+2}(q) + v m (1 - p)."""
    return m * (s2 * inside + v * (1 - p))


def blocks_quantize_first(m: Number, inside: Number, s2: Number, v: Number) -> Any:
    """E(Q->P), which prunes by the norm of w + noise: v m + (s^2 - v) m F_{m+2}(q)."""
    return m * (v + (s2 - v) * inside)


def blocks_advantage(v: Number, q: Number, density: Number) -> Any:
    """A(Q->P)/kappa = -2 v q f_m(q) a block; density = f_m(q) of chi^2 with m degrees."""
    return -2 * v * (q * density)


def blocks_gap(m: Number, inside: Number, s2: Number, v: Number) -> Any:
    """G(Q,P)/kappa = m (s^2 F_{m+2}(q) - v)."""
    return m * (s2 * inside - v)


def most_a_weight(m: Array, v: Array) -> Array:
    """v / sqrt(pi m), which -A(Q->P)/(kappa m) stays below at every p."""
    return v / jnp.sqrt(jnp.pi * m)
