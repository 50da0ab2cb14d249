"""Depth pruning: remove whole residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturb.architecture import Architecture, Block
from perturb.measure.distance import check_outputs, distance
from perturb.methods.structure.units import masked
from perturb.network import weights_of
from perturb.registry import check_choice
from perturb.stage import Outcome, Sight
from perturb.state import Parameters, State, uses
from perturb.types import Array

_distance = jax.jit(distance)


@dataclass(frozen=True)
class RemoveBlocks:
    """Objective: a shallower model, simulated: blocks that add nothing to the stream.

    ``n`` of the blocks that the pattern matches, and that are still there, go. Score "loss": one
    after another that without which the outputs on the calibration data are nearest to the dense
    model's (KL, or the squared difference of a single output; ties go to the first); "influence":
    at once those that turn the stream least, by ``1 - E[cos(x, y)]`` over calibration tokens, x the
    block's input and y its output (the module of the block's name takes one array and returns one
    of its shape; ties go to the first); "last": the last ones. A pattern with n blocks names them:
    ``RemoveBlocks(2, "layers.[45]")``.
    Every weight of the block is pruned and its vectors are gone: storage counts none of it. Which
    blocks go is data, not structure, so that versions of a model may lose different ones.
    Source: Song et al., ICML 2024 (SLEB, arXiv 2402.09025); Men et al., 2024 (ShortGPT, arXiv
    2403.03853) for "influence".
    """

    n: int = 1
    where: str = "*"
    score: Literal["loss", "influence", "last"] = "loss"

    name: ClassVar[str] = "remove"

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"n must be a whole number of at least 1, got {self.n!r}")
        check_choice("score", self.score, ("loss", "influence", "last"))

    @property
    def needs_stats(self) -> bool:
        return self.score != "last"

    def check(self, architecture: Architecture) -> None:
        self._enough(architecture.removable(self.where))

    def _enough(self, blocks: Sequence[Block]) -> None:
        if len(blocks) < self.n:
            names = ", ".join(b.name for b in blocks) or "none"
            raise ValueError(
                f"n = {self.n}, but the blocks that match {self.where!r} and are there are: {names}"
            )

    def on_state(self, state: State, context: Sight) -> Outcome:
        blocks = tuple(context.architecture.removable(self.where))
        named = [v for b in blocks for v in b.vectors]
        state = state.with_vectors(context.vectors(state.vectors, named))
        _check_alone(state, blocks, context)
        present = np.array(jax.device_get(_there(state, blocks)))
        self._enough([b for b, here in zip(blocks, present, strict=True) if here])
        for k in range(self.n, 0, -1):
            candidates = np.flatnonzero(present).tolist()
            if self.score == "last" or len(candidates) == k:
                present[candidates[-k:]] = False
                break
            if self.score == "influence":
                turns = _influence(state, [blocks[c] for c in candidates], context)
                present[np.array(candidates)[np.argsort(turns, stable=True)[:k]]] = False
                break
            present[_cheapest(state, blocks, present, candidates, context)] = False
        return Outcome(_removed(state, blocks, present))


def _check_alone(state: State, blocks: Sequence[Block], context: Sight) -> None:
    for matrix, places in uses(state, context.architecture.layers).items():
        for block in blocks:
            inside = [layer in block.layers for layer, _ in places]
            if any(inside) and not all(inside):
                raise ValueError(f"{block.name} shares the matrix {matrix} with other layers")


@partial(jax.jit, static_argnames=("blocks",))
def _there(state: State, blocks: tuple[Block, ...]) -> list[Array]:
    """Whether anything is left of each block."""
    held = ([n for layer in b.layers for p in state.products(layer) for n in p] for b in blocks)
    masks = ([jnp.any(state.matrices[n].mask) for n in names] for names in held)
    return [jnp.any(jnp.stack(m)) if m else jnp.zeros((), bool) for m in masks]


def _cheapest(
    state: State,
    blocks: tuple[Block, ...],
    present: np.ndarray,
    candidates: Sequence[int],
    context: Sight,
) -> int:
    """The candidate without which, beside those that are gone, the outputs change least."""
    network, batches = context.network, context.context.batches or ()
    parameters = context.parameters(state)
    dense = network.state(context.reference.parameters)
    cost = np.zeros(len(candidates))
    for k, batch in enumerate(batches):
        weights = weights_of(network.token_weights, batch, k)
        expected = network.outputs(dense, batch)
        check_outputs(expected, "remove")
        for i, candidate in enumerate(candidates):
            stays = present.copy()
            stays[candidate] = False
            found = network.outputs(network.state(_off(parameters, blocks, stays)), batch)
            cost[i] += float(_distance(expected, found, weights)[0])
    return candidates[int(np.argmin(np.nan_to_num(cost, nan=np.inf)))]


def _influence(state: State, blocks: Sequence[Block], context: Sight) -> list[float]:
    """Of each block, how much it turns the stream."""
    held = context.network.state(context.parameters(state))
    names = [b.name for b in blocks]
    told = context.network.influence(held, context.context.batches or (), names)
    return [told[n] for n in names]


@partial(jax.jit, static_argnames=("blocks",))
def _off(parameters: Parameters, blocks: tuple[Block, ...], stays: Array) -> Parameters:
    """Parameters with the blocks that do not stay at 0."""
    weights, vectors = dict(parameters.weights), dict(parameters.vectors)
    for block, here in zip(blocks, stays, strict=True):
        for part, names in ((weights, block.layers), (vectors, block.vectors)):
            part |= {n: jnp.where(here, part[n], 0) for n in names if n in part}
    return parameters._replace(weights=weights, vectors=vectors)


@partial(jax.jit, static_argnames=("blocks",))
def _removed(state: State, blocks: tuple[Block, ...], stays: Array) -> State:
    matrices, vectors, kept = dict(state.matrices), dict(state.vectors), dict(state.kept)
    for block, here in zip(blocks, stays, strict=True):
        held = {n for layer in block.layers for p in state.products(layer) for n in p}
        matrices |= {n: masked(matrices[n], here) for n in held}
        for n in [v for v in block.vectors if v in vectors]:
            kept[n] = jnp.broadcast_to(here, vectors[n].shape) & kept.get(n, True)
            vectors[n] = jnp.where(here, vectors[n], 0)
    return replace(state, matrices=matrices, vectors=vectors, kept=kept)
