"""Rotation and pruning as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths import gaussian
from theory.maths.densities import DENSITIES, prune_error

PRUNED = np.linspace(0.02, 0.98, 49)


def _draw(findings: Mapping[str, Finding]) -> Picture:
    with jax.enable_x64(True):
        p = jnp.asarray(PRUNED)
        normal = gaussian.prune_error(p)
        lines = tuple(
            Line(f.name, PRUNED, np.asarray(jnp.log2(prune_error(f, p) / f.variance / normal)))
            for f in DENSITIES[1:]
        )
    return Picture("fraction pruned", "log2 of the error over that once rotated", lines)


LAW = Law(
    "Rotation never helps magnitude pruning of scale mixtures of normal weights (Laplace, "
    "Student's t, rows of their own scale); it does help weights with lighter tails.",
    _draw,
    "weights are a scale mixture of normal ones",
)
