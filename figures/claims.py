"""What others claim, each test with its interval: right of 0 a claim holds."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.findings.types import Finding, Row
from experiments.summary import FAILS, HOLDS
from figures import style

ROW = 0.17  # inches
COLOURS = {HOLDS: style.QUANTIZE_FIRST, FAILS: style.PRUNE_FIRST}
LIKE = 0.01  # of the unit: the axis is linear within


def draw(findings: Sequence[tuple[Finding, Sequence[Row]]]) -> Figure:
    """All rows of these findings, one below the other."""
    told = [(finding, list(rows)) for finding, rows in findings if rows]
    every = [row for _, rows in told for row in rows]
    holds, fails = (sum(row.stands == v for row in every) for v in (HOLDS, FAILS))
    tall = ROW * (len(every) + 1.8 * len(told)) + 1.35
    with style.look():
        figure = Figure(figsize=(8.4, tall), layout="constrained")
        engine = figure.get_layout_engine()
        engine.set(rect=(0.0, 0.35 / tall, 1.0, 1.0 - 0.95 / tall))  # type: ignore[union-attr,call-arg]
        title = f"Of {len(every)} tests of what others claim {holds} hold and {fails} fail"
        figure.text(0.012, 1 - 0.12 / tall, title, size=12, weight="bold", va="top")
        subtitle = "The statistic of each test less what it must be above, with its 95 % interval"
        figure.text(0.012, 1 - 0.38 / tall, subtitle, size=8.5, color=style.MUTED, va="top")
        ax = figure.subplots()
        ax.axvline(0, color=style.INK, lw=0.8)
        place, ticks, names = 0.0, [], []
        for finding, rows in told:
            ax.text(
                -0.01, -place, f"{finding.key} {finding.title}", transform=ax.get_yaxis_transform(),
                ha="right", va="center", size=7.8, weight="bold",
            )  # fmt: skip
            place += 1
            for row in rows:
                e, colour = row.value, COLOURS.get(row.stands, style.MUTED)
                if e.value is not None and e.low is not None and e.high is not None:
                    ends = [e.low - row.above, e.high - row.above]
                    ax.plot(ends, [-place, -place], color=colour, lw=1.6, alpha=0.5)
                    ax.plot(e.value - row.above, -place, "o", color=colour, ms=3.8)
                ticks.append(-place)
                names.append(f"{row.model}{': ' if row.protocol else ''}{_cut(row.protocol)}")
                place += 1
            place += 0.8
        ax.set_yticks(ticks, names, size=6.5)
        ax.set_ylim(-place + 0.5, 0.9)
        ax.set_xscale("symlog", linthresh=LIKE, linscale=0.8)
        ax.tick_params(axis="x", labelsize=7.5)
        ax.set_xlabel("nats, or a share less one half (see FINDINGS.md)")
        style.foot(figure, "Blue: holds. Orange: fails. Grey: undecided, of all tests together.")
    return figure


def _cut(text: str, most: int = 64) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
