"""What of a model belongs together: spaces that several parameters share, and blocks.

A SPACE is an index set that axes of several parameters have in common: the hidden units of an MLP,
the key-value groups of attention heads, the channels of a convolution with their norm, the
residual stream. Structured pruning drops indices of a space, a rotation rotates it: what a space
allows is said here, once, by the model's family. A model of a family without this is one block
with no spaces, and every method on matrices works on it.

A class of models says what it is made of by a method ``architecture()`` that returns
``(spaces, blocks)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter that lies in a space: unit u has the entries ``positions[u]``.

    parameter: a layer (its matrix [out, in]: axis ROWS or COLUMNS), or a vector's
    ``path.attribute`` (its last axis). positions: [units, entries a unit].
    """

    parameter: str
    axis: int
    positions: tuple[tuple[int, ...], ...]

    @property
    def index(self) -> np.ndarray:
        return np.asarray(self.positions)


def axis(parameter: str, dim: int, units: int, per: int = 1, repeats: int = 1) -> Axis:
    """Unit u has the entries u per .. u per + per - 1, in each of ``repeats`` equal stretches."""
    stretch = units * per
    positions = (
        tuple(r * stretch + u * per + k for r in range(repeats) for k in range(per))
        for u in range(units)
    )
    return Axis(parameter, dim, tuple(positions))


@dataclass(frozen=True)
class Folded:
    """A norm before layers that read a space: its scale, bias (if any) and who reads its output."""

    scale: str
    readers: tuple[str, ...]
    bias: str | None = None


@dataclass(frozen=True)
class Space:
    """An index set of ``size`` units, and all that has an axis in it.

    writes: what makes the units' values (rows of matrices; vectors, biases and norms with them);
    reads: what uses them (columns of matrices).
    allows: "drop" (a unit whose writers are 0 has value 0 and changes nothing else) and "rotate"
    (the values may be any rotation of themselves, once ``norms`` are folded into their readers).
    fixes: "mean" where only rotations that keep the mean of the units commute with the norms
    (LayerNorm subtracts it); rows of ``lookups`` are vectors of the space (embeddings, positions).
    """

    name: str
    size: int
    writes: tuple[Axis, ...]
    reads: tuple[Axis, ...]
    allows: frozenset[Literal["drop", "rotate"]] = frozenset({"drop"})
    norms: tuple[Folded, ...] = ()
    fixes: Literal["mean"] | None = None
    lookups: tuple[Axis, ...] = ()


@dataclass(frozen=True)
class Block:
    """A residual block: all its layers, and what makes it add nothing when it is 0.

    writes: layers whose output is added to the stream; zeros: vectors to set to 0 with them.
    """

    name: str
    layers: tuple[str, ...]
    writes: tuple[str, ...]
    zeros: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """Shapes (out, in) of the layers, and the spaces and blocks that the model declares."""

    model: str  # the type's name, for messages
    layers: Mapping[str, tuple[int, int]]
    spaces: Mapping[str, Space]
    blocks: Mapping[str, Block]

    def matching(self, pattern: str, allows: str) -> list[Space]:
        """The spaces that a pattern names and that allow this; ValueError if there is none."""
        found = [s for n, s in self.spaces.items() if fnmatchcase(n, pattern)]
        fitting = [s for s in found if allows in s.allows]
        if fitting:
            return fitting
        known = ", ".join(self.spaces) or "none"
        raise ValueError(
            f"{self.model} has no space {pattern!r} to {allows} (its spaces: {known}): a model "
            "declares them by a method architecture() -> (spaces, blocks), see "
            "perturb.architecture"
        )


def architecture_of(model: Any, layers: Mapping[str, tuple[int, int]]) -> Architecture:
    """What a model says of itself, as far as its layers are compressed at all."""
    declared = getattr(model, "architecture", None)
    spaces: Sequence[Space] = ()
    blocks: Sequence[Block] = ()
    if callable(declared):
        spaces, blocks = declared()
    return Architecture(
        type(model).__name__,
        dict(layers),
        {s.name: s for s in spaces},
        {b.name: b for b in blocks},
    )
