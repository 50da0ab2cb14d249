"""What studies with replicates found, as Markdown: the README's tables.

Reads summaries (:class:`experiments.summary.Summary`) and computes nothing but counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from experiments.analysis.rules import GAP, PRUNE, ZEROS
from experiments.analysis.totals import FALSE, winners
from experiments.report.table import changed_verdicts, setting_name
from experiments.summary import (
    CLAIMS,
    FAILS,
    HOLDS,
    LOSS,
    NO_VERDICT,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    USABLE,
    Choice,
    Comparison,
    Estimate,
    Summary,
    Total,
    Verdict,
)
from theory.engine import report

SCALE = "log"  # M = -NLL, for every kind of model
CONTROL = 12  # bits, where the order must not matter


def percent(part: float, whole: float = 1) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def estimate(e: Estimate, form: str = "+.2f") -> str:
    if e.value is None:
        return "–"
    ends = "" if e.low is None or e.high is None else f" [{e.low:{form}}, {e.high:{form}}]"
    return f"{e.value:{form}}{ends}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The first ``left`` columns are aligned to the left, the others to the right."""
    first, _, *rest = report.table(head, rows)
    return [first, "|" + "---|" * left + "--:|" * (len(head) - left), *rest]


def _totals(summary: Summary) -> list[Total]:
    return [t for t in summary.totals if t.scale == SCALE and t.model]


def _models(summaries: Sequence[Summary]) -> dict[str, list[tuple[Summary, Total]]]:
    """Every model with the summaries that have it, and its total there."""
    found: dict[str, list[tuple[Summary, Total]]] = {}
    for summary in summaries:
        for total in _totals(summary):
            found.setdefault(str(total.model), []).append((summary, total))
    return found


def _said(summary: Summary, model: str, claim: str) -> Verdict | None:
    asked = (model, claim, SCALE)
    return next((v for v in summary.verdicts if (v.model, v.claim, v.scale) == asked), None)


def _seeds(summary: Summary) -> str:
    return f"{summary.seeds[0]} to {summary.seeds[-1]}"


# ------------------------------------------------------------------------- what survives


def survives(
    halves: Sequence[Summary], whole: Summary | None = None, others: Sequence[Summary] = ()
) -> list[str]:
    """The verdicts on PIH of sets of trainings that have nothing in common, side by side.

    whole: all of these together; others: studies of other models.
    """
    summaries = [*halves, *([] if whole is None else [whole]), *others]
    head = ["model, trainings", *CLAIMS, "cells usable", "prune first", "quantize first"]
    head += ["another run agrees", "and contradicts"]
    rows, spread = [], []
    for model, mine in _models(summaries).items():
        for summary, total in mine:
            name = f"{model}, {_seeds(summary)}"
            rows.append([name, *_claims(summary, total), *_counts(total)])
            of, usable = total.spread, total.usable
            parts = of.size, of.seed, of.draw, of.both, of.examples, usable.size, usable.seed
            spread.append([name, *("–" if x is None else f"{x:.2g}" for x in parts)])
    told = ["in common", "training", "draw", "both together", "the mean, by test examples"]
    told += ["usable cells: in common", "training"]
    return [
        *_headline(summaries),
        "",
        *table(head, rows, left=1 + len(CLAIMS)),
        *_apart(halves),
        *_agreement(halves),
        "",
        f"Each row: its trainings × {len(summaries[0].draws)} calibration draws"
        f"{_fewer(summaries)}, M = −NLL; {sum(s.ok for s in (*halves, *others))} compressed models "
        "in all. The verdicts above: of the most trainings. Usable: the better order loses "
        f"at most {LOSS:g} nats. Prune first, quantize first: cells won at a rate of false winners "
        f"of {FALSE:.0%}. The control, {CONTROL} bits: the largest mean |A| of a cell is "
        f"{max(map(_control, summaries)):.2g} nats.",
        "",
        *table(
            ["A, nats (root mean square over cells): its mean, and what moves it", *told], spread
        ),
        *_whose(summaries),
    ]


def _whose(summaries: Sequence[Summary]) -> list[str]:
    """A line on why one training says little of another, where it does."""
    found: dict[bool, list[str]] = {}
    for model, mine in _models(summaries).items():
        _, total = max(mine, key=lambda pair: len(pair[0].seeds))
        size, seed = total.usable.size, total.usable.seed
        if size is not None and seed is not None:
            found.setdefault(size > seed, []).append(model)
    told = []
    if True in found:
        told.append(
            "On usable cells what trainings have in common of A is more than what one of them adds "
            f"on {', '.join(found[True])}."
        )
    if False in found:
        told.append(
            "It is less on "
            f"{', '.join(found[False])}: there the better order is a trained model's own more than "
            "the methods', and a rule that goes by the methods cannot know it."
        )
    return ["", " ".join(told)] if told else []


def _fewer(summaries: Sequence[Summary]) -> str:
    """What is not as in the first."""
    drawn = len(summaries[0].draws)
    told = [
        f"{model}: {len(summary.draws)}"
        for model, mine in _models(summaries).items()
        for summary, _ in mine
        if len(summary.draws) != drawn
    ]
    return f" ({', '.join(told)})" if told else ""


def _claims(summary: Summary, total: Total) -> list[str]:
    found = []
    for claim in CLAIMS:
        v = _said(summary, str(total.model), claim)
        value = "–" if v is None else estimate(v.estimate)
        found.append(f"{value} {NO_VERDICT if v is None else v.verdict}")
    return found


def _counts(total: Total) -> list[str]:
    won, again = total.discoveries, total.replication
    usable = total.states.get(USABLE, {}).get("cells", 0)
    return [
        f"{usable} of {total.cells}",
        str(won.get(PRUNE_FIRST, 0)),
        str(won.get(QUANTIZE_FIRST, 0)),
        percent(again.won, again.asked),
        percent(again.lost, again.asked),
    ]


def _control(summary: Summary) -> float:
    cells = (cell for c in summary.comparisons_on(SCALE) for cell in c.cells)
    return max((abs(cell.advantage) for cell in cells if cell.bits == CONTROL), default=0.0)


def _headline(summaries: Sequence[Summary]) -> list[str]:
    """A line a claim: what the most trainings of each model say of it, and what fewer said."""
    lines = []
    for claim in CLAIMS:
        told: dict[str, list[str]] = {}
        for model, mine in _models(summaries).items():
            by_size = sorted((s for s, _ in mine), key=lambda s: len(s.seeds))
            words = [NO_VERDICT if v is None else v.verdict for v in _each(by_size, model, claim)]
            fewer = dict.fromkeys(w for w in words[:-1] if w != words[-1])
            hint = f" (of fewer trainings {', '.join(fewer)})" if fewer else ""
            told.setdefault(words[-1], []).append(f"{model}{hint}")
        lines.append(f"- **{claim}**: " + "; ".join(f"{k} on {', '.join(told[k])}" for k in told))
    return lines


def _each(summaries: Sequence[Summary], model: str, claim: str) -> list[Verdict | None]:
    return [_said(summary, model, claim) for summary in summaries]


def _apart(summaries: Sequence[Summary]) -> list[str]:
    """A line where two intervals of one number do not meet: one of them at least is too short."""
    found = []
    for model, mine in _models(summaries).items():
        for claim in CLAIMS:
            said = [v for s, _ in mine if (v := _said(s, model, claim))]
            lows, highs = ([x for v in said if (x := getattr(v, end)) is not None] for end in ENDS)
            if lows and max(lows) > min(highs):
                found.append(f"{claim} of {model}")
    if not found:
        return []
    return ["", f"Intervals that do not overlap (chance, or one is too short): {', '.join(found)}."]


ENDS = ("low", "high")


def _agreement(summaries: Sequence[Summary]) -> list[str]:
    """A line on how far the cells of two sets of trainings agree: the check of the intervals on
    trainings that they have not seen."""
    if len(summaries) < 2:
        return []
    within, total = 0, 0
    first, second = ({_name(c): c for c in s.comparisons_on(SCALE)} for s in summaries[:2])
    for name in first.keys() & second.keys():
        cells = {(c.sparsity, c.bits): c for c in second[name].cells}
        for a in first[name].cells:
            b = cells.get((a.sparsity, a.bits))
            if b is None or None in (a.low, a.high, b.low, b.high):
                continue
            error = math.hypot(*((c.high or 0.0) - (c.low or 0.0) for c in (a, b))) / 2
            if error > 0:
                total += 1
                within += abs(a.advantage - b.advantage) <= error
    return [
        "",
        f"Cell by cell, the A of the two sets of trainings differ by no more than their intervals "
        f"allow in {percent(within, total)} of {total} cells (95 % are to be expected).",
    ]


def _name(comparison: Comparison) -> tuple[str, str, str]:
    return comparison.subject, comparison.pruner, comparison.quantizer


def rules(summaries: Sequence[Summary]) -> list[str]:
    """Of every rule that names the order beforehand: how often it is right, and what it costs."""
    models = _models(summaries)
    names = list(
        dict.fromkeys(r.name for mine in models.values() for _, t in mine for r in t.rules)
    )
    rows = []
    for model, mine in models.items():
        for summary, total in mine:
            found = {rule.name: rule for rule in total.rules}
            cells = [
                f"{estimate(found[n].right, '.0%')}, {1000 * (found[n].regret.value or 0):.1f}"
                if n in found
                else "–"
                for n in names
            ]
            rows.append([f"{model}, {_seeds(summary)}", *cells])
    return [
        *table(["model, trainings", *names], rows),
        "",
        "Share of a run's won cells whose winner the rule names, then what following it loses to "
        "the better order, in thousandths of a nat a usable cell.",
    ]


# ------------------------------------------------------------------------- which choice decides


def choices(summaries: Sequence[Summary]) -> list[str]:
    """One table: what every unsaid choice does to A, beside what the order does."""
    found = [c for summary in summaries for c in summary.choices if c.scale == SCALE]
    models = list(dict.fromkeys(c.model for c in found))
    by_choice: dict[tuple[str, str], dict[str, Choice]] = {}
    for c in found:
        by_choice.setdefault((setting_name(c), c.usual), {})[c.model] = c
    head = ["choice (instead of)"]
    for model in models:
        head += [f"{model}: moves A by, 1e-3 nats", "/ |A|", "won: kept/lost/open", "verdicts"]
    rows = []
    for (name, usual), mine in by_choice.items():
        row = [f"{name} ({usual})"]
        for model in models:
            row += _choice(mine[model]) if model in mine else ["–"] * 4
        rows.append(row)
    return [
        *table(head, rows),
        "",
        "Verdicts turn where one holds and the other fails; by certainty: where one of them is "
        "undecided.",
    ]


def _choice(c: Choice) -> list[str]:
    if c.moved.value == 0:
        return ["nothing to change", "–", "–", "–"]
    value, *ends = (_thousandths(x) for x in (c.moved.value, c.moved.low, c.moved.high))
    size = f"{value} [{', '.join(ends)}]" if "–" not in ends else value
    ratio = f"{c.moved.value / c.order.value:.2f}" if c.moved.value and c.order.value else "0"
    fates = f"{c.kept}/{c.lost}/{c.won - c.kept - c.lost}"
    turned = [claim for claim, told in c.verdicts.items() if set(told) == {HOLDS, FAILS}]
    other = len(changed_verdicts(c)) - len(turned)
    told = (f"turns {', '.join(turned)}" if turned else "") or "turns none"
    return [
        size,
        ratio,
        fates,
        told + (f"; {other} by certainty" if other else ""),
    ]


def _thousandths(x: float | None) -> str:
    """Two digits, and all before the point."""
    if x is None:
        return "–"
    return f"{1000 * x:.0f}" if abs(x) >= 0.0995 else f"{1000 * x:.2g}"


# ------------------------------------------------------------------------- the zero fraction


def zeros(summaries: Sequence[Summary]) -> list[str]:
    """The causal test: who wins where the quantizer alone zeroes the ratio, and where it does
    not, by grid."""
    rows, verdicts, runs = [], [], []
    for summary in summaries:
        for total in _totals(summary):
            runs.append(f"{total.model} {summary.mean_on(str(total.model), SCALE)}")
            comparisons = summary.select(str(total.model), SCALE)
            rows += _by_grid(str(total.model), comparisons)
            verdicts.append(_prediction(total))
    head = ["model", "grid", "Z, most bits first", "cells with Z ≥ ratio"]
    head += ["quantize first wins", "prune first wins", "cells with Z < ratio"]
    head += ["quantize first wins", "prune first wins"]
    told = f"Won cells at a rate of false winners of {FALSE:.0%}, over {'; '.join(runs)}."
    return [*table(head, rows, left=2), "", told, "", *verdicts]


def _by_grid(model: str, comparisons: Sequence[Comparison]) -> list[list[str]]:
    every = [(c.grid, cell) for c in comparisons for cell in c.cells]
    won = winners([cell for _, cell in every]) != 0
    rows = []
    for grid in dict.fromkeys(name for name, _ in every):
        mine = [(cell, w) for (name, cell), w in zip(every, won, strict=True) if name == grid]
        widths = sorted({cell.bits for cell, _ in mine}, reverse=True)
        fractions = [_mean([c.zero_fraction for c, _ in mine if c.bits == b]) for b in widths]
        row = [model, grid, " / ".join(map(percent, fractions))]
        for above in (True, False):
            here = [(cell, w) for cell, w in mine if (cell.zeros_say > 0) == above]
            wins = Counter(cell.advantage > 0 for cell, w in here if w)
            row += [str(len(here)), str(wins[True]), str(wins[False])]
        rows.append(row)
    return rows


def _mean(values: Sequence[float | None]) -> float:
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else float("nan")


def _prediction(total: Total) -> str:
    """A line on whether the prediction of the study file came true."""
    shares = {rule.name: rule.right for rule in total.rules}
    margin, added = total.margin, total.added_by_gap
    if margin.low is None or margin.high is None:
        came = "cannot be judged"
    else:
        came = "came true" if margin.low > 0 else "failed" if margin.high < 0 else "is undecided"
    return (
        f"- **{total.model}**: the prediction {came}: the zero fraction names the winner in "
        f"{estimate(shares[ZEROS], '.0%')} of won cells, PIH's gap in "
        f"{estimate(shares[GAP], '.0%')}, always pruning first in {estimate(shares[PRUNE], '.0%')} "
        f"(of all won cells, the zero fraction over pruning first: {estimate(margin, '+.0%')}). "
        "What the gap adds where the zero fraction says one thing: quantize first wins "
        f"{estimate(added, '+.0%')} more often where pruning is the stronger."
    )
