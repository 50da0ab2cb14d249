"""Scale mixtures of normal weights, w = sigma z, sigma independent of z: what pruning costs them.

The scales have finitely many values. The theorem is :mod:`theory.statements.rotation`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm


def mixture_mass(cut: Array, scale: Array, share: Array) -> Array:
    """P(|w| <= cut); scale, share [K], the shares summing to 1."""
    return jnp.sum(share * (2 * norm.cdf(cut / scale) - 1), -1)


def mixture_error(cut: Array, scale: Array, share: Array) -> Array:
    """E[w^2; |w| <= cut] = sum share scale^2 [2 Phi(t) - 1 - 2 t phi(t)], t = cut / scale."""
    t = cut / scale
    return jnp.sum(share * scale**2 * (2 * norm.cdf(t) - 1 - 2 * t * norm.pdf(t)), -1)
