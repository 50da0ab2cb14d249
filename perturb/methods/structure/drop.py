"""Structured pruning: remove units of a space, with all the rows and columns that they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturb.architecture import COLUMNS, ENTRIES, Architecture, Space
from perturb.masks import smallest_k
from perturb.methods.structure.compensate import cheapest, check_off_grid, reader, refit
from perturb.methods.structure.units import without
from perturb.network import trained
from perturb.registry import check_choice
from perturb.stage import Outcome, Sight
from perturb.state import State, layer_weight
from perturb.types import Array

Score = Literal["magnitude", "wanda", "obs"]


@dataclass(frozen=True)
class Drop:
    """Objective: a smaller model, simulated: units that are 0, and stay so.

    ``round(ratio size)`` units of every space that the pattern matches go: MLP neurons, key-value
    groups of attention heads, filters, whatever the model declares (:mod:`perturb.architecture`).
    Those that went before count, so that a larger ratio later drops the difference.
    Score of a unit u, the smallest go, ties by index:

        "magnitude"  the sum of squares of all weights that write or read it
        "wanda"      sum over the layers that read it of ``sum_ij W_ij^2 E[x_j^2]``, j its columns:
                     what it costs as if inputs were uncorrelated
        "obs"        sum over the layers that read it of ``tr(W_u (H^-1_uu)^-1 W_u^T)``,
                     H = E[x x^T] with DAMP of its mean diagonal (perturb/methods/structure/
                     compensate.py): what it costs once the kept columns make up for it. Units go
                     one after another, scored anew each time; then the kept columns K of every
                     reader become ``W_K + W_S H_SK (H_KK)^-1``, S those that went

    Rows and columns become 0 and are pruned for good (no later stage that enforces masks brings
    them back); entries of biases and norms become 0. What "obs" compensates stays 0 where a mask
    has it so (each row is solved within its own mask; which units go is decided as if there were
    none) and leaves a grid, which is refused unless ``release=True``.
    Source: Li et al., ICLR 2017 (arXiv 1608.08710); Ma et al., NeurIPS 2023 (arXiv 2305.11627);
    Sun et al., ICLR 2024 (Wanda, arXiv 2306.11695), summed over the units; Kurtic et al., NeurIPS
    2023 (ZipLM, arXiv 2302.04089), for one ratio in place of its search for a speedup.
    """

    space: str = "*"
    ratio: float = 0.5
    score: Score = "magnitude"
    release: bool = False

    name: ClassVar[str] = "drop"

    def __post_init__(self) -> None:
        if isinstance(self.ratio, (bool, str)) or not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must lie in [0, 1), got {self.ratio!r}")
        check_choice("score", self.score, ("magnitude", "wanda", "obs"))

    @property
    def needs_stats(self) -> bool:
        return self.score != "magnitude"

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
            layered = space.reads and all(one.dim == COLUMNS for one in space.reads)
            if self.needs_stats and not layered:
                raise ValueError(
                    f"{space.name} is not read by layers alone, whose inputs the score "
                    f"{self.score!r} looks at: choose 'magnitude'"
                )

    def on_state(self, state: State, context: Sight) -> Outcome:
        spaces = tuple(context.architecture.matching(self.space, "drop"))
        if self.score == "obs" and not self.release:
            check_off_grid(state, spaces, context.architecture.layers)
        vectors = context.vectors(state.vectors, [v for s in spaces for v in s.vectors])
        stored = trained(context.network.given, vectors)
        counts = {s.name: self.count(s) for s in spaces}
        full, shapes = state.with_vectors(vectors), context.context.shapes
        if self.score == "obs":
            return Outcome(_compensated(full, counts, spaces, context, tuple(stored)))
        energies = None
        if self.score == "wanda":
            readers = dict.fromkeys(one.parameter for s in spaces for one in s.reads)
            energies = {n: context.moments[n].energy for n in readers}
        return Outcome(_dropped(full, counts, energies, spaces, shapes, tuple(stored)))


# ---------------------------------------------------------------------- magnitude, wanda


@partial(jax.jit, static_argnames=("spaces", "shapes", "stored"))
def _dropped(
    state: State,
    counts: Mapping[str, Array],
    energies: Mapping[str, Array] | None,
    spaces: tuple[Space, ...],
    shapes: Any,
    stored: tuple[str, ...],
) -> State:
    names = tuple(name for name, _ in shapes)
    for space in spaces:
        scores = _scores(state, space, dict(shapes), energies)
        state = without(state, space, smallest_k(scores, counts[space.name]), names, stored)
    return state


def _scores(
    state: State,
    space: Space,
    shapes: Mapping[str, tuple[int, int]],
    energies: Mapping[str, Array] | None,
) -> Array:
    """By unit [size] sums of squares, or with energies of inputs those weighted by them; -inf for
    units that are gone."""
    total: Any = 0.0
    for one in space.axes if energies is None else space.reads:
        if one.dim == ENTRIES:
            continue
        square = layer_weight(state, one.parameter, shapes[one.parameter]) ** 2
        if energies is not None:
            energy = energies[one.parameter]
            # inputs that were all 0 say nothing: what is left of the score is the magnitude
            square *= jnp.where(jnp.any(energy > 0), energy, 1)
        total += one.gathered(jnp.sum(square, 1 - one.dim), space.size)
    return jnp.where(space.alive(state, shapes), total, -jnp.inf)


# ------------------------------------------------------------------------------------ obs


def _compensated(
    state: State,
    counts: Mapping[str, int],
    spaces: tuple[Space, ...],
    context: Sight,
    stored: tuple[str, ...],
) -> State:
    shapes = dict(context.context.shapes)
    for space in spaces:
        readers = [
            reader(
                layer_weight(state, one.parameter, shapes[one.parameter]),
                context.moments[one.parameter],
                one,
                space.size,
            )
            for one in space.reads
        ]
        before = ~np.asarray(space.alive(state, shapes))
        gone = cheapest(readers, before, counts[space.name])
        fitted = (
            refit(state, space, gone, context.moments, shapes) if gone.sum() > before.sum() else {}
        )
        state = without(state.with_matrices(fitted), space, gone, tuple(shapes), stored)
    return state
