"""The beta law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.statements.beta.measure import compare, seen

BETAS = np.linspace(-2, 0, 41)
SHARES = (0.5, 0.6, 0.75, 1.0, 1.5, 2.5, 5.0)  # lambda of the score a - lambda e
NOISE, PRUNED, BATCHES = 0.02, 0.5, 4


def _draw(findings: Mapping[str, Finding]) -> Picture:
    rng = np.random.default_rng(0)
    points = []
    for share in SHARES:
        many = [compare(PRUNED, *seen(rng, share, NOISE)) for _ in range(BATCHES)]
        true, law, beta = np.mean(many, 0)
        points.append((beta, -true / law * (0.5 + beta)))
    found = np.array(points)
    return Picture(
        "beta = Cov(e, delta) / Var(delta)",
        "A(Q->P) over f Var(delta)",
        (Line("law", BETAS, -0.5 - BETAS), Line("measured", found[:, 0], found[:, 1], True)),
    )


LAW = Law(
    "Quantize first exactly where beta < -(1 - e')/2: where quantizing lowers the score of the "
    "units, at the threshold, that it harms most. The intensities do not appear.",
    _draw,
)
