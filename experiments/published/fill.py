"""A checkpoint's tensors into a model, one after another; nothing is initialised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.checkpoints import Folder, Tensor
from perturb.checkpoints.stream import FLOATS

KERNEL = (1, 0)  # a weight [out, in] is a kernel [in, out]
CONV = (2, 3, 1, 0)  # and [out, in, height, width] is [height, width, in, out]


@dataclass(frozen=True)
class Source:
    """Where a parameter is: the tensors that are joined along its last axis (mostly one), each
    transposed by ``axes``."""

    names: tuple[str, ...]
    axes: tuple[int, ...] | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """That each of the tensors must have for a parameter of this shape."""
        part = (*ours[:-1], ours[-1] // len(self.names))
        if self.axes is None:
            return part
        stored = [0] * len(part)
        for to, axis in enumerate(self.axes):
            stored[axis] = part[to]
        return tuple(stored)

    def value(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        parts = [tensors[name].read() for name in self.names]
        parts = parts if self.axes is None else [p.transpose(self.axes) for p in parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def source(*names: str, axes: tuple[int, ...] | None = None) -> Source:
    return Source(names, axes)


@dataclass(frozen=True)
class Plan:
    """A checkpoint that can be a model of ours: its config (with ``build``), where each of the
    model's parameters is, which other tensors mean nothing, and what a person should know.

    copies: tensors that may be there and must equal another one, of the parameters.
    """

    config: Any
    sources: Mapping[str, Source]
    ignored: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def filled(folder: Folder, plan: Plan) -> nnx.Module:
    """The plan's model with the folder's weights, in evaluation mode.

    Raises ValueError, before any weight is read, for a tensor that is missing, has another shape
    or type, or has no place in the model.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: plan.config.build(nnx.Rngs(0))))
    leaves = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    assert leaves.keys() == plan.sources.keys(), leaves.keys() ^ plan.sources.keys()
    check(folder, plan)
    for copy, original in plan.copies.items():
        held = folder.tensors
        if copy in held and not np.array_equal(held[copy].read(), held[original].read()):
            raise ValueError(
                f"{folder.path}: config.json says that {copy} is tied to {original}, but they "
                "differ: set tie_word_embeddings to false"
            )
    for name, leaf in leaves.items():
        leaf.set_value(jnp.asarray(plan.sources[name].value(folder.tensors), leaf.dtype))
    model = nnx.merge(graph, state)
    model.eval()
    return model


def check(folder: Folder, plan: Plan) -> None:
    """Compare the folder's tensors with those of the plan's model; takes no memory. Raises
    ValueError as :func:`filled`."""
    tensors, known = folder.tensors, set(plan.copies)
    state = nnx.state(nnx.eval_shape(lambda: plan.config.build(nnx.Rngs(0))))
    for path, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        wanted = plan.sources[name].shape(tuple(leaf.shape))
        for stored in plan.sources[name].names:
            known.add(stored)
            if stored not in tensors:
                raise ValueError(f"{folder.path}: the tensor {stored} is missing")
            one = tensors[stored]
            if one.shape != wanted:
                raise ValueError(
                    f"{one.file}: {stored} has shape {list(one.shape)}; by config.json it must be "
                    f"{list(wanted)}"
                )
            if not one.floating:
                raise ValueError(
                    f"{one.file}: {stored} is stored as {one.stored}: only weights in "
                    f"{', '.join(FLOATS)} can be read"
                )
    for stored in tensors:
        if stored not in known and not any(fnmatchcase(stored, p) for p in plan.ignored):
            raise ValueError(
                f"{tensors[stored].file}: {stored} has no place in a model of this config.json"
            )
