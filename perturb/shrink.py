"""From a simulated model, in which what is gone is 0, to one that really is smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from perturb.architecture import Architecture, Block, architecture_of
from perturb.network import LayerSpec, cut, has_vector, in_list
from perturb.state import State

Bools = npt.NDArray[np.bool_]


def shrink(model: Any, specs: Mapping[str, LayerSpec], state: State) -> Any:
    """A copy of a compressed model without the units and blocks that the state has lost.

    model: with the weights of the state, a single version. Units of which no weight is left are cut
    out of every parameter that has an axis in their space, with its biases, norms and running
    statistics; blocks of which nothing is left leave their ``nnx.List``. In a block that stands
    in no list, and in a space that has lost all of its units, the zeros stay. So do those of masks
    within the units that are left. The model's code must take its numbers of heads and units from
    its parameters' shapes, as a model that :func:`perturb.compress` returns may not tell it.
    Raises ValueError for a model that declares no spaces and blocks, and for parameters that
    cannot be cut.
    """
    architecture = architecture_of(model, {n: s.shape for n, s in specs.items()})
    if not (architecture.spaces or architecture.blocks):
        raise ValueError(
            f"{architecture.model} declares no spaces and blocks, of which it could lose some: "
            "give it a method architecture(), see perturb.architecture"
        )
    gone = [b for b in architecture.blocks.values() if _is_gone(b, model, state, architecture)]
    inside = {layer for b in gone for layer in b.layers}
    return cut(model, specs, _kept(state, architecture, inside), [b.name for b in gone])


def _is_gone(block: Block, model: Any, state: State, architecture: Architecture) -> bool:
    if not set(block.layers) <= architecture.layers.keys() or not in_list(model, block.name):
        return False
    names = {n for layer in block.layers for p in state.products(layer) for n in p}
    left: list[Any] = [state.matrices[n].mask for n in names]
    left += [state.kept.get(v, np.ones((), bool)) for v in block.vectors if has_vector(model, v)]
    return not any(bool(np.any(mask)) for mask in jax.device_get(left))


def _kept(
    state: State, architecture: Architecture, outside: set[str]
) -> dict[tuple[str, int], Bools]:
    """Of axes (parameter, dim) that lose entries, which stay; none of the layers outside."""
    kept: dict[tuple[str, int], Bools] = {}
    for space in architecture.spaces.values():
        fitting = "drop" in space.allows and set(space.layers) <= architecture.layers.keys()
        if not fitting or outside & set(space.layers):
            continue
        alive = np.asarray(space.alive(state, architecture.layers))
        for one in space.axes if alive.any() and not alive.all() else ():
            stays = np.tile(np.repeat(alive, one.per), one.repeats)
            key = one.parameter, one.dim
            kept[key] = stays & kept.get(key, True)
    return kept
