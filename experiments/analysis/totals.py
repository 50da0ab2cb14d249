"""Comparisons pooled, of one model and of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import numpy as np

from experiments.analysis.contrasts import Compared
from experiments.analysis.replicates import discoveries
from experiments.analysis.replication import estimate_over, replication
from experiments.analysis.rows import mean_of_defined
from experiments.summary import (
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    Estimate,
    Replication,
    Score,
    Spread,
    Total,
    measure_of,
)

FALSE = 0.05  # of the discoveries, at most


def totals_of(
    compared: list[Compared], at_chance: Collection[str], level: float
) -> Iterator[Total]:
    """One line a subject, then one over all of them, on every scale; without those at chance."""
    several = len({c.comparison.subject for c in compared}) > 1
    compared = [c for c in compared if c.comparison.subject not in at_chance]
    scale_of = {c.comparison.measure: measure_of(c.comparison.measure).scale for c in compared}
    for scale in dict.fromkeys(scale_of.values()):
        here = [c for c in compared if scale_of[c.comparison.measure] == scale]
        subjects = list(dict.fromkeys(c.comparison.subject for c in here))
        for subject in [*subjects, None] if several else subjects:
            mine = [c for c in here if subject in (None, c.comparison.subject)]

            ids = list(dict.fromkeys(run for c in mine for run in c.runs))

            def mean_tau(
                name: str, mine: list[Compared] = mine, ids: list[tuple[int, int]] = ids
            ) -> Estimate:
                rows = [
                    mean_of_defined(
                        [c.taus[name][c.runs.index(run)] for c in mine if run in c.runs]
                    )
                    for run in ids
                ]
                return estimate_over(np.stack(rows), ids, level)

            wins: Counter[str] = Counter()
            score = Score(0, 0, 0, 0, 0)
            asked = Replication(0, 0, 0)
            for result in mine:
                wins += result.comparison.wins
                score += result.comparison.score
                asked += replication(result.signs)
            yield Total(
                model=subject,
                scale=scale,
                comparisons=len(mine),
                cells=sum(len(c.comparison.cells) for c in mine),
                wins=dict(wins),
                discoveries=_discoveries(mine),
                tau=mean_tau("tau"),
                tau_bits=mean_tau("bits"),
                tau_sparsity=mean_tau("sparsity"),
                score=score,
                sign=_sign(mine, ids, level),
                replication=asked,
                spread=_spread(mine),
            )


def _discoveries(mine: list[Compared]) -> dict[str, int]:
    """Winners at a controlled rate of false ones, over all cells at once."""
    cells = [cell for c in mine for cell in c.comparison.cells]
    p = np.array([np.nan if cell.p is None else cell.p for cell in cells])
    found = discoveries(p, FALSE)
    won = Counter(
        PRUNE_FIRST if cell.advantage < 0 else QUANTIZE_FIRST
        for cell, is_one in zip(cells, found, strict=True)
        if is_one and cell.advantage
    )
    return dict(won)


def _sign(mine: list[Compared], ids: list[tuple[int, int]], level: float) -> Estimate:
    shares = []
    for run in ids:
        scores = [c.scores[c.runs.index(run)] for c in mine if run in c.runs]
        counted = sum(score.counted for score in scores)
        shares.append(sum(score.pih for score in scores) / counted if counted else np.nan)
    return estimate_over(np.array(shares)[:, None], ids, level, least=0.0)


def _spread(mine: list[Compared]) -> Spread:
    def over_cells(name: str) -> float | None:
        variances = np.concatenate([getattr(c.components, name) for c in mine])
        known = variances[np.isfinite(variances)]
        return float(np.sqrt(known.mean())) if known.size else None

    return Spread(*map(over_cells, Spread.__dataclass_fields__))
