"""Layers of a model: how the kernels of each kind are read, and which are found by which name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import jax.numpy as jnp
from flax import nnx

from perturb.network.layers import LayerSpec, compressible, kernel_of
from perturb.network.names import fits
from perturb.network.refused import Refused


def _own_shape(module: Any) -> tuple[int, ...]:
    """The shape of the module's kernel where no transform has stacked it."""
    if isinstance(module, nnx.Linear):
        return (module.in_features, module.out_features)
    if isinstance(module, nnx.LinearGeneral):
        return (*module.batch_axis.values(), *module.in_features, *module.out_features)
    if isinstance(module, nnx.Embed):
        return (module.num_embeddings, module.features)
    return tuple(module.kernel_shape)


def _stack_axes(shape: tuple[int, ...], own: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that nnx.vmap added to a kernel: leading ones, if these can be. None if it is no
    stack of kernels of its own shape."""
    for axes in combinations(range(len(shape)), max(len(shape) - len(own), 0)):
        rest = tuple(n for a, n in enumerate(shape) if a not in axes)
        if rest == own or (not axes and len(shape) == len(own)):
            return axes
    return None


def read(name: str, module: Any) -> LayerSpec | str:
    """The spec of a module's kernel, or the reason why it is left alone.

    A grouped convolution is a matrix [out / groups, window * in / groups] a group, and a depthwise
    one a matrix [multiplier, window] a channel: only so does every matrix act on its own inputs,
    with a second moment of its own. As one matrix [out, window * in] it would be block-diagonal,
    and methods would compare, and share a grid or a threshold among, weights that never meet. The
    matrices are the ``feature_groups`` of one layer [out, window * in / groups]: methods on
    matrices see every group by itself (:func:`perturb.family.run_family`), all else sees a layer.
    A thousand layers of nine weights each would take minutes to compile, in every program.
    """
    kernel = kernel_of(module)
    shape = tuple(kernel.shape)
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        return f"its kernel is {kernel.dtype}, not floating point"
    if isinstance(module, nnx.Einsum) and module.einsum_str is None:
        return "its einsum string is given only when it is called"
    own = _own_shape(module)
    stack = _stack_axes(shape, own)
    if stack is None:
        return f"its kernel has shape {shape}, which is no stack of kernels {own}"
    axes = tuple(a for a in range(len(shape)) if a not in stack)
    spec = LayerSpec(name, "linear", shape, (), (), (), stack, len(stack))
    if isinstance(module, nnx.Linear):
        return replace(spec, in_axes=axes[:1], out_axes=axes[1:])
    if isinstance(module, nnx.Embed):
        return replace(spec, kind="embed", in_axes=axes[1:], out_axes=axes[:1])
    if isinstance(module, nnx.LinearGeneral):
        n, m = len(module.batch_axis), len(module.in_features)
        return replace(
            spec,
            batch_axes=stack + axes[:n],
            in_axes=axes[n : n + m],
            out_axes=axes[n + m :],
        )
    if isinstance(module, nnx.Einsum):
        return _read_einsum(spec, axes, module.einsum_str)
    return _read_conv(spec, axes, module)


def _read_conv(spec: LayerSpec, axes: tuple[int, ...], module: Any) -> LayerSpec | str:
    if module.mask is not None:
        return "it is a masked convolution"
    if isinstance(module, nnx.ConvTranspose):
        *window, first, last = axes
        inner, out = (last, first) if module.transpose_kernel else (first, last)
        return replace(spec, kind="conv", in_axes=(*window, inner), out_axes=(out,))
    groups = module.feature_group_count  # the outputs of a group stand side by side
    return replace(spec, kind="conv", in_axes=axes[:-1], out_axes=axes[-1:], feature_groups=groups)


def _read_einsum(spec: LayerSpec, axes: tuple[int, ...], einsum: str) -> LayerSpec | str:
    inputs, kernel, output = einsum_dims(einsum)
    if "." in kernel or len(kernel) != len(axes):
        return f"its einsum {einsum!r} has an ellipsis in the kernel"
    if any(len(set(dims) - {"."}) != len(dims.replace(".", "")) for dims in (inputs, kernel)):
        return f"its einsum {einsum!r} takes a diagonal"
    if lost := set(kernel) - set(inputs) - set(output):
        return f"its einsum {einsum!r} sums its kernel over {min(lost)!r}"
    batch, contracted = einsum_roles(einsum)
    if not contracted:
        return f"its einsum {einsum!r} contracts nothing with the kernel"
    place = dict(zip(kernel, axes, strict=True))
    return replace(
        spec,
        kind="einsum",
        batch_axes=(*spec.batch_axes, *(place[d] for d in batch)),
        in_axes=tuple(place[d] for d in contracted),
        out_axes=tuple(place[d] for d in kernel if d not in batch + contracted),
    )


def einsum_dims(einsum: str) -> tuple[str, str, str]:
    operands, _, output = einsum.replace(" ", "").partition("->")
    inputs, _, kernel = operands.partition(",")
    return inputs, kernel, output


def einsum_roles(einsum: str) -> tuple[str, str]:
    """The kernel's dims that number matrices (all three have them), and those contracted."""
    inputs, kernel, output = einsum_dims(einsum)
    both = [d for d in kernel if d in inputs]
    return "".join(d for d in both if d in output), "".join(d for d in both if d not in output)


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
    model: nnx.Module, *, exclude: Sequence[str] = (), include: Sequence[str] = ()
) -> tuple[dict[str, LayerSpec], dict[str, str]]:
    """All compressible layers by name, and those left alone with the reason.

    Modules that share one kernel are one layer under the name of the first, if all of them read
    it the same way. Kernels that are several matrices are several layers, ``name[0]`` and so on.
    exclude: shell patterns of names to leave alone, such as ``"lm_head"``, ``"blocks.0.*"`` or
    ``"experts[3]"``; a module's name means all of its matrices. include: patterns of embeddings,
    which are left alone otherwise; what is excluded, too, stays so. An embedding is a matrix
    [num_embeddings, features], a row a token: ``attend`` applies it, and a lookup takes rows of
    it, whatever the inputs (see :func:`perturb.network.capture`). Raises ValueError for a pattern
    that matches nothing, for what is no ``nnx.Module``, and for a model without any layer.
    """
    _check_model(model)
    modules = dict(compressible(model))
    embeddings = [n for n, m in modules.items() if isinstance(m, nnx.Embed)]
    chosen = {n for n in embeddings if any(fits(n, p) for p in include)}
    for pattern in include:
        if not any(fits(n, pattern) for n in embeddings):
            raise Refused(
                f"include pattern {pattern!r} matches no embedding; embeddings are: "
                + (", ".join(embeddings) or "none")
            )
    parts: dict[str, tuple[LayerSpec, ...] | str] = {}  # of each module
    sharing: dict[int, list[str]] = {}  # of one kernel
    for name, module in modules.items():
        if name in embeddings and name not in chosen:
            continue
        own = read(name, module)
        parts[name] = own if isinstance(own, str) else own.each()
        sharing.setdefault(id(kernel_of(module)), []).append(name)
    found: dict[str, LayerSpec] = {}
    skipped: dict[str, str] = {}
    used = {p for p in exclude if any(fits(n, p) for n in embeddings)}
    for names in sharing.values():
        left = _excluded({n: parts[n] for n in names}, exclude, used)
        specs, reasons = _shared({n: parts[n] for n in names}, left)
        found |= specs
        skipped |= reasons
    if unused := set(exclude) - used:
        raise Refused(
            f"exclude pattern {min(unused)!r} matches no layer; layers are: " + ", ".join(modules)
        )
    if not found:
        why = "; ".join(f"{n}: {r}" for n, r in skipped.items()) or "none found"
        if any(isinstance(m, nnx.bridge.ToNNX) for _, m in nnx.iter_modules(model)):
            why += "; what nnx.bridge.ToNNX wraps stays Linen: build the model of Flax NNX layers"
        raise Refused(
            f"{type(model).__name__} has no compressible layer (nnx.Linear, nnx.LinearGeneral, "
            f"nnx.Conv, nnx.ConvTranspose, nnx.Einsum): {why}"
        )
    return dict(sorted(found.items(), key=lambda item: _natural(item[0]))), skipped


Parts = Mapping[str, tuple[LayerSpec, ...] | str]


def _names(module: str, parts: tuple[LayerSpec, ...] | str) -> list[str]:
    return [module] if isinstance(parts, str) else [s.name for s in parts]


def _excluded(parts: Parts, exclude: Sequence[str], used: set[str]) -> dict[str, str]:
    """What of some modules is excluded, and why; patterns that match are added to ``used``."""
    reasons: dict[str, str] = {}
    for module, own in parts.items():
        for name in _names(module, own):
            if matches := [p for p in exclude if fits(name, p)]:
                used |= set(matches)
                reasons[name] = f"excluded by {matches[0]!r}"
    return reasons


def _shared(
    parts: Parts, excluded: Mapping[str, str]
) -> tuple[dict[str, LayerSpec], dict[str, str]]:
    """The layers of one kernel that these modules share, and those left alone with the reason."""
    names = list(parts)
    first = parts[names[0]]
    readable = [own for own in parts.values() if not isinstance(own, str)]
    ways = {_way(s) for own in readable for s in own}
    if len(readable) < len(names) or len(ways) != 1 or isinstance(first, str):
        return {}, {n: _why(n, parts, excluded) for n in names}
    found: dict[str, LayerSpec] = {}
    skipped: dict[str, str] = {}
    for i, spec in enumerate(first):
        same = [own[i].name for own in readable]
        left = next((n for n in same if n in excluded), None)
        if left is None:
            found[spec.name] = replace(spec, aliases=tuple(names[1:]))
        for n in same if left else ():
            skipped[n] = excluded.get(n, f"its kernel is also that of {left}, which is left alone")
    if not found and len(first) > 1:  # one line, not one a matrix
        skipped = {n: skipped[_names(n, parts[n])[0]] for n in names}
    return found, skipped


def _way(spec: LayerSpec) -> tuple[Any, ...]:
    return spec.in_axes, spec.out_axes, spec.batch_axes, spec.feature_groups


def _why(name: str, parts: Parts, excluded: Mapping[str, str]) -> str:
    """Why a module is left alone whose kernel is not read, or not in one way."""
    own = parts[name]
    told = excluded.get(_names(name, own)[0])
    if told or isinstance(own, str):
        return told or str(own)
    other = next((n for n, p in parts.items() if isinstance(p, str)), None)
    if other is None:
        other = next((n for n in parts if _names(n, parts[n])[0] in excluded), None)
    if other is not None:
        return f"its kernel is also that of {other}, which is left alone"
    other = next(n for n in parts if n != name)
    return f"its kernel is also that of {other}, which reads it along other axes"


def matching(model: nnx.Module, pattern: str) -> list[str]:
    """Names of the layers and embeddings of a model that a shell pattern matches: what it may
    exclude or, if it is an embedding, include. [] if there is none."""
    _check_model(model)
    found = []
    for name, module in compressible(model):
        own = read(name, module)
        names = [name] if isinstance(own, str) else [s.name for s in own.each()]
        found += [n for n in names if fits(n, pattern)]
    return sorted(found, key=_natural)


def _natural(name: str) -> list[tuple[bool, int | str]]:
    parts = re.split(r"[.\[\]]+", name)
    return [(not p.isdigit(), int(p) if p.isdigit() else p) for p in parts]
