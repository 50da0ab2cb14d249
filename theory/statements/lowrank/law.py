"""Low rank under noise as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths.lowrank import low_rank_advantage, tail_share
from theory.statements.lowrank.measure import COLUMNS, FALLS, RANK, ROWS, advantage, spectrum

SHOWN = np.linspace(0.02, 0.97, 60)


def _draw(findings: Mapping[str, Finding]) -> Picture:
    rng = np.random.default_rng(0)

    def law(fall: float) -> float:
        tail = tail_share(list(spectrum(fall)), RANK)
        return float(low_rank_advantage(1.0, ROWS, COLUMNS, RANK, tail))

    measured = [f for f in FALLS if 0 < f <= SHOWN[-1]]
    return Picture(
        "a singular value over the one before",
        f"A(Q->L) / v, {ROWS} x {COLUMNS}, rank {RANK}",
        (
            Line("law", SHOWN, [law(f) for f in SHOWN]),
            Line("measured", measured, [advantage(rng, spectrum(f))[0] for f in measured], True),
        ),
    )


LAW = Law(
    "Quantize first and truncate last, unless the singular values fall too slowly: truncation "
    "then lets more of the noise through than rounding its factors' product adds.",
    _draw,
    "a matrix of rank r (the candidate, A = +v (m - r)(n - r))",
)
