"""|A| of pruning by granularity, against the quantizer's bits: who meets the quantizer at all?"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from experiments.analysis.chains import Chains
from experiments.findings.granularity import FINE, GRIDS, by_grid, granularities, quantizers
from experiments.findings.names import parts
from figures import sheet, style

FLOOR = 1e-4  # nats: the axis is linear below


def draw(models: tuple[Chains, ...]) -> Figure:
    """One model: a panel a grid, A against bits, a line a granularity."""
    held = models[0]
    units = granularities(held)
    grids = {g: q for g, q in quantizers(held).items() if g in GRIDS}
    blocks = next(p for p, told in units.items() if told == "blocks")
    zero = {g: float((by_grid(held, blocks, g, FINE)[:, 0] == 0).mean()) for g in grids}
    blind = [share for g, share in zero.items() if g.startswith("rtn")]
    told_ = f"{np.mean(blind):.0%} of the cells at 7 to 9 bits with RTN"
    told_ += f", in {zero['gptq']:.0%} with GPTQ" if "gptq" in zero else ""
    colours = dict(zip(units.values(), sheet.PALETTE, strict=False))
    with style.look():
        figure, axes = sheet.sheet(
            len(grids),
            f"{sheet.name(held)}: removing a block has A = 0 exactly in {told_}",
            f"A(Q→P), M = −NLL in nats, mean of {sheet.runs(held)}. One eighth goes at every "
            "granularity.",
            f"Bars are {held.level:.0%} intervals over trainings and test examples. Above 0 "
            f"quantizing first is better; the axis is linear within ±{FLOOR:g}.",
            width=2.7,
            colours=colours,
            share=True,
        )
        for ax, (grid, stages) in zip(axes, grids.items(), strict=True):
            bits = [parts(s)[1] for s in stages]
            ax.axhline(0, color=style.INK, lw=0.8)
            for i, pruner in enumerate(units):
                values = [held.over(held.advantage(q, pruner)) for q in stages]
                moved = [b + 0.09 * (i - 2) for b in bits]
                sheet.line(ax, moved, values, colours[units[pruner]])
            ax.set_yscale("symlog", linthresh=FLOOR, linscale=0.6)
            ax.set_xticks(bits, [f"{b:g}" for b in bits])
            ax.set_xlim(max(bits) + 0.4, min(bits) - 0.4)
            ax.set_title(GRIDS[grid])
            ax.set_xlabel("bits")
            ax.tick_params(axis="y", labelsize=7.5)
        axes[0].set_ylabel("A(Q→P), nats")
    return figure
