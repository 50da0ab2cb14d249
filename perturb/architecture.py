"""What of a model belongs together: spaces that several parameters share, and blocks.

A SPACE is an index set that axes of several parameters have in common: the hidden units of an MLP,
the key-value groups of attention heads, the channels of a convolution with their norm, the
residual stream. Structured pruning drops indices of a space, a rotation rotates it, a scaling
moves factors from what reads it to what writes it: what a space allows is said here, once, by the
model's family. A model of a family without this is one block with no spaces, and every method on
matrices works on it.

A class of models says what it is made of by a method ``architecture()`` that returns
``(spaces, blocks)``. An MLP of 64 hidden units without biases, for one:

    Space("mlp", 64, writes=(rows("fc1"),), reads=(columns("fc2"),))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import jax.numpy as jnp

from perturb.inputs import turned_layers
from perturb.state import State, uses
from perturb.types import Array

ROWS, COLUMNS, ENTRIES = 0, 1, -1
Verb = Literal["drop", "rotate", "scale"]  # what may be done to a space
EMBEDDING = "embedding"  # the attribute of a table whose rows are vectors of a space


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter that lies in a space.

    parameter: a layer (its matrix [out, in]: dim ROWS or COLUMNS), or a vector's
    ``path.attribute`` (its last axis: ENTRIES). The axis is ``repeats`` equal stretches, in each
    of which unit u has the ``per`` entries from u per on; or, of units in ``parts`` equal parts,
    that for the units of the first part, then for those of the second, and so on.
    """

    parameter: str
    dim: int
    per: int = 1
    repeats: int = 1
    parts: int = 1

    def spread(self, units: Array) -> Array:
        """A value for each unit [size] as one for each entry of the axis."""
        stretch = jnp.repeat(units.reshape(self.parts, -1), self.per, 1)
        return jnp.tile(stretch, (1, self.repeats)).reshape(-1)

    def gathered(self, entries: Array, size: int) -> Array:
        """Of values for the axis' entries the sum for each unit [size]."""
        parts = entries.reshape(self.parts, self.repeats, size // self.parts, self.per)
        return parts.sum((1, 3)).reshape(-1)

    def largest(self, entries: Array, size: int) -> Array:
        """Of values for the axis' entries the largest for each unit [size]."""
        parts = entries.reshape(self.parts, self.repeats, size // self.parts, self.per)
        return parts.max((1, 3)).reshape(-1)

    def times(self, matrix: Array, x: Array) -> Array:
        """``matrix [size, size]`` on the units of the axis (of one part), all else of x as it
        is."""
        moved = jnp.moveaxis(x, self.dim, 0)
        parts = moved.reshape(self.repeats, len(matrix), -1)
        done = jnp.matmul(matrix, parts, precision="highest")
        return jnp.moveaxis(done.reshape(moved.shape), 0, self.dim)


def rows(layer: str, per: int = 1, repeats: int = 1) -> Axis:
    """The outputs of a layer."""
    return Axis(layer, ROWS, per, repeats)


def columns(layer: str, per: int = 1, repeats: int = 1, parts: int = 1) -> Axis:
    """The inputs of a layer; those of a convolution are [*window, channels]: repeats = window."""
    return Axis(layer, COLUMNS, per, repeats, parts)


def entries(vector: str, per: int = 1, repeats: int = 1) -> Axis:
    """The last axis of a parameter that is no layer: a bias, a table of embeddings."""
    return Axis(vector, ENTRIES, per, repeats)


@dataclass(frozen=True)
class Folded:
    """A norm before layers that read a space: its scale, bias (if any) and who reads its output.

    A reader's bias is its ``layer.bias``.
    """

    scale: str
    readers: tuple[str, ...]
    bias: str | None = None


@dataclass(frozen=True)
class Space:
    """An index set of ``size`` units, and all that has an axis in it.

    writes: what makes the units' values (rows of matrices; entries of their biases, of norms and
    tables); reads: what uses them (columns of matrices).
    allows: "drop" (a unit whose writers are 0 has value 0 and changes nothing else), "rotate"
    (the values may be any rotation of themselves, once ``norms`` are folded into their readers)
    and "scale" (factors above 0 may move from the readers of each of ``norms`` to its scale and
    bias, and from all readers to the ``linear`` writers).
    linear: the parameters among ``writes`` in which the values are linear together (up of a SwiGLU,
    not gate): to divide a unit's part of these alone divides its value. () where there are none.
    fixes: "mean" where only rotations that keep the mean of the units commute with the norms
    (LayerNorm subtracts it).
    """

    name: str
    size: int
    writes: tuple[Axis, ...]
    reads: tuple[Axis, ...]
    allows: frozenset[Verb] = frozenset({"drop"})
    norms: tuple[Folded, ...] = ()
    linear: tuple[str, ...] = ()
    fixes: Literal["mean"] | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.writes + self.reads

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a.parameter for a in self.axes if a.dim != ENTRIES))

    @property
    def vectors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(a.parameter for a in self.axes if a.dim == ENTRIES))

    def alive(self, state: State, layers: Iterable[str]) -> Array:
        """The units [size] of which any weight is left; of a single version."""
        left: Any = False
        for name, one in self.held(state, layers):
            stays = jnp.any(state.matrices[name].mask, 1 - one.dim)
            left |= one.gathered(stays.astype(jnp.int32), self.size) > 0
        return jnp.broadcast_to(left, (self.size,))

    def held(self, state: State, layers: Iterable[str]) -> list[tuple[str, Axis]]:
        """The matrices, and their axes, that have the space's units, each once.

        layers: all of the model. A layer's rows are those of the first matrices of its products,
        its columns those of the last. Raises ValueError for a matrix that a layer outside of the
        space is made of, too, and for one whose inputs are turned as the model runs.
        """
        for one in self.reads:
            if one.dim == COLUMNS and one.parameter in turned_layers(state.inputs):
                raise ValueError(
                    f"{self.name}: the inputs of {one.parameter} are turned as the model runs, so "
                    "that its columns are no units of the space: apply this before that rotation"
                )
        found: dict[tuple[str, int], Axis] = {}
        inside = {(a.parameter, a.dim) for a in self.axes}
        for one in self.axes:
            if one.dim != ENTRIES:
                end = 0 if one.dim == ROWS else -1
                found |= {(p[end], one.dim): one for p in state.products(one.parameter)}
        for matrix, places in uses(state, layers).items():
            for layer, _ in places:
                for dim in (ROWS, COLUMNS):
                    if (matrix, dim) in found and (layer, dim) not in inside:
                        raise ValueError(
                            f"{self.name}: {layer} is made of the matrix {matrix}, too, but does "
                            "not belong to the space: apply this before the matrix is shared"
                        )
        return [(matrix, one) for (matrix, _), one in found.items()]


@dataclass(frozen=True)
class Block:
    """A residual block: with all its layers and vectors 0 it adds nothing to the stream."""

    name: str
    layers: tuple[str, ...]
    vectors: tuple[str, ...] = ()  # its norms and biases; its running statistics may stay


@dataclass(frozen=True)
class Architecture:
    """Shapes (out, in) of the layers, and the spaces and blocks that the model declares.

    feature_groups: of convolutions in groups, whose rows act on inputs of their group.
    """

    model: str  # the type's name, for messages
    layers: Mapping[str, tuple[int, int]]
    spaces: Mapping[str, Space]
    blocks: Mapping[str, Block]
    feature_groups: Mapping[str, int] = field(default_factory=dict)

    def check_groupless(self, names: Iterable[str], stage: str) -> None:
        """Refuse convolutions in groups."""
        several = [n for n in names if n in self.feature_groups]
        if several:
            raise ValueError(
                f"{stage}: {several[0]} is a convolution in {self.feature_groups[several[0]]} "
                f"groups, each with inputs of its own ({len(several)} such): exclude them"
            )

    def matching(self, pattern: str, allows: Verb) -> list[Space]:
        """The spaces that a pattern names and that allow this; ValueError if there is none.

        Spaces of layers that are left alone cannot be dropped from, and are passed over.
        """
        fitting = [
            s for n, s in self.spaces.items() if fnmatchcase(n, pattern) and allows in s.allows
        ]
        if fitting and allows == "drop":
            fitting = self._compressed(fitting, "space", pattern)
        if fitting:
            return fitting
        known = ", ".join(self.spaces) or "none"
        raise ValueError(
            f"{self.model} has no space {pattern!r} to {allows} (its spaces: {known}): a model "
            "declares them by a method architecture() -> (spaces, blocks), see "
            "perturb.architecture"
        )

    def removable(self, pattern: str) -> list[Block]:
        """The blocks that a pattern names, all of whose layers are compressed; or ValueError."""
        found = [b for n, b in self.blocks.items() if fnmatchcase(n, pattern)]
        if found:
            return self._compressed(found, "block", pattern)
        known = ", ".join(self.blocks) or "none"
        raise ValueError(
            f"{self.model} has no block {pattern!r} (its blocks: {known}): a model declares them "
            "by a method architecture() -> (spaces, blocks), see perturb.architecture"
        )

    def _compressed(self, found: list[Any], what: str, pattern: str) -> list[Any]:
        alone = {f.name: [n for n in f.layers if n not in self.layers] for f in found}
        fitting = [f for f in found if not alone[f.name]]
        if not fitting:
            first = found[0].name
            raise ValueError(
                f"every {what} {pattern!r} has layers that are left alone ({first}: "
                f"{', '.join(alone[first])}): do not exclude them"
            )
        return fitting


def architecture_of(
    model: Any,
    layers: Mapping[str, tuple[int, int]],
    feature_groups: Mapping[str, int] | None = None,
) -> Architecture:
    """What a model says of itself. Tables that are among the layers [entries, size] are those.

    Raises ValueError for a space that reads columns of a convolution in groups: they are entries of
    its window, the same for all groups, and no units.
    """
    groups = dict(feature_groups or {})
    declared = getattr(model, "architecture", None)
    spaces: Iterable[Space] = ()
    blocks: Sequence[Block] = ()
    if callable(declared):
        spaces, blocks = declared()
        spaces = [_with_tables(s, layers) for s in spaces]
    for space in spaces:
        for one in space.reads:
            if one.dim == COLUMNS and one.parameter in groups:
                raise ValueError(
                    f"space {space.name}: the columns of {one.parameter}, a convolution in groups, "
                    "are no units: declare its rows, rows(layer), among those that write"
                )
    return Architecture(
        type(model).__name__,
        dict(layers),
        {s.name: s for s in spaces},
        {b.name: b for b in blocks},
        groups,
    )


def _with_tables(space: Space, layers: Mapping[str, tuple[int, int]]) -> Space:
    def layer(parameter: str) -> str:
        path, _, attribute = parameter.rpartition(".")
        return path if attribute == EMBEDDING and path in layers else parameter

    def moved(axis: Axis) -> Axis:
        name = layer(axis.parameter)
        return axis if name == axis.parameter else replace(axis, parameter=name, dim=COLUMNS)

    return replace(
        space,
        writes=tuple(map(moved, space.writes)),
        reads=tuple(map(moved, space.reads)),
        norms=tuple(replace(n, readers=tuple(map(layer, n.readers))) for n in space.norms),
        linear=tuple(map(layer, space.linear)),
    )
