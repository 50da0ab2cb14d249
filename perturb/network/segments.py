"""Running a model block by block: the activations between two blocks are kept, not recomputed.

The program of a forward pass, cut where a block's first layer is called, is a sequence of parts
that hand values on. ``Segments.moments(k, state)`` runs the k-th part from where the part before it
left off and hears its layers; ``advance(k, state)`` runs it once more, with the weights that the
block has by then, and keeps what it hands on. A model of n blocks is thus run twice, not n times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.extend import core

from perturb.network.batches import Forward, TokenWeights, call, compiled_alike, weights_of
from perturb.network.capture import Heard, Listened, gathered, listened
from perturb.network.layers import LayerSpec
from perturb.network.mapped import bare
from perturb.network.replay import Part, called_notes, play, replay, tell_again
from perturb.types import Moments

Known = dict[Any, Any]  # values by the variables of a program


class _Program:
    """The parts of a forward pass on batches of one shape."""

    def __init__(
        self,
        graphdef: Any,
        state: Any,
        batch: Any,
        specs: Sequence[LayerSpec],
        forward: Forward,
        blocks: Sequence[set[str]],
    ) -> None:
        leaves, tree = jax.tree.flatten((state, batch))
        self.heard: Listened = listened(graphdef, tree, leaves, specs, forward)
        again = partial(replay, self.heard.closed, hear=tell_again)
        flat = jax.make_jaxpr(lambda *x: again(x))(*leaves)  # calls inlined: marks are in sight
        self.cuts = _cuts(flat.jaxpr.eqns, blocks)
        if self.cuts is None:
            return
        self._eqns, self._blocks = flat.jaxpr.eqns, blocks
        self._hears: dict[int, tuple[Any, Any]] = {}  # programs, and the form of what they tell
        self._advances: dict[int, Any] = {}
        self._given = list(flat.jaxpr.invars)
        self._consts = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
        ends = [*self.cuts[1:], len(self._eqns)]
        self._parts = [self._part(a, b) for a, b in zip([0, *self.cuts[1:]], ends, strict=True)]

    def _part(self, start: int, stop: int) -> Part:
        """A part of the program that needs some values and hands on what is used after it."""
        eqns = self._eqns[start:stop]
        made = [v for e in eqns for v in e.outvars]
        own = set(made)
        needed = {v: None for e in eqns for v in _variables(e.invars) if v not in own}
        later = {v for e in self._eqns[stop:] for v in _variables(e.invars)}
        return Part((), list(needed), [v for v in made if v in later], eqns)

    def start(self, state: Any, batch: Any) -> Known:
        """What is known before the first part."""
        values = jax.tree.leaves((state, batch))
        return dict(zip(self._given, values, strict=True)) | self._consts

    def with_state(self, known: Known, state: Any) -> Known:
        """The same with other weights."""
        leaves = jax.tree.leaves(state)
        return {**known, **dict(zip(self._given[: len(leaves)], leaves, strict=True))}

    def hear(self, k: int, known: Known, weights: Any) -> Heard:
        """What the layers of the k-th part are given."""
        part, mine = self._parts[k], self._blocks[k]
        values = [known[v] for v in part.invars]
        if k not in self._hears:
            tree: list[Any] = []

            def hear(values: Any, weights: Any) -> list[Any]:
                sums = self.heard.sums(lambda told: play(part, values, told), weights, mine)
                leaves, found = jax.tree.flatten(sums)
                tree.append(found)
                return leaves  # of no names: what other blocks tell has others

            self._hears[k] = compiled_alike(hear, values, weights), tree[0]
        run, form = self._hears[k]
        heard: Heard = jax.tree.unflatten(form, run(values, weights))
        return heard

    def advance(self, k: int, known: Known) -> Known:
        """What is known after the k-th part, as far as it is used again."""
        part = self._parts[k]
        values = [known[v] for v in part.invars]
        if k not in self._advances:

            def advance(values: Any) -> list[Any]:
                return play(part, values, lambda *_: None)

            self._advances[k] = compiled_alike(advance, values)
        out = self._advances[k](values)
        later = {v for p in self._parts[k + 1 :] for v in p.invars} | set(self._given)
        every = {**known, **dict(zip(part.outvars, out, strict=True))}
        return {v: a for v, a in every.items() if v in later}


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [v for v in atoms if not isinstance(v, core.Literal)]


def _cuts(eqns: Sequence[Any], blocks: Sequence[set[str]]) -> list[int] | None:
    """Where each block's part begins, or None if blocks are called within one another."""
    of = {module: k for k, block in enumerate(blocks) for module in block}
    cuts: list[int] = []
    for i, eqn in enumerate(eqns):
        inside = {of[name] for name in called_notes(eqn) if name in of}
        if not inside:
            continue
        if len(inside) > 1:
            return None
        (k,) = inside
        if k == len(cuts):
            cuts.append(i)
        elif k != len(cuts) - 1:
            return None
    return cuts if len(cuts) == len(blocks) else None


class Segments:
    """The calibration batches on their way through a model, block by block."""

    def __init__(
        self,
        graphdef: Any,
        state: Any,
        specs: Mapping[str, LayerSpec],
        batches: Sequence[Any],
        blocks: Sequence[Sequence[str]],
        forward: Forward = call,
        token_weights: TokenWeights | None = None,
    ) -> None:
        self._specs, self._model = specs, nnx.merge(graphdef, bare(state))
        modules = [{specs[n].module for n in block} for block in blocks]
        programs: dict[Any, _Program] = {}
        self._batches: list[tuple[_Program, Known, Any]] = []
        self.possible = True
        for i, batch in enumerate(batches):
            form = (jax.tree.structure(batch), *(np.shape(a) for a in jax.tree.leaves(batch)))
            if form not in programs:
                programs[form] = _Program(
                    graphdef, state, batch, tuple(specs.values()), forward, modules
                )
            program = programs[form]
            if program.cuts is None:
                self.possible = False
                return
            weights = weights_of(token_weights, batch, i)
            self._batches.append((program, program.start(state, batch), weights))

    def moments(self, k: int, state: Any, names: Sequence[str]) -> dict[str, Moments]:
        """Moments of the k-th block's layers in the model with this state."""

        def run(i: int) -> tuple[Heard, Any]:
            program, known, weights = self._batches[i]
            return program.hear(k, program.with_state(known, state), weights), weights

        chosen = {n: self._specs[n] for n in names}
        heard = (run(i) for i in range(len(self._batches)))
        return gathered(self._model, chosen, heard)

    def advance(self, k: int, state: Any) -> None:
        """Go through the k-th block with the weights of this state."""
        self._batches = [
            (program, program.advance(k, program.with_state(known, state)), weights)
            for program, known, weights in self._batches
        ]
