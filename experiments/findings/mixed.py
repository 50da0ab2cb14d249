"""F-I: mixed precision, its widths given out from many bits to few, or from few to many."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from experiments.analysis.chains import Chains
from experiments.analysis.rows import Rows
from experiments.findings.names import setting
from experiments.findings.types import LOG, Finding, Row, chains, row, rows_of_ranks

STUDY = "mixed"
USUAL_BUDGET = 4.0


def budget(stage: str) -> float:
    """Mean bits of a weight; the usual is not said in a name."""
    return float(setting(stage, "budget") or USUAL_BUDGET)


def allocations(held: Chains, order: str, quantizer: str) -> dict[float, str]:
    """The mixed stages of an order by budget, the largest first."""
    found = {}
    for (stage,) in held.having(lambda c: len(c) == 1 and c[0].startswith("mixed")):
        rounds = setting(stage, "quantizer") or "rtn-4"
        if (setting(stage, "order") or "at-once", rounds) == (order, quantizer):
            found[budget(stage)] = stage
    return dict(sorted(found.items(), reverse=True))


def advantages(held: Chains, quantizer: str) -> dict[float, Rows]:
    """M(8 → 2) - M(2 → 8) by budget."""
    down = allocations(held, "strong-last", quantizer)
    up = allocations(held, "strong-first", quantizer)
    return {b: held.rows[(down[b],)] - held.rows[(up[b],)] for b in down if b in up}


def _rows() -> Iterable[Row]:
    for held in chains(STUDY, LOG):
        by_budget = advantages(held, "gptq-4")
        for bits, more in by_budget.items():
            yield row(held, f"{bits:g} bits, GPTQ", "8→2 less 2→8, nats", more)
        grows = rows_of_ranks(np.stack(list(by_budget.values()), -1))
        tested = "tau of (8→2 less 2→8) with the compression"
        yield row(held, "GPTQ", tested, held.over(grows, -1, 1))


def controls() -> Iterable[tuple[str, float]]:
    """Without weight updates the orders must be one: model, largest difference."""
    for held in chains(STUDY, LOG):
        found = advantages(held, "rtn-4")
        if found:
            yield held.model, max(float(np.nanmax(np.abs(x[:, 0]))) for x in found.values())


MIXED = Finding(
    key="F-I",
    title="Mixed precision",
    claim="Giving out widths from 8 to 2 bits is better than from 2 to 8, the more so the stronger "
    "the compression.",
    source="Kim et al., finding 9 (HAWQ-V2)",
    reported="the advantage of 8→2 over 2→8 grows with the total compression",
    studies=(STUDY,),
    rows=lambda: list(_rows()),
    figure="mixed/mixed",
)
