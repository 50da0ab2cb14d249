"""What ownership alone says of a pruner and a quantizer on one model (Theorem 1 of Kim et al.).

A pruned weight is the pruner's, any other the quantizer's. By ownership each has exactly the error
that its owner gives it when it acts alone, and errors add:

    owned_rel = sum over weights of h (owner P: w^2, owner Q: (Q(w) - w)^2) / E||W x||^2,

h = E x_j^2. The difference of two orders is A by ownership; what the measured ``out_rel`` differs
from it is interference. On the host in float64, a layer at a time: a few sums a cell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from experiments.axes import Chain, Node
from experiments.labels import amounts, stage_name
from perturb.measure import errors
from perturb.measure.layers import part_of
from perturb.stage import Reference, Versions
from perturb.types import Moments

Weights = Mapping[str, np.ndarray]  # [out, in] by layer
# E||W x||^2 by layer, which all versions of a reference share
_ENERGIES: WeakKeyDictionary[Reference, dict[str, float]] = WeakKeyDictionary()


def is_quantizer(stage: Any) -> bool:
    return amounts(stage) == {"bits"}


def quantizer_of(chain: Chain) -> Any:
    """The quantizer of a chain of it and a pruner, in either order; None of any other chain."""
    roles = [amounts(stage) for stage in chain]
    if sorted(map(sorted, roles)) != [["bits"], ["sparsity"]]:
        return None
    return next(stage for stage in chain if is_quantizer(stage))


def quantized(
    node: Node, versions: Versions, needed: Collection[str], shapes: Any
) -> dict[str, Weights]:
    """The weights that those quantizers alone leave that are needed, by their names."""
    found: dict[str, Weights] = {}
    for i, name in enumerate(node.axis.names):
        if name in needed:
            one = part_of(versions.state.bare, np.full(1, i, np.int32), shapes)[0]
            found[name] = {n: w[0] for n, w in jax.device_get(one).items()}
    return found


def owned(
    versions: Versions, chains: Sequence[Chain], alone: Mapping[str, Weights]
) -> list[dict[str, float]]:
    """``owned_rel`` by layer, of every version; nothing of those that are no such pair, or whose
    quantizer alone is not known."""
    wanted = [quantizer_of(chain) for chain in chains]
    known = [None if q is None else alone.get(stage_name(q)) for q in wanted]
    if not any(known):
        return [{} for _ in chains]
    masks = jax.device_get({n: m.mask for n, m in versions.state.matrices.items()})
    reference = versions.reference
    energies = _ENERGIES.setdefault(reference, {})
    dense = jax.device_get(dict(reference.weights))
    found: list[dict[str, float]] = [{} for _ in chains]
    for name, w in dense.items():
        if name not in masks:
            continue
        weight = np.asarray(w, np.float64)
        moments = jax.device_get(reference.moments[name])
        h = errors.energy_on_host(moments, len(weight))
        if name not in energies:
            energies[name] = _output_energy(weight, moments)
        energy = energies[name]
        for i, weights in enumerate(known):
            if weights is not None and energy > 0:
                rounding = weights[name] - weight
                cost = errors.owned_on_host(h, weight, masks[name][i], rounding)
                found[i][name] = cost / energy
    return found


def _output_energy(weight: np.ndarray, moments: Moments) -> float:
    """``E||W x||^2``, of moments on the host."""
    scatter = np.asarray(moments.scatter, np.float64)
    count = np.asarray(moments.count, np.float64)[..., None, None]
    if scatter.ndim == 3:  # a convolution in groups: [groups, rows of each, in]
        weight = weight.reshape(len(scatter), -1, weight.shape[-1])
    found = float(np.sum((weight @ (scatter / np.where(count, count, 1.0))) * weight))
    if moments.mean is not None:
        mean = np.asarray(moments.mean, np.float64)[..., None]
        found += float(np.sum((weight @ mean) ** 2))
    return found
