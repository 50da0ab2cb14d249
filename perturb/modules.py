"""Where matrices meet modules: the only file of perturb that knows Flax.

Any ``nnx.Module`` is walked for ``nnx.Linear``, ``nnx.LinearGeneral``, ``nnx.Conv`` and
``nnx.Einsum`` (and subclasses). Each becomes a matrix ``W [out, in]`` acting on feature vectors
x [in]: the inputs of a Linear, the patches of a Conv, the contracted axes of an Einsum.
"""

from __future__ import annotations

import fnmatch
import inspect
import math
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.replay import Note, Unheard, check, nested, replay, tell
from perturb.types import Array, LayerStats

Forward = Callable[[Any, Any], Any]
TokenWeights = Callable[[Any], Any]  # batch -> weights >= 0 of its tokens, such as a mask
Moments = dict[str, tuple[Array, Array]]  # of norms: name -> mean, variance
KINDS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.Einsum)
NORMS = (
    nnx.BatchNorm,
    nnx.LayerNorm,
    nnx.RMSNorm,
    nnx.GroupNorm,
    nnx.InstanceNorm,
    nnx.SpectralNorm,
)
COVERED = 0.9  # of the parameters; less is worth a warning


class Refused(ValueError):
    """An error of ours, complete in one line: not to be explained once more."""


def call(model: Any, batch: Any) -> Any:
    """The default way to run a model on a batch."""
    return model(batch)


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
        kernel = _replicated(kernel)
        return jnp.transpose(kernel, (*self.out_axes, *self.in_axes)).reshape(self.shape)

    def to_kernel(self, matrix: Array) -> Array:
        order = (*self.out_axes, *self.in_axes)
        inverse = tuple(int(i) for i in np.argsort(order))
        return jnp.transpose(matrix.reshape([self.kernel_shape[a] for a in order]), inverse)


def _explicit(x: Array) -> bool:
    """Whether x lies on a mesh with explicit axes, where jax asks how each result is laid out."""
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return mesh is not None and jax.sharding.AxisType.Explicit in mesh.axis_types


def _replicated(x: Array) -> Array:
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


def _name(path: Sequence[Any], module: Any) -> str:
    return ".".join(map(str, path)) or type(module).__name__


def _compressible(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, KINDS):
            yield _name(path, module), module


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
    for name, module in _compressible(model):
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


def _wide(dtype: Any) -> Any:
    """float32 at least; 8-bit floats have no promotion of their own."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def get_weights(model: nnx.Module, specs: Mapping[str, LayerSpec]) -> dict[str, Array]:
    """The matrices [out, in] of the named layers, float32 at least.

    Raises ValueError for non-finite ones, by name.
    """
    modules = dict(_compressible(model))
    weights = {}
    for name, spec in specs.items():
        w = spec.to_matrix(modules[name].kernel[...])
        weights[name] = w = w.astype(_wide(w.dtype))
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
    modules = dict(_compressible(model))
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


def _features(module: Any, spec: LayerSpec, x: Array) -> Array:
    """The vectors [*leading axes, in] that a layer's matrix acts on."""
    n_in = spec.shape[1]
    if isinstance(module, nnx.Conv):
        lead = x.shape[: x.ndim - len(module.kernel_size) - 1]
        patches = _patches(module, x)
        return patches.reshape(*lead, *patches.shape[1 : len(module.kernel_size) + 1], n_in)
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


# ----------------------------------------------------------------------------- hearing the layers

_EAR = "_perturb_ear"
_lock = threading.RLock()
_open: Counter[type] = Counter()
_plain: dict[type, Callable[..., Any]] = {}
Around = Callable[[Callable[..., Any], Any, dict[str, Any]], Any]


class _Ear:
    """What a module carries while it is heard: static to nnx, so whatever nnx.jit and its like make
    of the module carries it, too. Every tapping has ears of its own, which no cache of jax knows:
    functions compiled before are traced anew, and heard."""

    def __init__(self, around: Around) -> None:
        self.around = around

    def __deepcopy__(self, memo: Any) -> _Ear:
        return self


def _heard(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        ear = vars(self).get(_EAR)
        if ear is None:
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        return ear.around(original, self, given)

    return __call__


@contextmanager
def _tapped(model: nnx.Module, ears: Mapping[str, _Ear], kinds: tuple[type, ...]) -> Iterator[None]:
    """Let the ears hear every call of the modules of these names, by the kinds' own ``__call__``.

    It is the kind's ``__call__`` that is exchanged, for the time being: what reaches it is what the
    matrix acts on, whatever a subclass did before, and no module changes its class.
    """
    tapped = []
    with _lock:
        for kind in kinds:
            if not _open[kind]:
                _plain[kind] = kind.__dict__["__call__"]
                type.__setattr__(kind, "__call__", _heard(_plain[kind]))
            _open[kind] += 1
    try:
        for path, module in list(nnx.iter_modules(model)):
            ear = ears.get(_name(path, module))
            if ear is not None and isinstance(module, kinds):
                object.__setattr__(module, _EAR, ear)
                tapped.append(module)
        yield
    finally:
        for module in tapped:
            vars(module).pop(_EAR, None)
        with _lock:
            for kind in kinds:
                _open[kind] -= 1
                if not _open[kind]:
                    type.__setattr__(kind, "__call__", _plain.pop(kind))


def _ears(
    specs: Iterable[LayerSpec], listen: Callable[[LayerSpec, Any, Array], None]
) -> dict[str, _Ear]:
    """Ears that call ``listen(spec, module, inputs)`` before each call of a layer."""

    def ear(spec: LayerSpec) -> _Ear:
        def around(original: Callable[..., Any], module: Any, given: dict[str, Any]) -> Any:
            einsum = given.get("einsum_str")
            if einsum is not None and einsum.replace(" ", "") != module.einsum_str.replace(" ", ""):
                raise Refused(
                    f"layer {spec.name}: it is called with the einsum {einsum!r}, its own is "
                    f"{module.einsum_str!r}; exclude it"
                )
            listen(spec, module, jnp.asarray(given["inputs"]))
            return original(**given)

        return _Ear(around)

    return {name: ear(spec) for spec in specs for name in spec.names}


@contextmanager
def _explained(batch: Any) -> Iterator[None]:
    """Turn what a model raises on a batch into one line, with a hint if the batch is a likely
    reason."""
    try:
        yield
    except (Refused, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        shapes = ", ".join(str(getattr(a, "shape", a)) for a in jax.tree.leaves(batch))
        hint = ""
        if isinstance(error, (TypeError, KeyError, AttributeError)):
            if isinstance(batch, Mapping):
                keys = ", ".join(map(str, batch))
                hint = (
                    f"; the batch is a dict ({keys}): say how the model takes it, "
                    "forward=lambda model, batch: model(**batch)"
                )
            elif isinstance(batch, (tuple, list)):
                hint = (
                    f"; the batch is a {type(batch).__name__} of {len(batch)}: say how the model "
                    "takes it, forward=lambda model, batch: model(batch[0])"
                )
        raise Refused(
            f"the model cannot be run on a calibration batch of shape {shapes}: "
            f"{type(error).__name__}: {line}{hint}"
        ) from error


def check_runs(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """The layers that the model calls on a batch, in the order of first calls (traced, not run).

    Raises a one-line ValueError where it cannot be run.
    """
    order: dict[str, None] = {}
    graphdef, state = nnx.split(model)

    def run(state: Any, batch: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        ears = _ears(specs.values(), lambda s, m, x: order.setdefault(s.name))
        with _tapped(copy, ears, KINDS):
            return jax.tree.leaves(forward(copy, batch))

    with _explained(batch):
        jax.eval_shape(run, state, batch)
    return list(order)


def _bound(model: nnx.Module) -> list[str]:
    """Attributes that hold a method of the model itself, which a copy shares with the original."""
    modules = [(_name(path, m), m) for path, m in nnx.iter_modules(model)]
    own = {id(m) for _, m in modules}
    lines = []
    for name, module in modules:
        for key, value in vars(module).items():
            method = getattr(value, "__wrapped__", getattr(value, "func", value))
            if id(getattr(method, "__self__", None)) in own and callable(value):
                lines.append(
                    f"{name}.{key} is bound to this very model, whose weights a copy would call: "
                    "decorate the method itself, @nnx.jit"
                )
    return lines


def _check_called(model: Any, specs: Mapping[str, LayerSpec], heard: Iterable[str]) -> None:
    missing = [n for n in specs if n not in set(heard)]
    if not missing:
        return
    module = dict(_compressible(model))[missing[0]]
    kind = next(k for k in KINDS if isinstance(module, k))
    if type(module).__call__ is not kind.__call__:
        raise Refused(
            f"layer {missing[0]}: nothing reaches nnx.{kind.__name__}.__call__ on the calibration "
            f"data, where its inputs are heard: {type(module).__name__} overrides it without "
            f"super().__call__(...), or the model does not call it ({len(missing)} such); "
            "exclude it"
        )
    bound = "".join(f" ({line})" for line in _bound(model))
    raise Refused(
        f"layer {missing[0]}: the model does not call it on the calibration data "
        f"({len(missing)} such){bound}; exclude it"
    )


def call_order(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """Names of the layers in the order in which they are first called (traced, not run)."""
    order = check_runs(model, specs, batch, forward)
    _check_called(model, specs, order)
    return order


# -------------------------------------------------------------------------------------- moments


def moments(
    graphdef: Any,
    state: Any,
    batch: Any,
    specs: Sequence[LayerSpec],
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> dict[str, LayerStats]:
    """Moments of the layers' inputs over one batch: pure, to be jitted by the caller.

    token_weights: the batch's weights >= 0 [batch, seq, ...] of its tokens, such as an attention
    mask. A layer whose vectors' leading axes start with that shape weighs them; of another each
    vector counts once. Layers that the model never calls are left out; one in a branch that was
    not taken has moments of 0. Raises ValueError for a layer that cannot be heard, by name.
    """
    weights = None if token_weights is None else jnp.asarray(token_weights(batch))
    weighted, plain = _moments(graphdef, state, batch, weights, tuple(specs), forward)
    both = weighted | plain
    return {s.name: both[s.name] for s in specs if s.name in both}


def _moments(
    graphdef: Any,
    state: Any,
    batch: Any,
    weights: Array | None,
    specs: tuple[LayerSpec, ...],
    forward: Forward,
) -> tuple[dict[str, LayerStats], dict[str, LayerStats]]:
    """Moments of the layers that the weights apply to, and those of the others."""
    inputs, tree = jax.tree.flatten((state, batch))
    rebuild = partial(jax.tree.unflatten, tree)

    def trace(chosen: Sequence[LayerSpec]) -> tuple[Any, dict[str, Any]]:
        told: list[Note] = []
        dtypes: dict[str, Any] = {}

        def listen(spec: LayerSpec, module: Any, x: Array) -> None:
            x = _features(module, spec, _replicated(x))
            dtype = _wide(x.dtype)
            dtypes[spec.name] = jnp.promote_types(dtypes.get(spec.name, dtype), dtype)
            told.append(Note(spec.name))
            tell(told[-1], x)

        def run(*inputs: Any) -> None:
            state, batch = rebuild(inputs)
            model = nnx.merge(graphdef, state)
            with _tapped(model, _ears(chosen, listen), KINDS):
                forward(model, batch)

        closed = jax.make_jaxpr(run)(*inputs)
        check(closed, told)
        return closed, dtypes

    remedy = "run the model without that, forward=lambda model, batch: ..., or exclude the layer"
    with _placed("layer", remedy, trace, specs):
        closed, dtypes = trace(specs)
        sizes = {s.name: s.shape[1] for s in specs}
        looped = {n: _no_tokens(sizes[n], dtypes[n]) for n in nested(closed)}
        refs = {n: [jax.new_ref(a) for a in start] for n, start in looped.items()}
        done: dict[str, LayerStats] = {}
        once: set[str] = set()

        def hear(note: Note, values: Sequence[Array], inside: bool) -> None:
            name, w = note.name, weights
            x = values[0].astype(dtypes[name])
            if w is not None and x.shape[:-1][: w.ndim] != w.shape:
                w = None
                once.add(name)
            part = _moments_of(x, w)
            if not inside:
                done[name] = done[name] + part if name in done else part
                return
            total = LayerStats(*(r[...] for r in refs[name])) + part
            for ref, a in zip(refs[name], total, strict=True):
                ref[...] = jnp.asarray(a, ref.dtype)

        replay(closed, inputs, hear)
    for n, ref in refs.items():
        part = LayerStats(*(r[...] for r in ref))
        done[n] = done[n] + part if n in done else part
    if weights is None:
        return {}, done
    return {n: s for n, s in done.items() if n not in once}, {n: done[n] for n in once}


def _no_tokens(size: int, dtype: Any) -> LayerStats:
    return LayerStats(
        jnp.zeros((size, size), dtype), jnp.zeros((), jnp.float32), jnp.zeros(size, dtype)
    )


def _moments_of(x: Array, weights: Array | None) -> LayerStats:
    """Moments of vectors x [*tokens, in]; weights of as many of the leading axes, or None."""
    lead, size = x.shape[:-1], x.shape[-1]
    x = x.reshape(-1, size)
    if not len(x):
        return _no_tokens(size, x.dtype)
    if weights is None:
        count = jnp.asarray(len(x), jnp.float32)
        mean = jnp.mean(x, 0)
        left = right = x - mean
    else:
        w = weights.reshape(weights.shape + (1,) * (len(lead) - weights.ndim))
        w = jnp.broadcast_to(w, lead).reshape(-1, 1).astype(x.dtype)
        x = jnp.where(w > 0, x, 0)  # padding may hold anything
        count = jnp.sum(w).astype(jnp.float32)
        mean = jnp.sum(w * x, 0) / jnp.where(count > 0, count, 1)
        right = jnp.where(w > 0, x - mean, 0)
        left = w * right
    scatter = jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)
    # libraries may round differently across the diagonal
    return LayerStats((scatter + scatter.T) / 2, count, mean)


PLACES = {  # what jax says of effects, as the user knows it
    "vmap-of-cond": "a cond under vmap",
    "while_loop with batched predicate": "a while_loop under vmap",
    "vmap-of-while": "a while_loop under vmap",
    "checkpoint": "the derivative of a checkpoint (remat)",
}


@contextmanager
def _placed(what: str, remedy: str, trace: Callable[..., Any], items: Sequence[Any]) -> Iterator:
    """One line for what cannot be heard: which, where, and the remedy.

    jax does not say which; ``trace([item])`` for each tells.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Unheard):
            name, place = error.note.name, error.place
        elif " effect" in str(error).lower() or str(error).lower().startswith("effect"):
            line = str(error).splitlines()[0]
            place = next((p for k, p in PLACES.items() if k in line), f"a transform ({line})")
            name = next((_item_name(i) for i in items if _raises(trace, i)), "?")
        else:
            raise
        raise Refused(
            f"{what} {name}: it is called inside {place}, where its inputs cannot be heard; "
            f"{remedy}"
        ) from error


def _item_name(item: Any) -> str:
    return getattr(item, "name", item)


def _raises(trace: Callable[..., Any], item: Any) -> bool:
    try:
        trace([item])
    except Exception:
        return True
    return False


_jitted = jax.jit(_moments, static_argnames=("graphdef", "specs", "forward"))


@jax.jit
def _merge(a: LayerStats, b: LayerStats) -> LayerStats:
    return a + b


def _compiled(jitted: Any, function: Any, graphdef: Any, *static: Any) -> Callable[..., Any]:
    """``run(arguments, static...)`` under the shared jit if all can be hashed, else one for now."""
    try:
        hash((graphdef, static))
    except TypeError:
        return jax.jit(lambda *args: function(graphdef, *args, *static))
    return lambda *args: jitted(graphdef, *args, *static)


def batches_of(calibration: Any) -> list[Any]:
    """Calibration data as a list of batches, each any pytree.

    An array, a mapping or a named tuple is one batch; a list, tuple, iterator or other iterable
    holds batches. An iterator is used up: call once and pass the list on. Raises ValueError for
    an empty set and for a model in its place.
    """
    empty = "the calibration set is empty: "
    if isinstance(calibration, nnx.Module):
        raise Refused(
            f"the calibration data is a model ({type(calibration).__name__}): give batches of "
            "model inputs (are the model and the calibration data swapped?)"
        )
    if isinstance(calibration, Mapping) or any(
        hasattr(calibration, a) for a in ("shape", "_fields")
    ):
        batches = [calibration]
    elif calibration is None:
        batches = []
    elif isinstance(calibration, Iterable) and not isinstance(calibration, (str, bytes)):
        batches = list(calibration)
    else:
        batches = [calibration]  # a pytree of the user's own
    if not batches:
        raise Refused(empty + "give at least one batch of model inputs")
    # mappings that jax does not know as pytrees, such as a tokenizer's output
    batches = [dict(b) if isinstance(b, Mapping) else b for b in batches]
    for i, batch in enumerate(batches):
        leaves = jax.tree.leaves(batch)
        if not leaves or any(getattr(a, "size", 1) == 0 for a in leaves):
            raise Refused(empty + f"batch {i} has no examples")
    return batches


def _weights_of(token_weights: TokenWeights, batch: Any, index: int) -> np.ndarray:
    weights = np.asarray(token_weights(batch))
    weights = weights.astype(np.float64 if weights.dtype == np.float64 else np.float32)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise Refused(f"the token weights of batch {index} are not all finite and >= 0")
    return weights


def capture(
    model: nnx.Module,
    specs: Mapping[str, LayerSpec],
    calibration: Any,
    *,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> dict[str, LayerStats]:
    """Moments of every layer's inputs over the calibration batches.

    The model is run as it is (call ``model.eval()`` first where that matters) and not changed.
    token_weights: see :func:`moments`; a warning names the layers that they do not apply to. A
    layer that only a branch not taken calls has moments of 0: see :func:`starved`. Raises
    ValueError naming a layer whose inputs are not finite, that is never called, or that is called
    where it cannot be heard; and for weights that apply to no layer.
    """
    graphdef, state = nnx.split(model)
    run = _compiled(_jitted, _moments, graphdef, tuple(specs.values()), forward)
    total: dict[str, LayerStats] = {}
    tokens: Counter[str] = Counter()  # float32 would stop counting at 2^24
    once: set[str] = set()
    shape: tuple[int, ...] = ()
    for i, batch in enumerate(batches_of(calibration)):
        weights = None if token_weights is None else _weights_of(token_weights, batch, i)
        with _explained(batch):
            weighted, plain = run(state, batch, weights)
        if weights is not None:
            shape = weights.shape
            once |= plain.keys()
            if plain and not weighted:
                raise Refused(
                    f"token_weights gives weights of shape {shape}, but the inputs of no layer "
                    f"have these leading axes (the first of them is {min(plain)}): return one "
                    "weight per token, [batch, seq] as the tokens are"
                )
        for name, part in (weighted | plain).items():
            before = total.get(name)
            count = float(part.count)
            if before is not None:
                part = _merge(before._replace(count=jnp.float32(tokens[name])), part)
            tokens[name] += count  # type: ignore[assignment]
            total[name] = part
    _check_called(model, specs, total)
    if once:
        warnings.warn(
            f"token weights of shape {shape} do not apply to the inputs of "
            f"{_some(n for n in specs if n in once)}: their leading axes are others, and each "
            "vector counts once",
            stacklevel=2,
        )
    for name, stats in total.items():
        total[name] = stats._replace(count=jnp.float32(tokens[name]))
        if not all(bool(jnp.all(jnp.isfinite(a))) for a in stats if a is not None):
            raise Refused(f"layer {name}: its inputs on the calibration data are not finite")
    if token_weights is not None and not any(tokens.values()):
        raise Refused("the calibration set is empty: all its token weights are 0")
    return {n: total[n] for n in specs}


def starved(stats: Mapping[str, LayerStats]) -> list[str]:
    """Layers whose second moment is exactly 0: no token ever reached them, or only zeros."""
    return [n for n, s in stats.items() if not np.any(np.asarray(s.energy))]


def _some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


# ------------------------------------------------------------------------------- what is left out


@dataclass(frozen=True)
class Coverage:
    """How much of a model its compressed layers are.

    parameters: floating entries of all nnx.Param, each counted once; covered: those in the layers;
    left: (name, entries, reason) of all others, largest first.
    """

    parameters: int
    covered: int
    left: tuple[tuple[str, int, str], ...]

    @property
    def share(self) -> float:
        return self.covered / self.parameters

    def describe(self, most: int = 5) -> str:
        """``98.4 % of the parameters are in compressed layers; left dense: ...``, in one line."""
        line = f"{100 * self.share:.1f} % of the parameters are in compressed layers"
        told = [f"{n} ({r}) {100 * k / self.parameters:.2g} %" for n, k, r in self.left[:most] if k]
        if rest := sum(k for _, k, _ in self.left[most:]):
            told.append(f"{len(self.left) - most} more {100 * rest / self.parameters:.2g} %")
        return line + ("; left dense: " + ", ".join(told) if told else "")


Holder = tuple[str, Any, str]  # a module's name, the module, its attribute


def _held(model: nnx.Module) -> list[tuple[Any, list[Holder]]]:
    """Every floating nnx.Param once, with all that hold it."""
    found: dict[int, tuple[Any, list[Holder]]] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable):
            continue
        if isinstance(node, Mapping):
            children: Iterable[tuple[Any, Any]] = node.items()
        elif isinstance(node, (list, tuple)):
            children = enumerate(node)
        else:
            children = vars(node).items() if hasattr(node, "__dict__") else ()
        for key, child in children:
            if isinstance(child, nnx.Param) and jnp.issubdtype(child.dtype, jnp.floating):
                holder = (_name(path, node), node, str(key))
                found.setdefault(id(child), (child, []))[1].append(holder)
    return list(found.values())


def coverage(
    model: nnx.Module, specs: Mapping[str, LayerSpec], skipped: Mapping[str, str]
) -> Coverage:
    """How much of the model's parameters the layers of :func:`find_layers` are, and what is not."""
    modules = dict(_compressible(model))
    kernels = {id(modules[n].kernel) for n in specs}
    covered = total = 0
    left: dict[tuple[str, str], int] = {}
    members: dict[tuple[str, str], list[str]] = {}
    for param, holders in _held(model):
        size = math.prod(param.shape)
        total += size
        if id(param) in kernels:
            covered += size
            continue
        key, name = _left(holders[0], skipped)
        left[key] = left.get(key, 0) + size
        members.setdefault(key, []).append(name)
    entries = [
        (members[key][0] if len(members[key]) == 1 and not key[0] else key[0] or key[1], n, key[1])
        for key, n in left.items()
    ]
    return Coverage(total, covered, tuple(sorted(entries, key=lambda e: -e[1])))


def _left(holder: Holder, skipped: Mapping[str, str]) -> tuple[tuple[str, str], str]:
    """The group (title, reason) that a parameter outside the layers is told in, and its name."""
    name, module, attribute = holder
    if isinstance(module, KINDS) and attribute == "kernel":
        return (name, skipped.get(name, "not chosen")), name
    if isinstance(module, nnx.Embed) and attribute == "embedding":
        return (name, "nnx.Embed"), name
    if isinstance(module, nnx.ConvTranspose) and attribute == "kernel":
        return (name, "nnx.ConvTranspose"), name
    if isinstance(module, (*KINDS, nnx.ConvTranspose)) and attribute == "bias":
        return ("biases", "not matrices"), name
    if isinstance(module, NORMS):
        return ("norms", "not matrices"), name
    return ("", f"{type(module).__name__}.{attribute}, an nnx.Param"), f"{name}.{attribute}"


def notes(
    model: nnx.Module, specs: Mapping[str, LayerSpec], skipped: Mapping[str, str]
) -> list[str]:
    """What the user of a compressed model should know, one line each; empty if nothing."""
    lines = []
    cover = coverage(model, specs, skipped)
    if cover.share < COVERED:
        lines.append(f"only {cover.describe()}")
    training = [
        f"{_name(path, m)} ({type(m).__name__})"
        for path, m in nnx.iter_modules(model)
        if (isinstance(m, nnx.BatchNorm) and m.use_running_average is False)
        or (isinstance(m, nnx.Dropout) and m.rate > 0 and m.deterministic is False)
        or (
            isinstance(m, nnx.MultiHeadAttention)
            and m.dropout_rate > 0
            and m.deterministic is False
        )
    ]
    if training:
        lines.append(
            f"the model is in train mode: {_some(training)}; call model.eval() before compressing"
        )
    lines += _bound(model)
    own = {name for spec in specs.values() for name in spec.names}
    modules = dict(_compressible(model))
    kernels = {id(modules[n].kernel): n for n in specs}
    for param, holders in _held(model):
        others = [
            f"{n}.{a} ({type(m).__name__})"
            for n, m, a in holders
            if not (n in own and a == "kernel")
        ]
        if id(param) in kernels and others:
            lines.append(
                f"layer {kernels[id(param)]}: its kernel is also {_some(others)}, which changes "
                "with it"
            )
    return lines


# ----------------------------------------------------------------------- batch norm's statistics


def norms_of(model: nnx.Module) -> list[str]:
    """Names of the nnx.BatchNorm modules (and subclasses)."""
    return [_name(p, m) for p, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)]


def norm_moments(graphdef: Any, state: Any, batch: Any, forward: Forward = call) -> Moments:
    """Mean and variance [features] of each BatchNorm's inputs over one batch: pure, for jit.

    Every norm normalises by those of this batch, so that the next one sees what it will see once
    they are its running statistics; all else of the model is as it is, its mode too. Norms that
    the model never calls are left out; one in a branch not taken keeps what it has. Raises
    ValueError for a norm inside vmap (without an axis_name), or where it cannot be heard.
    """
    inputs, tree = jax.tree.flatten((state, batch))
    rebuild = partial(jax.tree.unflatten, tree)
    kept = {n: (m.mean[...], m.var[...]) for n, m in _norms(nnx.merge(graphdef, state))}

    def trace(names: Iterable[str]) -> tuple[Any, dict[str, None]]:
        told: list[Note] = []

        def ear(name: str) -> _Ear:
            def around(original: Callable[..., Any], norm: Any, given: dict[str, Any]) -> Any:
                count, mean, var = _norm_inputs(norm, given["x"], given.get("mask"))
                told.append(Note(name, batched=False))
                tell(told[-1], count, mean, var)
                now = object.__new__(type(norm))
                vars(now).update(vars(norm))
                vars(now).pop(_EAR, None)
                object.__setattr__(now, "mean", nnx.BatchStat(mean))
                object.__setattr__(now, "var", nnx.BatchStat(var))
                return original(now, given["x"], use_running_average=True)

            return _Ear(around)

        def run(*inputs: Any) -> None:
            state, batch = rebuild(inputs)
            model = nnx.merge(graphdef, state)
            with _tapped(model, {n: ear(n) for n in names}, (nnx.BatchNorm,)):
                forward(model, batch)

        closed = jax.make_jaxpr(run)(*inputs)
        check(closed, told)
        return closed, {n.name: None for n in told}

    remedy = "give it an axis_name, or run the model without that, forward=lambda model, batch: ..."
    with _placed("norm", remedy, trace, list(kept)):
        closed, called = trace(kept)
        refs = {
            n: [jax.new_ref(a) for a in (jnp.zeros(()), *(jnp.zeros_like(v) for v in kept[n]))]
            for n in called
        }

        def hear(note: Note, values: Sequence[Array], _: bool) -> None:
            ref = refs[note.name]
            (n, m, v), (k, mean, var) = (r[...] for r in ref), values
            share = k / jnp.maximum(n + k, 1)  # the law of total variance
            total = (n + k, m + share * (mean - m), _mixed(v, var, mean - m, share))
            for r, a in zip(ref, total, strict=True):
                r[...] = a.astype(r.dtype)

        replay(closed, inputs, hear)
    found = {n: [r[...] for r in rs] for n, rs in refs.items()}
    return {
        n: (jnp.where(count > 0, mean, kept[n][0]), jnp.where(count > 0, var, kept[n][1]))
        for n, (count, mean, var) in found.items()
    }


def _norms(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            yield _name(path, module), module


def _mixed(a: Any, b: Any, step: Any, share: Any) -> Any:
    """Variance of a mixture: ``share`` of it has variance b, and a mean that differs by step."""
    return (1 - share) * a + share * b + share * (1 - share) * step**2


def _norm_inputs(norm: Any, x: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Tokens, mean and variance [features] of a norm's inputs."""
    x = _replicated(jnp.asarray(x))
    x = x.astype(_wide(x.dtype))
    feature = {a % x.ndim for a in np.atleast_1d(norm.axis).tolist()}
    axes = tuple(i for i in range(x.ndim) if i not in feature)
    where = None if mask is None else jnp.broadcast_to(mask, x.shape)
    everywhere = norm.axis_name is not None

    def average(a: Array) -> Array:
        a = jnp.mean(a, axes, where=where)
        if everywhere:
            a = jax.lax.pmean(a, norm.axis_name, axis_index_groups=norm.axis_index_groups)
        return a

    mean = average(x)
    var = average((x - jnp.expand_dims(mean, axes)) ** 2)
    size = math.prod(x.shape[a] for a in axes)
    count = jnp.float32(size) if where is None else jnp.sum(where) * size / x.size
    return jnp.asarray(count, jnp.float32), mean, var


_jitted_norms = jax.jit(norm_moments, static_argnames=("graphdef", "forward"))


def reestimate(model: nnx.Module, batches: Any, *, forward: Forward = call) -> Moments:
    """Mean and variance of each BatchNorm's inputs over all batches, see :func:`norm_moments`.

    Batches count by their examples (the length of the first array). {} without a BatchNorm.
    """
    graphdef, state = nnx.split(model)
    if not norms_of(model):
        return {}
    run = _compiled(_jitted_norms, norm_moments, graphdef, forward)
    parts, sizes = [], []
    for batch in batches_of(batches):
        sizes.append(next((len(a) for a in jax.tree.leaves(batch) if getattr(a, "ndim", 0)), 1))
        with _explained(batch):
            parts.append(jax.device_get(run(state, batch)))
    return combine_norms(parts, sizes)


def combine_norms(parts: Sequence[Moments], sizes: Sequence[int]) -> Moments:
    """Mean and variance over batches of so many examples, from those of each batch."""
    total: dict[str, tuple[Any, Any]] = {}
    examples: Counter[str] = Counter()
    for part, size in zip(parts, sizes, strict=True):
        for name, (mean, var) in part.items():
            examples[name] += size
            m, v = total.get(name, (0.0, 0.0))
            share, step = size / examples[name], np.asarray(mean, np.float64) - m
            total[name] = (m + share * step, _mixed(v, np.asarray(var, np.float64), step, share))
    return {
        n: tuple(jnp.asarray(a, jnp.float32) for a in pair)  # type: ignore[misc]
        for n, pair in total.items()
    }


def set_norms(model: nnx.Module, stats: Moments) -> None:
    """Make these the running statistics, in place (works on a merged model inside jit)."""
    norms = dict(_norms(model))
    for name, (mean, var) in stats.items():
        norms[name].mean[...] = jnp.asarray(mean, norms[name].mean.dtype)
        norms[name].var[...] = jnp.asarray(var, norms[name].var.dtype)


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
