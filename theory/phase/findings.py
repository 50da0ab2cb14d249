"""What became of PIH's two claims in the phase diagrams of :mod:`theory.phase.diagrams`."""

from __future__ import annotations

import numpy as np

from theory.engine.statement import Finding, verdict
from theory.phase.diagrams import Phase
from theory.thresholds import AGREES


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
    bits, ratios = (
        [v for k, v in numbers.items() if k.endswith(axis) and np.isfinite(v)]
        for axis in ("tau along bits", "tau along sparsity")
    )
    return (
        Finding(
            "PIH, sign, over blind, aware and compensated stages (small layers, all masks tried)",
            verdict(min(rights) > AGREES, max(rights) > AGREES),
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
        *_dense_target(phases),
        *(
            Finding(
                name,
                verdict(min(taus) > AGREES, max(taus) > AGREES),
                "Kendall's tau of A against the gap, mean of a diagram, is between "
                f"{min(taus):+.2f} and {max(taus):+.2f} (narrower: above {AGREES} in some diagram)",
                {"least tau": min(taus), "largest tau": max(taus)},
            )
            for name, taus in (
                ("PIH, trend along the bits at a fixed ratio, in the same diagrams", bits),
                ("our extension of PIH: the trend along the sparsity, there", ratios),
            )
        ),
    )


def _dense_target(phases: list[Phase]) -> tuple[Finding, ...]:
    """Theorem 2d's third variant beside the second: mean A over all cells, by correlation."""
    found = {(x.stage, x.rho): x for x in phases}
    rhos = [rho for stage, rho in found if stage == "dense target"]
    rows: list[tuple[object, ...]] = []
    numbers: dict[str, float] = {}
    for rho in rhos:
        blind, dense = (found[stage, rho] for stage in ("compensated", "dense target"))
        means = [float(x.advantage.mean()) for x in (blind, dense)]
        wins = [int(np.sum(x.sign > 0)) for x in (blind, dense)]
        rows.append((f"{rho:g}", *(f"{m:+.2e}" for m in means), *wins))
        numbers |= {f"mean A, rho {rho:g}": means[0], f"dense target, rho {rho:g}": means[1]}
    last = f"rho {rhos[-1]:g}"
    share = 1 - numbers[f"dense target, {last}"] / numbers[f"mean A, {last}"]
    return (
        Finding(
            "2d's third variant over (pruned, bits): Q->P with the dense row as target",
            "measured",
            f"it takes {share:.0%} off what quantizing first loses on average at correlation "
            f"{rhos[-1]:g}: rounding twice; the rest is the mask chosen on the rounded row",
            numbers,
            ("rho", "mean A, blind", "mean A, dense target", "Q first wins, blind", "dense target"),
            tuple(rows),
        ),
    )
