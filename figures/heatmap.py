"""A(Q->P) over the grid: which order wins at each pruning ratio and bit width, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from experiments.summary import (
    EQUAL,
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Cell,
    Comparison,
    Measure,
    Summary,
    measure_of,
)
from figures import style

ROBUST = 0.8  # quantile of |A| at which the colours saturate: 2-bit cells would own the scale
LETTER = {PRUNE_FIRST: "P", QUANTIZE_FIRST: "Q", EQUAL: "="}
# where PIH changes its mind, and where the zero fraction does
GAP_LINE = {"color": style.INK, "lw": 2.2, "solid_capstyle": "round"}
ZERO_LINE = {"color": "#009E73", "lw": 2.2, "ls": (0, (1.2, 1.2))}
HATCH = {UNDECIDED: "////", NO_INTERVAL: "...."}  # a strong colour must not pass for a finding


def draw(summary: Summary, model: str, scale: str) -> Figure:
    """The figure of one model on one scale of ``summary.scales``."""
    comparisons = summary.select(model, scale)
    measure = measure_of(comparisons[0].measure)
    cells = [cell for c in comparisons for cell in c.cells]
    sparsities = sorted({cell.sparsity for cell in cells})
    bits = sorted({cell.bits for cell in cells}, reverse=True)
    sizes = [abs(cell.advantage) * measure.factor for cell in cells]
    limit = float(np.quantile(sizes, ROBUST)) or max(sizes) or 1.0
    norm = Normalize(-limit, limit)
    width, height = 0.62 * len(bits) + 1.0, 0.40 * len(sparsities) + 0.6
    title = f"{style.name(summary, model)}: {takeaway(comparisons)}"
    subtitle = _subtitle(summary.mean_on(model, scale), measure)
    with style.look():
        figure, placed = style.panels(
            comparisons, max(width, 3.2), max(height, 1.6), title, subtitle
        )
        for comparison, ax in placed:
            _panel(ax, comparison, sparsities, bits, norm, measure)
            if style.first_column(ax):
                ax.set_ylabel("pruned")
            if style.last_row(ax):
                ax.set_xlabel("bits")
        bar = figure.colorbar(
            ScalarMappable(norm, style.DIVERGING),
            ax=[ax for _, ax in placed],
            extend="both",
            aspect=30,
            pad=0.02,
        )
        bar.outline.set_visible(False)
        bar.set_label(f"A(Q→P), {style.unit(measure)}\n← prune first      quantize first →")
        marks = (
            f"P, Q: pruning / quantizing first wins (the {summary.level:.0%} interval of A "
            "excludes 0). Hatched: open. =: both orders give the same answers."
        )
        if any(cell.winner == NO_INTERVAL for cell in cells):
            marks = "Dotted: this measure has no intervals, so no winner can be told."
        style.foot(
            figure,
            f"{marks}\nNumber: A in {style.unit(measure)}. Colours saturate at the {ROBUST:.0%} "
            "quantile of |A|. Crossed: not measured.\nBlack line: above it PIH says quantize "
            "first. Green dots: below it the quantizer alone zeroes at least the ratio.",
        )
    return figure


def takeaway(comparisons: Iterable[Comparison]) -> str:
    """One line from the data: which order wins how many cells."""
    wins: Counter[str] = Counter()
    for comparison in comparisons:
        wins += comparison.wins
    total, p, q = sum(wins.values()), wins[PRUNE_FIRST], wins[QUANTIZE_FIRST]
    if wins[NO_INTERVAL] == total:
        return f"no intervals in this measure, so none of {total} cells has a winner"
    if not p and not q:
        return f"neither order wins any of {total} cells"
    rest = total - p - q
    tail = f"; {rest} open or equal" if rest else ""
    if p == q:
        return f"each order wins {p} of {total} cells{tail}"
    leader, most, least = ("pruning", p, q) if p > q else ("quantizing", q, p)
    return f"{leader} first wins {most} of {total} cells, the other order {least}{tail}"


def _subtitle(over: str, measure: Measure) -> str:
    runs = f"; mean of {over}" if over else ""
    return f"A(Q→P) = M(quantize first) − M(prune first), M = {measure.label}{runs}"


def _panel(
    ax: Axes,
    comparison: Comparison,
    sparsities: list[float],
    bits: list[int],
    norm: Normalize,
    measure: Measure,
) -> None:
    grid = np.full((len(sparsities), len(bits)), np.nan)
    found: dict[tuple[int, int], Cell] = {}
    for cell in comparison.cells:
        at = sparsities.index(cell.sparsity), bits.index(cell.bits)
        grid[at], found[at] = cell.advantage * measure.factor, cell
    ax.pcolormesh(grid, cmap=style.DIVERGING, norm=norm, edgecolors="white", linewidth=1.5)
    for row in range(len(sparsities)):
        for column in range(len(bits)):
            if (row, column) in found:
                _mark(ax, found[row, column], column + 0.5, row + 0.5, norm, measure)
            else:
                ax.plot(column + 0.5, row + 0.5, "x", color=style.RULE, ms=6)
    ax.set_xticks(np.arange(len(bits)) + 0.5, [str(width) for width in bits])
    ax.set_yticks(np.arange(len(sparsities)) + 0.5, [f"{s:.0%}" for s in sparsities])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.set_title(f"{comparison.pruner} × {comparison.quantizer}")
    for says, line in ((_gap_says, GAP_LINE), (lambda cell: cell.zeros_say, ZERO_LINE)):
        _border(ax, says, found, len(sparsities), len(bits), line)


def _gap_says(cell: Cell) -> int:
    """Of PIH: 1 quantize first, -1 prune first, 0 neither."""
    return 1 if cell.gap_low > 0 else -1 if cell.gap_high < 0 else 0


def _border(
    ax: Axes,
    says: Callable[[Cell], int],
    found: dict[tuple[int, int], Cell],
    rows: int,
    columns: int,
    line: dict[str, Any],
) -> None:
    """Between cells of which a rule says one thing and those of which it says the other."""
    for row in range(rows):
        for column in range(columns):
            here = found.get((row, column))
            for other, ends in (
                ((row, column + 1), ((column + 1, column + 1), (row, row + 1))),
                ((row + 1, column), ((column, column + 1), (row + 1, row + 1))),
            ):
                there = found.get(other)
                if here and there and says(here) * says(there) < 0:
                    ax.plot(*ends, zorder=5, clip_on=False, **line)


def _mark(ax: Axes, cell: Cell, x: float, y: float, norm: Normalize, measure: Measure) -> None:
    value = cell.advantage * measure.factor
    letter = LETTER.get(cell.winner, "")
    depth = abs(value) / (norm.vmax or 1.0)
    colour = "white" if depth > 0.75 else style.INK
    if cell.winner in HATCH:
        hatch = HATCH[cell.winner]
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch=hatch, lw=0, ec="white"))
    number = "" if cell.winner == EQUAL else _brief(value)
    if letter:
        own = {PRUNE_FIRST: style.PRUNE_FIRST, QUANTIZE_FIRST: style.QUANTIZE_FIRST}
        strong = own.get(cell.winner, style.MUTED) if depth < 0.35 else colour
        ax.text(x - 0.42, y, letter, ha="left", va="center", size=9, weight="bold", color=strong)
    plain = {"boxstyle": "square,pad=0.1", "lw": 0, "fc": style.DIVERGING(norm(value))}
    ax.text(x + 0.44, y, number, ha="right", va="center", size=6.5, color=colour, bbox=plain)


def _brief(value: float) -> str:
    """Two digits, no leading zero: a cell is half an inch wide."""
    size = abs(value)
    if size >= 9999.5:
        text = f"{size:.0e}".replace("e+0", "e").replace("e+", "e")
    elif size < 0.0005:
        text = "0"
    else:
        text = f"{size:.0f}" if size >= 9.95 else f"{size:.1f}" if size >= 0.995 else f"{size:.2g}"
        text = text if size >= 0.00995 else f"{size:.3f}"
        text = text.removeprefix("0") if size < 0.995 else text
    return text if text == "0" else ("−" if value < 0 else "+") + text
