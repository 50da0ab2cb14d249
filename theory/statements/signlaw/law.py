"""The sign law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.statements.signlaw.measure import TWO_MODES, advantage, errors

SIZE = 40_000
PRUNED = np.linspace(0.05, 0.95, 19)


def _draw(findings: Mapping[str, Finding]) -> Picture:
    rng = np.random.default_rng(0)
    w = rng.normal(size=SIZE)
    lines = [
        Line(name, PRUNED, [advantage(w, e, p) for p in PRUNED], True)
        for name, e in errors(rng, SIZE).items()
        if name in ("biased", "skewed", "heavy")
    ]
    two = rng.choice([-1.0, 1.0], SIZE) * (1 + TWO_MODES * rng.normal(size=SIZE))
    hit = rng.choice([-1.0, 1.0], SIZE) * (rng.random(SIZE) < 0.3)
    lines.append(
        Line("weights with two modes", PRUNED, [advantage(two, hit, p) for p in PRUNED], True)
    )
    return Picture("fraction pruned", "A(Q->P) measured", tuple(lines))


LAW = Law(
    "Prune first for every even unimodal law of weights and every error that is independent of "
    "them, biased, skewed or heavy-tailed; weights with two modes, or errors that follow the "
    "weights, can turn it.",
    _draw,
)
