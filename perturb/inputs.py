"""What acts on a layer's inputs as the model runs: ``x -> quantize(T x)``.

A turn T is orthogonal and exact: the layer's weight is ``W T^T``, and its outputs are what they
were. Rounding is not: it is what a model loses whose activations are computed in few bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from perturb.types import Array

HIGHEST = jax.lax.Precision.HIGHEST


class InputMap(NamedTuple):
    """Turn and rounding of one layer's inputs, None for what there is none of.

    As a pytree: which of them there are is part of a program, widths and matrices are not. A turn
    is a Kronecker product ``F1 (x) F2 (x) ...``: of [in, in] in k factors it takes about
    ``k in^(2/k)`` numbers to hold, and ``k in^(1 + 1/k)`` operations a token.
    """

    turn: tuple[Array, ...] | None = None  # square, the product of their sizes is in
    bits: Array | None = None  # [], integer 2..16
    clip: Array | None = None  # [], of the largest entry, what the largest code stands for


def turned(x: Array, turn: Sequence[Array]) -> Array:
    """``T x`` of vectors x [..., in], T the Kronecker product of the factors."""
    lead = x.ndim - 1
    parts = x.reshape(*x.shape[:-1], *(len(f) for f in turn))
    for i, factor in enumerate(turn, lead):
        moved = jnp.moveaxis(parts, i, -1)
        moved = jnp.matmul(moved, factor.T.astype(x.dtype), precision=HIGHEST)
        parts = jnp.moveaxis(moved, -1, i)
    return parts.reshape(x.shape)


def rounded(x: Array, bits: Array, clip: Array, axes: Sequence[int] = (-1,)) -> Array:
    """x on a symmetric grid of its own for every vector along ``axes``, round to nearest even.

    ``s clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)``, ``s = clip max|x| / (2^(b-1) - 1)``: QuaRot's
    per-token absmax. Gradients pass straight through.
    """
    most = (jnp.left_shift(1, bits - 1) - 1).astype(x.dtype)
    scale = jnp.max(jnp.abs(x), tuple(axes), keepdims=True) * clip.astype(x.dtype) / most
    scale = jnp.where(scale == 0, 1, scale)
    code = jnp.clip(jnp.round(x / scale), -most - 1, most)
    # 0 + the rounded value, to the last bit, with the derivative of x
    return x - jax.lax.stop_gradient(x) + jax.lax.stop_gradient(code * scale)


def mapped(x: Array, by: InputMap, axes: Sequence[int] = (-1,)) -> Array:
    """What a layer's matrix is given, in the dtype of x; axes: those that the matrix contracts."""
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    if by.turn is not None:
        last = tuple(range(-len(axes), 0))
        moved = jnp.moveaxis(x, axes, last)
        flat = moved.reshape(*moved.shape[: moved.ndim - len(axes)], -1)
        x = jnp.moveaxis(turned(flat, by.turn).reshape(moved.shape), last, axes)
    if by.bits is not None:
        assert by.clip is not None, "a width comes with a clip ratio"
        x = rounded(x, by.bits, by.clip, axes)
    return x.astype(dtype)


def rounded_layers(inputs: Mapping[str, InputMap]) -> list[str]:
    return [n for n, m in inputs.items() if m.bits is not None]


def turned_layers(inputs: Mapping[str, InputMap]) -> list[str]:
    return [n for n, m in inputs.items() if m.turn is not None]
