"""Normal weights: the error of magnitude pruning, and signal-to-noise ratios.

phi and Phi are the standard normal density and distribution function, errors are per weight in
units of s^2, SNR = 10 log10(s^2 / error) in dB. The same numbers for Laplace, Student's t, uniform
and empirical weights come from :mod:`theory.maths.densities`. Call everything under
``jax.enable_x64(True)``: pruning little cancels (c - 2 t phi(t) is 7e-5 at c = 0.05).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm


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


@jax.jit
def _prune_snr_db(c: Array) -> Array:
    return snr_db(prune_error(c))


def prune_snr_db(c: float) -> float:
    """SNR in dB of magnitude pruning, in float64 whatever the caller's default."""
    with jax.enable_x64(True):
        return float(_prune_snr_db(jnp.asarray(c, jnp.float64)))
