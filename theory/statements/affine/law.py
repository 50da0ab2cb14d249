"""Theorem 2b as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths.closed_forms import noise_advantage

PRUNED = np.linspace(0.01, 0.99, 99)
NOISES = (0.02, 0.05, 0.1)


def _draw(findings: Mapping[str, Finding]) -> Picture:
    with jax.enable_x64(True):
        lines = tuple(
            Line(
                f"v = {v:g}",
                PRUNED,
                np.asarray(noise_advantage(jnp.asarray(PRUNED), jnp.asarray(v))),
            )
            for v in NOISES
        )
    return Picture("fraction pruned", "A(Q->P), normal weights", lines)


LAW = Law(
    "With noise for quantization prune first, by 2 v t phi(t): A grows with the gap along the "
    "bits, as PIH says, never changes sign, and along the ratio turns at 68 %.",
    _draw,
)
