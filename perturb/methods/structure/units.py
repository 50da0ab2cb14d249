"""Units of a space, taken out of a state: what dropping and removing share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from perturb.architecture import ENTRIES, ROWS, Space
from perturb.state import State
from perturb.types import Array, Matrix


@partial(jax.jit, static_argnames=("space", "layers", "stored"))
def without(
    state: State, space: Space, gone: Array, layers: tuple[str, ...], stored: tuple[str, ...]
) -> State:
    """The state without these units [size]; layers: all of the model, stored: vectors that are
    parameters."""
    matrices, vectors, kept = dict(state.matrices), dict(state.vectors), dict(state.kept)
    for name, one in space.held(state, layers):
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
