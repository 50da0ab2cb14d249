"""Structured pruning: remove units of a space, with all the rows and columns that they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from perturb.architecture import ENTRIES, ROWS, Architecture, Space
from perturb.masks import smallest_k
from perturb.network import trained
from perturb.registry import check_choice
from perturb.stage import Outcome, Sight
from perturb.state import State, layer_weight
from perturb.types import Array, Matrix


@dataclass(frozen=True)
class Drop:
    """Objective: a smaller model, simulated: units that are 0, and stay so.

    ``round(ratio size)`` units of every space that the pattern matches go: MLP neurons, key-value
    groups of attention heads, filters, whatever the model declares (:mod:`perturb.architecture`).
    Those that went before count, so that a larger ratio later drops the difference.
    Score "magnitude": the sum of squares of all weights that write or read the unit; the smallest
    go, ties by index. Rows and columns become 0 and are pruned for good (no later stage that
    enforces masks brings them back); entries of biases and norms become 0.
    Source: Li et al., ICLR 2017 (arXiv 1608.08710); Ma et al., NeurIPS 2023 (arXiv 2305.11627).
    """

    space: str = "*"
    ratio: float = 0.5
    score: Literal["magnitude"] = "magnitude"

    name: ClassVar[str] = "drop"
    needs_stats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.ratio, (bool, str)) or not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), got {self.ratio!r}")
        check_choice("score", self.score, ("magnitude",))

    def count(self, space: Space) -> int:
        """Units of the space that go."""
        return round(self.ratio * space.size)

    def check(self, architecture: Architecture) -> None:
        for space in architecture.matching(self.space, "drop"):
            if self.count(space) == space.size:
                raise ValueError(
                    f"ratio {self.ratio:g} would drop all {space.size} units of {space.name}: "
                    f"choose one below {1 - 0.5 / space.size:g}"
                )

    def on_state(self, state: State, context: Sight) -> Outcome:
        spaces = tuple(context.architecture.matching(self.space, "drop"))
        vectors = context.vectors(state.vectors, [v for s in spaces for v in s.vectors])
        stored = trained(context.network.given, vectors)
        counts = {s.name: self.count(s) for s in spaces}
        full = state.with_vectors(vectors)
        return Outcome(_dropped(full, counts, spaces, context.context.shapes, tuple(stored)))


@partial(jax.jit, static_argnames=("spaces", "shapes", "stored"))
def _dropped(
    state: State,
    counts: Mapping[str, Array],
    spaces: tuple[Space, ...],
    shapes: Any,
    stored: tuple[str, ...],
) -> State:
    for space in spaces:
        gone = smallest_k(_scores(state, space, dict(shapes)), counts[space.name])
        state = without(state, space, gone, dict(shapes), stored)
    return state


def _scores(state: State, space: Space, shapes: Mapping[str, tuple[int, int]]) -> Array:
    """Sums of squares by unit [size]; -inf for those that are gone."""
    total: Any = 0.0
    for one in space.axes:
        if one.dim != ENTRIES:
            w = layer_weight(state, one.parameter, shapes[one.parameter])
            total += one.gathered(jnp.sum(w**2, 1 - one.dim), space.size)
    alive: Any = False
    for name, one in space.held(state, shapes):
        stays = jnp.any(state.matrices[name].mask, 1 - one.dim)
        alive |= one.gathered(stays.astype(jnp.int32), space.size) > 0
    return jnp.where(alive, total, -jnp.inf)


def without(
    state: State, space: Space, gone: Array, shapes: Iterable[str], stored: tuple[str, ...]
) -> State:
    """The state without these units [size]; stored: vectors that are parameters."""
    matrices, vectors, kept = dict(state.matrices), dict(state.vectors), dict(state.kept)
    for name, one in space.held(state, shapes):
        stays = ~one.spread(gone)
        matrices[name] = masked(matrices[name], stays[:, None] if one.dim == ROWS else stays[None])
    for one in space.axes:
        if one.dim == ENTRIES and one.parameter in vectors:
            vector = one.parameter
            stays = jnp.broadcast_to(~one.spread(gone), vectors[vector].shape)
            vectors[vector] = jnp.where(stays, vectors[vector], 0)
            if vector in stored:
                kept[vector] = stays & kept.get(vector, True)
    return replace(state, matrices=matrices, vectors=vectors, kept=kept)


def masked(matrix: Matrix, stays: Array) -> Matrix:
    """The matrix without the weights that do not stay."""
    mask = matrix.mask & stays
    return matrix._replace(weight=jnp.where(mask, matrix.weight, 0), mask=mask)
