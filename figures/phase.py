"""Phase diagrams: which order wins over (pruned, bits), for stages that see less or more.

Drawn from the record of ``python -m theory verify``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from figures import style

LETTER = {-1: "P", 0: "", 1: "Q"}
WORDS = {
    "blind": "blind: magnitude, rounding",
    "aware": "P, when last, knows the dense weights",
    "compensated": "compensated: OBS pruning, GPTQ",
    "dense target": "the same, Q→P aims at the dense row",
}


def draw(record: dict[str, Any]) -> Figure | None:
    """A panel a stage (across) and input correlation (down); None without diagrams."""
    diagrams = record["phase"]["diagrams"]
    if not diagrams:
        return None
    stages = list(dict.fromkeys(d["stage"] for d in diagrams))
    rhos = list(dict.fromkeys(d["rho"] for d in diagrams))
    largest = max(float(np.abs(d["advantage"]).max()) for d in diagrams)
    norm = SymLogNorm(linthresh=0.002, vmin=-largest, vmax=largest, base=10)
    weights = diagrams[0]["weights"]
    head, foot = 0.86, style.FOOT
    tall = 2.05 * len(rhos) + head + foot
    with style.look():
        figure = Figure(figsize=(3.5 * len(stages) + 1.2, tall), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.0, foot / tall, 1.0, 1.0 - (head + foot) / tall), h_pad=0.06)
        figure.text(0.012, 1 - 0.12 / tall, title(diagrams), size=13, weight="bold", va="top")
        figure.text(
            0.012,
            1 - 0.42 / tall,
            f"A(Q→P) on rows of {weights} normal weights, every mask tried; grids fixed, of least "
            "error. A > 0: quantizing first is better. ρ: correlation of neighbouring inputs.",
            size=8.5,
            color=style.MUTED,
            va="top",
        )
        axes = figure.subplots(len(rhos), len(stages), squeeze=False, sharex=True, sharey=True)
        for d in diagrams:
            ax = axes[rhos.index(d["rho"]), stages.index(d["stage"])]
            _panel(ax, d, norm)
            if d["rho"] == rhos[0]:
                ax.set_title(WORDS.get(d["stage"], d["stage"]))
            if d["stage"] == stages[0]:
                ax.set_ylabel(f"ρ = {d['rho']:g}\nbits")
            if d["rho"] == rhos[-1]:
                ax.set_xlabel("pruned")
        ticks = [-0.1, -0.01, 0, 0.01, 0.1]
        bar = figure.colorbar(ScalarMappable(norm, style.DIVERGING), ax=axes, aspect=30, pad=0.02)
        bar.set_ticks([t for t in ticks if abs(t) <= largest])
        bar.set_ticklabels([f"{t:+.0%}" if t else "0" for t in ticks if abs(t) <= largest])
        bar.outline.set_visible(False)
        bar.set_label("A(Q→P), of the row's energy\n← prune first      quantize first →")
        style.foot(
            figure,
            "P, Q: pruning / quantizing first wins (mean A beyond two standard errors). "
            "=: A is 0 in every row. Black line: where both methods alone do equal harm;\nthe "
            "intensity hypothesis (PIH) says P to the left of it (quantization is the stronger), Q "
            "to the right.",
        )
    return figure


def title(diagrams: list[dict[str, Any]]) -> str:
    """The takeaway, from the data: how often the gap has the right sign, and who wins where."""
    wins: dict[str, np.ndarray] = {}
    right = won = 0
    for d in diagrams:
        sign = np.asarray(d["sign"])
        decided = sign != 0
        right += int(np.sum((sign == np.sign(d["gap"])) & decided))
        won += int(np.sum(decided))
        here = np.array([np.sum(sign < 0), np.sum(sign > 0)])
        wins[d["stage"]] = wins.get(d["stage"], 0) + here
    parts = ", ".join(f"{stage} {p}:{q}" for stage, (p, q) in wins.items())
    share = f"{right / won:.0%}" if won else "none"
    return f"The gap foretells {share} of the cells won. Won by P:Q first, {parts}"


def _panel(ax: Axes, d: dict[str, Any], norm: SymLogNorm) -> None:
    a, sign = np.asarray(d["advantage"]).T, np.asarray(d["sign"]).T  # [bits, k]
    gap, never = np.asarray(d["gap"]).T, np.asarray(d["never"]).T
    ax.pcolormesh(a, cmap=style.DIVERGING, norm=norm, edgecolors="white", linewidth=1.0)
    for i, j in np.ndindex(a.shape):
        text = "=" if never[i, j] else LETTER[int(sign[i, j])]
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", size=7.5, color=style.INK)
    for i, j in np.ndindex(gap.shape):  # the border between gap < 0 and gap > 0
        if j + 1 < gap.shape[1] and (gap[i, j] > 0) != (gap[i, j + 1] > 0):
            ax.plot([j + 1, j + 1], [i, i + 1], color="black", linewidth=1.6)
        if i + 1 < gap.shape[0] and (gap[i, j] > 0) != (gap[i + 1, j] > 0):
            ax.plot([j, j + 1], [i + 1, i + 1], color="black", linewidth=1.6)
    n = d["weights"]
    shown = [k for k in range(1, n) if k % 3 == 0]
    ax.set_xticks([k - 0.5 for k in shown], [f"{k / n:.0%}" for k in shown])
    ax.set_yticks(np.arange(len(d["bits"])) + 0.5, [str(b) for b in d["bits"]])
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(length=0)
