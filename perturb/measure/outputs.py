"""How far a model's outputs are from another's: the project's one KL divergence."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from perturb.types import Array


def kl_divergence(logits: Array, others: Array) -> Array:
    """``KL(softmax z || softmax y)``, nats [...], of logits [..., classes], accurate near 0.

    With d = (y - log Z_y) - (z - log Z_z), the difference of the logarithms, KL = -sum p d, and
    since the other distribution also sums to 1, sum p (e^d - 1) = 0: so KL = sum p (e^d - 1 - d),
    a sum of terms that are never negative. Where logits nearly agree that keeps the relative
    accuracy that a difference of two sums loses (the terms are d^2 / 2).
    """
    log_p, log_q = jax.nn.log_softmax(logits, -1), jax.nn.log_softmax(others, -1)
    p = jnp.exp(log_p)
    moved = others - logits  # the difference of logits first: small where they agree
    near = jnp.max(jnp.abs(moved), -1, keepdims=True) < 1.0
    d = moved - jnp.sum(p * moved, -1, keepdims=True)
    d = d - jnp.log1p(jnp.sum(p * jnp.expm1(jnp.where(near, d, 0)), -1, keepdims=True))
    close = p * jnp.where(jnp.abs(d) < 0.03, _small(d), jnp.expm1(jnp.where(near, d, 0)) - d)
    far = jnp.where(p > 0, p * (log_p - log_q), 0) + jnp.exp(log_q) - p
    return jnp.sum(jnp.where(near, close, jnp.maximum(far, 0)), -1)


def _small(d: Array) -> Array:
    """``e^d - 1 - d`` for |d| < 0.03, to float64 rounding."""
    series = jnp.zeros_like(d)
    for n in range(8, 1, -1):
        series = (1 / math.factorial(n)) + d * series
    return d * d * series
