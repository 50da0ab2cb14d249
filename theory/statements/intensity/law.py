"""PIH's sign as a theorem: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths.ownership import advantage_by_ownership

HARM = np.linspace(0.25, 2, 36)  # e2 = lambda e1
UNITS, CONTESTED = 16, 6


def _draw(findings: Mapping[str, Finding]) -> Picture:
    e1 = np.ones(UNITS) / UNITS
    contested = (np.arange(UNITS) < CONTESTED).astype(float)
    nobody = np.zeros(UNITS)

    def curve(first: np.ndarray, last: np.ndarray) -> list[float]:
        return [float(advantage_by_ownership(e1, x * e1, first, last, 1.0)) for x in HARM]

    return Picture(
        "harm of f2 over that of f1, unit by unit",
        "A(f1->f2) over E(f1)",
        (
            Line("the gap", HARM, HARM - 1),
            Line("the first owner keeps", HARM, curve(contested, nobody)),
            Line("the last owner keeps", HARM, curve(nobody, contested)),
        ),
    )


LAW = Law(
    "The stronger goes last, as PIH says, where the first method keeps what both want and one is "
    "harsher on every unit; where the last one keeps it, every sign is turned.",
    _draw,
)
