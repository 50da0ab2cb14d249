"""How far a model's outputs are from the dense model's: what stages that see outputs minimise."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from perturb.measure.outputs import kl_divergence
from perturb.types import Array


def distance(dense: Array, other: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Sum over predictions, and their number; outputs are logits [..., classes].

    Of each prediction KL(dense || other) in nats (:func:`perturb.measure.outputs.kl_divergence`);
    of outputs with a single class the squared difference.
    weights [batch, ...] of tokens, for outputs whose leading axes they are.
    """
    dtype = jnp.promote_types(dense.dtype, jnp.float32)
    p, q = dense.astype(dtype), other.astype(dtype)
    each = kl_divergence(p, q) if dense.shape[-1] > 1 else jnp.mean((p - q) ** 2, -1)
    if weights is None or each.shape[: weights.ndim] != weights.shape:
        return jnp.sum(each), jnp.asarray(each.size, dtype)
    w = weights.reshape(weights.shape + (1,) * (each.ndim - weights.ndim))
    w = jnp.broadcast_to(w, each.shape).astype(dtype)
    return jnp.sum(jnp.where(w > 0, w * each, 0)), jnp.sum(w)


def check_outputs(outputs: Any, what: str) -> None:
    """Refuse outputs that are not one array with an axis of classes."""
    if not hasattr(outputs, "shape") or not outputs.ndim:
        raise ValueError(
            f"{what} compares logits [..., classes], but the model returns "
            f"{type(outputs).__name__}: give forward=lambda model, batch: ... that returns them"
        )
