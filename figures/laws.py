"""The laws that decide, a panel each: which order wins, as a function of what.

Drawn from the record of ``python -m theory verify``.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style

COLUMNS = 3
ADVANTAGE = "A("  # in what a picture shows: it has two sides


def draw(record: dict[str, Any]) -> Figure | None:
    """A panel a law; None for a record of statements without one."""
    told = [s for s in record["statements"] if s.get("law")]
    if not told:
        return None
    rows = -(-len(told) // COLUMNS)
    head, foot = 0.86, 0.62
    tall = 2.5 * rows + head + foot
    with style.look():
        figure = Figure(figsize=(4.2 * COLUMNS, tall), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.0, foot / tall, 1.0, 1.0 - (head + foot) / tall), h_pad=0.09, w_pad=0.1)
        figure.text(0.012, 1 - 0.12 / tall, _title(told), size=13, weight="bold", va="top")
        figure.text(
            0.012,
            1 - 0.42 / tall,
            "Lines: closed forms; points: measured. Errors are of the weights, or of the outputs "
            "of a row where inputs are correlated.",
            size=8.5,
            color=style.MUTED,
            va="top",
        )
        axes = figure.subplots(rows, COLUMNS, squeeze=False)
        for ax in axes.flat[len(told) :]:
            ax.set_visible(False)
        for ax, s in zip(axes.flat, told, strict=False):
            _panel(ax, s["title"], s["law"]["picture"])
        style.foot(
            figure,
            "Above 0 (blue) the order Q→P, Q→L or f1→f2 has the less error, below (vermilion) its "
            "reverse; white: no order is compared.",
        )
    return figure


def _title(told: list[dict[str, Any]]) -> str:
    verdicts = Counter(s["law"]["verdict"] for s in told)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    return f"{len(told)} laws that decide the order: {counts}"


def _panel(ax: Axes, title: str, picture: dict[str, Any]) -> None:
    lines = picture["lines"]
    for line, colour in zip(lines, style.ramp(len(lines)), strict=True):
        mark = "o:" if line["points"] else "-"
        ax.plot(line["x"], line["y"], mark, color=colour, label=line["label"], markersize=3.5)
    low, high = ax.get_ylim()
    ax.axhline(0, color=style.RULE, linewidth=0.8, zorder=0)
    if ADVANTAGE in picture["up"]:
        if high > 0:
            ax.axhspan(0, high, color=style.QUANTIZE_FIRST, alpha=0.06, zorder=0)
        if low < 0:
            ax.axhspan(low, 0, color=style.PRUNE_FIRST, alpha=0.06, zorder=0)
    ax.set_ylim(low, high)
    ax.set_title(textwrap.fill(title, 52), fontsize=8.5)
    ax.set_xlabel(picture["across"].replace("->", "→"))
    ax.set_ylabel(picture["up"].replace("->", "→"))
    ax.legend(frameon=False, fontsize=7)
