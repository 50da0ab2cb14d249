"""Optimal brain surgeon by elimination: every mask of a small row, and rounding with compensation.

A row w [n] with H [n, n], the second moment of its inputs; error (x - w)^T H (x - w). Small n only:
all 2^n masks are formed. :mod:`perturb.obs` is what scales. Source: Hassibi & Stork 1993; Frantar &
Alistarh (arXiv 2301.00774, 2210.17323).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def residual(e: Array, mask: Array, h_inv: Array) -> Array:
    """e_E [(H^-1)_EE]^-1 e_E^T; e [n], mask [n] True in E, h_inv = H^-1 [n, n]."""
    e = jnp.where(mask, e, 0)
    block = jnp.where(mask[:, None] & mask[None, :], h_inv, jnp.eye(e.shape[0]))
    return e @ jnp.linalg.solve(block, e)


def error(x: Array, w: Array, h: Array) -> Array:
    """(x - w)^T H (x - w)."""
    return (x - w) @ h @ (x - w)


class Row(NamedTuple):
    """A row on its way: values, the inverse of H over the weights that are still free."""

    x: Array  # [n]
    h_inv: Array  # [n, n]


def settle(row: Row, j: Array | int, value: Array) -> Row:
    """Fix weight j at a value; the free ones move so as to make up for it as well as they can."""
    column = row.h_inv[:, j]
    pivot = column[j]
    safe = jnp.where(pivot > 0, pivot, 1)
    x = row.x + (value - row.x[j]) / safe * column
    x = x.at[j].set(value)
    return Row(x, row.h_inv - jnp.outer(column, column) / safe)


def all_masks(w: Array, h_inv: Array) -> tuple[Array, Array, Array]:
    """Every mask of w [n] pruned and compensated: kept [2^n, n], x [2^n, n], error [2^n].

    The mask of number i removes weight j where bit j of i is set. The tree of decisions is walked
    level by level: a branch that removes weight j settles it at 0.
    """
    n = w.shape[0]
    x, inverse, cost = w[None], h_inv[None], jnp.zeros(1)
    for j in range(n):
        gone = jax.vmap(lambda x, i, j=j: settle(Row(x, i), j, jnp.zeros(())))(x, inverse)
        price = x[:, j] ** 2 / inverse[:, j, j]
        x = jnp.concatenate([x, gone.x])
        inverse = jnp.concatenate([inverse, gone.h_inv])
        cost = jnp.concatenate([cost, cost + price])
    removed = (jnp.arange(2**n)[:, None] >> jnp.arange(n)) & 1
    return removed == 0, x, cost


def best_of_size(kept: Array, cost: Array) -> Array:
    """For each k = 0..n the number of the mask with k weights removed that costs least, [n + 1]."""
    n = kept.shape[1]
    size = n - jnp.sum(kept, 1)
    of_size = jnp.arange(n + 1)[:, None] == size[None, :]
    return jnp.argmin(jnp.where(of_size, cost, jnp.inf), 1)


def by_columns(x: Array, kept: Array, h_inv: Array, step: Array, top: Array) -> Array:
    """GPTQ without damping: kept weights rounded in turn, each error made up for by the rest."""
    n = x.shape[0]

    def body(i: Array, row: Row) -> Row:
        j = i % n
        rounded = step * jnp.clip(jnp.round(row.x[j] / step), -top, top)
        value = jnp.where(kept[j], rounded, 0.0)
        now = kept[j] == (i >= n)  # first the removed weights, then the kept ones
        return jax.tree.map(lambda a, b: jnp.where(now, a, b), settle(row, j, value), row)

    return jax.lax.fori_loop(0, 2 * n, body, Row(x, h_inv)).x


def lattice(n: int, top: int) -> np.ndarray:
    """All codes [(2 top + 1)^n, n] from -top to top."""
    return np.array(list(itertools.product(range(-top, top + 1), repeat=n)), float)


def by_lattice(x: Array, kept: Array, h: Array, points: Array) -> Array:
    """The grid point of least error to x among points [L, n] that are 0 where not kept."""
    hx = h @ x
    cost = jnp.sum((points @ h) * points, 1) - 2 * points @ hx
    allowed = ~jnp.any((points != 0) & ~kept, 1)
    return points[jnp.argmin(jnp.where(allowed, cost, jnp.inf))]
