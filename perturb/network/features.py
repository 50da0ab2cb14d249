"""The vectors that a layer's matrix acts on, made of the layer's inputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.layers import LayerSpec, einsum_dims
from perturb.types import Array


def features(module: Any, spec: LayerSpec, x: Array) -> Array:
    """The vectors [*leading axes, in] that a layer's matrix acts on."""
    n_in = spec.shape[1]
    if isinstance(module, nnx.Conv):
        lead = x.shape[: x.ndim - len(module.kernel_size) - 1]
        patches = _patches(module, x)
        return patches.reshape(*lead, *patches.shape[1 : len(module.kernel_size) + 1], n_in)
    if isinstance(module, nnx.Einsum):
        dims, kernel, _ = einsum_dims(module.einsum_str)
        names = [kernel[a] for a in spec.in_axes]
        before, dots, after = dims.partition("...")
        place = {d: i for i, d in enumerate(before)}
        place |= {d: i - len(after) for i, d in enumerate(after if dots else "")}
        axes = [place[d] for d in names]
    else:
        axes = [-1]
        if isinstance(module, nnx.LinearGeneral):  # which contracts its axes in ascending order
            axes = sorted(a % x.ndim for a in module.axis)
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    return x.reshape(*x.shape[: x.ndim - len(axes)], n_in)


def _patches(module: nnx.Conv, x: Array) -> Array:
    """Convolution patches in the kernel's own order [*window, channels], by shifted slices."""
    window = tuple(module.kernel_size)
    rank = len(window)
    strides, dilation = (
        tuple(np.broadcast_to(np.asarray(1 if v is None else v), rank).tolist())
        for v in (module.strides, module.kernel_dilation)
    )
    x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :])
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    mode: str = "constant"
    pads: Any = module.padding
    if isinstance(pads, str) and pads in ("CIRCULAR", "REFLECT"):
        mode = {"CIRCULAR": "wrap", "REFLECT": "reflect"}[pads]
        pads = [((r - 1) // 2, r // 2) for r in reach]
    elif pads == "CAUSAL":
        pads = [(reach[0] - 1, 0)]
    elif isinstance(pads, str):
        pads = jax.lax.padtype_to_pads(x.shape[1:-1], reach, strides, pads)
    elif isinstance(pads, int):
        pads = [(pads, pads)] * rank
    pads = [(p, p) if isinstance(p, int) else tuple(p) for p in pads]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)], mode=mode)
    sizes = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, strides, strict=True)]
    views = []
    for offset in np.ndindex(*window):
        start = [o * d for o, d in zip(offset, dilation, strict=True)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
        view = tuple(slice(a, b, s) for a, b, s in zip(start, stop, strides, strict=True))
        views.append(x[(slice(None), *view)])
    return jnp.stack(views, axis=-2)  # [batch, *spatial, window, channels]
