"""Grids of one shape and any size, fitted to weights by least squares.

The levels of the grid are step * a, a in a symmetric shape. Operators only where the docstring does
not say otherwise: arrays, fractions and sympy. The theorem is :mod:`theory.statements.refit`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from theory.maths.algebra import Number


def fitted_step(product: Number, square: Number) -> Any:
    """argmin over s of |w - s a|^2 = (w a) / (a a); product = w a, square = a a > 0."""
    return product / square


def fitted_gain(product: Number, square: Number) -> Any:
    """|w|^2 - min over s of |w - s a|^2 = (w a)^2 / (a a)."""
    return product**2 / square


def fit(w: Array, kept: Array, shape: Array) -> tuple[Array, Array]:
    """The step of least squares over the kept weights, all steps tried, and the levels taken.

    w, kept [n]; shape [L], its levels >= 0 (the others mirror them). Between two steps where a
    weight changes level the assignment is fixed, and its own least-squares step is as good as any:
    so those of all intervals are tried, each then rounded anew. Jax, float64; returns step, Q(w).
    """
    size = jnp.where(kept, jnp.abs(w), 0)
    middle = (shape[1:] + shape[:-1]) / 2
    edges = jnp.sort((size[:, None] / middle).ravel())
    tried = jnp.concatenate([(edges[1:] + edges[:-1]) / 2, edges[-1:] * 2 + 1e-9])
    level = _levels(size, tried, shape)
    product = jnp.sum(jnp.where(kept, size * level, 0), 1)
    square = jnp.sum(jnp.where(kept, level**2, 0), 1)
    steps = jnp.where(square > 0, fitted_step(product, jnp.where(square > 0, square, 1)), tried)
    rounded = steps[:, None] * _levels(size, steps, shape)
    error = jnp.sum(jnp.where(kept, (size - rounded) ** 2, 0), 1)
    best = jnp.argmin(error)
    return steps[best], jnp.sign(w) * steps[best] * _levels(jnp.abs(w), steps[best][None], shape)[0]


def _levels(size: Array, steps: Array, shape: Array) -> Array:
    """The nearest level of the shape to size / step, [steps, n]."""
    middle = (shape[1:] + shape[:-1]) / 2
    code = jnp.sum(size[None, :, None] > steps[:, None, None] * middle, -1)
    return shape[code]
