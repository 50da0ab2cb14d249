"""The vectors that a layer's matrices act on, made of the layer's inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.find import einsum_dims, einsum_roles
from perturb.network.layers import LayerSpec
from perturb.types import Array


def features(module: Any, spec: LayerSpec, x: Array) -> Array:
    """The vectors [own, *leading axes, in] that the matrices of a layer act on.

    own: the matrices that the layer has by itself (experts of a batched einsum, groups of a
    convolution), 1 for most; an axis that a transform adds to the kernel is not seen in a call.
    """
    n_in = spec.shape[1]
    if isinstance(module, (nnx.Conv, nnx.ConvTranspose)):
        rank = len(module.kernel_size)
        lead = x.shape[: x.ndim - rank - 1]
        patches = _patches(module, x)  # [batch, *spatial, window, channels]
        spatial = patches.shape[1 : rank + 1]
        groups = getattr(module, "feature_group_count", 1)
        patches = patches.reshape(*patches.shape[:-1], groups, -1)
        return jnp.moveaxis(patches, -2, 0).reshape(groups, *lead, *spatial, n_in)
    batch: list[int] = []
    axes = [-1]
    if isinstance(module, nnx.Einsum):
        x, batch, axes = _einsum_axes(module.einsum_str, x)
    elif isinstance(module, nnx.LinearGeneral):  # which takes its axes in ascending order
        axes = sorted(a % x.ndim for a in module.axis)
        batch = sorted(a % x.ndim for a in module.batch_axis)
    x = jnp.moveaxis(x, [*batch, *axes], [*range(len(batch)), *range(-len(axes), 0)])
    return x.reshape(-1, *x.shape[len(batch) : x.ndim - len(axes)], n_in)


def contracted_axes(module: Any, ndim: int, einsum: str | None = None) -> tuple[int, ...]:
    """The axes of a layer's inputs that its matrix contracts, in its own order; of a convolution
    the channels, at each position. einsum: the one it is called with, if not its own."""
    if isinstance(module, nnx.Einsum):
        axes = _einsum_places(einsum or module.einsum_str, ndim)
        return tuple(axes[d] for d in einsum_roles(einsum or module.einsum_str or "")[1])
    if isinstance(module, nnx.LinearGeneral):
        return tuple(sorted(a % ndim for a in module.axis))
    return (ndim - 1,)


def _einsum_places(einsum: str | None, ndim: int) -> dict[str, int]:
    """The axis of each of the inputs' dims."""
    before, dots, after = einsum_dims(einsum or "")[0].partition("...")
    place = {d: i for i, d in enumerate(before)}
    return place | {d: ndim - len(after) + i for i, d in enumerate(after if dots else "")}


def _einsum_axes(einsum: str | None, x: Array) -> tuple[Array, list[int], list[int]]:
    """The inputs, summed over what the output does not have, and which of their axes number
    matrices, and which are contracted."""
    _, kernel, output = einsum_dims(einsum or "")
    place = _einsum_places(einsum, x.ndim)
    lost = tuple(i for d, i in place.items() if d not in kernel and d not in output)
    batch, contracted = einsum_roles(einsum or "")
    x = jnp.sum(x, lost, keepdims=True) if lost else x
    return x, [place[d] for d in batch], [place[d] for d in contracted]


def _patches(module: Any, x: Array) -> Array:
    """Convolution patches in the kernel's own order [*window, channels], by shifted slices.

    A transposed convolution is one of its inputs with zeros between them.
    """
    window = tuple(module.kernel_size)
    rank = len(window)
    transposed = isinstance(module, nnx.ConvTranspose)

    def each(v: Any) -> tuple[int, ...]:
        return tuple(np.broadcast_to(np.asarray(1 if v is None else v), rank).tolist())

    strides, dilation = each(module.strides), each(module.kernel_dilation)
    spread = strides if transposed else each(module.input_dilation)
    x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :])
    size = x.shape[1:-1]
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    pads: Any = module.padding
    circular = transposed and pads == "CIRCULAR"
    if isinstance(pads, int):
        pads = [pads] * rank
    if transposed and isinstance(pads, str):
        pads = [_spread_pads(r, s, pads) for r, s in zip(reach, strides, strict=True)]
    elif isinstance(pads, str) and pads in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[pads]
        x = jnp.pad(x, [(0, 0), *(((r - 1) // 2, r // 2) for r in reach), (0, 0)], mode=mode)
        pads = [0] * rank
    elif pads == "CAUSAL":
        pads = [(reach[0] - 1, 0)]
    elif isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(size, reach, strides, pads)
    pads = [(p, p) if isinstance(p, int) else tuple(p) for p in pads]
    gaps = [(*p, s - 1) for p, s in zip(pads, spread, strict=True)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *gaps, (0, 0, 0)])
    views = _windows(x, window, (1,) * rank if transposed else strides, dilation)
    if transposed and module.transpose_kernel:  # which flips its window
        views = views[::-1]
    patches = jnp.stack(views, axis=-2)  # [batch, *spatial, window, channels]
    if circular:
        for axis, period in enumerate((n * s for n, s in zip(size, strides, strict=True)), 1):
            patches = _wrapped(patches, axis, period, module.transpose_kernel)
    return patches


def _windows(
    x: Array, window: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]
) -> list[Array]:
    """Of every place in the window, what is there: [batch, *spatial, channels]."""
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    views = []
    for offset in np.ndindex(*window):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
        view = tuple(slice(a, b, s) for a, b, s in zip(start, stop, strides, strict=True))
        views.append(x[(slice(None), *view)])
    return views


def _spread_pads(reach: int, stride: int, padding: str) -> tuple[int, int]:
    """The padding of inputs with zeros between them, as jax.lax.conv_transpose has it."""
    if padding == "SAME":
        total = reach + stride - 2
        before = reach - 1 if stride > reach - 1 else -(-total // 2)
    else:  # VALID; CIRCULAR starts from it
        total = reach + stride - 2 + max(reach - stride, 0)
        before = reach - 1
    return before, total - before


def _wrapped(patches: Array, axis: int, period: int, flipped: bool) -> Array:
    """Summed over whole periods along an axis, as nnx.ConvTranspose wraps its outputs around."""
    missing = -(patches.shape[axis] - period) % (2 * period)
    pads = [(0, 0)] * patches.ndim
    half = (missing // 2, (missing + 1) // 2)
    pads[axis] = half if flipped else half[::-1]
    patches = jnp.pad(patches, pads)
    shape = patches.shape
    return patches.reshape(*shape[:axis], -1, period, *shape[axis + 1 :]).sum(axis)
