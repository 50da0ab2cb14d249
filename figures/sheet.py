"""What figures of chains share: a row of panels with a takeaway above, and lines with intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.analysis.chains import Chains
from experiments.summary import Estimate, short_model
from figures import style

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1A1A1A")  # Okabe-Ito


def sheet(
    panels: int,
    title: str,
    subtitle: str,
    key: str,
    *,
    width: float = 3.3,
    height: float = 2.9,
    colours: Mapping[str, str] | None = None,
    share: bool = False,
    rows: int = 1,
) -> tuple[Figure, list[Axes]]:
    """A figure of panels in ``rows`` rows, each ``width`` by ``height`` inches; inside
    ``style.look()``.

    title: the takeaway; subtitle: what is drawn; key: how to read the marks, below. colours: of
    the lines by their names, told above the panels. share: one y axis for all.
    """
    columns = -(-panels // rows)
    wide = max(width * columns, 7.0)
    title = textwrap.fill(title, int(9.2 * wide))
    subtitle = textwrap.fill(subtitle, int(13.5 * wide))
    key = textwrap.fill(key, int(14.5 * wide))
    below = 0.14 + 0.21 * (title.count("\n") + 1)
    head = below + 0.16 * (subtitle.count("\n") + 1) + 0.1
    named = head
    head += 0.25 if colours else 0.0
    foot = 0.2 + 0.15 * (key.count("\n") + 1)
    tall = rows * height + head + foot
    figure = Figure(figsize=(wide, tall), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.0, foot / tall, 1.0, 1.0 - (head + foot) / tall))
    figure.text(0.012, 1 - 0.12 / tall, title, size=11.5, weight="bold", va="top")
    figure.text(0.012, 1 - below / tall, subtitle, size=8.5, color=style.MUTED, va="top")
    style.foot(figure, key)
    if colours:
        figure.legend(
            handles=[
                Line2D([], [], color=c, marker="o", ms=4.5, label=t) for t, c in colours.items()
            ],
            loc="upper left",
            bbox_to_anchor=(0.005, 1 - (named - 0.08) / tall),
            ncols=len(colours),
            frameon=False,
            fontsize=8,
            columnspacing=1.4,
        )
    axes = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel()
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, list(axes[:panels])


def line(
    ax: Axes,
    x: Sequence[float],
    values: Sequence[Estimate],
    colour: str,
    label: str = "",
    dashed: bool = False,
    marker: str = "o",
) -> None:
    """Estimates over x, joined, each with its interval."""
    known = [(a, e) for a, e in zip(x, values, strict=True) if e.value is not None]
    style_of = "--" if dashed else "-"
    at = [a for a, _ in known]
    ax.plot(at, [e.value or 0.0 for _, e in known], style_of, color=colour, lw=1.4, label=label)
    for a, e in known:
        interval(ax, a, e, colour)
    face = "white" if dashed else colour
    ax.plot(at, [e.value or 0.0 for _, e in known], marker, color=colour, mfc=face, ms=4.5)


def interval(ax: Axes, x: float, e: Estimate, colour: str, width: float = 1.2) -> None:
    if e.low is not None and e.high is not None:
        ax.plot([x, x], [e.low, e.high], color=colour, lw=width, alpha=0.45, solid_capstyle="butt")


def runs(held: Chains) -> str:
    """What every mark is the mean of."""
    seeds, draws = (len({run[i] for run in held.ids}) for i in (0, 1))
    told = f"{seeds} trainings" if seeds > 1 else "one training"
    return told + (f" × {draws} calibration draws" if draws > 1 else "")


def name(held: Chains) -> str:
    return short_model(held.model)
