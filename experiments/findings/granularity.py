"""T-D: what the orders of a pruner and a quantizer differ by, by the pruner's granularity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.analysis.chains import Chain, Chains
from experiments.analysis.rows import Rows
from experiments.findings.names import parts
from experiments.findings.types import LOG, Finding, Row, chains, row
from experiments.records import draw_of

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
                            "cells at 7 to 9 bits with A = 0 exactly",
                            held.over(zero, 0, 1),
                            above=0.5,
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


@dataclass(frozen=True)
class Split:
    """What A of a pruner and a grid is made of: means of |x| over widths and runs, in nats.

    measured: |A| of the outputs. ownership: of the layers' errors if each weight had exactly the
    error that its owner gives it alone (Theorem 1). interference: what the layers' measured errors
    add to that. rest: what the outputs add to all layers' errors. Errors become nats by kappa, of
    each run the least squares slope of the loss of single methods in their summed layer errors.
    """

    pruner: str
    grid: str
    measured: float
    ownership: float
    interference: float
    rest: float


def splits(held: Chains) -> list[Split]:
    """Of every pruner whose weights' owners are recorded, and every grid."""
    found = []
    kappa = _kappa(held)
    for pruner, units in granularities(held).items():
        for grid, name in GRIDS.items():
            if grid in quantizers(held):
                parts_ = _parts(held, pruner, quantizers(held)[grid], kappa)
                if parts_ is not None:
                    found.append(Split(units, name, *np.abs(parts_).mean((1, 2)).tolist()))
    return found


def _parts(
    held: Chains, pruner: str, widths: Sequence[str], kappa: np.ndarray
) -> np.ndarray | None:
    """A, and its parts by ownership, interference and the rest [4, runs, widths]."""
    found = np.zeros((4, len(held.ids), len(widths)))
    for i, q in enumerate(widths):
        measured = _errors(held, (pruner, q), "out_rel") - _errors(held, (q, pruner), "out_rel")
        owned = _errors(held, (pruner, q), "owned_rel") - _errors(held, (q, pruner), "owned_rel")
        a = held.advantage(q, pruner)[:, 0]
        found[:, :, i] = [a, kappa * owned, kappa * (measured - owned), a - kappa * measured]
    return None if np.isnan(found).any() else found


def _errors(held: Chains, chain: Chain, what: str) -> np.ndarray:
    """The sum over layers of a measure, by run; nan where a record has none."""
    by_run = {(r["seed"], draw_of(r)): r for r in held.records[chain]}
    return np.array(
        [
            sum(layer.get(what, np.nan) for layer in by_run[i]["layers"].values())
            if i in by_run
            else np.nan
            for i in held.ids
        ],
        float,
    )


def _kappa(held: Chains) -> np.ndarray:
    """Nats of loss a unit of summed relative layer errors, by run."""
    single = held.having(lambda c: len(c) == 1)
    errors = np.stack([_errors(held, c, "out_rel") for c in single])
    loss = np.stack([held.rows[()][:, 0] - held.rows[c][:, 0] for c in single])
    return np.asarray((errors * loss).sum(0) / (errors**2).sum(0))


GRANULARITY = Finding(
    key="T-D",
    title="Interference by granularity",
    claim="Structured pruning hardly meets the quantizer: its A is 0 at 7 to 9 bits, and smaller "
    "than that of pruning single weights.",
    source="Kim et al., table on SLEB against SparseGPT, bits 9 to 4 (finding 4)",
    reported="SLEB: A is exactly 0 at 7 to 9 bits",
    studies=(STUDY,),
    rows=lambda: [*_zero(), *_smaller()],
    figure="granularity/granularity",
)
