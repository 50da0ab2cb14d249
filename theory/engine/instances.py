"""Pieces of instance families: from uniform numbers to weights, masks, codebooks and matrices.

Families mix distributions and, on purpose, lattices: ties and values half way between two levels
never happen in continuous draws, and are where order effects live.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

KINDS = 5


def generator(key: Array, stream: int = 0) -> np.random.Generator:
    """Numbers of its own for every key and stream. What is measured is drawn from it, too: jax's
    own draws are compiled for every shape anew, which takes longer than drawing."""
    return np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), stream])


class Take:
    """Hands out consecutive pieces of a point of the unit cube, and counts what it needs."""

    def __init__(self, u: Array) -> None:
        self._u, self._at = u, 0

    def __call__(self, *shape: int) -> Array:
        size = 1
        for n in shape:
            size *= n
        piece = self._u[self._at : self._at + size]
        if piece.shape[0] != size:
            raise ValueError(f"the cube has {self._u.shape[0]} coordinates, more are taken")
        self._at += size
        return piece.reshape(shape)


def integer(u: Array, low: int, high: int) -> Array:
    """A whole number from low to high, both included."""
    return jnp.minimum(low + jnp.floor(u * (high - low + 1)), high).astype(jnp.int32)


def log_uniform(u: Array, low: float, high: float) -> Array:
    return low * (high / low) ** u


def quantile(u: Array, kind: Array) -> Array:
    """Inverse distribution functions: normal, Laplace, Student's t with 2 df, uniform, two-sided
    log-uniform over six decades (kind 0..4)."""
    u = jnp.clip(u, 1e-6, 1 - 1e-6)
    sign, tail = jnp.where(u < 0.5, -1.0, 1.0), jnp.minimum(u, 1 - u)
    normal = jax.scipy.special.ndtri(u)
    laplace = -sign * jnp.log(2 * tail)
    student = (2 * u - 1) / jnp.sqrt(2 * u * (1 - u))
    wide = sign * 10 ** (6 * (1 - 2 * tail) - 4)
    return jnp.stack([normal, laplace, student, 2 * u - 1, wide])[kind]


def weights(u: Array, kind: Array, lattice: Array) -> Array:
    """Weights of one distribution; where ``lattice`` < 0.3 on multiples of 1/2, to make ties."""
    w = quantile(u, integer(kind, 0, KINDS - 1))
    return jnp.where(lattice < 0.3, jnp.round(2 * w) / 2, w)


def smallest(score: Array, k: Array, tie: Array | None = None) -> Array:
    """The mask of the k smallest entries of score [n], by tie [n] and then by index."""
    order = jnp.argsort(score) if tie is None else jnp.lexsort((tie, score))
    rank = (
        jnp.zeros(score.shape, jnp.int32).at[order].set(jnp.arange(score.shape[0], dtype=jnp.int32))
    )
    return rank < k


def codebook(u: Array, uniform: Array, step: Array) -> Array:
    """A symmetric codebook [2 m + 1] around 0 from u [m]: equal steps, or steps of their own."""
    gaps = jnp.where(uniform < 0.5, jnp.ones_like(u), 0.1 + 2 * u)
    positive = step * jnp.cumsum(gaps)
    return jnp.concatenate([-positive[::-1], jnp.zeros(1), positive])


def nearest(w: Array, levels: Array) -> Array:
    """The nearest level of each weight; half-way weights go to the lower level."""
    return levels[jnp.argmin(jnp.abs(w[..., None] - levels), -1)]


def positive_definite(u: Array, rho: Array) -> Array:
    """H [n, n] from u [n, n]: unit diagonal, AR(1) correlation rho plus a random part."""
    n = u.shape[0]
    i = jnp.arange(n)
    toeplitz = rho ** jnp.abs(i[:, None] - i[None, :])
    x = jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
    h = toeplitz + 0.3 * x @ x.T / n + 1e-3 * jnp.eye(n)
    d = jnp.sqrt(jnp.diagonal(h))
    return h / d[:, None] / d[None, :]
