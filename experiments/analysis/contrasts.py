"""One pruner against one quantizer on one model: the advantage of an order over the grid.

Arrays are ``[rows, cells]``: row 0 the estimate, the others bootstrap replicates (see
:mod:`experiments.analysis.findings`); a leading axis ``seeds`` is averaged away cell by cell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.records import Record
from experiments.summary import (
    EQUAL,
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Cell,
    Comparison,
    Estimate,
    Measure,
    Score,
)
from perturb.measure import intensity

DENSE_BITS = 16  # for C_Q of records that hold no ratio
RESOLUTION = 1e-6  # nats: below it, two evaluations differ by float32 rounding only

Rows = np.ndarray  # [1 + B, ...] float64


class Key(NamedTuple):
    """What a variant is, within one trained model; methods by their label."""

    order: str
    pruner: str | None
    sparsity: float | None
    quantizer: str | None
    bits: int | None


class Variant(NamedTuple):
    record: Record
    rows: dict[str, Rows]  # measure -> [1 + B]


class Run(NamedTuple):
    """The evaluated variants of one trained model."""

    seed: int
    variants: dict[Key, Variant]


class Compared(NamedTuple):
    comparison: Comparison
    taus: dict[str, Rows]  # "tau", "bits", "sparsity" -> [1 + B], to be pooled


class _CellRows(NamedTuple):
    """One run over the grid; [rows, cells] unless said otherwise, nan where unmeasured."""

    advantage: Rows
    gap: Rows
    gap_low: Rows
    gap_high: Rows
    performance_gap: Rows
    scale: Rows  # the larger |M| of the two orders
    quantizer_ratio: np.ndarray  # [cells], nan without the quantizer alone
    status: list[str]  # [cells]


def compare(
    model: str,
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

    per_run = [_cell_rows(run, names, grid, measure, problems) for run in runs]
    measured = np.stack([np.isfinite(rows.advantage[0]) for rows in per_run])  # [seeds, cells]
    kept = np.flatnonzero(measured.any(0))
    _report_missing(f"{model}, {pruner} x {quantizer}", runs, grid, measured, problems)
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
    seeds = [tuple(runs[s].seed for s in np.flatnonzero(column)) for column in measured.T]
    taus = _taus(low, high, ranked, grid, seeds)
    rho = intensity.spearman(mean("gap"), ranked, low == high)

    ends = _interval(advantage, level)
    sign = intensity.significant_sign(advantage[0], *ends, resolution[0])
    gap_sign = intensity.gap_signs(low[0], high[0])
    always_equal = (advantage == 0).all(0)
    known = np.isfinite(ends[0])
    value, performance_gap, c_q = (
        mean("gap")[0],
        mean("performance_gap")[0],
        mean("quantizer_ratio"),
    )
    cells = []
    for i, (sparsity, width) in enumerate(grid):
        with_both = np.flatnonzero(measured[:, i])
        statuses = {per_run[s].status[kept[i]] for s in with_both}
        gap, ratio = _number(value[i]), _number(c_q[i])
        told = bool(known[i])
        cells.append(
            Cell(
                sparsity=sparsity,
                bits=width,
                advantage=float(advantage[0, i]),
                low=_number(ends[0][i]),
                high=_number(ends[1][i]),
                winner=_winner(int(sign[i]), bool(always_equal[i])) if told else NO_INTERVAL,
                performance_gap=_number(performance_gap[i]),
                pruner_ratio=None if gap is None or ratio is None else gap + ratio,
                quantizer_ratio=ratio,
                gap=gap,
                gap_low=float(low[0, i]),
                gap_high=float(high[0, i]),
                status=statuses.pop() if len(statuses) == 1 else "mixed",
                pih=_verdict(int(sign[i]), int(gap_sign[i])) if told else NO_INTERVAL,
                seeds=seeds[i],
                advantage_by_seed=tuple(float(per_run[s].advantage[0, kept[i]]) for s in with_both),
            )
        )
    comparison = Comparison(
        model=model,
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


def _cell_rows(
    run: Run,
    names: tuple[str, str],
    grid: list[tuple[float, int]],
    measure: Measure,
    problems: list[str],
) -> _CellRows:
    pruner, quantizer = names

    def rows(*key: Any) -> Rows | None:
        variant = run.variants.get(Key(*key))
        if variant is None:
            return None
        found = variant.rows.get(measure.name)
        if found is not None and not np.isfinite(found).all():
            problems.append(f"{variant.record['cell']}: no finite {measure.name}, left out")
            return None
        return found

    def ratio(width: int) -> float:
        """C_Q, as the record of Q alone has it."""
        variant = run.variants.get(Key("Q", None, None, quantizer, width))
        if variant is None:
            return np.nan
        return float(variant.record.get("ratio") or DENSE_BITS / width)

    dense = rows("dense", None, None, None, None)
    alone = {
        w: rows("Q", None, None, quantizer, w) for w in sorted({w for _, w in grid}, reverse=True)
    }
    points: dict[float, Rows] = {}
    for width, found in alone.items():
        if found is not None and points.setdefault(ratio(width), found) is not found:
            problems.append(
                f"{quantizer}, seed {run.seed}: {width} bits store as much as another width, "
                "left out of the quantization curve"
            )
    if dense is not None:  # the curve's first point: without it C* below 8 bits is censored
        points.setdefault(1.0, dense)
    ratios = np.array(sorted(points))
    bounds: dict[float, intensity.RatioBounds] = {}
    pruned = {s: rows("P", pruner, s, None, None) for s in sorted({s for s, _ in grid})}
    for sparsity, found in pruned.items():
        if found is not None and ratios.size:
            curve = np.stack([points[c] for c in ratios], axis=-1)  # [rows, points]
            bounds[sparsity] = intensity.equivalent_ratios(found[:, None], ratios, curve)

    size = max(
        (v.rows[measure.name].size for v in run.variants.values() if measure.name in v.rows),
        default=1,
    )
    shape = (size, len(grid))
    advantage, gap, scale, g = (np.full(shape, np.nan) for _ in range(4))
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    status, c_q = ["unknown"] * len(grid), np.array([ratio(w) for _, w in grid])
    for i, (sparsity, width) in enumerate(grid):
        pq = rows("PQ", pruner, sparsity, quantizer, width)
        qp = rows("QP", pruner, sparsity, quantizer, width)
        if pq is not None and qp is not None:
            advantage[:, i] = intensity.order_advantage(qp, pq)
            scale[:, i] = np.maximum(np.abs(qp), np.abs(pq))
        p, q = pruned[sparsity], alone[width]
        if p is not None and q is not None:
            g[:, i] = intensity.performance_gap(p, q)
        if sparsity in bounds and np.isfinite(c_q[i]):
            known = bounds[sparsity]
            gap[:, i] = known.value[:, 0] - c_q[i]
            low[:, i], high[:, i] = known.low[:, 0] - c_q[i], known.high[:, 0] - c_q[i]
            status[i] = intensity.STATUSES[int(known.status[0, 0])]
    return _CellRows(advantage, gap, low, high, g, scale, c_q, status)


def _taus(
    low: Rows, high: Rows, advantage: Rows, grid: list[tuple[float, int]], seeds: list[Any]
) -> dict[str, Rows]:
    """Kendall's tau-b of A against the gap: over all pairs of cells, and along each axis."""
    # cells of one sparsity share C*_P if it is the mean over the same seeds
    labels = {
        key: n for n, key in enumerate(dict.fromkeys(zip((s for s, _ in grid), seeds, strict=True)))
    }
    shared = np.array([labels[s, seed] for (s, _), seed in zip(grid, seeds, strict=True)], int)
    x = intensity.pair_order(low, high, shared)
    y = intensity.pair_order(advantage, advantage)
    first, second = np.triu_indices(len(grid), 1)
    axes = np.array(grid, float).reshape(-1, 2)
    same_sparsity = axes[first, 0] == axes[second, 0]
    same_bits = axes[first, 1] == axes[second, 1]
    return {
        "tau": intensity.kendall_from_order(x, y),
        "bits": intensity.kendall_from_order(x[:, same_sparsity], y[:, same_sparsity]),
        "sparsity": intensity.kendall_from_order(x[:, same_bits], y[:, same_bits]),
    }


def _resolution(measure: Measure, scale: Rows) -> Rows:
    """The smallest |A| that is not rounding: of the log-loss, and of its exponential."""
    if measure.name == "accuracy":
        return np.full_like(scale, 1e-9)  # counts are exact: only the division rounds
    return RESOLUTION * (scale if measure.name == "neg_perplexity" else np.ones_like(scale))


def _interval(rows: Rows, level: float) -> tuple[np.ndarray, np.ndarray]:
    if len(rows) < 2:  # a measure without per-example sums
        return np.full(rows.shape[1:], np.nan), np.full(rows.shape[1:], np.nan)
    return intensity.percentile_interval(rows[1:], level)


def estimate(rows: Rows, level: float) -> Estimate:
    """Row 0 with the interval of the others."""
    low, high = _interval(rows, level)
    return Estimate(_number(rows[0]), _number(low), _number(high))


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


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
                f"{what}, seed {run.seed}: {len(absent)} of {len(grid)} cells lack an order "
                f"(sparsity/bits {told})"
            )
