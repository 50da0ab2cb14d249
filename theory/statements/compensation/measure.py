"""Theorem 2d in numbers: how often which order wins, and SparseGPT against the best mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perturb import SparseGPT
from perturb.types import Moments
from theory.compressors import compress, start
from theory.engine import instances
from theory.engine.statement import Finding
from theory.maths.elimination import all_masks, best_of_size

GREEDY = 10  # weights a row for the comparison with SparseGPT


def _greedy(key: Array, n: int = GREEDY, count: int = 64) -> tuple[list[tuple[str, ...]], float]:
    """SparseGPT at 50 % (damping 1e-9) on rows of n weights, relative to the best mask of all."""

    @jax.jit
    def best(w: Array, h: Array) -> Array:
        inverse = jnp.linalg.inv(h)

        def one(w: Array) -> Array:
            kept, _, cost = all_masks(w, inverse)
            return cost[best_of_size(kept, cost)[n // 2]]

        return jax.lax.map(one, w)

    @jax.jit
    def moved(w: Array, h: Array) -> Array:
        def one(w: Array) -> Array:
            inputs = Moments(h, jnp.ones(()))
            return compress(SparseGPT(0.5, damp=1e-9), start(w[None]), w[None], inputs).weight[0]

        return jax.vmap(one)(w) - w

    rows, least = [], np.inf
    with jax.enable_x64(True):
        distance = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n)[None, :])
        w = jnp.asarray(instances.generator(key, 1).normal(size=(count, n)))
        for rho in (0.0, 0.5, 0.9):
            h = jnp.asarray(rho, jnp.float64) ** distance
            change = np.asarray(moved(w, h))
            greedy = np.einsum("ri,ij,rj->r", change, np.asarray(h), change)
            excess = np.round(greedy / np.asarray(best(w, h)) - 1, 12) + 0.0  # no -0
            least = min(least, float(excess.min()))
            texts = (f"{x:.1%}" for x in (excess.mean(), np.median(excess), excess.max()))
            rows.append((f"{rho:g}", *texts))
    return rows, least


def against_best_mask(key: Array) -> Finding:
    """SparseGPT's greedy choice against the best of all masks."""
    rows, least = _greedy(key)
    return Finding(
        "SparseGPT's mask and compensation against the best of all masks",
        "measured",
        f"error above the optimum at 50 % of {GREEDY} weights: mean {rows[0][1]}, {rows[1][1]} and "
        f"{rows[2][1]} at input correlations 0, 0.5, 0.9; the least is {least:.1e}",
        {"least excess": least},
        ("correlation", "mean excess", "median", "largest"),
        tuple(rows),
    )
