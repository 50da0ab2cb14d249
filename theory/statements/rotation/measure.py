"""Rotation and pruning in numbers: matrices turned at random on both sides, before and after."""

from __future__ import annotations

import jax
import numpy as np
from jax import Array

from theory.engine.statement import Finding

SIDE, ROWS = 128, 256
PRUNED = (0.1, 0.3, 0.5, 0.7, 0.9)


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Scale mixtures, [ROWS, SIDE] each, and uniform weights, which are none."""
    normal = rng.normal(size=(ROWS, SIDE))
    return {
        "laplace": rng.laplace(size=(ROWS, SIDE)),
        "student-t 4": rng.standard_t(4, size=(ROWS, SIDE)),
        "rows of their own scale": normal * np.exp(rng.normal(size=(ROWS, 1))),
        "columns of their own scale": normal * np.exp(rng.normal(size=SIDE)),
        "uniform": rng.uniform(-1, 1, (ROWS, SIDE)),
    }


def pruned(w: np.ndarray) -> np.ndarray:
    """Errors over the energy, by PRUNED."""
    energy = np.cumsum(np.sort((w**2).ravel()))
    return np.array([energy[round(p * w.size) - 1] for p in PRUNED]) / energy[-1]


def measure(key: Array) -> tuple[Finding, ...]:
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (ROWS, SIDE))
    ratios = {name: pruned(left @ w @ right) / pruned(w) for name, w in weights(rng).items()}
    mixtures = np.array([r for name, r in ratios.items() if name != "uniform"])
    flat = ratios["uniform"]
    return (
        Finding(
            "rotation never helps pruning of scale mixtures, and helps uniform weights",
            "holds" if mixtures.min() >= 1 > flat.max() else "false",
            f"turned at random, matrices of {len(mixtures)} mixtures cost {mixtures.min():.2f} to "
            f"{mixtures.max():.2f} times as much to prune, uniform ones {flat.min():.2f} to "
            f"{flat.max():.2f} times",
            {"least ratio, mixtures": float(mixtures.min()), "largest, uniform": float(flat.max())},
            ("weights", *(f"{p:.0%}" for p in PRUNED)),
            tuple((name, *(f"{x:.3f}" for x in r)) for name, r in ratios.items()),
            required=True,
        ),
    )
