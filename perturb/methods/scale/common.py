"""Scaling over spaces: factors that move from what reads a unit's value to what writes it.

With ``s_u > 0`` the value of unit u is divided by s_u where it is written (a norm's scale and bias,
rows of a linear writer and their biases) and multiplied where it is read (columns): the same
function of the inputs. What a model's family lets be scaled is in its ``Space.norms`` and
``Space.linear`` (:mod:`perturb.architecture`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from perturb.architecture import COLUMNS, ENTRIES, Architecture, Axis, Space, entries
from perturb.inputs import rounded_layers
from perturb.stage import Outcome, Sight, check_undestroyed
from perturb.state import ADAPTER, Parameters, State, fresh
from perturb.types import Array, Matrix, Moments


class Reader(NamedTuple):
    """A matrix that reads the units, as far as the choice of their factors looks at it."""

    weight: Array  # [out, in]
    mask: Array  # [out, in] bool
    reference: Array  # [out, in], what it stands for
    inputs: Moments


def groups(architecture: Architecture, pattern: str, stage: str) -> list[Space]:
    """What is scaled by factors of its own in the spaces that a pattern names: writers and readers.

    A group is called as its norm or its space is. Groups with layers that are left alone, and the
    norm of a head that is the embeddings as well, are passed over; ValueError if none is left.
    """
    found: list[Space] = []
    for space in architecture.matching(pattern, "scale"):
        reads = {a.parameter: a for a in space.reads}
        for norm in space.norms:
            if reads.keys() >= set(norm.readers):
                own = [norm.scale] if norm.bias is None else [norm.scale, norm.bias]
                name = norm.scale.rpartition(".")[0]
                readers = tuple(reads[r] for r in norm.readers)
                found.append(Space(name, space.size, tuple(map(entries, own)), readers))
        linear = tuple(a for a in space.writes if a.parameter in space.linear)
        if linear:
            found.append(Space(space.name, space.size, linear, space.reads))
    whole = [g for g in found if all(n in architecture.layers for n in g.layers)]
    if not whole:
        raise ValueError(
            f"{stage}: in the spaces {pattern!r} all that could be scaled has layers that are "
            "left alone: do not exclude them"
        )
    return whole


def rescaled(
    stage: Any,
    state: State,
    context: Sight,
    factors_of: Callable[[tuple[Axis, ...], int, tuple[Reader, ...]], Array],
) -> Outcome:
    """The state and the reference with every group of ``stage.space`` scaled.

    factors_of(axes, size, readers) gives the factors [size] of a group from its readers and their
    axes, which are those of the incoming state: every reader is in one group.
    """
    if context.versions.size > 1:
        raise ValueError(
            f"{stage.name} scales a model by what it is, and its versions share a reference: put "
            "it before the stages that make several of it"
        )
    architecture, known = context.architecture, context.reference.parameters
    mine = tuple(groups(architecture, stage.space, stage.name))
    layers = tuple(architecture.layers)
    held = {g.name: g.held(state, layers) for g in mine}
    touched = dict.fromkeys(name for pairs in held.values() for name, _ in pairs)
    read = {a.parameter for g in mine for a in g.reads}
    rounded = [n for n in rounded_layers(state.inputs) if n in read]
    if rounded:
        raise ValueError(
            f"{stage.name} would change what the inputs of {rounded[0]} are rounded to "
            f"({len(rounded)} such): put it before activations"
        )
    if not stage.release:
        laid = [n for n in touched if state.matrices[n].grid is not None]
        check_undestroyed(stage.name, "grid", laid)
    factors: dict[str, Array] = {}
    for group in mine:
        axes, readers = [], []
        for name, one in held[group.name]:
            if one.dim == COLUMNS and ADAPTER not in name:
                matrix = state.matrices[name]
                axes.append(replace(one, parameter=""))  # one program for groups of one form
                dense = known.weights.get(name, matrix.weight)
                moments = context.moments[one.parameter]
                readers.append(Reader(matrix.weight, matrix.mask, dense, moments))
        factors[group.name] = factors_of(tuple(axes), group.size, tuple(readers))
    named = [v for g in mine for v in g.vectors]
    pair = []
    reference = State(_dense(dict(known.weights)), known.vectors, inputs=known.inputs)
    for one_of in (state, reference):
        full = one_of.with_vectors(context.vectors(one_of.vectors, named))
        pair.append(_scaled(full, factors, mine, layers))
    weights = {n: m.weight for n, m in pair[1].matrices.items()}
    return Outcome(pair[0], reference=Parameters(weights, pair[1].vectors, pair[1].inputs))


@jax.jit
def _dense(weights: dict[str, Array]) -> dict[str, Matrix]:
    return {n: fresh(w) for n, w in weights.items()}


@partial(jax.jit, static_argnames=("groups", "layers"))
def _scaled(
    state: State,
    factors: Mapping[str, Array],
    groups: tuple[Space, ...],
    layers: tuple[str, ...],
) -> State:
    matrices, vectors = dict(state.matrices), dict(state.vectors)
    for group in groups:
        for name, one in group.held(state, layers):
            weight, mask, *_ = matrices[name]
            by = one.spread(factors[group.name]).astype(weight.dtype)
            weight = weight * by if one.dim == COLUMNS else weight / by[:, None]
            matrices[name] = Matrix(weight, mask)
        for one in group.writes:
            if one.dim == ENTRIES and one.parameter in vectors:
                vector = vectors[one.parameter]
                by = one.spread(factors[group.name]).astype(vector.dtype)
                vectors[one.parameter] = vector / by
    return replace(state, matrices=matrices, vectors=vectors)


def size_of_inputs(axes: Sequence[Axis], size: int, readers: Sequence[Reader]) -> Array:
    """``sqrt(E x_u^2)`` of the units' values [size], over all columns that read them."""
    total: Any = 0.0
    for one, reader in zip(axes, readers, strict=True):
        total += one.gathered(reader.inputs.energy, size) / (one.per * one.repeats)
    return jnp.sqrt(total / len(readers))
