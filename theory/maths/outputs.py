"""Distances between a model's outputs, to the accuracy that small perturbations need.

M = -KL(dense || compressed), in nats a prediction: the cross-entropy against the dense model's
own outputs, so the dense model is its exact optimum and no labels are needed. To second order it
is 1/2 (J dW)^T H (J dW) with H = diag(p) - p p^T, the Gauss-Newton form of theorem 6.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from perturb.measure.outputs import kl_divergence


def kl(z: Array, y: Array) -> Array:
    """KL(softmax z || softmax y), nats, mean over predictions; logits [..., classes]."""
    return jnp.mean(kl_divergence(z, y))


def centred(z: Array, v: Array) -> Array:
    """H^(1/2) v for the softmax Hessian H = diag(p) - p p^T at logits z: its squared length is
    v^T H v; [..., classes] both."""
    p = jax.nn.softmax(z)
    return jnp.sqrt(p) * (v - jnp.sum(p * v, -1, keepdims=True))


def interaction_matrix(z: Array, tangents: Array) -> Array:
    """K_lm = mean_x (J_l dW_l)^T H (J_m dW_m); tangents [L, ..., classes] at logits z."""
    # A loop, not vmap: jaxlib 0.10.2 compiles the batched p v wrongly on CPUs (jax issue 39103).
    flat = jax.lax.map(lambda v: centred(z, v), tangents).reshape(len(tangents), -1)
    return jnp.matmul(flat, flat.T, precision="highest") / z[..., 0].size


def off_diagonal(k: ArrayLike) -> tuple[float, float]:
    """How much of K is between layers: sum_{l != m} K / sum K, and the same of |K|; 0/0 is 0."""
    k = np.asarray(k, np.float64)
    shares = []
    for matrix in (k, np.abs(k)):
        total = float(matrix.sum())
        shares.append((total - float(np.trace(matrix))) / total if total else 0.0)
    return shares[0], shares[1]
