"""Which rule names the order that wins? Its share of the won cells, and A in another training.

Left: of every model, the share of a run's won cells whose winner a rule names, with its interval
over trainings and draws. Right: every cell's A in one training against A in the next one: what an
order gains has to be there in both, or it is this training's alone.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.rules import ERRORS, GAP, OWNED, PRUNE, QUANTIZE, ZEROS
from experiments.summary import Measure, Summary, Total, measure_of
from figures import style

COLOURS = {
    GAP: "#1A1A1A",
    ZEROS: "#009E73",
    ERRORS: "#CC79A7",
    OWNED: "#7F3C8D",
    PRUNE: style.PRUNE_FIRST,
    QUANTIZE: style.QUANTIZE_FIRST,
}
LIKE = 0.01  # nats: an A that somebody would mind
ROW, SQUARE, HEAD = 0.3, 2.3, 0.75  # inches


def draw(summary: Summary, scale: str) -> Figure:
    """The figure of a study on one scale; ValueError where no model has a total on it."""
    totals = [t for t in summary.totals if t.scale == scale and t.model and t.rules]
    if not totals:
        raise ValueError(f"no model of this study has rules on the scale {scale!r}")
    rules = [rule.name for rule in totals[0].rules]
    measures = {t.model: _measure(summary, t) for t in totals}
    tall = len(totals) * max(SQUARE, ROW * len(rules) + 0.7) + HEAD + style.FOOT
    with style.look():
        figure = Figure(figsize=(8.4, tall), layout="constrained")
        engine = figure.get_layout_engine()
        engine.set(rect=(0.0, style.FOOT / tall, 1.0, 1.0 - (HEAD + style.FOOT) / tall))  # type: ignore[union-attr,call-arg]
        figure.text(0.012, 1 - 0.12 / tall, takeaway(totals), size=12, weight="bold", va="top")
        over = summary.mean_of or "one run"
        subtitle = f"M = {measures[totals[0].model].label}; {over}; {summary.ok} compressed models"
        figure.text(0.012, 1 - 0.4 / tall, subtitle, size=8.5, color=style.MUTED, va="top")
        axes = figure.subplots(len(totals), 2, squeeze=False, width_ratios=(1.5, 1))
        for row, total in zip(axes, totals, strict=True):
            _shares(row[0], total, rules)
            _trainings(row[1], summary, total, measures[total.model])
        axes[-1, 0].set_xlabel("share of won cells whose winner the rule names")
        axes[-1, 1].set_xlabel("A in one training, nats" if scale == "log" else "A in one training")
        style.foot(
            figure,
            f"Left: bars are {summary.level:.0%} intervals; at 50 % a coin. Right: each point a "
            "cell in two trainings (mean over\ndraws); tinted: both give it to one order.",
        )
    return figure


def takeaway(totals: list[Total]) -> str:
    """One line from the data: how often the gap and the best other rule are right, on the first."""
    shares = {rule.name: rule.right.value or 0.0 for rule in totals[0].rules}
    gap = shares.pop(GAP, None)
    best = max(shares, key=lambda name: shares[name])
    told = f"{totals[0].model}: “{best}” names {shares[best]:.0%} of the winners"
    return told if gap is None else f"{told}, PIH's gap {gap:.0%}"


def _measure(summary: Summary, total: Total) -> Measure:
    return measure_of(summary.select(str(total.model), total.scale)[0].measure)


def _shares(ax: Axes, total: Total, rules: list[str]) -> None:
    ax.axvline(0.5, color=style.RULE, lw=1)
    for place, rule in enumerate(reversed(total.rules)):
        share, colour = rule.right, COLOURS.get(rule.name, style.INK)
        if share.value is None:
            continue
        if share.low is not None and share.high is not None:
            ax.plot([share.low, share.high], [place, place], color=colour, lw=2, alpha=0.5)
        ax.plot(share.value, place, "o", color=colour, ms=6)
        ax.text(1.02, place, f"{share.value:.0%}", va="center", color=colour, size=8.5)
    ax.set_yticks(range(len(rules)), list(reversed(rules)))
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.6, len(rules) - 0.4)
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.tick_params(length=0)
    ax.set_title(str(total.model))


def _trainings(ax: Axes, summary: Summary, total: Total, measure: Measure) -> None:
    first, second = pairs_of_trainings(summary, str(total.model), total.scale)
    first, second = first * measure.factor, second * measure.factor
    clear = (np.abs(first) > LIKE) & (np.abs(second) > LIKE)
    agree = (first * second > 0)[clear]
    limit = 2 * max(float(np.abs([first, second]).max(initial=0.0)), LIKE)
    ax.set_xscale("symlog", linthresh=LIKE, linscale=0.7)
    ax.set_yscale("symlog", linthresh=LIKE, linscale=0.7)
    ax.set_xlim(-limit, limit)
    ax.set_ylim(-limit, limit)
    for sign, colour in ((1, style.QUANTIZE_FIRST), (-1, style.PRUNE_FIRST)):
        ax.fill_between([0, sign * limit], 0, sign * limit, color=colour, alpha=0.08, lw=0)
    ax.axhline(0, color=style.INK, lw=0.8)
    ax.axvline(0, color=style.INK, lw=0.8)
    ax.plot(first, second, "o", color=style.INK, ms=2.2, alpha=0.35, mew=0)
    ticks = [-LIKE * 10, -LIKE, 0, LIKE, LIKE * 10]
    ax.set_xticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
    ax.set_yticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
    ax.minorticks_off()
    ax.set_ylabel("A in the next")
    told = f"one sign in {agree.mean():.0%} of {agree.size}" if agree.size else "no clear cell"
    ax.set_title(told, weight="normal", color=style.MUTED, size=8.5)


def pairs_of_trainings(summary: Summary, model: str, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """A of every cell in a training and in the next one, around; each the mean over draws."""
    first: list[float] = []
    second: list[float] = []
    for comparison in summary.select(model, scale):
        for cell in comparison.cells:
            by_seed: dict[int, list[float]] = {}
            for (seed, _), value in zip(cell.runs, cell.advantage_by_run, strict=True):
                by_seed.setdefault(seed, []).append(value)
            means = [float(np.mean(values)) for _, values in sorted(by_seed.items())]
            if len(means) > 1:
                first += means
                second += [*means[1:], means[0]]
    return np.array(first), np.array(second)
