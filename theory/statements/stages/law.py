"""Compensated stages as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.statements.stages.measure import RHO, VARIANTS

SHOWN = {"blind": "Q->P blind", "dense target": "Q->P, dense target"}


def _draw(findings: Mapping[str, Finding]) -> Picture:
    numbers = findings[VARIANTS].numbers
    lines = [
        Line(label, RHO, [numbers[f"mean A, {name}, rho {rho:g}"] for rho in RHO])
        for name, label in SHOWN.items()
    ]
    regret = [numbers[f"mean regret, rho {rho:g}"] for rho in RHO]
    lines.append(Line("mask regret R_S - R_T", RHO, regret, True))
    return Picture("correlation of inputs", "mean A(Q->P), compensated rows", tuple(lines))


LAW = Law(
    "With compensation prune first on average: quantizing first pays for a mask chosen on rounded "
    "weights and, without a dense target, for rounding twice; single rows go either way.",
    _draw,
)
