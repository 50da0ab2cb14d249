"""F-H: low rank, and a basis that blocks share, before or after a quantizer or a pruner."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from experiments.analysis.chains import Chains
from experiments.analysis.rows import Rows
from experiments.findings.names import parts, setting
from experiments.findings.types import LOG, Finding, Row, chains, row, rows_of_ranks

STUDY = "sharing"
USUAL_RATIO = 0.2  # of both methods, and not said in a name
METHODS = {"lowrank": "low rank", "share": "shared basis"}


def ratio(stage: str) -> float:
    return float(setting(stage, "ratio") or USUAL_RATIO)


def thinned(held: Chains, method: str) -> dict[float, str]:
    """The stages of a method by ratio."""
    single = [c[0] for c in held.having(lambda c: len(c) == 1)]
    return dict(sorted((ratio(s), s) for s in single if s.startswith(method)))


def others(held: Chains) -> dict[str, list[str]]:
    """The quantizers from the least bits to the most, and the pruners from the largest ratio."""
    found: dict[str, list[str]] = {}
    for (stage,) in held.having(lambda c: len(c) == 1):
        if not stage.startswith(tuple(METHODS)):
            found.setdefault(parts(stage)[0], []).append(stage)
    return {
        m: sorted(s, key=lambda x: parts(x)[1] if parts(x)[1] > 1 else -parts(x)[1])
        for m, s in found.items()
    }


def advantage(held: Chains, other: str, thin: str) -> Rows:
    """A(Q→S) where both orders end in one format: M(Q, S, Q) - M(S, Q)."""
    return held.rows[(other, thin, other)] - held.rows[(thin, other)]


def _rows() -> Iterable[Row]:
    for held in chains(STUDY, LOG):
        for method, told in ((m, t) for m, t in METHODS.items() if thinned(held, m)):
            for other, stages in others(held).items():
                taus, right = [], []
                for thin in thinned(held, method).values():
                    a = np.stack([advantage(held, s, thin) for s in stages], -1)
                    gap = np.stack([held.rows[(s,)] - held.rows[(thin,)] for s in stages], -1)
                    taus.append(rows_of_ranks(a))
                    same = np.sign(a) * np.sign(gap[:, :1])
                    right.append(np.where(same == 0, 0.5, same > 0).mean(-1))
                if len(stages) > 2:
                    tau = held.over(np.nanmean(taus, 0), -1, 1)
                    yield row(held, f"{told} × {other}", "tau of A with the bits", tau)
                share = held.over(np.mean(right, 0), 0, 1)
                tested = "cells whose better order has the stronger method last"
                yield row(held, f"{told} × {other}", tested, share, above=0.5)


def formats() -> list[tuple[str, str, float, float, float, float]]:
    """What ignoring the format would say: of every method and quantizer at 4 bits, A of the bare
    orders, and both orders' ratios; then A in one format."""
    found = []
    for held in chains(STUDY, LOG):
        for method, told in METHODS.items():
            for thin in list(thinned(held, method).values())[1:2]:
                for q in ("rtn-4", "gptq-4"):
                    if (q, thin) in held.rows:
                        bare = float(np.nanmean(held.advantage(q, thin)[:, 0]))
                        same = float(np.nanmean(advantage(held, q, thin)[:, 0]))
                        ratios = held.ratio[(q, thin)], held.ratio[(thin, q)]
                        found.append((told, q, bare, *ratios, same))
    return found


SHARING = Finding(
    key="F-H",
    title="Sharing parameters and low rank",
    claim="A(Q→S) of a quantizer and a method that shares or factors parameters grows with the "
    "gap, and the stronger goes last (both orders ending in one format).",
    source="Kim et al., finding 8",
    reported="the hypothesis holds with parameter sharing",
    studies=(STUDY,),
    rows=lambda: list(_rows()),
    figure="sharing/sharing",
)
