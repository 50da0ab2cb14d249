"""A model without what is gone: its parameters cut, and its blocks taken out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from perturb.architecture import ROWS
from perturb.network.layers import LayerSpec, kernel_of, name_of
from perturb.network.refused import Refused

Bools = npt.NDArray[np.bool_]
ACROSS = (nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm)  # norms that average over units


def cut(
    model: nnx.Module,
    specs: Mapping[str, LayerSpec],
    kept: Mapping[tuple[str, int], Bools],
    blocks: Iterable[str] = (),
) -> Any:
    """A copy of the model that holds, of axes (parameter, dim), only the entries that are kept.

    Kernels, biases, all that a norm holds and its running statistics get smaller, and the modules
    say so (``in_features``, ``num_features``, ...). blocks: modules in an ``nnx.List``, of which
    they are taken out. The model's own code must take sizes from its parameters: what it has as
    numbers of its own stays. Raises ValueError for a parameter that cannot be cut, by name.
    """
    copy = nnx.clone(model)
    holders: dict[str, Any] = {name_of(path, m): m for path, m in nnx.iter_modules(copy)}
    for (parameter, dim), stays in kept.items():
        if parameter in specs:
            _cut_kernel(holders, specs[parameter], dim, stays)
    for (parameter, _), stays in kept.items():
        if parameter not in specs:
            _cut_vector(holders, parameter, stays)
    gone: dict[str, list[int]] = {}
    for name in blocks:
        path, _, place = name.rpartition(".")
        gone.setdefault(path, []).append(int(place))
    for path, places in gone.items():
        for index in sorted(places, reverse=True):
            del holders[path][index]
    return copy


def in_list(model: nnx.Module, name: str) -> bool:
    """Whether a module is an element of an ``nnx.List``."""
    holders = {name_of(path, m): m for path, m in nnx.iter_modules(model)}
    return isinstance(holders.get(name.rpartition(".")[0]), nnx.List) and name in holders


def _cut_kernel(holders: Mapping[str, Any], spec: LayerSpec, dim: int, stays: Bools) -> None:
    if spec.batch_axes:
        raise Refused(f"layer {spec.name}: its kernel is several matrices, which cannot be cut")
    groups = spec.feature_groups
    if groups > 1:
        rows = stays.reshape(groups, -1)
        if dim != ROWS or not np.array_equal(rows.any(1), rows.all(1)):
            raise Refused(f"layer {spec.name}: of a convolution in groups only whole groups can go")
        groups = int(rows.all(1).sum())
    axes = spec.out_axes if dim == ROWS else spec.in_axes
    sizes = [spec.kernel_shape[a] for a in axes]
    place, index = _along(spec.name, stays.reshape(sizes))
    kernel = kernel_of(holders[spec.name])
    _keep(kernel, index, axes[place])
    for name in spec.names:
        module: Any = holders[name]
        bias = getattr(module, "bias", None)
        if dim == ROWS and isinstance(bias, nnx.Variable) and bias.shape == tuple(sizes):
            _keep(bias, index, place)
        _resize(module, kernel.shape, spec)
        if spec.feature_groups > 1:
            module.feature_group_count = groups
            module.in_features *= groups


def _keep(variable: Any, index: npt.NDArray[np.int64], axis: int) -> None:
    """On the host: a program for every shape would take longer."""
    taken = np.take(np.asarray(jax.device_get(variable[...])), index, axis)
    variable.set_value(jnp.asarray(taken))


def _along(name: str, stays: Bools) -> tuple[int, npt.NDArray[np.int64]]:
    """The one axis of [sizes] along which entries go, and the indices that stay."""
    for place in range(stays.ndim):
        others = tuple(a for a in range(stays.ndim) if a != place)
        line = stays.any(others)
        shape = [-1 if a == place else 1 for a in range(stays.ndim)]
        if np.array_equal(np.broadcast_to(line.reshape(shape), stays.shape), stays):
            return place, np.flatnonzero(line)
    raise Refused(f"{name}: what stays of it is no part of its axes {stays.shape}")


def _resize(module: Any, shape: tuple[int, ...], spec: LayerSpec) -> None:
    """What a layer says of the shape of its kernel."""
    inputs, outputs = (tuple(shape[a] for a in axes) for axes in (spec.in_axes, spec.out_axes))
    if hasattr(module, "kernel_shape"):
        module.kernel_shape = tuple(shape)
    if isinstance(module, nnx.Embed):
        module.num_embeddings, module.features = shape
    elif isinstance(module, nnx.LinearGeneral):
        module.in_features, module.out_features = inputs, outputs
    elif not isinstance(module, nnx.Einsum):
        module.in_features, module.out_features = inputs[-1], outputs[-1]
    elif isinstance(module.bias, nnx.Variable):
        module.bias_shape = module.bias.shape


def _cut_vector(holders: Mapping[str, Any], name: str, stays: Bools) -> None:
    """A vector's last axis. A norm's vectors and statistics go together; a layer's bias went with
    its rows."""
    path, _, attribute = name.rpartition(".")
    module: Any = holders.get(path)
    names = [attribute]
    if isinstance(module, nnx.BatchNorm):
        names = [n for n, v in vars(module).items() if isinstance(v, nnx.Variable)]
        module.num_features = int(stays.sum())
    elif isinstance(module, ACROSS):
        raise Refused(f"{path}: it normalises over units that are gone, and would not without them")
    for each in names:
        variable = getattr(module, each, None)  # a bias may be left out, or cut already
        if isinstance(variable, nnx.Variable) and variable.shape[-1] == len(stays):
            _keep(variable, np.flatnonzero(stays), -1)
