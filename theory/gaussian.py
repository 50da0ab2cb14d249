"""Closed forms for Gaussian weights w ~ N(0, s^2): the errors of pruning and of a uniform grid.

phi and Phi are the standard normal density and distribution function, errors are per weight in
units of s^2, SNR = 10 log10(s^2 / error) in dB. Every function is elementwise jax, in the type
of its argument: call it under ``jax.enable_x64(True)`` with float64 for the digits below, as
pruning little cancels (c - 2 t phi(t) is 7e-5 at c = 0.05).

Source: Kuzmin et al., NeurIPS 2023 (arXiv 2307.02973) for the comparison; the formulas are
derived here, see THEORY.md, "Closed forms to reproduce" and theorem 2b.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

Array = jax.Array

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

SCAN = 200  # steps tried before the search by golden section
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


def grid_error(step: Array, bits: int) -> Array:
    """E(w - Q(w))^2 / s^2 of nearest rounding to step * {-2^(b-1), ..., 2^(b-1) - 1}.

    With the cells (a_k, a_k+1) between the midpoints a_k = (k - 1/2) step, the outer ones open,
    integrating (w - k step)^2 phi(w) cell by cell and using that the cells cover the line:

        1 + sum_k [(k step)^2 (Phi(a_k+1) - Phi(a_k)) + 2 k step (phi(a_k+1) - phi(a_k))].

    step [...] > 0 in units of s; returns [...].
    """
    step = jnp.asarray(step)
    code = jnp.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=step.dtype)  # [2^b]
    level = step[..., None] * code
    middle = step[..., None] * (code[1:] - 0.5)
    below, above = (jnp.full_like(step[..., None], x) for x in (-jnp.inf, jnp.inf))
    edge = jnp.concatenate([below, middle, above], -1)  # [..., 2^b + 1]
    # Phi(b) - Phi(a) from the tail on the near side: 1 - tiny would lose the tail's digits.
    flip = level > 0
    upper, lower = edge[..., 1:], edge[..., :-1]
    mass = jnp.where(flip, norm.cdf(-lower) - norm.cdf(-upper), norm.cdf(upper) - norm.cdf(lower))
    density = norm.pdf(upper) - norm.pdf(lower)
    return 1 + jnp.sum(level**2 * mass + 2 * level * density, -1)


@partial(jax.jit, static_argnames=("bits", "dtype"))
def optimal_step(bits: int, dtype: jnp.dtype = jnp.float64) -> tuple[Array, Array]:
    """The step of least :func:`grid_error`, and that error.

    The bracket is the best of SCAN logarithmic steps between 2 s 2^-b and 16 s 2^-b with its
    neighbours; golden section from there. Raises ValueError for bits outside 2..12.
    """
    if bits not in range(2, 13):
        raise ValueError(f"bits must be a whole number from 2 to 12, got {bits}")
    steps = jnp.geomspace(jnp.asarray(2.0, dtype), 16.0, SCAN) * 2.0**-bits
    best = jnp.clip(jnp.argmin(grid_error(steps, bits)), 1, SCAN - 2)

    def shrink(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        width = INVERSE_PHI * (high - low)
        left = grid_error(high - width, bits) < grid_error(low + width, bits)
        return jnp.where(left, low, high - width), jnp.where(left, low + width, high)

    low, high = jax.lax.fori_loop(0, GOLDEN, shrink, (steps[best - 1], steps[best + 1]))
    step = (low + high) / 2
    return step, grid_error(step, bits)


def prune_snr_db(c: float) -> float:
    """SNR in dB of magnitude pruning, in float64 whatever the caller's default."""
    with jax.enable_x64(True):
        return float(snr_db(prune_error(jnp.asarray(c, jnp.float64))))


def grid_snr_db(bits: int) -> float:
    """SNR in dB of the MSE-optimal b-bit uniform grid, in float64."""
    with jax.enable_x64(True):
        return float(snr_db(optimal_step(bits)[1]))
