"""A of a published model along the ratio and along the bits: where does it follow the gap?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.analysis.chains import Chains
from experiments.findings.names import parts
from experiments.findings.real import RATIOS, WIDTHS, Curve, curves
from experiments.findings.types import rows_of_ranks
from figures import sheet, style

PANELS = {RATIOS: "along the ratio", WIDTHS: "along the bits"}


def draw(models: tuple[Chains, ...]) -> Figure:
    """One model: a panel an axis, A against what varies, a line a pair of methods."""
    held = models[0]
    lines = list(curves(held))
    names = dict.fromkeys(_methods(curve) for curve in lines)
    colours = dict(zip(names, sheet.PALETTE, strict=False))
    taus = {
        along: [_tau(held, curve) for curve in lines if curve.along == along] for along in PANELS
    }
    said = " and ".join(f"{_way(t)} {PANELS[along]}" for along, t in taus.items() if t)
    shown = [along for along in PANELS if taus[along]]
    with style.look():
        figure, axes = sheet.sheet(
            len(shown),
            f"{sheet.name(held)}: as the gap grows, A {said}",
            f"A(Q→P), M = −NLL in nats, mean of {sheet.runs(held)}. To the right the gap "
            "C*_P − C_Q grows: PIH says that A does, too.",
            f"Bars are {held.level:.0%} intervals over calibration draws and test windows. Below 0 "
            "pruning first is better.",
            width=3.5,
            colours=colours,
            share=True,
        )
        for ax, along in zip(axes, shown, strict=True):
            mine = [curve for curve in lines if curve.along == along]
            ticks = sorted({amount for curve in mine for amount in curve.amounts})
            ax.axhline(0, color=style.INK, lw=0.8)
            for i, curve in enumerate(mine):
                values = [held.over(cell.advantage(held)) for cell in curve.cells]
                at = [ticks.index(a) + 0.06 * (i - (len(mine) - 1) / 2) for a in curve.amounts]
                sheet.line(ax, at, values, colours[_methods(curve)])
            ax.set_xticks(range(len(ticks)), [f"{t:g}" for t in ticks])
            fixed = {_fixed(curve) for curve in mine}
            ax.set_title(f"{PANELS[along]} ({', '.join(sorted(fixed))})")
            ax.set_xlabel("pruned fraction" if along == RATIOS else "bits")
        axes[0].set_ylabel("A(Q→P), nats")
    return figure


def _methods(curve: Curve) -> str:
    """The pair's methods without their amounts."""
    names = (parts(stage)[0].partition("[")[0] for stage in curve.pair.stages)
    return " × ".join(names)


def _tau(held: Chains, curve: Curve) -> float:
    return float(np.nanmean(rows_of_ranks(curve.advantages(held))[:, 0]))


def _way(taus: list[float]) -> str:
    """What A does as the gap grows, with Kendall's tau of every line."""
    told = ", ".join(f"{tau:+.2g}" for tau in taus).replace("-", "−")
    verb = "grows" if min(taus) > 0 else "falls" if max(taus) < 0 else "does either"
    return f"{verb} (tau {told})"


def _fixed(curve: Curve) -> str:
    """What all cells of a curve have in common."""
    if curve.along == WIDTHS:
        return f"{parts(curve.cells[0].pruner)[1]:.0%} pruned"
    return f"{parts(curve.cells[0].quantizer)[1]:g} bits"
