"""Theorem 2a as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths.closed_forms import expected_advantage
from theory.maths.densities import Normal
from theory.maths.grids import best_symmetric_step

PRUNED = np.linspace(0.01, 0.99, 99)
BITS = (2, 3, 4)


def _draw(findings: Mapping[str, Finding]) -> Picture:
    advantage = jax.jit(partial(expected_advantage, Normal()))

    def curve(bits: int) -> np.ndarray:
        top = jnp.asarray(2 ** (bits - 1) - 1)
        step = best_symmetric_step(Normal(), top)
        return np.asarray(advantage(jnp.asarray(PRUNED), step, top))

    with jax.enable_x64(True):
        lines = tuple(Line(f"{b} bits", PRUNED, curve(b)) for b in BITS)
    return Picture("fraction pruned", "A(Q->P), normal weights", lines)


LAW = Law(
    "On one symmetric grid prune first: quantizing first never wins, whatever the intensities, and "
    "the order is free while the pruning threshold lies in the cell of 0.",
    _draw,
)
