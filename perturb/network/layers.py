"""Layers of a model that are matrices: how each is read, found, taken out and put back."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.refused import Refused
from perturb.types import Array

KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.Einsum)


@dataclass(frozen=True)
class LayerSpec:
    """How the kernel of one layer is read as a matrix.

    in_axes, out_axes: the kernel's axes that are contracted with the input, and the others;
    aliases: further modules that hold the very same kernel and read it the same way.
    """

    name: str
    kind: str
    kernel_shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All modules that the matrix belongs to."""
        return (self.name, *self.aliases)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        sizes = [math.prod(self.kernel_shape[a] for a in g) for g in (self.out_axes, self.in_axes)]
        return sizes[0], sizes[1]

    def to_matrix(self, kernel: Array) -> Array:
        kernel = replicated(kernel)
        return jnp.transpose(kernel, (*self.out_axes, *self.in_axes)).reshape(self.shape)

    def to_kernel(self, matrix: Array) -> Array:
        order = (*self.out_axes, *self.in_axes)
        inverse = tuple(int(i) for i in np.argsort(order))
        return jnp.transpose(matrix.reshape([self.kernel_shape[a] for a in order]), inverse)


def _explicit(x: Array) -> bool:
    """Whether x lies on a mesh with explicit axes, where jax asks how each result is laid out."""
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh is not None and jax.sharding.AxisType.Explicit in mesh.axis_types


def replicated(x: Array) -> Array:
    """x with all of it on every device of an explicit mesh, so that nothing has to be asked."""
    return (
        jax.sharding.reshard(x, jax.sharding.PartitionSpec(*[None] * x.ndim)) if _explicit(x) else x
    )


def _read(name: str, module: Any) -> LayerSpec | str:
    """The spec of a module, or the reason why it is left alone."""
    kernel = module.kernel
    shape = tuple(kernel.shape)
    axes = range(len(shape))
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        return f"its kernel is {kernel.dtype}, not floating point"
    if isinstance(module, nnx.Linear):
        if len(shape) != 2:
            return f"its kernel has shape {shape}: layers stacked by nnx.vmap are not supported"
        return LayerSpec(name, "linear", shape, (0,), (1,))
    if isinstance(module, nnx.LinearGeneral):
        n_in = len(module.in_features)
        if len(module.batch_axis) or len(shape) != n_in + len(module.out_features):
            return "its kernel has batch axes"
        return LayerSpec(name, "linear", shape, tuple(axes[:n_in]), tuple(axes[n_in:]))
    if isinstance(module, nnx.Conv):
        if len(shape) != len(module.kernel_size) + 2:
            return f"its kernel has shape {shape}: layers stacked by nnx.vmap are not supported"
        if module.feature_group_count != 1:
            return f"it is a grouped convolution ({module.feature_group_count} groups)"
        if set(np.atleast_1d(module.input_dilation or 1)) != {1} or module.mask is not None:
            return "it is a transposed or masked convolution"
        return LayerSpec(name, "conv", shape, tuple(axes[:-1]), (axes[-1],))
    if module.einsum_str is None:
        return "its einsum string is given only when it is called"
    inputs, kernel_dims, output = einsum_dims(module.einsum_str)
    if "." in kernel_dims or len(kernel_dims) != len(shape):
        return f"its einsum {module.einsum_str!r} has an ellipsis in the kernel, or stacked kernels"
    both = set(kernel_dims) & set(inputs)
    if both & set(output):
        return f"its einsum {module.einsum_str!r} is a batch of matrices, not one"
    in_axes = tuple(i for i, d in enumerate(kernel_dims) if d in both)
    if not in_axes:
        return f"its einsum {module.einsum_str!r} contracts nothing with the kernel"
    return LayerSpec(name, "einsum", shape, in_axes, tuple(i for i in axes if i not in in_axes))


def einsum_dims(einsum: str) -> tuple[str, str, str]:
    operands, _, output = einsum.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    return inputs, kernel, output


def name_of(path: Sequence[Any], module: Any) -> str:
    return ".".join(map(str, path)) or type(module).__name__


def compressible(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, KINDS):
            yield name_of(path, module), module


def matching(model: nnx.Module, pattern: str) -> list[str]:
    """Names of the layers, compressible or left alone, that a shell pattern matches."""
    return [name for name, _ in compressible(model) if fnmatch.fnmatchcase(name, pattern)]


def _check_model(model: Any) -> None:
    """Refuse what is no ``nnx.Module``, saying what it is and what to give instead."""
    if isinstance(model, nnx.Module):
        return
    kind = type(model).__name__
    if isinstance(model, type):
        raise Refused(f"{model.__name__} is a class: give an instance, {model.__name__}(...)")
    families = {c.__module__.partition(".")[0] for c in type(model).__mro__}
    if any(c.__module__.startswith("flax.linen") for c in type(model).__mro__):
        what = (
            "is a Linen module, whose weights are elsewhere: build the model of Flax NNX layers "
            "(nnx.Linear for nn.Dense, nnx.Conv for nn.Conv, ...) and copy the weights"
        )
    elif "equinox" in families:
        what = "is an Equinox module: build the model of Flax NNX layers and copy the weights"
    elif "torch" in families:
        what = "is a torch module: build the model of Flax NNX layers and copy the weights"
    elif hasattr(model, "shape") and hasattr(model, "dtype"):
        what = "is an array, not a model: are the model and the calibration data swapped?"
    elif isinstance(model, (Mapping, list, tuple, nnx.State)):
        what = (
            "is a pytree without code: give the nnx.Module that holds these parameters (are the "
            "model and the calibration data swapped?)"
        )
    elif callable(model) and hasattr(model, "__name__"):
        kind = model.__name__
        what = (
            "is a function: give the nnx.Module that it runs, and the function as "
            "forward=lambda model, batch: ..."
        )
    else:
        what = "has no compressible layer: it is no flax.nnx.Module; build it of Flax NNX layers"
    raise Refused(f"{kind} {what}")


def find_layers(
    model: nnx.Module, *, exclude: Sequence[str] = ()
) -> tuple[dict[str, LayerSpec], dict[str, str]]:
    """All compressible layers by name, and those left alone with the reason.

    Modules that share one kernel are one layer under the name of the first, if all of them read
    it the same way. exclude: shell patterns of names to leave alone, such as ``"lm_head"`` or
    ``"blocks.0.*"``. Raises ValueError for a pattern that matches nothing, for what is no
    ``nnx.Module``, and for a model without any layer.
    """
    _check_model(model)
    read: dict[str, LayerSpec | str] = {}
    sharing: dict[int, list[str]] = {}  # of one kernel
    unused = set(exclude)
    for name, module in compressible(model):
        matches = [p for p in exclude if fnmatch.fnmatchcase(name, p)]
        unused -= set(matches)
        read[name] = f"excluded by {matches[0]!r}" if matches else _read(name, module)
        sharing.setdefault(id(module.kernel), []).append(name)
    if unused:
        raise Refused(
            f"exclude pattern {min(unused)!r} matches no layer; layers are: " + ", ".join(read)
        )
    found: dict[str, LayerSpec] = {}
    skipped: dict[str, str] = {}
    for names in sharing.values():
        specs = [s for n in names if isinstance(s := read[n], LayerSpec)]
        axes = {(s.in_axes, s.out_axes) for s in specs}
        if len(specs) == len(names) and len(axes) == 1:
            found[names[0]] = replace(specs[0], aliases=tuple(names[1:]))
            continue
        for n in names:
            own = read[n]
            other = next((m for m in names if isinstance(read[m], str)), None)
            if isinstance(own, str):
                skipped[n] = own
            elif other is not None:
                skipped[n] = f"its kernel is also that of {other}, which is left alone"
            else:
                other = next(m for m in names if m != n)
                skipped[n] = f"its kernel is also that of {other}, which reads it along other axes"
    if not found:
        why = "; ".join(f"{n}: {r}" for n, r in skipped.items()) or "none found"
        if any(isinstance(m, nnx.bridge.ToNNX) for _, m in nnx.iter_modules(model)):
            why += "; what nnx.bridge.ToNNX wraps stays Linen: build the model of Flax NNX layers"
        raise Refused(
            f"{type(model).__name__} has no compressible layer (nnx.Linear, nnx.LinearGeneral, "
            f"nnx.Conv, nnx.Einsum): {why}"
        )
    return dict(sorted(found.items(), key=lambda item: _natural(item[0]))), skipped


def _natural(name: str) -> list[tuple[bool, int | str]]:
    return [(not p.isdigit(), int(p) if p.isdigit() else p) for p in name.split(".")]


def wide(dtype: Any) -> Any:
    """float32 at least; 8-bit floats have no promotion of their own."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def get_weights(model: nnx.Module, specs: Mapping[str, LayerSpec]) -> dict[str, Array]:
    """The matrices [out, in] of the named layers, float32 at least.

    Raises ValueError for non-finite ones, by name.
    """
    modules = dict(compressible(model))
    weights = {}
    for name, spec in specs.items():
        w = spec.to_matrix(modules[name].kernel[...])
        weights[name] = w = w.astype(wide(w.dtype))
        if not isinstance(w, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(w))):
            bad = int(jnp.sum(~jnp.isfinite(w)))
            raise Refused(f"layer {name}: {bad} of its {w.size} weights are not finite")
    return weights


def set_weights(
    model: nnx.Module, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]
) -> None:
    """Put matrices back into a model, in place (works on a merged model inside jit).

    Raises ValueError for a weight that the kernel's dtype cannot hold, except under a trace.
    """
    modules = dict(compressible(model))
    for name, w in weights.items():
        kernel = modules[name].kernel
        cast = specs[name].to_kernel(w).astype(kernel.dtype)
        if kernel.dtype != w.dtype and not isinstance(w, jax.core.Tracer):
            lost = specs[name].to_matrix(~jnp.isfinite(cast)) & jnp.isfinite(w)
            if bool(jnp.any(lost)):
                largest = float(jnp.max(jnp.abs(jnp.where(lost, w, 0))))
                raise Refused(
                    f"layer {name}: {int(jnp.sum(lost))} of its weights, up to {largest:.3g}, are "
                    f"beyond the range of its {kernel.dtype}: exclude it, or give the model a "
                    "wider param_dtype"
                )
        if _explicit(kernel[...]):  # an assignment would be a scatter of a layout to be told
            kernel.set_value(jax.sharding.reshard(cast, jax.typeof(kernel[...]).sharding))
        else:
            kernel[...] = cast


def with_weights(model: Any, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]) -> Any:
    """A copy of the model that holds other matrices."""
    copy = nnx.clone(model)
    set_weights(copy, specs, weights)
    return copy
