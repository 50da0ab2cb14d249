"""A(Q->P) against C*_P - C_Q: does the advantage of an order follow the gap in intensity?

One panel a pruner x quantizer, one curve a pruning ratio, its points the bit widths. PIH claims
a rising cloud (trend) that stays in the two tinted quadrants (sign).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import kendalltau

from experiments.summary import (
    BROKEN,
    DAMAGED,
    LOSS,
    NO_INTERVAL,
    Cell,
    Comparison,
    Measure,
    Summary,
    measure_of,
)
from figures import style

FADED = (DAMAGED, BROKEN)
SYMLOG_FROM = 25.0  # largest |A| over its median: beyond, a linear axis hides most cells


def draw(summary: Summary, model: str, scale: str) -> Figure:
    """The figure of one model on one scale of ``summary.scales``."""
    comparisons = summary.select(model, scale)
    measure = measure_of(comparisons[0].measure)
    sparsities = sorted({cell.sparsity for c in comparisons for cell in c.cells})
    colours = dict(zip(sparsities, style.ramp(len(sparsities)), strict=True))
    every = [cell for c in comparisons for cell in c.cells]
    alike = [cell for c in summary.comparisons_on(scale) for cell in c.cells]
    limit, threshold = _range(alike if _one_measure(summary, scale) else every, measure)
    title = f"{style.name(summary, model)}: {takeaway(comparisons)}"
    over = summary.mean_on(model, scale)
    subtitle = _subtitle(over, measure, threshold)
    with style.look():
        figure, placed = style.panels(comparisons, 4.4, 2.6, title, subtitle, share=True)
        for comparison, ax in placed:
            _axes(ax, comparison, limit, threshold)
            for sparsity in sparsities:
                line = [cell for cell in comparison.cells if cell.sparsity == sparsity]
                _curve(ax, line, colours[sparsity], measure)
            _bit_labels(ax, comparison, measure)
            if style.first_column(ax):
                ax.set_ylabel(f"A(Q→P), {style.unit(measure)}")
            if style.last_row(ax):
                ax.set_xlabel("C*$_P$ − C$_Q$   (right: pruning is the stronger)")
        _x_range([ax for _, ax in placed], every)
        _key(figure, colours, any(c.status in ("above", "below", "mixed") for c in every))
        kind = f"intervals over {over}" if over else "bootstrap intervals"
        bands = f"bands: {summary.level:.0%} {kind}"
        told = any(cell.low is not None for cell in every)
        faded = any(cell.state in FADED for cell in every)
        style.foot(
            figure,
            f"Points: bit widths (numbers); {bands if told else 'no intervals'}. "
            "τ: along the bits of each ratio.\nTinted: the order PIH expects (the stronger method "
            "last) wins."
            + (
                f" Faded: not usable, the better order loses more than {LOSS:g} nats."
                if faded
                else ""
            ),
        )
    return figure


def _one_measure(summary: Summary, scale: str) -> bool:
    """Whether all models are compared by one measure, and so may share an axis."""
    return len({c.measure for c in summary.comparisons_on(scale)}) == 1


def takeaway(comparisons: Iterable[Comparison]) -> str:
    """One line from the data: how often the gap's sign is right, against the better baseline."""
    comparisons = list(comparisons)
    scores = [c.score for c in comparisons]
    counted = sum(s.counted for s in scores)
    if not counted:
        if all(cell.winner == NO_INTERVAL for c in comparisons for cell in c.cells):
            return "no intervals in this measure, so no cell has a winner"
        return "no cell shows a significant order effect with a known gap"
    rules = {
        "pruning": sum(s.prune_first for s in scores) / counted,
        "quantizing": sum(s.quantize_first for s in scores) / counted,
    }
    name, best = max(rules.items(), key=lambda item: item[1])
    right = sum(s.pih for s in scores) / counted
    return (
        f"the gap's sign names the winner in {right:.0%} of {counted} decided cells, "
        f"always {name} first in {best:.0%}"
    )


def _subtitle(over: str, measure: Measure, threshold: float | None) -> str:
    runs = f"; mean of {over}" if over else ""
    axis = f"; vertical axis linear within ±{threshold:g}, logarithmic beyond" if threshold else ""
    return (
        f"A(Q→P) = M(quantize first) − M(prune first), M = {measure.label}; "
        f"gap in intensity = C*$_P$ − C$_Q$, C = dense bits / stored bits{axis}{runs}"
    )


def _key(figure: Figure, colours: dict[float, str], censored: bool) -> None:
    keys = [
        Line2D([], [], color=colour, marker="o", ms=4, label=f"{sparsity:.0%} pruned")
        for sparsity, colour in colours.items()
    ]
    if censored:
        label = "C*$_P$ beyond the curve: a bound"
        keys.append(
            Line2D([], [], color=style.MUTED, marker=">", ms=5, mfc="white", ls="", label=label)
        )
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0.005, 0.28 / figure.get_figheight()),
        ncols=min(len(keys), int(figure.get_figwidth() / 1.2)),
        frameon=False,
        fontsize=8,
        handlelength=1.4,
        handletextpad=0.5,
        columnspacing=1.1,
    )


def _range(cells: list[Cell], measure: Measure) -> tuple[float, float | None]:
    """Half-height of the axis, and the symlog threshold where the range demands one."""
    ends = [abs(x) for c in cells for x in (c.advantage, c.low, c.high) if x is not None]
    limit = max(ends, default=0.0) * measure.factor or 1.0
    sizes = [abs(c.advantage) * measure.factor for c in cells if c.advantage]
    middle = median(sizes) if sizes else limit
    if limit <= SYMLOG_FROM * middle:
        return 1.12 * limit, None
    return 2.0 * limit, 10.0 ** math.floor(math.log10(middle))


def _axes(ax: Axes, comparison: Comparison, limit: float, threshold: float | None) -> None:
    if threshold is not None:
        ax.set_yscale("symlog", linthresh=threshold, linscale=0.6)
    ax.set_ylim(-limit, limit)
    ax.axhline(0, color=style.INK, lw=0.8, zorder=1)
    ax.axvline(0, color=style.INK, lw=0.8, zorder=1)
    # the two quadrants of a correct sign, in the colour of the order that wins there
    for low, high, x, colour in (
        (0.5, 1.0, 1e3, style.QUANTIZE_FIRST),
        (0.0, 0.5, -1e3, style.PRUNE_FIRST),
    ):
        ax.axvspan(0, x, low, high, color=colour, alpha=0.08, lw=0, zorder=0)
    curves = (f"{s:.0%} {tau:+.1f}" for s, tau in taus_of_curves(comparison).items())
    told = "τ: " + ",  ".join(curves).replace("-", "−")
    ax.set_title(f"{comparison.pruner} × {comparison.quantizer}")
    ax.set_title(told, loc="right", weight="normal", color=style.MUTED, size=8)
    # in the corners where PIH expects nothing
    ax.text(
        0.015, 0.97, "quantize first wins", ha="left", va="top", size=7.5,
        color=style.QUANTIZE_FIRST, transform=ax.transAxes, zorder=5,
    )  # fmt: skip
    ax.text(
        0.985, 0.03, "prune first wins", ha="right", va="bottom", size=7.5,
        color=style.PRUNE_FIRST, transform=ax.transAxes, zorder=5,
    )  # fmt: skip


def _x_range(axes: list[Axes], cells: list[Cell]) -> None:
    gaps = [cell.gap for cell in cells if cell.gap is not None]
    low, high = min([*gaps, -0.5]), max([*gaps, 0.5])
    pad = 0.08 * (high - low)
    for ax in axes:
        ax.set_xlim(low - pad, high + pad)


def _curve(ax: Axes, cells: list[Cell], colour: str, measure: Measure) -> None:
    known = [cell for cell in cells if cell.gap is not None]
    if not known:
        return
    x = [float(cell.gap or 0.0) for cell in known]
    y = [cell.advantage * measure.factor for cell in known]
    ax.plot(x, y, color=colour, lw=1.2, zorder=3, alpha=0.45)
    band = [(at, c.low, c.high) for at, c in zip(x, known, strict=True) if c.low is not None]
    if band:
        at_band, low, high = (np.array(part, float) for part in zip(*sorted(band), strict=True))
        ax.fill_between(
            at_band, low * measure.factor, high * measure.factor, color=colour, alpha=0.15, lw=0
        )
    for cell, at, value in zip(known, x, y, strict=True):
        alpha = 0.3 if cell.state in FADED else 1.0
        if cell.low is not None and cell.high is not None:
            ends = [cell.low * measure.factor, cell.high * measure.factor]
            ax.plot([at, at], ends, color=colour, lw=0.9, alpha=0.7 * alpha, zorder=2)
        left, right = math.isinf(cell.gap_low), math.isinf(cell.gap_high)
        marker = {(True, False): "<", (False, True): ">", (True, True): "D"}.get((left, right), "o")
        face = "white" if left or right else colour
        ax.plot(at, value, marker, color=colour, mfc=face, ms=4.5, mew=1.0, zorder=4, alpha=alpha)


def taus_of_curves(comparison: Comparison) -> dict[float, float]:
    """Kendall's tau-b of A against the gap along the bits of every sparsity; of the means."""
    found = {}
    for sparsity in sorted({cell.sparsity for cell in comparison.cells}):
        line = [c for c in comparison.cells if c.sparsity == sparsity]
        # C*_P is one for all of them, so the gap's order is that of -C_Q, however censored
        gaps = [-c.quantizer_ratio for c in line if c.quantizer_ratio is not None]
        if len(gaps) == len(line) > 1:
            tau = kendalltau(gaps, [c.advantage for c in line]).statistic
            if math.isfinite(tau):
                found[sparsity] = float(tau)
    return found


def _bit_labels(ax: Axes, comparison: Comparison, measure: Measure) -> None:
    """Name the bit widths once a panel, on the curve that reaches farthest from zero."""
    by_ratio: dict[float, list[Cell]] = {}
    for cell in comparison.cells:
        if cell.gap is not None:
            by_ratio.setdefault(cell.sparsity, []).append(cell)
    if not by_ratio:
        return
    farthest = max(by_ratio.values(), key=lambda line: median(abs(c.advantage) for c in line))
    for cell in farthest:
        up = cell.advantage >= 0
        end = cell.high if up else cell.low  # clear of the error bar
        at = (cell.advantage if end is None else end) * measure.factor
        ax.annotate(
            str(cell.bits),
            (float(cell.gap or 0.0), at),
            xytext=(0, 4 if up else -4),
            textcoords="offset points",
            ha="center",
            va="bottom" if up else "top",
            size=7,
            color=style.MUTED,
            zorder=6,
        )
