"""How far the claims are from failing: histograms of margins, sampled, with what the attack found.

Drawn from the record of ``python -m theory verify``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style

FLOOR = -15.5  # log10 at which exact zeros and rounding are drawn


def draw(record: dict[str, Any]) -> Figure | None:
    """A panel a statement with bounds; identities have no room, only rounding."""
    panels = []
    for s in record["statements"]:
        bounds = [c for c in s["claims"] if c["relation"] == "<="]
        if bounds:
            panels.append((s, bounds))
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    head, foot = 0.86, 0.62
    tall = 2.15 * rows + head + foot
    with style.look():
        figure = Figure(figsize=(4.2 * columns, tall), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.0, foot / tall, 1.0, 1.0 - (head + foot) / tall), h_pad=0.07, w_pad=0.1)
        sampled = sum(s["instances"] for s in record["statements"])
        failed = sum(c["failures"] for s in record["statements"] for c in s["claims"])
        figure.text(
            0.012,
            1 - 0.12 / tall,
            f"{sampled:,} instances, {failed or 'no'} violations",
            size=13,
            weight="bold",
            va="top",
        )
        figure.text(
            0.012,
            1 - 0.42 / tall,
            "Margins (right − left)/scale of every bound, by size; a bar at the left: equality to "
            "rounding.",
            size=8.5,
            color=style.MUTED,
            va="top",
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax, (s, bounds) in zip(axes.flat, panels, strict=False):
            _panel(ax, s["name"], bounds)
        for ax in axes.flat[max(0, len(panels) - columns) : len(panels)]:
            ax.set_xlabel("log10 of the margin")
            ax.tick_params(labelbottom=True)
        style.foot(
            figure,
            "Share of instances by half decades of the margin. Triangle: the smallest margin that "
            "the attack reached. Instances where a bound says 0 ≤ 0 are equalities.",
        )
    return figure


def _panel(ax: Axes, name: str, claims: list[dict[str, Any]]) -> None:
    for claim, colour in zip(claims, style.ramp(len(claims)), strict=True):
        counts = np.asarray(claim["histogram"], float)
        # below -1e-12, to -1e-15, about 0 | half decades from 1e-15 up
        near, rest = counts[:3].sum(), counts[3:]
        at = np.concatenate([[FLOOR], -15 + 0.5 * np.arange(len(rest)) + 0.25])
        share = np.concatenate([[near], rest]) / counts.sum()
        ax.step(at, share, where="mid", color=colour, label=claim["name"])
        reached = np.log10(max(float(claim["attacked"]), 10**FLOOR))
        ax.plot([reached], [-0.06], marker="^", color=colour, clip_on=False, markersize=5)
    ax.set_title(name)
    ax.set_ylim(-0.1, None)
    ax.legend(frameon=False, fontsize=7, loc="upper center")
