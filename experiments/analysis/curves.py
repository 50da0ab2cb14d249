"""One run over a grid: A, and the gap in intensity, which is read off the quantization curve.

Arrays are ``[rows, cells]``: row 0 the estimate, the others bootstrap replicates (see
:mod:`experiments.analysis.rows`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from experiments.analysis.rows import Rows
from experiments.analysis.variants import DENSE, Key, Run
from experiments.summary import Measure
from perturb.measure import intensity

BOTH = ("PQ", "QP")
DENSE_BITS = 16  # for C_Q of records that hold no ratio


class CellRows(NamedTuple):
    """One run over the grid; [rows, cells] unless said otherwise, nan where unmeasured."""

    prune_first: Rows  # M(P then Q)
    quantize_first: Rows
    advantage: Rows
    gap: Rows
    gap_low: Rows
    gap_high: Rows
    performance_gap: Rows
    scale: Rows  # the larger |M| of the two orders
    quantizer_ratio: np.ndarray  # [cells], nan without the quantizer alone
    status: list[str]  # [cells]
    dense: float  # M of the dense model, nan without one
    zeros: np.ndarray  # [cells], what the quantizer alone sends to 0; nan where unknown
    errors: np.ndarray  # [cells], sum over layers of the relative output error, PQ less QP
    owned: np.ndarray  # [cells], the same by ownership alone; nan where unknown


def cell_rows(
    run: Run,
    names: tuple[str, str],
    grid: list[tuple[float, int]],
    measure: Measure,
    problems: list[str],
) -> CellRows:
    pruner, quantizer = names

    def rows(*key: Any) -> Rows | None:
        variant = run.variants.get(Key(*key))
        if variant is None:
            return None
        found = variant.rows.get(measure.name)
        if found is not None and not np.isfinite(found).all():
            problems.append(f"{variant.record['label']}: no finite {measure.name}, left out")
            return None
        return found

    def ratio(width: int) -> float:
        """C_Q, as the record of Q alone has it."""
        variant = run.variants.get(Key("Q", None, None, quantizer, width))
        if variant is None:
            return np.nan
        return float(variant.record.get("ratio") or DENSE_BITS / width)

    dense = rows(*DENSE)
    alone = {
        w: rows("Q", None, None, quantizer, w) for w in sorted({w for _, w in grid}, reverse=True)
    }
    points: dict[float, Rows] = {}
    for width, found in alone.items():
        if found is not None and points.setdefault(ratio(width), found) is not found:
            problems.append(
                f"{quantizer}, {run.name}: {width} bits store as much as another width, "
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
    first_p, first_q, advantage, gap, scale, g = (np.full(shape, np.nan) for _ in range(6))
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    status, c_q = ["unknown"] * len(grid), np.array([ratio(w) for _, w in grid])
    zeros = np.array([_zero_fraction(run, quantizer, w) for _, w in grid])
    errors, owned = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    for i, (sparsity, width) in enumerate(grid):
        pq = rows("PQ", pruner, sparsity, quantizer, width)
        qp = rows("QP", pruner, sparsity, quantizer, width)
        if pq is not None and qp is not None:
            first_p[:, i], first_q[:, i] = pq, qp
            advantage[:, i] = intensity.order_advantage(qp, pq)
            scale[:, i] = np.maximum(np.abs(qp), np.abs(pq))
            keys = [Key(order, pruner, sparsity, quantizer, width) for order in BOTH]
            for values, name in ((errors, "out_rel"), (owned, "owned_rel")):
                first, second = (_error(run, key, name) for key in keys)
                values[i] = first - second
        p, q = pruned[sparsity], alone[width]
        if p is not None and q is not None:
            g[:, i] = intensity.performance_gap(p, q)
        if sparsity in bounds and np.isfinite(c_q[i]):
            known = bounds[sparsity]
            gap[:, i] = known.value[:, 0] - c_q[i]
            low[:, i], high[:, i] = known.low[:, 0] - c_q[i], known.high[:, 0] - c_q[i]
            status[i] = intensity.STATUSES[int(known.status[0, 0])]
    undamaged = np.nan if dense is None else float(dense[0])
    alike = (first_p, first_q, advantage, gap, low, high, g, scale, c_q, status)
    return CellRows(*alike, undamaged, zeros, errors, owned)


def _zero_fraction(run: Run, quantizer: str, width: int) -> float:
    variant = run.variants.get(Key("Q", None, None, quantizer, width))
    known = None if variant is None else variant.record.get("zero_fraction")
    return np.nan if known is None else float(known)


def _error(run: Run, key: Key, name: str) -> float:
    """Sum over layers of an error relative to the dense output; nan where unknown."""
    layers = run.variants[key].record.get("layers") or {}
    found = [measured.get(name) for measured in layers.values()]
    return float(np.sum([np.nan if x is None else x for x in found])) if found else np.nan
