"""A depthwise convolution as a sum over its window, on CPUs, where XLA's own is slow."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def depthwise(
    x: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: Any,
    *,
    rhs_dilation: tuple[int, int],
    **how: Any,
) -> Array:
    """``y[b, i, j, c] = sum_uv kernel[u, v, 0, c] x[b, s i + d u - p, s j + d v - p, c]``.

    x [B, H, W, C], kernel [h, w, 1, C]; the arguments are those of ``lax.conv_general_dilated``, in
    whose place ``nnx.Conv`` takes it. On an accelerator it is that function. Raises ValueError for
    inputs that are dilated, which the sum leaves out.
    """
    if any(d != 1 for d in how.get("lhs_dilation") or ()):
        raise ValueError(f"a depthwise convolution of dilated inputs: {how['lhs_dilation']}")
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=rhs_dilation, **how
        )
    window = kernel.shape[:2]
    reach = [(k - 1) * d + 1 for k, d in zip(window, rhs_dilation, strict=True)]
    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)
    x = jnp.pad(x, ((0, 0), *map(tuple, pads), (0, 0)))
    high, wide = ((n - r) // s + 1 for n, r, s in zip(x.shape[1:3], reach, strides, strict=True))
    (down, right), (d, e) = strides, rhs_dilation
    y: Any = 0
    for u in range(window[0]):
        for v in range(window[1]):
            rows = slice(u * d, u * d + (high - 1) * down + 1, down)
            columns = slice(v * e, v * e + (wide - 1) * right + 1, right)
            y = y + x[:, rows, columns] * kernel[u, v, 0]
    return y
