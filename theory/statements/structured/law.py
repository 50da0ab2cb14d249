"""Structured pruning as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import chi2

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding

PRUNED = np.linspace(0.01, 0.99, 99)
SIZES = (1, 4, 16, 64)
NOISE = 0.1


def _draw(findings: Mapping[str, Finding]) -> Picture:
    def curve(m: int) -> np.ndarray:
        q = chi2.ppf(PRUNED, m)
        return np.asarray(-2 * NOISE * q * chi2.pdf(q, m) / m)

    lines = tuple(Line(f"blocks of {m}", PRUNED, curve(m)) for m in SIZES)
    return Picture("fraction pruned", f"A(Q->P) a weight, v = {NOISE:g}", lines)


LAW = Law(
    "Structured pruning first, too, but the coarser the blocks the less the order matters: a "
    "weight's loss falls as one over the root of the block.",
    _draw,
)
