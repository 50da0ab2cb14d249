"""Comparisons pooled, of one model and of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from experiments.analysis.contrasts import Compared
from experiments.analysis.rows import estimate, mean_of_defined
from experiments.summary import Estimate, Score, Total, measure_of


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

            def mean_tau(name: str, mine: list[Compared] = mine) -> Estimate:
                return estimate(mean_of_defined([c.taus[name] for c in mine]), level)

            wins: Counter[str] = Counter()
            score = Score(0, 0, 0, 0, 0)
            for result in mine:
                wins += result.comparison.wins
                score += result.comparison.score
            yield Total(
                model=subject,
                scale=scale,
                comparisons=len(mine),
                cells=sum(len(c.comparison.cells) for c in mine),
                wins=dict(wins),
                tau=mean_tau("tau"),
                tau_bits=mean_tau("bits"),
                tau_sparsity=mean_tau("sparsity"),
                score=score,
            )
