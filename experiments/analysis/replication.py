"""One statistic in several runs: its mean, its interval, and what one run says of another.

Arrays are ``[runs, 1 + B, ...]``: of every run the estimate, then the bootstrap replicates of the
test examples, which all runs share (see :mod:`experiments.analysis.rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.analysis.replicates import Components, Replicated, over_replicates
from experiments.analysis.rows import Rows, estimate, mean_of_defined, number
from experiments.summary import Estimate, Replication

Ids = Sequence[tuple[int, int]]  # seed and draw of every run


def rectangle(ids: Ids) -> np.ndarray:
    """Positions ``[seeds, draws]`` of the runs of all seeds that have every draw; [0, draws] where
    no seed has."""
    at = {run: i for i, run in enumerate(ids)}
    draws = sorted({draw for _, draw in ids})
    seeds = [s for s in dict.fromkeys(s for s, _ in ids) if all((s, d) in at for d in draws)]
    return np.array([[at[s, d] for d in draws] for s in seeds], int).reshape(-1, len(draws))


def over_runs(values: Rows, ids: Ids, level: float) -> Replicated:
    """The mean over the runs of a rectangle. ``values [runs, 1 + B, ...]``, all finite."""
    places = rectangle(ids)
    if not places.size:  # no seed has every draw: each run for itself
        places = np.arange(len(ids))[:, None]
    runs = values[places]  # [seeds, draws, 1 + B, ...]
    examples = runs.mean((0, 1))[1:]
    noise = examples.var(0) if len(examples) > 1 else np.zeros(examples.shape[1:])
    return over_replicates(runs[:, :, 0], noise, level)


def cells_over_runs(values: Rows, ids: Ids, level: float) -> Replicated:
    """The same of every cell ``[runs, 1 + B, cells]``, nan where a run lacks it."""
    measured = np.isfinite(values[:, 0])
    table = np.full(
        (len(Replicated._fields) - 1 + len(Components._fields), values.shape[-1]), np.nan
    )
    for pattern in np.unique(measured, axis=1).T if values.shape[-1] else ():
        here = np.flatnonzero((measured == pattern[:, None]).all(0))
        mine = [run for run, has in zip(ids, pattern, strict=True) if has]
        *part, components = over_runs(values[pattern][..., here], mine, level)
        table[:, here] = [*part, *components]
    value, error, df, low, high, p = table[:6]
    return Replicated(value, error, df, low, high, p, Components(*table[6:]))


def estimate_over(
    values: Rows, ids: Ids, level: float, least: float = -1.0, most: float = 1.0
) -> Estimate:
    """The mean over runs of a statistic ``[runs, 1 + B]`` that may be undefined (nan) in some.

    least, most: what the statistic can be, as a rank correlation; the interval ends there.

    Of one run the interval is the bootstrap's: of other examples, and of this training alone.
    """
    defined = [i for i in range(len(ids)) if np.isfinite(values[i, 0])]
    if not defined:
        return Estimate(None, None, None)
    chosen = values[defined]
    if len(defined) == 1:
        return estimate(chosen[0], level)
    mean = mean_of_defined([*chosen])
    rows = np.where(np.isfinite(chosen), chosen, mean)
    found = over_runs(rows, [ids[i] for i in defined], level)
    low, high = np.clip((found.low, found.high), least, most)
    ends = number(low), number(high)
    return Estimate(number(found.value), *ends, number(found.error), number(found.df))


def replication(signs: np.ndarray) -> Replication:
    """What the other runs say of the cells that a run says something of.

    ``signs [runs, cells]`` of the cells' A where it is significant on the test examples, else 0.
    Every ordered pair of runs is asked.
    """
    counts = [0, 0, 0]
    for first in range(len(signs)):
        for second in range(len(signs)):
            if first != second:
                both = (signs[first] * signs[second])[signs[first] != 0]
                for place, product in enumerate((1, 0, -1)):
                    counts[place] += int((both == product).sum())
    return Replication(*counts)
