"""What a choice that is usually left unsaid does to A, beside what the order does.

A study that changes settings of methods or conditions of a run one at a time has, of every model,
pruner and quantizer, a setting from which others differ in one thing: the base, where most of them
meet. Of each run (training x draw) and cell that a variant shares with its base,

    order    |A| under the base: the effect of the order
    moved    |A(variant) - A(base)|: how far the choice moves it
    shift    A(variant) - A(base): above 0 it favours quantizing first

and their means over cells, with intervals over runs. The first two are sizes: what evaluating on
few test examples adds to them is in both, as both are differences of two models on the same ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.analysis.contrasts import Compared
from experiments.analysis.replication import estimate_over
from experiments.analysis.totals import claims_of, winners
from experiments.summary import CLAIMS, Choice, Comparison, Estimate, measure_of, verdict


class _Pair(NamedTuple):
    base: Compared
    other: Compared


def choices_of(compared: list[Compared], level: float) -> Iterator[Choice]:
    """Every choice that a study varies, on each model and scale that it varies it on."""
    about: dict[tuple[str, str], dict[tuple[str, str, str], list[_Pair]]] = {}
    for key, mine in _alike(compared).items():
        model, measure = key[:2]
        base = _base(mine)
        for other in mine:
            changed = _changed(base.comparison, other.comparison)
            if len(changed) == 1:
                found = about.setdefault((model, measure), defaultdict(list))
                found[changed[0]].append(_Pair(base, other))
    for (model, measure), found in about.items():
        for (setting, usual, value), pairs in found.items():
            yield _choice(model, measure, setting, usual, value, pairs, level)


def _alike(compared: list[Compared]) -> dict[tuple[str, ...], list[Compared]]:
    """What differs in settings only, in the order in which it was recorded."""
    groups: dict[tuple[str, ...], list[Compared]] = defaultdict(list)
    for one in compared:
        c = one.comparison
        groups[(c.model, c.measure, *c.methods)].append(one)
    return {key: mine for key, mine in groups.items() if len(mine) > 1}


def _base(mine: list[Compared]) -> Compared:
    """The one that most of the others differ from in one setting; of several the first."""

    def meets(one: Compared) -> int:
        return sum(len(_changed(one.comparison, other.comparison)) == 1 for other in mine)

    return max(mine, key=meets)


def _changed(base: Comparison, other: Comparison) -> list[tuple[str, str, str]]:
    """Setting, its value in the base, and in the other."""
    keys = dict.fromkeys((*base.settings, *other.settings))
    both = ((k, base.settings.get(k, "unset"), other.settings.get(k, "unset")) for k in keys)
    return [found for found in both if found[1] != found[2]]


def _cells(pair: _Pair) -> list[list[int]]:
    """Positions of the cells that both have, in each."""
    at = [{(c.sparsity, c.bits): i for i, c in enumerate(x.comparison.cells)} for x in pair]
    shared = [cell for cell in at[0] if cell in at[1]]
    return [[where[cell] for cell in shared] for where in at]


def _choice(
    model: str,
    measure: str,
    setting: str,
    usual: str,
    value: str,
    pairs: list[_Pair],
    level: float,
) -> Choice:
    by_run: dict[tuple[int, int], list[np.ndarray]] = defaultdict(list)  # [before and after, cells]
    fates: Counter[int] = Counter()  # of the base's won cells: the product of both winners
    for pair in pairs:
        places = _cells(pair)
        for run in pair.base.runs:
            if run in pair.other.runs:
                both = zip(pair, places, strict=True)
                by_run[run].append(np.stack([x.advantage[x.runs.index(run)][at] for x, at in both]))
        won = [winners(x.comparison.cells)[at] for x, at in zip(pair, places, strict=True)]
        fates.update((won[0] * won[1])[won[0] != 0].tolist())
    ids = list(by_run)

    def over_runs(
        statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], least: float
    ) -> Estimate:
        means = [np.nanmean(statistic(*np.concatenate(by_run[run], 1))) for run in ids]
        return estimate_over(np.array(means)[:, None], ids, level, least, np.inf)

    seeds = len({seed for seed, _ in ids})
    judged = [
        {
            claim: verdict(found, CLAIMS[claim], seeds)
            for claim, found in claims_of(list(chosen), ids, level).items()
        }
        for chosen in zip(*pairs, strict=True)
    ]
    return Choice(
        model=model,
        scale=measure_of(measure).scale,
        setting=setting,
        usual=usual,
        value=value,
        pairs=len(pairs),
        cells=sum(len(p.base.comparison.cells) for p in pairs),
        order=over_runs(lambda before, after: np.abs(before), 0.0),
        moved=over_runs(lambda before, after: np.abs(after - before), 0.0),
        shift=over_runs(lambda before, after: after - before, -np.inf),
        won=sum(fates.values()),
        kept=fates[1],
        lost=fates[-1],
        verdicts={claim: (judged[0][claim], judged[1][claim]) for claim in CLAIMS},
    )
