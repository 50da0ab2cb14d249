"""Structured pruning in numbers: Monte Carlo, turning points, and the fall with the block."""

from __future__ import annotations

import jax
import numpy as np
from jax import Array
from scipy.stats import chi2

from theory.engine.statement import Finding, verdict
from theory.thresholds import AGREES, DEVIATIONS

SIZES = (1, 2, 3, 4, 16, 64)
PRUNED = (0.1, 0.3, 0.5, 0.7, 0.9)
NOISES = (0.01, 0.1, 0.5)
WEIGHTS = 400_000


def monte_carlo(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray]:
    """A(Q->P)/kappa a block and its standard error, [noises, p]; s = 1, blocks by norm."""
    w, z = rng.normal(size=(2, WEIGHTS // m, m))
    size = (w**2).sum(1)
    mean, error = np.empty((2, len(NOISES), len(PRUNED)))
    for i, v in enumerate(NOISES):
        seen, noise = ((w + np.sqrt(v) * z) ** 2).sum(1), v * (z**2).sum(1)
        for j, p in enumerate(PRUNED):
            k = round(p * size.size)
            first, last = (np.argpartition(a, k)[:k] for a in (size, seen))
            gain, change = size - noise, np.zeros(size.size)
            change[first] += gain[first]
            change[last] -= gain[last]
            mean[i, j] = change.mean()
            error[i, j] = change.std() / size.size**0.5
    return mean, error


def measure(key: Array) -> tuple[Finding, ...]:
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    rows, off, highest, right = [], 0.0, -np.inf, []
    for m in SIZES:
        q = chi2.ppf(PRUNED, m)
        law = -2 * np.array(NOISES)[:, None] * q * chi2.pdf(q, m)
        mean, error = monte_carlo(rng, m)
        deviation = float((np.abs(mean - law) / error).max())
        off, highest = max(off, deviation), max(highest, float((mean / error).max()))
        gap = chi2.cdf(q, m + 2) - np.array(NOISES)[:, None]  # over m; s = 1
        right += list(((gap > 0) == (law > 0)).ravel())
        turn = float(chi2.cdf(m, m))
        at = 2 * float(chi2.pdf(m, m))
        rows.append(
            (m, f"{turn:.4f}", f"{at:.4f}", f"{at * (np.pi * m) ** 0.5:.4f}", f"{deviation:.1f}")
        )
    cells = float(len(SIZES) * len(NOISES) * len(PRUNED))
    return (
        Finding(
            "structured pruning: A = -2 kappa v q f_m(q) a block",
            "holds" if off < DEVIATIONS else "false",
            f"Monte Carlo agrees to {off:.1f} standard errors over {cells:.0f} cells of "
            f"{len(SIZES)} block sizes; a weight's part falls as m^(-1/2)",
            {"largest deviation, standard errors": off, "cells": cells},
            ("m", "p at the turn", "-A/(m v) there", "times sqrt(pi m)", "Monte Carlo off"),
            tuple(rows),
            required=True,
        ),
        Finding(
            "PIH, sign: A(Q->P) has the sign of the gap (blocks, independent noise)",
            verdict(all(right), float(np.mean(right)) >= AGREES),
            f"A < 0 in all {len(right)} cells (the largest A measured is {highest:+.1f} standard "
            f"errors), so the gap's sign is right only where it is negative, in "
            f"{sum(right)} of them; coarser blocks lose less by the wrong order",
            {"largest A measured, standard errors": highest, "sign right": float(np.mean(right))},
        ),
    )
