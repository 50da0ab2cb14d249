"""The affine law of theorem 2b against Monte Carlo, and against real rounding (theorem 2a).

Drawn from the record of ``python -m theory verify``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style

SHOWN = (0.25, 0.5, 0.75)  # fractions pruned, of the panel on rounding


def draw(record: dict[str, Any]) -> Figure | None:
    """Three panels: along sparsity, along the gap, and where the law stops applying."""
    data = record["affine"]
    head, tall = 0.86, 4.3
    with style.look():
        figure = Figure(figsize=(12.2, tall), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.0, 0.3 / tall, 1.0, 1.0 - (head + 0.3) / tall), w_pad=0.12)
        figure.text(0.012, 1 - 0.12 / tall, _title(data), size=13, weight="bold", va="top")
        figure.text(
            0.012,
            1 - 0.42 / tall,
            "Normal weights of variance s², magnitude pruning of a fraction p. Lines: closed "
            "forms; points: Monte Carlo, bars of two standard errors (400,000 weights).",
            size=8.5,
            color=style.MUTED,
            va="top",
        )
        left, middle, right = figure.subplots(1, 3)
        _along_sparsity(left, data)
        _along_gap(middle, data["gap"])
        _on_grids(right, data["rounding"])
    return figure


def _title(data: dict[str, Any]) -> str:
    """The takeaway; how well the law does on real grids is counted."""
    exact, law = (np.asarray(data["rounding"][k]) for k in ("exact", "law"))
    close = int(np.sum((exact / law > 0.5) & (exact / law < 2)))
    return (
        "Independent noise: A is affine in the gap, never positive. On real grids the law is "
        f"within a factor 2 in {close} of {law.size} cells"
    )


def _along_sparsity(ax: Axes, data: dict[str, Any]) -> None:
    points = data["points"]
    for i, (v, colour) in enumerate(zip(data["v"], style.ramp(len(data["v"])), strict=True)):
        ax.plot(data["p"], data["law"][i], color=colour)
        ax.errorbar(
            points["p"],
            [row[i] for row in points["mean"]],
            [2 * row[i] for row in points["error"]],
            fmt="o",
            color=colour,
            markersize=3.5,
        )
        low = int(np.argmin(data["law"][i]))
        ax.annotate(
            f"v = {v:g} s²",
            (data["p"][low], data["law"][i][low]),
            xytext=(-4, -10),
            textcoords="offset points",
            ha="right",
            color=colour,
            size=8,
        )
    ax.axvline(data["turn"], color=style.RULE, linewidth=1)
    ax.annotate(
        f"p = {data['turn']:.4f}",
        (data["turn"], 0.004),
        ha="center",
        size=8,
        color=style.MUTED,
    )
    ax.axhline(0, color=style.RULE, linewidth=0.8)
    ax.set_title("along sparsity: turns at 68 %")
    ax.set_xlabel("fraction pruned p   (gap grows →)")
    ax.set_ylabel("A(Q→P) / κns²")


def _along_gap(ax: Axes, data: dict[str, Any]) -> None:
    for i, (p, colour) in enumerate(zip(data["p"], style.ramp(len(data["p"])), strict=True)):
        ax.plot(data["gap"][i], data["law"][i], color=colour)
        ax.errorbar(
            data["gap"][i],
            data["mean"][i],
            [2 * e for e in data["error"][i]],
            fmt="o",
            color=colour,
            markersize=3.5,
        )
        ax.annotate(
            f"p = {p:.0%}",
            (data["gap"][i][-1], data["law"][i][-1]),
            xytext=(7, -3),
            textcoords="offset points",
            color=colour,
            size=8,
        )
    ax.axhline(0, color=style.RULE, linewidth=0.8)
    ax.axvline(0, color=style.RULE, linewidth=0.8)
    ax.set_title("along the noise: trend right, sign wrong")
    ax.set_xlabel("gap G(Q,P) / κns²   (> 0: pruning is the stronger)")


def _on_grids(ax: Axes, data: dict[str, Any]) -> None:
    bits = list(data["bits"])
    rows = [i for i, p in enumerate(data["p"]) if p in SHOWN]
    for i, colour in zip(rows, style.ramp(len(rows)), strict=True):
        ax.plot(bits, data["law"][i], color=colour, linestyle="--", linewidth=1)
        label = f"{data['p'][i]:.0%} pruned"
        ax.plot(bits, data["exact"][i], color=colour, marker="o", markersize=3.5, label=label)
    ax.set_yscale("symlog", linthresh=1e-4)
    ax.set_ylim(top=3e-5)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    ax.set_title("on real grids: exact (solid), law (dashed)")
    ax.set_xlabel("bits   (gap grows →)")
