"""Comparisons pooled, of one model and of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from experiments.analysis.contrasts import Compared
from experiments.analysis.replicates import Components, discoveries
from experiments.analysis.replication import estimate_over, replication
from experiments.analysis.rows import mean_of_defined
from experiments.analysis.rules import GAP, PRUNE, RULES, ZEROS, added_by_gap, regret, share_right
from experiments.summary import (
    ALONG_BITS,
    ALONG_RATIO,
    BROKEN,
    DAMAGED,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    SIGN,
    UNJUDGED,
    USABLE,
    Cell,
    Estimate,
    Replication,
    Rule,
    Score,
    Spread,
    Total,
    measure_of,
)

FALSE = 0.05  # of the discoveries, at most
STATES = (USABLE, DAMAGED, BROKEN, UNJUDGED)


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
            claims = claims_of(mine, ids, level)
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
                tau=_mean_tau("tau", mine, ids, level),
                tau_bits=claims[ALONG_BITS],
                tau_sparsity=claims[ALONG_RATIO],
                score=score,
                sign=claims[SIGN],
                replication=asked,
                spread=_spread(mine),
                usable=_spread(mine, {USABLE}),
                states=_states(mine),
                rules=_rules(mine, ids, level),
                added_by_gap=_over_runs(_added, mine, ids, level),
                margin=_over_runs(_margin, mine, ids, level),
            )


def claims_of(
    mine: list[Compared], ids: list[tuple[int, int]], level: float
) -> dict[str, Estimate]:
    """The number that each claim of PIH's is about (:data:`experiments.summary.CLAIMS`)."""
    return {
        ALONG_BITS: _mean_tau("bits", mine, ids, level),
        ALONG_RATIO: _mean_tau("sparsity", mine, ids, level),
        SIGN: _sign(mine, ids, level),
    }


def _mean_tau(
    name: str, mine: list[Compared], ids: list[tuple[int, int]], level: float
) -> Estimate:
    """The mean over the comparisons of a run, over runs."""
    rows = [
        mean_of_defined([c.taus[name][c.runs.index(run)] for c in mine if run in c.runs])
        for run in ids
    ]
    return estimate_over(np.stack(rows), ids, level)


def winners(cells: Sequence[Cell]) -> np.ndarray:
    """Of every cell the sign of A where it is won at a controlled rate of false winners, over all
    of them at once; else 0."""
    p = np.array([np.nan if cell.p is None else cell.p for cell in cells])
    return discoveries(p, FALSE) * np.sign([cell.advantage for cell in cells]).astype(int)


def _found(mine: list[Compared]) -> tuple[list[Cell], np.ndarray]:
    """All cells, and which are won."""
    cells = [cell for c in mine for cell in c.comparison.cells]
    return cells, winners(cells) != 0


def _winner(cell: Cell) -> str:
    return PRUNE_FIRST if cell.advantage < 0 else QUANTIZE_FIRST


def _discoveries(mine: list[Compared]) -> dict[str, int]:
    cells, found = _found(mine)
    return dict(Counter(_winner(c) for c, won in zip(cells, found, strict=True) if won))


def _states(mine: list[Compared]) -> dict[str, dict[str, int]]:
    """Of every state how many cells, and the discoveries among them."""
    counts: dict[str, Counter[str]] = {}
    for cell, won in zip(*_found(mine), strict=True):
        here = counts.setdefault(cell.state, Counter())
        here["cells"] += 1
        if won:
            here[_winner(cell)] += 1
    return {state: dict(counts[state]) for state in STATES if state in counts}


class _OfRun(NamedTuple):
    """What one run has of all comparisons [cells]."""

    sign: np.ndarray
    advantage: np.ndarray
    usable: np.ndarray
    said: dict[str, np.ndarray]


def _of_run(mine: list[Compared], run: tuple[int, int]) -> _OfRun:
    own = [(c, c.runs.index(run)) for c in mine if run in c.runs]
    advantage = np.concatenate([c.advantage[i] for c, i in own])
    state = np.concatenate([c.states[i] for c, i in own])
    said = {rule: np.concatenate([c.said[rule][i] for c, i in own]) for rule in RULES}
    sign = np.concatenate([c.signs[i] for c, i in own])
    return _OfRun(sign, advantage, (state == USABLE) & np.isfinite(advantage), said)


def _over_runs(
    statistic: Callable[[_OfRun], float],
    mine: list[Compared],
    ids: list[tuple[int, int]],
    level: float,
    least: float = -1.0,
    most: float = 1.0,
) -> Estimate:
    values = np.array([statistic(_of_run(mine, run)) for run in ids])
    return estimate_over(values[:, None], ids, level, least, most)


def _added(run: _OfRun) -> float:
    return added_by_gap(run.said[GAP], run.said[ZEROS], run.sign)


def _margin(run: _OfRun) -> float:
    """Over all won cells, those included of which the gap says nothing."""
    zeros, prune = (share_right(run.said[rule], run.sign) for rule in (ZEROS, PRUNE))
    return zeros - prune


def _rules(mine: list[Compared], ids: list[tuple[int, int]], level: float) -> tuple[Rule, ...]:
    """Every rule that says anything, on the cells that PIH's gap says something of."""

    def right(rule: str, run: _OfRun) -> float:
        counted = (run.said[GAP] != 0) & (run.said[rule] != 0)
        return share_right(np.where(counted, run.said[rule], 0), run.sign)

    def lost(rule: str, run: _OfRun) -> float:
        return regret(run.said[rule], run.advantage, run.usable)

    return tuple(
        Rule(
            rule,
            _over_runs(partial(right, rule), mine, ids, level, least=0.0),
            _over_runs(partial(lost, rule), mine, ids, level, least=0.0, most=np.inf),
        )
        for rule in RULES
        if any((c.said[rule] != 0).any() for c in mine)
    )


def _sign(mine: list[Compared], ids: list[tuple[int, int]], level: float) -> Estimate:
    return _over_runs(lambda run: share_right(run.said[GAP], run.sign), mine, ids, level, least=0.0)


def _spread(mine: list[Compared], wanted: Collection[str] = STATES) -> Spread:
    """Over the cells of these states."""
    cells = [cell for c in mine for cell in c.comparison.cells]
    here = np.array([cell.state in wanted for cell in cells], bool)

    def over_cells(values: Iterable[np.ndarray]) -> float | None:
        known = np.concatenate([*values])[here]
        known = known[np.isfinite(known)]
        return float(np.sqrt(max(known.mean(), 0))) if known.size else None

    parts = {
        name: over_cells(getattr(c.components, name) for c in mine) for name in Components._fields
    }
    means = np.array([cell.advantage for cell in cells])
    with np.errstate(over="ignore", invalid="ignore"):  # perplexities of broken models
        squares = means**2 - np.concatenate([c.error for c in mine]) ** 2
    return Spread(**parts, size=over_cells([squares]))
