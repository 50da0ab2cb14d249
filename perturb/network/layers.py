"""Kernels as matrices: how each is read, taken out of a model and put back.

Most kernels are one matrix. A kernel with batch axes is several, each a layer of its own with a
number, ``experts[3]``: layers stacked by nnx.vmap or nnx.scan, and batched einsums. All of a
kernel's matrices are taken out, and put back, in one go. The groups of a grouped or depthwise
convolution are stretches of rows of ONE layer: there may be a thousand of them, of nine weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.refused import Refused
from perturb.types import Array

KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.Einsum, nnx.ConvTranspose, nnx.Embed)


@dataclass(frozen=True)
class LayerSpec:
    """How a kernel is read as a matrix, or as several of which this is one.

    name: the module's, with a number if its kernel is several matrices; in_axes, out_axes: the
    kernel's axes that are contracted with the input, and the others; aliases: further modules
    that hold the very same kernel and read it the same way; batch_axes: those that number the
    matrices, first the ``stacked`` ones that a transform added, then the layer's own; index: which
    of the matrices, row-major over the batch axes, or None for all of the kernel; feature_groups:
    the rows are so many equal stretches, each acting on inputs of its own (a convolution's groups).
    """

    name: str
    kind: str
    kernel_shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    batch_axes: tuple[int, ...] = ()
    stacked: int = 0
    index: int | None = None
    feature_groups: int = 1

    @property
    def module(self) -> str:
        """The module that the matrix belongs to."""
        return self.name if self.index is None else self.name.rpartition("[")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """All modules that the matrix belongs to."""
        return (self.module, *self.aliases)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self._size(self.out_axes), self._size(self.in_axes)

    @property
    def matrices(self) -> int:
        """How many matrices the kernel is."""
        return self._size(self.batch_axes)

    @property
    def copies(self) -> int:
        """How many kernels of single layers are stacked in it."""
        return self._size(self.batch_axes[: self.stacked])

    @property
    def whole(self) -> LayerSpec:
        """The spec of the kernel, whichever of its matrices this is."""
        return self if self.index is None else replace(self, name=self.module, index=None)

    @property
    def nameless(self) -> LayerSpec:
        """How the kernel is read, the same for all that are read so: what programs depend on."""
        return replace(self, name="", aliases=(), index=None)

    def each(self) -> tuple[LayerSpec, ...]:
        """The specs of the kernel's matrices; itself, if it is one."""
        if not self.batch_axes:
            return (self,)
        return tuple(replace(self, name=f"{self.name}[{i}]", index=i) for i in range(self.matrices))

    def to_matrices(self, kernel: Array) -> Array:
        """All matrices of a kernel [matrices, out, in]."""
        return jnp.transpose(replicated(kernel), self._order).reshape(self.matrices, *self.shape)

    def from_matrices(self, matrices: Array) -> Array:
        """The kernel of all its matrices [matrices, out, in]."""
        inverse = tuple(int(i) for i in np.argsort(self._order))
        return jnp.transpose(matrices.reshape([self.kernel_shape[a] for a in self._order]), inverse)

    def to_matrix(self, kernel: Array) -> Array:
        """This matrix [out, in] of a kernel."""
        return self.to_matrices(kernel)[self.index or 0]

    def to_kernel(self, matrix: Array, kernel: Array | None = None) -> Array:
        """The kernel of this matrix; of one of several, ``kernel`` with this one exchanged."""
        if self.index is None and not self.batch_axes:
            return self.from_matrices(matrix)
        if kernel is None or self.index is None:
            raise ValueError(f"layer {self.name}: one matrix does not make its kernel")
        return self.from_matrices(self.to_matrices(kernel).at[self.index].set(matrix))

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.batch_axes, *self.out_axes, *self.in_axes)

    def _size(self, axes: Sequence[int]) -> int:
        return math.prod(self.kernel_shape[a] for a in axes)


def by_kernel(specs: Iterable[LayerSpec]) -> dict[str, list[LayerSpec]]:
    """The specs of each kernel, by its module's name, in order."""
    found: dict[str, list[LayerSpec]] = {}
    for spec in specs:
        found.setdefault(spec.module, []).append(spec)
    return found


def _explicit(x: Array) -> bool:
    """Whether x lies on a mesh with explicit axes, where jax asks how each result is laid out."""
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh is not None and jax.sharding.AxisType.Explicit in mesh.axis_types


def replicated(x: Array) -> Array:
    """x with all of it on every device of an explicit mesh, so that nothing has to be asked."""
    return (
        jax.sharding.reshard(x, jax.sharding.PartitionSpec(*[None] * x.ndim)) if _explicit(x) else x
    )


def name_of(path: Sequence[Any], module: Any) -> str:
    return ".".join(map(str, path)) or type(module).__name__


def compressible(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """All modules of the kinds that are read as matrices, embeddings too."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, KINDS):
            yield name_of(path, module), module


def size_of(model: nnx.Module) -> int:
    """Bytes that the model's variables take."""
    return sum(getattr(a, "nbytes", 0) for a in jax.tree.leaves(nnx.state(model)))


def kernel_of(module: Any) -> Any:
    """The variable that is read as matrices."""
    return module.embedding if isinstance(module, nnx.Embed) else module.kernel


def wide(dtype: Any) -> Any:
    """float32 at least; 8-bit floats have no promotion of their own."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


@partial(jax.jit, static_argnames=("spec",))
def _matrices(kernel: Array, spec: LayerSpec) -> Array:
    return spec.to_matrices(kernel).astype(wide(kernel.dtype))


@jax.jit
def one_of(stacked: Any, index: Any) -> Any:
    """Of a pytree of arrays [n, ...] the ``index``-th, one program for all n of them: one that
    hands out hundreds takes XLA minutes to compile."""
    return jax.tree.map(lambda a: a[index], stacked)


@partial(jax.jit, static_argnames=("spec", "places"))
def _put(
    kernel: Array, matrices: tuple[Array, ...], spec: LayerSpec, places: tuple[int, ...]
) -> Array:
    """The kernel with the matrices of these places exchanged."""
    new = jnp.stack(matrices).astype(kernel.dtype)
    if len(places) == spec.matrices:
        return spec.from_matrices(new[np.argsort(places)])
    return spec.from_matrices(spec.to_matrices(kernel).at[np.asarray(places)].set(new))


def get_weights(model: nnx.Module, specs: Mapping[str, LayerSpec]) -> dict[str, Array]:
    """The matrices [out, in] of the named layers, float32 at least.

    Raises ValueError for non-finite ones, by name.
    """
    modules = dict(compressible(model))
    groups = by_kernel(specs.values())
    kernels = {name: kernel_of(modules[name])[...] for name in groups}
    single = tuple((n, g[0]) for n, g in groups.items() if g[0].index is None)
    weights = _single(single, {n: kernels[n] for n, _ in single})
    for name, group in groups.items():
        if group[0].index is not None:
            matrices = _matrices(kernels[name], group[0].nameless)
            weights |= {s.name: one_of(matrices, np.int32(s.index or 0)) for s in group}
    if not any(isinstance(k, jax.core.Tracer) for k in kernels.values()):
        for name, fine in jax.device_get(_finite(kernels)).items():
            for spec in () if fine else groups[name]:
                w = weights[spec.name]
                if bad := int(jnp.sum(~jnp.isfinite(w))):
                    raise Refused(
                        f"layer {spec.name}: {bad} of its {w.size} weights are not finite"
                    )
    return {name: weights[name] for name in specs}


@partial(jax.jit, static_argnums=0)
def _single(
    specs: tuple[tuple[str, LayerSpec], ...], kernels: dict[str, Array]
) -> dict[str, Array]:
    """The matrices of kernels that are one each."""
    found = {name: spec.to_matrix(kernels[name]) for name, spec in specs}
    return {name: w.astype(wide(w.dtype)) for name, w in found.items()}


@jax.jit
def _finite(kernels: dict[str, Array]) -> dict[str, Array]:
    return {name: jnp.all(jnp.isfinite(k)) for name, k in kernels.items()}


def set_weights(
    model: nnx.Module, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]
) -> None:
    """Put matrices back into a model, in place (works on a merged model inside jit).

    Of a kernel that is several, those that are not given stay. Raises ValueError for a weight that
    the kernel's dtype cannot hold, except under a trace.
    """
    for kernel, group, cast in _kernels(model, specs, weights):
        traced = isinstance(cast, jax.core.Tracer)
        if not (traced or kernel.dtype == jnp.float64 or bool(jnp.all(jnp.isfinite(cast)))):
            for spec in group:
                _check_range(spec, weights[spec.name], cast)
        _set(kernel, cast)


def exchanged(
    graphdef: Any, state: Any, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]
) -> Any:
    """A model's variables with these matrices among them, the others being the very arrays given.

    One program for kernels of one shape, whose names it does not know. Weights that a kernel's
    dtype cannot hold become infinite.
    """
    model = nnx.merge(graphdef, jax.tree.map(lambda a: a, state))  # variables of its own
    for kernel, _, cast in _kernels(model, specs, weights):
        _set(kernel, cast)
    return nnx.state(model)


def _kernels(
    model: nnx.Module, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]
) -> Iterator[tuple[Any, list[LayerSpec], Array]]:
    """Of each kernel that these matrices belong to: its variable, whose it is, what it becomes."""
    modules = dict(compressible(model))
    for module, group in by_kernel(specs[n] for n in weights).items():
        kernel, whole = kernel_of(modules[module]), group[0].nameless
        if group[0].index is None:
            cast = _kernel(kernel[...], weights[module], whole)
        else:
            new = tuple(jnp.asarray(weights[s.name]) for s in group)
            cast = _put(kernel[...], new, whole, tuple(s.index or 0 for s in group))
        yield kernel, group, cast


def _set(kernel: Any, value: Array) -> None:
    if _explicit(kernel[...]):  # an assignment would be a scatter of a layout to be told
        kernel.set_value(jax.sharding.reshard(value, jax.typeof(kernel[...]).sharding))
    else:
        kernel[...] = value


@partial(jax.jit, static_argnames=("spec",))
def _kernel(kernel: Array, matrix: Array, spec: LayerSpec) -> Array:
    return spec.to_kernel(matrix).astype(kernel.dtype)


def _check_range(spec: LayerSpec, matrix: Array, kernel: Array) -> None:
    lost = spec.to_matrix(~jnp.isfinite(kernel)) & jnp.isfinite(matrix)
    if bool(jnp.any(lost)):
        largest = float(jnp.max(jnp.abs(jnp.where(lost, matrix, 0))))
        raise Refused(
            f"layer {spec.name}: {int(jnp.sum(lost))} of its weights, up to {largest:.3g}, are "
            f"beyond the range of its {kernel.dtype}: exclude it, or give the model a "
            "wider param_dtype"
        )


def with_weights(model: Any, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]) -> Any:
    """A copy of the model that holds other matrices."""
    copy = nnx.clone(model)
    set_weights(copy, specs, weights)
    return copy
