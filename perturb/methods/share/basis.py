"""Shared bases: layers of one kind in neighbouring blocks read their inputs by one thin matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from perturb.architecture import Architecture
from perturb.methods.lowrank.svd import check_kept, check_ratio, factors_of, rank_of
from perturb.stage import Outcome, Sight, check_single, matching
from perturb.state import FACTORS, State
from perturb.types import Matrix


class Group(NamedTuple):
    """Layers of one kind in consecutive blocks."""

    name: str  # the kind's, with the first and the last block: layers.0-1.mlp.up_proj
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ShareBasis:
    """Objective: ``[W_1; W_2; ...] -> [U_1; U_2; ...] V`` of rank r, the nearest in
    ``sum_i E||(W_i - U_i V) x||^2`` over the inputs x of all layers of a group or, without
    ``whiten``, in the sum of squares.

    A group is ``group`` consecutive blocks' layers of one kind: of names that are the same up to
    the block's number (the first part that is one) and of one shape [out, in]. What of a run of
    blocks fills no group stays as it is. With k layers in a group ``r = floor((1 - ratio) k out in
    / (k out + in))``, 1 or more: ratio is the fraction of the group's weights that goes at least.
    V [r, in] is ONE matrix, called as the kind is with the blocks' numbers
    (``layers.0-1.mlp.up_proj.v``), stored once; U_i are the layers' own (``NAME.u``). Later stages
    work on these matrices, on V with the inputs of all its layers; patterns for one block pass V
    over. Computed as LowRank's factors of the stacked rows, whitened by the sum of the layers' Gram
    matrices; masks and grids are refused as there, unless ``release=True``.
    Source: Wang et al., ICLR 2025 (Basis Sharing, arXiv 2410.03765), with a symmetric root of the
    Gram matrix in place of its Cholesky factor (the same product); there some kinds of layers
    (o and down) share nothing: choose those that do by ``where``.
    Raises ValueError where nothing is a group, and for layers that are no single matrix.
    """

    ratio: float = 0.2
    group: int = 2
    whiten: bool = True
    where: str = "*"
    release: bool = False

    name: ClassVar[str] = "share"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if isinstance(self.group, bool) or not isinstance(self.group, int) or self.group < 2:
            raise ValueError(f"group must be a whole number of at least 2, got {self.group!r}")

    @property
    def needs_stats(self) -> bool:
        return self.whiten

    def groups(self, architecture: Architecture) -> list[Group]:
        """All groups; ValueError if there is none."""
        names = matching(architecture, self.where, self.name)
        found = groups_of({n: architecture.layers[n] for n in names}, self.group)
        if not found:
            raise ValueError(
                f"{self.name}: no {self.group} consecutive blocks have layers of one kind and "
                f"shape among those that {self.where!r} names: {', '.join(names)}"
            )
        return found

    def check(self, architecture: Architecture) -> None:
        found = self.groups(architecture)
        architecture.check_groupless([n for g in found for n in g.layers], self.name)

    def on_state(self, state: State, context: Sight) -> Outcome:
        mine = self.groups(context.architecture)
        check_single(state, [n for g in mine for n in g.layers], context.architecture, self.name)
        stacked = {}
        for group in mine:
            stacked[group.name] = _stacked([state.matrices[n] for n in group.layers])
        stacked = jax.device_get(stacked)
        if not self.release:
            check_kept(stacked, self.name)
        moments = context.moments if self.whiten else {}
        end_u, end_v = FACTORS
        for name, layers in mine:
            inputs = reduce(add, [moments[n] for n in layers]) if self.whiten else None
            rank = rank_of(self.ratio, stacked[name].weight.shape)
            u, v = factors_of(stacked[name], rank, inputs)
            weights, masks = (jnp.split(a, len(layers)) for a in (u.weight, u.mask))
            own = zip(layers, weights, masks, strict=True)
            made = {f"{n}{end_u}": Matrix(w, mask) for n, w, mask in own}
            state = state.with_matrices({**made, f"{name}{end_v}": v})
            for layer in layers:
                state = state.with_terms(layer, ((f"{layer}{end_u}", f"{name}{end_v}"),))
        return Outcome(state)


def groups_of(shapes: Mapping[str, tuple[int, int]], size: int) -> list[Group]:
    """Groups of ``size`` layers of one kind and shape in consecutive blocks."""
    kinds: dict[tuple[str, tuple[int, int]], dict[int, str]] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is not None:
            kind = ".".join([*parts[:at], "{}", *parts[at + 1 :]])
            kinds.setdefault((kind, shape), {})[int(parts[at])] = name
    found = []
    for (kind, _), by_block in kinds.items():
        run: list[int] = []
        for number in sorted(by_block):
            run = [*run, number] if run and number == run[-1] + 1 else [number]
            if len(run) == size:
                name = kind.replace("{}", f"{run[0]}-{run[-1]}")
                found.append(Group(name, tuple(by_block[i] for i in run)))
                run = []
    return found


@jax.jit
def _stacked(matrices: list[Matrix]) -> Matrix:
    """Rows of all of them; on a grid if one of them is."""
    weight, mask = (jnp.concatenate(a) for a in zip(*(m[:2] for m in matrices), strict=True))
    return Matrix(weight, mask, next((m.grid for m in matrices if m.grid is not None), None))
