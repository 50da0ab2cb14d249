"""One pruner against one quantizer on one model: the advantage of an order over the grid.

Arrays are ``[rows, cells]``: row 0 the estimate, the others bootstrap replicates (see
:mod:`experiments.analysis.rows`); a leading axis ``runs`` is averaged away cell by cell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.curves import cell_rows
from experiments.analysis.rows import Rows, estimate, interval, number
from experiments.analysis.variants import Run, Subject
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

RESOLUTION = 1e-6  # nats: below it, two evaluations differ by float32 rounding only


class Compared(NamedTuple):
    comparison: Comparison
    taus: dict[str, Rows]  # "tau", "bits", "sparsity" -> [1 + B], to be pooled


def compare(
    subject: Subject,
    pruner: str,
    quantizer: str,
    measure: Measure,
    runs: list[Run],
    level: float,
    problems: list[str],
) -> Compared:
    """Compare both orders on every cell of the grid that some run has both orders of."""
    names = (pruner, quantizer)
    keys = [k for run in runs for k in run.variants if (k.pruner, k.quantizer) == names]
    sparsities = sorted({float(k.sparsity) for k in keys if k.sparsity is not None})
    bits = sorted({k.bits for k in keys if k.bits is not None}, reverse=True)
    grid = [(sparsity, width) for sparsity in sparsities for width in bits]
    kind = next(iter(runs[0].variants.values())).record["kind"]

    per_run = [cell_rows(run, names, grid, measure, problems) for run in runs]
    measured = np.stack([np.isfinite(rows.advantage[0]) for rows in per_run])  # [runs, cells]
    kept = np.flatnonzero(measured.any(0))
    _report_missing(f"{subject.name}, {pruner} x {quantizer}", runs, grid, measured, problems)
    grid, measured = [grid[i] for i in kept], measured[:, kept]
    count = measured.sum(0)

    def mean(name: str) -> Rows:
        stacked = np.stack([getattr(rows, name)[..., kept] for rows in per_run])
        shape = (len(runs),) + (1,) * (stacked.ndim - 2) + (kept.size,)
        return np.where(measured.reshape(shape), stacked, 0.0).sum(0) / count

    advantage, low, high = mean("advantage"), mean("gap_low"), mean("gap_high")
    if measure.name == "accuracy":  # a difference of counts: 0 and ties must be exact
        advantage = np.round(advantage, 12)
    resolution = _resolution(measure, mean("scale"))
    ranked = np.where(np.abs(advantage) <= resolution, 0.0, advantage)  # rounding is no order
    pooled = [
        tuple((runs[r].seed, runs[r].draw) for r in np.flatnonzero(column)) for column in measured.T
    ]
    taus = _taus(low, high, ranked, grid, pooled)
    rho = ranks.spearman(mean("gap"), ranked, low == high)

    ends = interval(advantage, level)
    sign = intensity.significant_sign(advantage[0], *ends, resolution[0])
    gap_sign = intensity.gap_signs(low[0], high[0])
    always_equal = (advantage == 0).all(0)
    known = np.isfinite(ends[0])
    value, performance_gap, c_q = (
        mean("gap")[0],
        mean("performance_gap")[0],
        mean("quantizer_ratio"),
    )
    first_p, first_q = mean("prune_first")[0], mean("quantize_first")[0]
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
        tau=estimate(taus["tau"], level),
        tau_bits=estimate(taus["bits"], level),
        tau_sparsity=estimate(taus["sparsity"], level),
        spearman=estimate(rho, level),
        score=Score(*intensity.sign_accuracy(sign, gap_sign)),
    )
    return Compared(comparison, taus)


def _taus(
    low: Rows, high: Rows, advantage: Rows, grid: list[tuple[float, int]], pooled: list[Any]
) -> dict[str, Rows]:
    """Kendall's tau-b of A against the gap: over all pairs of cells, and along each axis."""
    # cells of one sparsity share C*_P if it is the mean over the same runs
    labels = {
        key: n
        for n, key in enumerate(dict.fromkeys(zip((s for s, _ in grid), pooled, strict=True)))
    }
    shared = np.array([labels[s, runs] for (s, _), runs in zip(grid, pooled, strict=True)], int)
    x = ranks.pair_order(low, high, shared)
    y = ranks.pair_order(advantage, advantage)
    first, second = np.triu_indices(len(grid), 1)
    axes = np.array(grid, float).reshape(-1, 2)
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
