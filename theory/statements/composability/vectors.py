"""Vectors for theorem 5, and what pruning and rounding make of them in both orders.

Random ones, ones on the edges of cells, and the known extremes of the excess bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances

UNITS, GROUP = 12, 4  # weights; weights in a small block and in an N:M group
LARGEST = 7  # step of a block over that of another; the largest code of 4 bits, too


class Vector(NamedTuple):
    """One block or three, removed by count or N of M."""

    weight: Array  # [UNITS]
    blocks: Array  # < 1/2: blocks of GROUP, else one of UNITS
    groups: Array  # < 1/2: k of every GROUP neighbours go, else k of all
    k: Array
    top: Array  # 2^(b-1) - 1
    tie: Array  # [UNITS], after quantizing
    diagonal: Array  # [UNITS], of a weighted norm, > 0


def _vector(u: Array) -> Vector:
    """Half of them from the five distributions, half near and on the edges of cells.

    Steps of 1 to LARGEST, so that no bound is lost in the rounding of far larger weights.
    """
    take = instances.Take(u)
    w = instances.weights(take(UNITS), take(), take()).reshape(-1, GROUP)
    top = 2.0 ** instances.integer(take(), 1, 3) - 1
    code = jnp.round(top * (2 * take(UNITS) - 1))
    # three in ten end on levels, as many just inside the edges: on them, ties round to even codes
    offset = 2.4 * take(UNITS) - 1.2
    offset = jnp.sign(offset) * jnp.clip(jnp.abs(offset) - 0.35, 0, 0.5 - 1e-9)
    edges = jnp.clip(code + offset, -top, top)
    edges = edges.reshape(-1, GROUP).at[:, 0].set(top)
    blocks, groups = take(), take()
    size = jnp.max(jnp.abs(w), 1, keepdims=True)
    size = jnp.where(blocks < 0.5, size, jnp.max(size))
    w = jnp.where(take() < 0.5, top * w / jnp.where(size > 0, size, 1), edges)
    unit = instances.log_uniform(take(UNITS // GROUP, 1), 1, LARGEST)
    w = w * jnp.where((blocks < 0.5) & (take() < 0.5), unit, 1)
    k = jnp.floor(take() * jnp.where(groups < 0.5, GROUP, UNITS))
    return Vector(w.reshape(-1), blocks, groups, k, top, take(UNITS), 10 ** (2 * take(UNITS) - 1))


def extreme(bits: int, one_block: bool = False) -> np.ndarray:
    """The point of the cube that is x_i = 3/2 d and x_j = d - 1/2 in blocks of step d and 1,
    d = 2^(bits - 1) - 1; or 3/2 and 1/2 in one block of step 1.

    The other weights are 0, or the maximum of their block; the zeros go and one more, where x_i
    (and the maxima of step 1) tie with x_j, against x_i.
    """
    top = 2 ** (bits - 1) - 1
    code, offset = np.zeros((2, UNITS // GROUP, GROUP))
    code[:, 0] = top
    code[0, 1], offset[0, 1] = 1, 0.5  # x_i
    code[1, 1], offset[1, 1] = 1 if one_block else top, -0.5  # x_j
    tie = np.ones(UNITS)
    tie[1] = 0
    anything = np.full(UNITS, 0.5)
    parts = (
        (*anything, 0.5, 0.5),  # weights of a distribution: not taken
        (bits - 1.5) / 3,
        (code / top + 1) / 2,
        (offset + 0.35 * np.sign(offset) + 1.2) / 2.4,
        # blocks small or one, all weights compared, next to the edges of cells
        (0.75 if one_block else 0.25, 0.75, 0.75),
        np.array([np.log(top) / np.log(LARGEST) - 1e-12, 0, 0]),  # rounding may not break the tie
        (0.25, ((code == 0).sum() + 1.5) / UNITS),  # steps that differ; how many go
        tie,
        anything,
    )
    return np.concatenate([np.ravel(part) for part in parts])


def _gone(x: Vector, score: Array, tie: Array) -> Array:
    """What magnitude sparsity removes, by rank among all or among GROUP neighbours."""
    i = jnp.arange(UNITS)
    compared = (x.groups >= 0.5) | (i[:, None] // GROUP == i // GROUP)
    later = (tie[:, None] > tie) | ((tie[:, None] == tie) & (i[:, None] > i))
    ties = (score[:, None] == score) & later
    return jnp.sum(compared & ((score[:, None] > score) | ties), 1) < x.k


def _rounded(x: Vector, w: Array) -> tuple[Array, Array]:
    """q(w) and the step of every weight."""
    size = jnp.abs(w)
    each = jnp.repeat(jnp.max(size.reshape(-1, GROUP), 1), GROUP)
    step = jnp.where(x.blocks < 0.5, each, jnp.max(size)) / x.top
    some = jnp.where(step > 0, step, 1)
    return some * jnp.round(w / some), step


NOISE = 1e-3  # of the norm of x: errors below that are judged by it, x being what is rounded off


class Case(NamedTuple):
    """A :class:`Vector`, and what both orders make of it: computed once for all claims."""

    weight: Array
    blocks: Array
    groups: Array
    k: Array
    top: Array
    tie: Array
    diagonal: Array
    s: Array  # eps_s, and so on, [UNITS]
    q: Array
    qs: Array  # sparsify first
    sq: Array  # quantize first
    first: Array  # S, bool
    last: Array  # T
    step: Array
    level: Array  # |q|


def case(u: Array) -> Case:
    x = _vector(u)
    w = x.weight
    q, step = _rounded(x, w)
    first = _gone(x, jnp.abs(w), jnp.arange(UNITS) * 1.0)
    last = _gone(x, jnp.abs(q), x.tie)
    sparse = jnp.where(first, 0, w)
    both = (_rounded(x, sparse)[0], jnp.where(last, 0, q))
    return Case(*x, w - sparse, w - q, w - both[0], w - both[1], first, last, step, jnp.abs(q))
