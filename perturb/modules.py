"""Where matrices meet modules: the only file of perturb that knows Flax.

Any ``nnx.Module`` is walked for ``nnx.Linear``, ``nnx.LinearGeneral``, ``nnx.Conv`` and
``nnx.Einsum`` (and subclasses). Each becomes a matrix ``W [out, in]`` acting on feature vectors
x [in]: the inputs of a Linear, the patches of a Conv, the contracted axes of an Einsum.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.types import Array, LayerStats

Forward = Callable[[Any, Any], Any]
KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.Einsum)


def call(model: Any, batch: Any) -> Any:
    """The default way to run a model on a batch."""
    return model(batch)


@dataclass(frozen=True)
class LayerSpec:
    """How the kernel of one layer is read as a matrix.

    in_axes, out_axes: the kernel's axes that are contracted with the input, and the others.
    """

    name: str
    kind: str
    kernel_shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        sizes = [math.prod(self.kernel_shape[a] for a in g) for g in (self.out_axes, self.in_axes)]
        return sizes[0], sizes[1]

    def to_matrix(self, kernel: Array) -> Array:
        return jnp.transpose(kernel, (*self.out_axes, *self.in_axes)).reshape(self.shape)

    def to_kernel(self, matrix: Array) -> Array:
        order = (*self.out_axes, *self.in_axes)
        inverse = tuple(int(i) for i in np.argsort(order))
        return jnp.transpose(matrix.reshape([self.kernel_shape[a] for a in order]), inverse)


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
    inputs, kernel_dims, output = _einsum_dims(module.einsum_str)
    if "." in kernel_dims or len(kernel_dims) != len(shape):
        return f"its einsum {module.einsum_str!r} has an ellipsis in the kernel, or stacked kernels"
    both = set(kernel_dims) & set(inputs)
    if both & set(output):
        return f"its einsum {module.einsum_str!r} is a batch of matrices, not one"
    in_axes = tuple(i for i, d in enumerate(kernel_dims) if d in both)
    if not in_axes:
        return f"its einsum {module.einsum_str!r} contracts nothing with the kernel"
    return LayerSpec(name, "einsum", shape, in_axes, tuple(i for i in axes if i not in in_axes))


def _einsum_dims(einsum: str) -> tuple[str, str, str]:
    operands, _, output = einsum.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    return inputs, kernel, output


def _compressible(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, KINDS):
            yield ".".join(map(str, path)) or type(module).__name__, module


def find_layers(
    model: nnx.Module, *, exclude: Sequence[str] = ()
) -> tuple[dict[str, LayerSpec], dict[str, str]]:
    """All compressible layers by name, and those left alone with the reason.

    exclude: shell patterns of names to leave alone, such as ``"lm_head"`` or ``"blocks.0.*"``.
    Raises ValueError for a pattern that matches nothing, and for a model without any layer.
    """
    found: dict[str, LayerSpec] = {}
    skipped: dict[str, str] = {}
    unused = set(exclude)
    for name, module in _compressible(model):
        matches = [p for p in exclude if fnmatch.fnmatchcase(name, p)]
        unused -= set(matches)
        spec = f"excluded by {matches[0]!r}" if matches else _read(name, module)
        if isinstance(spec, str):
            skipped[name] = spec
        else:
            found[name] = spec
    if unused:
        raise ValueError(
            f"exclude pattern {min(unused)!r} matches no layer; layers are: "
            + ", ".join([*found, *skipped])
        )
    if not found:
        why = "; ".join(f"{n}: {r}" for n, r in skipped.items()) or "none found"
        raise ValueError(
            f"{type(model).__name__} has no compressible layer (nnx.Linear, nnx.LinearGeneral, "
            f"nnx.Conv, nnx.Einsum): {why}"
        )
    return dict(sorted(found.items(), key=lambda item: _natural(item[0]))), skipped


def _natural(name: str) -> list[tuple[bool, int | str]]:
    return [(not p.isdigit(), int(p) if p.isdigit() else p) for p in name.split(".")]


def get_weights(model: nnx.Module, specs: Mapping[str, LayerSpec]) -> dict[str, Array]:
    """The matrices [out, in] of the named layers. Non-finite ones are refused by name."""
    modules = dict(_compressible(model))
    weights = {n: s.to_matrix(modules[n].kernel[...]) for n, s in specs.items()}
    for name, w in weights.items():
        if not isinstance(w, jax.core.Tracer) and not bool(jnp.all(jnp.isfinite(w))):
            bad = int(jnp.sum(~jnp.isfinite(w)))
            raise ValueError(f"layer {name}: {bad} of its {w.size} weights are not finite")
    return weights


def set_weights(
    model: nnx.Module, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]
) -> None:
    """Put matrices back into a model, in place (works on a merged model inside jit)."""
    modules = dict(_compressible(model))
    for name, w in weights.items():
        kernel = modules[name].kernel
        kernel[...] = specs[name].to_kernel(w).astype(kernel.dtype)


def with_weights(model: Any, specs: Mapping[str, LayerSpec], weights: Mapping[str, Array]) -> Any:
    """A copy of the model that holds other matrices."""
    copy = nnx.clone(model)
    set_weights(copy, specs, weights)
    return copy


def _features(module: Any, spec: LayerSpec, x: Array) -> Array:
    """The vectors [tokens, in] that a layer's matrix acts on."""
    n_in = spec.shape[1]
    if spec.kind == "conv":
        return _patches(module, x).reshape(-1, n_in)
    if isinstance(module, nnx.Einsum):
        dims, kernel, _ = _einsum_dims(module.einsum_str)
        names = [kernel[a] for a in spec.in_axes]
        before, dots, after = dims.partition("...")
        place = {d: i for i, d in enumerate(before)}
        place |= {d: i - len(after) for i, d in enumerate(after if dots else "")}
        axes = [place[d] for d in names]
    else:
        axes = [-1]
        if isinstance(module, nnx.LinearGeneral):  # which contracts its axes in ascending order
            axes = sorted(a % x.ndim for a in module.axis)
    return jnp.moveaxis(x, axes, range(-len(axes), 0)).reshape(-1, n_in)


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


@contextmanager
def _tapped(
    model: nnx.Module, specs: Sequence[LayerSpec], listen: Callable[[LayerSpec, Any, Array], None]
) -> Iterator[None]:
    """Let ``listen(spec, module, input)`` hear every call of the layers of this model.

    The instances' class is exchanged for a subclass with a listening ``__call__``, so that
    neither the user's code nor other instances notice, whatever containers hold the layers.
    """
    by_name = {s.name: s for s in specs}
    tapped: list[tuple[Any, type]] = []

    def subclass(spec: LayerSpec, base: Any) -> type:
        def __call__(self: Any, inputs: Array, *args: Any, **kwargs: Any) -> Array:
            listen(spec, self, inputs)
            return base.__call__(self, inputs, *args, **kwargs)

        return type(base.__name__, (base,), {"__call__": __call__})

    try:
        for name, module in list(_compressible(model)):
            if name in by_name:
                tapped.append((module, type(module)))
                object.__setattr__(module, "__class__", subclass(by_name[name], type(module)))
        yield
    finally:
        for module, cls in tapped:
            object.__setattr__(module, "__class__", cls)


def call_order(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """Names of the layers in the order in which they are first called (traced, not run)."""
    order: dict[str, None] = {}
    graphdef, state = nnx.split(model)

    def run(state: Any, batch: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        with _tapped(copy, list(specs.values()), lambda s, m, x: order.setdefault(s.name)):
            return jax.tree.leaves(forward(copy, batch))

    jax.eval_shape(run, state, batch)
    missing = [n for n in specs if n not in order]
    if missing:
        raise ValueError(
            f"layer {missing[0]}: the model does not call it on the calibration data "
            f"({len(missing)} such); exclude it"
        )
    return list(order)


def moments(
    graphdef: Any, state: Any, batch: Any, specs: Sequence[LayerSpec], forward: Forward = call
) -> dict[str, LayerStats]:
    """Second moments of the layers' inputs over one batch: pure, to be jitted by the caller."""
    model = nnx.merge(graphdef, state)
    sums: dict[str, LayerStats] = {}

    def listen(spec: LayerSpec, module: Any, inputs: Array) -> None:
        x = _features(module, spec, inputs).astype(jnp.promote_types(inputs.dtype, jnp.float32))
        gram = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST)
        gram = (gram + gram.T) / 2  # libraries may round differently across the diagonal
        here = LayerStats(gram, jnp.asarray(x.shape[0], jnp.float32))
        sums[spec.name] = sums[spec.name] + here if spec.name in sums else here

    with _tapped(model, specs, listen):
        forward(model, batch)
    return sums


_moments = jax.jit(moments, static_argnames=("graphdef", "specs", "forward"))


def batches_of(calibration: Any) -> list[Any]:
    """Calibration data as a list of batches; one array is one batch."""
    if calibration is None or (isinstance(calibration, (list, tuple)) and not len(calibration)):
        raise ValueError("the calibration set is empty: give at least one batch of model inputs")
    batches = [calibration] if hasattr(calibration, "shape") else list(calibration)
    for i, batch in enumerate(batches):
        if any(getattr(a, "size", 1) == 0 for a in jax.tree.leaves(batch)):
            raise ValueError(f"the calibration set is empty: batch {i} has no examples")
    if not batches:
        raise ValueError("the calibration set is empty: give at least one batch of model inputs")
    return batches


def capture(
    model: nnx.Module,
    specs: Mapping[str, LayerSpec],
    calibration: Any,
    *,
    forward: Forward = call,
) -> dict[str, LayerStats]:
    """Second moments of every layer's inputs over the calibration batches.

    The model is run as it is (call ``model.eval()`` first where that matters) and not changed.
    Raises ValueError naming a layer whose inputs are not finite, or that is never called.
    """
    graphdef, state = nnx.split(model)
    chosen = tuple(specs.values())
    total: dict[str, LayerStats] = {}
    for batch in batches_of(calibration):
        part = _moments(graphdef, state, batch, chosen, forward)
        total = {n: total[n] + s if n in total else s for n, s in part.items()}
    for name in specs:
        if name not in total:
            raise ValueError(
                f"layer {name}: the model does not call it on the calibration data; exclude it"
            )
        if not bool(jnp.all(jnp.isfinite(total[name].gram))):
            raise ValueError(f"layer {name}: its inputs on the calibration data are not finite")
    return {n: total[n] for n in specs}


def blocks_of(order: Iterable[str]) -> list[list[str]]:
    """Layers in call order, grouped as decoder blocks are: by the name up to its first number.

    ``layers.0.q, layers.0.o, layers.1.q, head`` gives ``[[layers.0.*], [layers.1.*], [head]]``.
    """
    groups: dict[str, list[str]] = {}
    for name in order:
        parts = name.split(".")
        cut = next((i for i, p in enumerate(parts) if p.isdigit()), len(parts) - 1)
        groups.setdefault(".".join(parts[: cut + 1]), []).append(name)
    return list(groups.values())
