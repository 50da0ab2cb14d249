"""What logits, softmax and angles are computed in."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """float32, or float64 for a model that computes in it."""
    return jnp.promote_types(dtype, jnp.float32)
