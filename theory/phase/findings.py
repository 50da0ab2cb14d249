"""What became of PIH's two claims in the phase diagrams of :mod:`theory.phase.diagrams`."""

from __future__ import annotations

import numpy as np

from theory.engine.statement import Finding
from theory.phase.diagrams import Phase


def findings(phases: list[Phase]) -> tuple[Finding, ...]:
    """What became of PIH's two claims in each diagram."""
    if not phases:
        return ()
    rows, numbers = [], {}
    for x in phases:
        sign, gap = x.sign, np.sign(x.gap)
        won = sign != 0
        right = float(np.mean(sign[won] == gap[won])) if won.any() else float("nan")
        along_bits, along_p = (
            float(np.mean(x.taus(axis))) if x.taus(axis).size else float("nan") for axis in (1, 0)
        )
        rows.append(
            (
                x.stage,
                f"{x.rho:g}",
                int(np.sum(sign < 0)),
                int(np.sum(sign > 0)),
                int(np.sum(sign == 0)),
                f"{right:.0%}" if won.any() else "–",
                f"{along_bits:+.2f}" if np.isfinite(along_bits) else "–",
                f"{along_p:+.2f}" if np.isfinite(along_p) else "–",
            )
        )
        numbers[f"{x.stage} {x.rho:g}: sign right"] = right
        numbers[f"{x.stage} {x.rho:g}: tau along bits"] = along_bits
        numbers[f"{x.stage} {x.rho:g}: tau along sparsity"] = along_p
    rights = [v for k, v in numbers.items() if k.endswith("sign right") and np.isfinite(v)]
    taus = [v for k, v in numbers.items() if "tau" in k and np.isfinite(v)]
    return (
        Finding(
            "PIH, sign, over blind, aware and compensated stages (small layers, all masks tried)",
            "holds" if min(rights) > 0.95 else ("narrower" if max(rights) > 0.95 else "false"),
            f"the sign of the gap is that of A in {min(rights):.0%} to {max(rights):.0%} of the "
            "significant cells, by diagram; which stage sees what decides",
            numbers,
            (
                "stages",
                "rho",
                "P first wins",
                "Q first wins",
                "open",
                "PIH sign right",
                "tau, bits",
                "tau, sparsity",
            ),
            tuple(rows),
        ),
        Finding(
            "PIH, trend, in the same diagrams",
            "holds" if min(taus) > 0.95 else ("narrower" if max(taus) > 0.95 else "false"),
            f"mean Kendall tau of A against the gap between {min(taus):+.2f} and {max(taus):+.2f}",
            {"least tau": min(taus), "largest tau": max(taus)},
        ),
    )
