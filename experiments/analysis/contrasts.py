"""One pruner against one quantizer on one model: the advantage of an order over the grid.

Arrays are ``[rows, cells]``: row 0 the estimate, the others bootstrap replicates (see
:mod:`experiments.analysis.rows`). A cell is the mean over its runs, and its interval one over runs
(:mod:`experiments.analysis.replicates`); of a single run it is the bootstrap's, which says how
sure one is of this training alone. Rank correlations are those of single runs, averaged.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from experiments.analysis.curves import CellRows, cell_rows
from experiments.analysis.replicates import Components
from experiments.analysis.replication import cells_over_runs, estimate_over
from experiments.analysis.rows import Rows, interval, mean_of_defined, number
from experiments.analysis.rules import RULES, predictions, states
from experiments.analysis.variants import Named, Run, Subject
from experiments.summary import (
    EQUAL,
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Cell,
    Comparison,
    Measure,
    Score,
)
from perturb.measure import intensity, ranks

TAUS = ("tau", "bits", "sparsity", "rho")
RESOLUTION = 1e-6  # nats: below it, two evaluations differ by float32 rounding only


class Compared(NamedTuple):
    """A comparison, with what totals pool of its runs."""

    comparison: Comparison
    runs: tuple[tuple[int, int], ...]  # seed and draw
    taus: dict[str, Rows]  # "tau", "bits", "sparsity" -> [runs, 1 + B]
    scores: tuple[Score, ...]  # of every run by itself
    signs: np.ndarray  # [runs, cells] of A where a run's own interval excludes 0
    components: Components  # [cells]
    error: np.ndarray  # [cells], standard error of the mean A over runs and examples
    advantage: np.ndarray  # [runs, cells], nan where a run lacks the cell
    states: np.ndarray  # [runs, cells]: rules.states
    said: dict[str, np.ndarray]  # [runs, cells], by rule: rules.predictions


def compare(
    subject: Subject,
    methods: tuple[Named, Named],
    measure: Measure,
    runs: list[Run],
    level: float,
    problems: list[str],
) -> Compared:
    """Compare both orders on every cell of the grid that some run has both orders of."""
    names = pruner, quantizer = (str(methods[0]), str(methods[1]))
    keys = [k for run in runs for k in run.variants if (k.pruner, k.quantizer) == names]
    sparsities = sorted({float(k.sparsity) for k in keys if k.sparsity is not None})
    bits = sorted({k.bits for k in keys if k.bits is not None}, reverse=True)
    grid = [(sparsity, width) for sparsity in sparsities for width in bits]
    kind = next(iter(runs[0].variants.values())).record["kind"]

    per_run = [cell_rows(run, names, grid, measure, problems) for run in runs]
    measured = np.stack([np.isfinite(rows.advantage[0]) for rows in per_run])  # [runs, cells]
    axes = np.array(grid, float).reshape(-1, 2)
    kept = np.flatnonzero(measured.any(0))
    _report_missing(f"{subject.name}, {pruner} x {quantizer}", runs, grid, measured, problems)
    grid, measured = [grid[i] for i in kept], measured[:, kept]
    count = measured.sum(0)

    def mean(name: str) -> Rows:
        stacked = np.stack([getattr(rows, name)[..., kept] for rows in per_run])
        shape = (len(runs),) + (1,) * (stacked.ndim - 2) + (kept.size,)
        return np.where(measured.reshape(shape), stacked, 0.0).sum(0) / count

    advantage, low, high = _exact(mean("advantage"), measure), mean("gap_low"), mean("gap_high")
    resolution = _resolution(measure, mean("scale"))
    alone = [
        _alone(rows, kept[own], axes, measure, level)
        for rows, own in zip(per_run, measured, strict=True)
    ]
    ids = tuple((run.seed, run.draw) for run in runs)
    pooled = [tuple(ids[r] for r in np.flatnonzero(column)) for column in measured.T]
    taus = {name: np.stack([one.taus[name] for one in alone]) for name in TAUS}

    every = np.stack([_exact(rows.advantage[..., kept], measure) for rows in per_run])
    dense = np.stack([np.full(kept.size, rows.dense) for rows in per_run])
    zeros = np.stack([rows.zeros[kept] for rows in per_run])
    classes = _classes(runs[0])
    better = np.stack([np.maximum(r.prune_first[0], r.quantize_first[0])[kept] for r in per_run])
    over = cells_over_runs(every, ids, level)
    bootstrapped = interval(advantage, level)
    known = np.isfinite(bootstrapped[0])  # without per-example sums nothing is known of examples
    several = known & (count > 1)
    half = (over.high - over.low) / 2  # of the seeds that have every draw, around the mean of all
    ends = (
        np.where(several, advantage[0] - half, bootstrapped[0]),
        np.where(several, advantage[0] + half, bootstrapped[1]),
    )
    sign = intensity.significant_sign(advantage[0], *ends, resolution[0])
    gap_sign = intensity.gap_signs(low[0], high[0])
    always_equal = (advantage == 0).all(0)
    value, performance_gap, c_q = (
        mean("gap")[0],
        mean("performance_gap")[0],
        mean("quantizer_ratio"),
    )
    first_p, first_q = mean("prune_first")[0], mean("quantize_first")[0]
    state = states(np.maximum(first_p, first_q), mean_of_defined([*dense]), measure, classes)
    zero_fraction = mean_of_defined([*zeros])
    by_errors, by_ownership = (
        mean_of_defined([getattr(rows, name)[kept] for rows in per_run])
        for name in ("errors", "owned")
    )
    cells = []
    for i, (sparsity, width) in enumerate(grid):
        with_both = np.flatnonzero(measured[:, i])
        statuses = {per_run[r].status[kept[i]] for r in with_both}
        gap, ratio = number(value[i]), number(c_q[i])
        told = bool(known[i])
        cells.append(
            Cell(
                sparsity=sparsity,
                bits=width,
                prune_first=float(first_p[i]),
                quantize_first=float(first_q[i]),
                advantage=float(advantage[0, i]),
                low=number(ends[0][i]),
                high=number(ends[1][i]),
                p=number(over.p[i]) if told else None,
                winner=_winner(int(sign[i]), bool(always_equal[i])) if told else NO_INTERVAL,
                performance_gap=number(performance_gap[i]),
                pruner_ratio=None if gap is None or ratio is None else gap + ratio,
                quantizer_ratio=ratio,
                gap=gap,
                gap_low=float(low[0, i]),
                gap_high=float(high[0, i]),
                status=statuses.pop() if len(statuses) == 1 else "mixed",
                pih=_verdict(int(sign[i]), int(gap_sign[i])) if told else NO_INTERVAL,
                runs=pooled[i],
                advantage_by_run=tuple(float(per_run[r].advantage[0, kept[i]]) for r in with_both),
                state=str(state[i]),
                zero_fraction=number(zero_fraction[i]),
                by_errors=number(by_errors[i]),
                by_ownership=number(by_ownership[i]),
            )
        )
    comparison = Comparison(
        model=subject.model,
        policy=subject.policy,
        kind=kind,
        pruner=pruner,
        quantizer=quantizer,
        measure=measure.name,
        cells=tuple(cells),
        tau=estimate_over(taus["tau"], ids, level),
        tau_bits=estimate_over(taus["bits"], ids, level),
        tau_sparsity=estimate_over(taus["sparsity"], ids, level),
        spearman=estimate_over(taus["rho"], ids, level),
        score=Score(*intensity.sign_accuracy(sign, gap_sign)),
        methods=(methods[0].name, methods[1].name),
        settings=_settings(subject, methods),
    )
    signs = np.zeros(measured.shape, int)
    for row, own, one in zip(signs, measured, alone, strict=True):
        row[own] = one.sign
    scores = tuple(one.score for one in alone)
    said = [
        predictions(
            intensity.gap_signs(rows.gap_low[0, kept], rows.gap_high[0, kept]),
            rows.zeros[kept],
            axes[kept, 0],
            rows.errors[kept],
            rows.owned[kept],
        )
        for rows in per_run
    ]
    return Compared(
        comparison,
        ids,
        taus,
        scores,
        signs,
        over.components,
        over.error,
        every[:, 0],
        states(better, dense, measure, classes),
        {rule: np.stack([one[rule] for one in said]) for rule in RULES},
    )


def _settings(subject: Subject, methods: tuple[Named, Named]) -> dict[str, str]:
    told = {"pruner": methods[0].settings, "quantizer": methods[1].settings}
    told["policy"] = subject.settings
    return {f"{what}: {key}": value for what, held in told.items() for key, value in held}


def _classes(run: Run) -> int | None:
    found = [(v.record.get("data") or {}).get("classes") for v in run.variants.values()]
    return next((int(n) for n in found if n), None)


class _Alone(NamedTuple):
    """What one run says by itself, of the cells that it has."""

    taus: dict[str, Rows]
    sign: np.ndarray
    score: Score


def _alone(
    rows: CellRows, cells: np.ndarray, grid: np.ndarray, measure: Measure, level: float
) -> _Alone:
    low, high, advantage = (x[..., cells] for x in (rows.gap_low, rows.gap_high, rows.advantage))
    advantage = _exact(advantage, measure)
    resolution = _resolution(measure, rows.scale[..., cells])
    ranked = np.where(np.abs(advantage) <= resolution, 0.0, advantage)  # rounding is no order
    taus = _taus(low, high, ranked, grid[cells])
    taus["rho"] = ranks.spearman(rows.gap[..., cells], ranked, low == high)
    sign = intensity.significant_sign(advantage[0], *interval(advantage, level), resolution[0])
    gap_sign = intensity.gap_signs(low[0], high[0])
    return _Alone(taus, sign, Score(*intensity.sign_accuracy(sign, gap_sign)))


def _exact(advantage: Rows, measure: Measure) -> Rows:
    """Accuracies differ by counts: 0 and ties must be exact."""
    return np.round(advantage, 12) if measure.name == "accuracy" else advantage


def _taus(low: Rows, high: Rows, advantage: Rows, axes: np.ndarray) -> dict[str, Rows]:
    """Kendall's tau-b of A against the gap: over all pairs of cells, and along each axis.

    axes ``[cells, 2]``: sparsity and bits. Cells of one sparsity share C*_P.
    """
    x = ranks.pair_order(low, high, np.unique(axes[:, 0], return_inverse=True)[1])
    y = ranks.pair_order(advantage, advantage)
    first, second = np.triu_indices(len(axes), 1)
    same_sparsity = axes[first, 0] == axes[second, 0]
    same_bits = axes[first, 1] == axes[second, 1]
    return {
        "tau": ranks.kendall_from_order(x, y),
        "bits": ranks.kendall_from_order(x[:, same_sparsity], y[:, same_sparsity]),
        "sparsity": ranks.kendall_from_order(x[:, same_bits], y[:, same_bits]),
    }


def _resolution(measure: Measure, scale: Rows) -> Rows:
    """The smallest |A| that is not rounding: of the log-loss, and of its exponential."""
    if measure.name == "accuracy":
        return np.full_like(scale, 1e-9)  # counts are exact: only the division rounds
    return RESOLUTION * (scale if measure.name == "neg_perplexity" else np.ones_like(scale))


def _winner(sign: int, always_equal: bool) -> str:
    if always_equal:
        return EQUAL
    return {-1: PRUNE_FIRST, 0: UNDECIDED, 1: QUANTIZE_FIRST}[sign]


def _verdict(sign: int, gap_sign: int) -> str:
    if sign == 0:
        return "not significant"
    if gap_sign == 2:
        return "undecided"
    if gap_sign == 0:
        return "no gap"
    return "right" if sign == gap_sign else "wrong"


def _report_missing(
    what: str,
    runs: list[Run],
    grid: list[tuple[float, int]],
    measured: np.ndarray,
    problems: list[str],
) -> None:
    for run, row in zip(runs, measured, strict=True):
        absent = [f"{s:g}/{w}" for (s, w), seen in zip(grid, row, strict=True) if not seen]
        if absent:
            told = ", ".join(absent[:6]) + (", ..." if len(absent) > 6 else "")
            problems.append(
                f"{what}, {run.name}: {len(absent)} of {len(grid)} cells lack an order "
                f"(sparsity/bits {told})"
            )
