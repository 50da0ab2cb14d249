"""T-D: what the orders of a pruner and a quantizer differ by, by the pruner's granularity."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from experiments.analysis.chains import Chains
from experiments.analysis.rows import Rows
from experiments.findings.rotation import LOG, parts
from experiments.findings.types import Finding, Row, chains, row

STUDY = "granularity"
FINE = (7.0, 8.0, 9.0)  # bits at which the paper's structured pruner has A = 0 exactly
GRIDS = {
    "rtn[per=16]": "groups of 16",
    "rtn": "one scale a row",
    "rtn[per=tensor]": "one scale a tensor",
    "gptq": "one scale a row, GPTQ",
}


def granularities(held: Chains) -> dict[str, str]:
    """What of the pruners' names their units are."""
    known = (
        ("magnitude-", "weights"),
        ("magnitude[scope=7:8]", "7:8"),
        ("sparsegpt", "weights, SparseGPT"),
        ("drop", "neurons"),
        ("remove", "blocks"),
    )
    single = [c[0] for c in held.having(lambda c: len(c) == 1)]
    found = {}
    for stage in single:
        told = next((t for start, t in known if stage.startswith(start)), None)
        if told is not None and stage not in found:
            found[stage] = told
    return found


def quantizers(held: Chains) -> dict[str, list[str]]:
    """The quantizers' names by method, from the most bits to the least."""
    found: dict[str, list[str]] = {}
    for chain in held.having(lambda c: len(c) == 1):
        method, _ = parts(chain[0])
        if method in GRIDS:
            found.setdefault(method, []).append(chain[0])
    return {m: sorted(s, key=lambda x: -parts(x)[1]) for m, s in found.items()}


def by_grid(held: Chains, pruner: str, grid: str, only: Iterable[float] = ()) -> Rows:
    """A of a pruner against every width of a grid ``[runs, 1 + B, widths]``."""
    widths = [q for q in quantizers(held)[grid] if not only or parts(q)[1] in tuple(only)]
    return np.stack([held.advantage(q, pruner) for q in widths], -1)


def _zero() -> Iterable[Row]:
    """The share of a run's cells at 7 to 9 bits whose A is 0 exactly."""
    for held in chains(STUDY, LOG):
        for pruner, units in granularities(held).items():
            for grid, name in GRIDS.items():
                if grid in quantizers(held):
                    zero = (by_grid(held, pruner, grid, FINE) == 0).mean(-1)
                    if units == "blocks":
                        yield row(
                            held,
                            f"{units}, {name}",
                            "cells at 7 to 9 bits with A = 0 exactly, less a half",
                            held.over(zero - 0.5, -0.5, 0.5),
                        )


def _smaller() -> Iterable[Row]:
    """Mean |A| of single weights less that of a coarser unit, over all widths."""
    for held in chains(STUDY, LOG):
        units = granularities(held)
        fine = next(p for p, u in units.items() if u == "weights, SparseGPT")
        for pruner, told in units.items():
            if told not in ("neurons", "blocks"):
                continue
            for grid, name in GRIDS.items():
                if grid in quantizers(held):
                    less = _size(held, fine, grid) - _size(held, pruner, grid)
                    tested = "mean |A| of SparseGPT's weights less that of these units, nats"
                    yield row(held, f"{told}, {name}", tested, less)


def _size(held: Chains, pruner: str, grid: str) -> Rows:
    """|A| averaged over widths, of every run; over the bootstrap draws, of A's own sign."""
    a = by_grid(held, pruner, grid)
    return np.asarray((a * np.sign(a[:, :1])).mean(-1))


def split(held: Chains, pruner: str, grid: str) -> dict[str, float] | None:
    """|A| of the layers' errors, its part by ownership, and what interference adds: means over
    widths and runs of absolute values, in sums of relative output errors."""
    parts_of: dict[str, list[float]] = {"measured": [], "ownership": [], "interference": []}
    for q in quantizers(held)[grid]:
        a, owned = 0.0, 0.0
        for first, second, sign in ((q, pruner, -1), (pruner, q, 1)):
            records = held.records[(first, second)]
            layers = [m for r in records for m in r["layers"].values()]
            if any("owned_rel" not in m for m in layers):
                return None
            a += sign * sum(m["out_rel"] for m in layers) / len(records)
            owned += sign * sum(m["owned_rel"] for m in layers) / len(records)
        parts_of["measured"].append(abs(a))
        parts_of["ownership"].append(abs(owned))
        parts_of["interference"].append(abs(a - owned))
    return {name: float(np.mean(values)) for name, values in parts_of.items()}


GRANULARITY = Finding(
    key="T-D",
    title="Interference by granularity",
    claim="Structured pruning hardly meets the quantizer: its A is 0 at 7 to 9 bits, and smaller "
    "than that of pruning single weights.",
    source="Kim et al., table on SLEB against SparseGPT, bits 9 to 4 (finding 4)",
    reported="SLEB: A is exactly 0 at 7 to 9 bits",
    studies=(STUDY,),
    rows=lambda: [*_zero(), *_smaller()],
    figure="granularity",
)
FINDINGS = (GRANULARITY,)
