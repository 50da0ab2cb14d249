"""Lengths of vectors and matrices, traceable and exact to rounding."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax import Array

SWEEPS = 6  # of Jacobi rotations; 5 suffice for 4 x 4


def norm(x: Array) -> Array:
    """|x|_2 of a vector, with a gradient at 0."""
    size = jnp.maximum(jnp.max(jnp.abs(x)), 1e-300)
    square = jnp.sum((x / size) ** 2)
    return jnp.where(square > 0, size * jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def spectral_norm(w: Array) -> Array:
    """|W|_2 of small w [..., n, n] to rounding, by one-sided Jacobi rotations of the columns.

    A rotation makes two columns orthogonal; after a few sweeps over all pairs all are, and the
    longest column is the norm. Faster in batches than LAPACK's eigenvalues, whose threads can
    also lock when they are called in nested loops.
    """
    size = jnp.max(jnp.abs(w), (-2, -1))
    w = w / jnp.where(size > 0, size, 1)[..., None, None]
    pairs = list(itertools.combinations(range(w.shape[-1]), 2))

    def sweep(_: int, columns: tuple[Array, ...]) -> tuple[Array, ...]:
        found = list(columns)
        for i, j in pairs:
            a, b = found[i], found[j]
            gap, dot = jnp.sum(b * b - a * a, -1), jnp.sum(a * b, -1)
            divisor = gap + jnp.where(gap >= 0, 1, -1) * jnp.sqrt(gap * gap + 4 * dot * dot)
            tangent = jnp.where(dot == 0, 0, 2 * dot / jnp.where(dot == 0, 1, divisor))
            cosine = 1 / jnp.sqrt(1 + tangent * tangent)
            c, s = cosine[..., None], (cosine * tangent)[..., None]
            found[i], found[j] = c * a - s * b, s * a + c * b
        return tuple(found)

    columns = tuple(w[..., i] for i in range(w.shape[-1]))
    columns = jax.lax.fori_loop(0, SWEEPS, sweep, columns)
    return size * jnp.sqrt(jnp.max(jnp.stack([jnp.sum(c * c, -1) for c in columns]), 0))
