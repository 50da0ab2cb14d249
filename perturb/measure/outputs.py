"""How far a model's outputs are from another's: the project's one KL divergence."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from perturb.types import Array

SMALL, LARGE = 0.03, 20.0  # |d|: e^d - 1 - d by its series below, by exponentials of logs above


def kl_divergence(logits: Array, others: Array) -> Array:
    """``KL(softmax z || softmax y)``, nats [...], of logits [..., classes], accurate near 0.

    With d = log q - log p, KL = -sum p d; as the other distribution also sums to 1, sum p (e^d -
    1) = 0, so KL = sum p (e^d - 1 - d), a sum of terms that are never negative. d is taken from
    the differences of the logits, m = y - z less their mean under p, as m - log(1 + sum p (e^m -
    1)): where the logits nearly agree, nothing large is subtracted from anything large. A logit
    that is -inf in both is a class that neither has; inf where only the other is.
    In float32 at least.
    """
    dtype = jnp.promote_types(jnp.result_type(logits, others), jnp.float32)
    z, y = jnp.asarray(logits, dtype), jnp.asarray(others, dtype)
    total = jax.nn.logsumexp(z, -1, keepdims=True)
    p = jnp.exp(z - total)
    has = p > 0
    moved = jnp.where(jnp.isneginf(z) & jnp.isneginf(y), 0, y - z)
    mean = jnp.sum(jnp.where(has, p * moved, 0), -1, keepdims=True)
    m, log_y = moved - mean, (y - total) - mean  # log_y: log q but for the normaliser
    grown = jnp.where(m < LARGE, p * jnp.expm1(jnp.minimum(m, LARGE)), jnp.exp(_capped(log_y)))
    near = jnp.log1p(jnp.sum(grown, -1, keepdims=True))
    far = jax.nn.logsumexp(log_y, -1, keepdims=True)
    normaliser = jnp.where(jnp.max(log_y, -1, keepdims=True) < LARGE, near, far)
    d = m - normaliser
    middle = jnp.expm1(jnp.clip(d, -1e30, LARGE)) - d
    beyond = jnp.exp(_capped(log_y - normaliser)) - jnp.where(has, p * (1 + d), 0)
    term = jnp.where(jnp.abs(d) < SMALL, p * _series(d), jnp.where(has, p * middle, 0))
    lost = jnp.any(has & jnp.isneginf(y), -1)
    return jnp.where(lost, jnp.inf, jnp.sum(jnp.where(d < LARGE, term, beyond), -1))


def _capped(x: Array) -> Array:
    return jnp.minimum(x, 2 * LARGE)


def _series(d: Array) -> Array:
    """``e^d - 1 - d`` for |d| < SMALL, to float64 rounding."""
    series = jnp.zeros_like(d)
    for n in range(8, 1, -1):
        series = 1 / math.factorial(n) + d * series
    return d * d * series


def distances(logits: Array, others: Array, weights: Array) -> tuple[Array, Array]:
    """Of each example the sums of squared differences and of KL(logits || others) in nats.

    logits [examples, ..., classes] -> [examples]; weights [examples, ...]: of the predictions;
    what has weight 0 may hold anything.
    """
    dtype = jnp.promote_types(jnp.result_type(logits, others), jnp.float32)
    z, y = logits.astype(dtype), others.astype(dtype)
    each = (jnp.sum((y - z) ** 2, -1), kl_divergence(z, y))
    square, kl = (
        jnp.sum(jnp.where(weights > 0, weights * x, 0).reshape(len(x), -1), -1) for x in each
    )
    return square, kl
