"""Theorem 2b in numbers: Monte Carlo, turning points, and the curves of its figure."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine.statement import Finding, verdict
from theory.maths.closed_forms import noise_advantage, noise_gap
from theory.maths.densities import DENSITIES, Normal, turning_threshold
from theory.maths.gaussian import prune_error
from theory.maths.grids import BITS, SPARSITIES, grid_table
from theory.thresholds import AGREES, DEVIATIONS

TURN = math.erf(math.sqrt(0.5))  # p at t = 1


def monte_carlo(
    seed: int, p: np.ndarray, v: np.ndarray, n: int = 400_000
) -> tuple[np.ndarray, ...]:
    """A(Q->P)/(kappa n) of n normal weights with independent noise, and its standard error.

    p [P], v [V] -> [P, V] each; s = 1. Exactly round(p n) weights go. The standard error is that
    of the per-weight difference; the sample quantiles' own part is of lower order.
    """
    w, z = np.random.default_rng(seed).normal(size=(2, n))
    mean, error = np.empty((2, len(p), len(v)))
    for j, noise in enumerate(v):
        e = np.sqrt(noise) * z
        size, seen = np.abs(w), np.abs(w + e)
        for i, fraction in enumerate(p):
            k = round(fraction * n)
            first, last = (a <= np.partition(a, k - 1)[k - 1] for a in (size, seen))
            difference = np.where(first, w**2, e**2) - np.where(last, w**2, e**2)
            mean[i, j], error[i, j] = difference.mean(), difference.std() / np.sqrt(n)
    return mean, error


def curves(seed: int) -> dict[str, Any]:
    """What the figure of this law shows, over kappa n s^2: numbers only.

    law, points: A over the fraction pruned for some noises (points by Monte Carlo); gap: A against
    G along the noise at fixed p; rounding: the exact A of theorem 2a on the best grids of 2 to 8
    bits, and what the law says at the same error.
    """
    p, v = np.linspace(0.01, 0.99, 99), np.array([0.02, 0.05, 0.1])
    points = np.array([0.1, 0.3, 0.5, 0.6827, 0.8, 0.95])
    noises = np.linspace(0.002, 0.3, 12)
    fixed = (0.25, 0.5, 0.75)
    with jax.enable_x64(True):
        mean, error = monte_carlo(seed, points, v)
        gap_mean, gap_error = monte_carlo(seed + 1, np.array(fixed), noises)
        normal = grid_table(Normal())

        @jax.jit
        def lines() -> tuple[jax.Array, ...]:
            pruned = jnp.asarray(SPARSITIES)[:, None]
            at = jnp.asarray(fixed)[:, None]
            noise = prune_error(pruned) - jnp.asarray(normal["gap"])  # E_Q of each grid
            return (
                noise_advantage(jnp.asarray(p)[None], jnp.asarray(v)[:, None]),
                noise_gap(at, jnp.asarray(1.0), jnp.asarray(noises)),
                noise_advantage(at, jnp.asarray(noises)),
                noise_advantage(pruned, noise),
            )

        law, gap, straight, by_law = lines()
        return {
            "turn": TURN,
            "p": p,
            "v": v,
            "law": np.asarray(law),
            "points": {"p": points, "mean": mean, "error": error},
            "gap": {
                "p": fixed,
                "gap": np.asarray(gap),
                "law": np.asarray(straight),
                "mean": gap_mean,
                "error": gap_error,
            },
            "rounding": {
                "bits": BITS,
                "p": SPARSITIES,
                "exact": normal["advantage"],
                "law": np.asarray(by_law),
            },
        }


def measure(key: Array) -> tuple[Finding, ...]:
    pruned, v = np.array([0.1, 0.3, 0.5, 0.7, 0.9]), np.array([1e-3, 1e-2, 1e-1, 0.5])
    fine = np.linspace(0.005, 0.995, 991)
    turns = [turning_threshold(density) for density in DENSITIES]

    @jax.jit
    def numbers() -> tuple[Any, ...]:
        at_turn = [
            2 * f.moment(0, jnp.zeros(()), jnp.asarray(t))
            for f, t in zip(DENSITIES, turns, strict=True)
        ]
        at = jnp.asarray(pruned)[:, None]
        law, gap = (
            noise_advantage(at, jnp.asarray(v)),
            noise_gap(at, jnp.asarray(1.0), jnp.asarray(v)),
        )
        return at_turn, law, gap, jnp.diff(noise_advantage(jnp.asarray(fine), jnp.asarray(1.0)))

    with jax.enable_x64(True):
        at_turn, law, gap, slope = jax.device_get(numbers())
        mean, error = monte_carlo(int(jax.random.key_data(key)[-1]), pruned, v)
    rows = [
        (density.name, "never" if math.isinf(t) else f"{t:.3f}", f"{float(p):.4f}")
        for density, t, p in zip(DENSITIES, turns, at_turn, strict=True)
    ]
    off = np.abs(mean - law) / error
    falling = float(fine[:-1][slope < 0].max(initial=0))
    rising = float(fine[1:][slope > 0].max(initial=0))
    # along the bits of one ratio, measured: does A rise wherever the gap does?
    rises = (np.diff(mean, axis=1) > 0) == (np.diff(gap, axis=1) > 0)
    right = (law > 0) == (gap > 0)
    return (
        Finding(
            "2b: A = -2 kappa n v t phi(t)",
            "holds" if off.max() < DEVIATIONS else "false",
            f"Monte Carlo agrees to {off.max():.1f} standard errors over {off.size} cells",
            {"largest deviation, standard errors": float(off.max()), "cells": float(off.size)},
            required=True,
        ),
        Finding(
            "Theorem 2 of Kim et al. (A is monotone in the gap): along the bits, independent noise",
            verdict(bool(rises.all()), float(rises.mean()) >= AGREES),
            "at fixed p, A = (p - m)(G - kappa n s^2 m) is affine and increasing in the gap; "
            f"measured, it rises with the gap in {int(rises.sum())} of {rises.size} steps",
            {"steps": float(rises.size), "rise": float(rises.sum())},
        ),
        Finding(
            "our extension of theorem 2 of Kim et al.: along the sparsity, independent noise",
            "holds" if not falling else ("narrower" if falling < rising else "false"),
            f"only beyond p = {TURN:.4f} for normal weights: below, A falls as pruning gets "
            "stronger; other weights turn elsewhere, uniform ones never",
            {"turning point": TURN, "largest p where A falls": falling},
            ("weights", "t at the turn", "p at the turn"),
            tuple(rows),
        ),
        Finding(
            "PIH, sign: A(Q->P) has the sign of the gap (independent noise)",
            verdict(bool(right.all()), float(right.mean()) >= AGREES),
            "A = -2 kappa n v t phi(t) < 0 for every gap: prune first, however strong the pruning; "
            f"the gap is positive in {int((gap > 0).sum())} of {gap.size} cells",
            {"largest A measured": float(mean.max()), "sign right": float(right.mean())},
        ),
    )
