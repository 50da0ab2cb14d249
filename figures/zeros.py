"""A(Q->P) against what the quantizer alone sends to 0, less the pruning ratio.

Right of 0 the quantizer alone zeroes at least as much as pruning takes, and the zero fraction
says "quantize first". Every cell is a point: colours are grids, shapes quantizers. Points that an
order wins are filled.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.summary import (
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    Comparison,
    Summary,
    measure_of,
)
from figures import style

WON = (PRUNE_FIRST, QUANTIZE_FIRST)
PALETTE = ("#1A1A1A", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#8C564B", "#999999")
SHAPES = ("o", "s", "^", "D")
LIKE = 0.01  # of the unit: the axis is linear within
HEAD, TALL = 1.0, 3.4  # inches


def draw(summary: Summary, model: str, scale: str) -> Figure:
    """The figure of one model on one scale: a panel a pruner."""
    comparisons = summary.select(model, scale)
    measure = measure_of(comparisons[0].measure)
    pruners = list(dict.fromkeys(c.pruner for c in comparisons))
    grids = list(dict.fromkeys(c.grid for c in comparisons))
    colours = {grid: PALETTE[i % len(PALETTE)] for i, grid in enumerate(grids)}
    quantizers = list(dict.fromkeys(c.methods[1] for c in comparisons))
    shapes = {name: SHAPES[i % len(SHAPES)] for i, name in enumerate(quantizers)}
    wide, tall = max(8.4, 4.2 * len(pruners)), HEAD + TALL + style.FOOT + 0.2
    with style.look():
        figure = Figure(figsize=(wide, tall), layout="constrained")
        engine = figure.get_layout_engine()
        rect = (0.0, (style.FOOT + 0.2) / tall, 1.0, 1.0 - (HEAD + style.FOOT + 0.2) / tall)
        engine.set(rect=rect)  # type: ignore[union-attr,call-arg]
        title = f"{style.name(summary, model)}: {takeaway(comparisons)}"
        figure.text(0.012, 1 - 0.12 / tall, title, size=11.5, weight="bold", va="top")
        over = summary.mean_on(model, scale)
        runs = f"; mean of {over}" if over else ""
        subtitle = f"M = {measure.label}; Z: the fraction that the quantizer alone zeroes{runs}"
        figure.text(0.012, 1 - 0.56 / tall, subtitle, size=8.5, color=style.MUTED, va="top")
        axes = figure.subplots(1, len(pruners), squeeze=False, sharey=True, sharex=True)[0]
        sizes = [abs(cell.advantage) for c in comparisons for cell in c.cells]
        limit = 2 * measure.factor * max([*sizes, LIKE / measure.factor])
        for ax, pruner in zip(axes, pruners, strict=True):
            mine = [c for c in comparisons if c.pruner == pruner]
            _panel(ax, mine, colours, shapes, measure.factor, limit)
            ax.set_title(pruner)
            ax.set_xlabel("Z − pruning ratio")
        axes[0].set_ylabel(f"A(Q→P), {style.unit(measure)}")
        keys = [
            Line2D(
                [],
                [],
                color=colour,
                marker="o",
                ls="",
                ms=5,
                label=grid if grid != "usual" else "usual grid",
            )
            for grid, colour in (colours.items() if len(colours) > 1 else ())
        ]
        keys += [
            Line2D([], [], color=style.MUTED, marker=shape, ls="", ms=5, label=name)
            for name, shape in shapes.items()
        ]
        figure.legend(
            handles=keys, loc="lower left", bbox_to_anchor=(0.005, 0.3 / tall), frameon=False,
            ncols=min(len(keys), 8), fontsize=7.5, handletextpad=0.2, columnspacing=0.9,
        )  # fmt: skip
        style.foot(
            figure,
            f"Filled: an order wins (its {summary.level:.0%} interval excludes 0). Tinted: the "
            "zero fraction is right.",
        )
    return figure


def takeaway(comparisons: list[Comparison] | tuple[Comparison, ...]) -> str:
    """One line from the data: who wins on either side."""
    won = {True: [0, 0], False: [0, 0]}  # prune first, quantize first
    for cell in (cell for c in comparisons for cell in c.cells):
        if cell.winner in WON and cell.zero_fraction is not None:
            won[cell.zeros_say > 0][cell.advantage > 0] += 1
    (lost, right), (left, missed) = won[True], won[False]
    return (
        f"where Z ≥ ratio quantizing first wins {right} of {right + lost} cells,\n"
        f"where Z < ratio pruning first wins {left} of {left + missed}"
    )


def _panel(
    ax: Axes,
    comparisons: list[Comparison],
    colours: dict[str, str],
    shapes: dict[str, str],
    factor: float,
    limit: float,
) -> None:
    ax.set_yscale("symlog", linthresh=LIKE * factor if factor > 1 else LIKE, linscale=0.8)
    ax.set_ylim(-limit, limit)
    ax.axhline(0, color=style.INK, lw=0.8, zorder=1)
    ax.axvline(0, color=style.INK, lw=0.8, zorder=1)
    ax.axvspan(0, 2, 0.5, 1, color=style.QUANTIZE_FIRST, alpha=0.08, lw=0, zorder=0)
    ax.axvspan(-2, 0, 0, 0.5, color=style.PRUNE_FIRST, alpha=0.08, lw=0, zorder=0)
    known = [(c, cell) for c in comparisons for cell in c.cells if cell.zero_fraction is not None]
    for comparison, cell in known:
        colour, shape = colours[comparison.grid], shapes[comparison.methods[1]]
        at, value = (cell.zero_fraction or 0.0) - cell.sparsity, cell.advantage * factor
        if cell.low is not None and cell.high is not None:
            ends = [cell.low * factor, cell.high * factor]
            ax.plot([at, at], ends, color=colour, lw=0.7, alpha=0.35, zorder=2)
        face = colour if cell.winner in WON else "white"
        ax.plot(at, value, shape, color=colour, mfc=face, ms=4.2, mew=0.9, zorder=3)
    places = [(cell.zero_fraction or 0.0) - cell.sparsity for _, cell in known] or [0.0]
    low, high = min([*places, -0.05]), max([*places, 0.05])
    ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    ax.text(
        0.985, 0.97, "quantize first wins", ha="right", va="top", size=7.5,
        color=style.QUANTIZE_FIRST, transform=ax.transAxes,
    )  # fmt: skip
    ax.text(
        0.015, 0.03, "prune first wins", ha="left", va="bottom", size=7.5,
        color=style.PRUNE_FIRST, transform=ax.transAxes,
    )  # fmt: skip
