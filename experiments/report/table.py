"""The table a person reads at the end of a study: who wins, by how much, does PIH hold.

Reads a :class:`~experiments.summary.Summary`, writes to a rich console; computes nothing.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.summary import (
    EQUAL,
    FAILS,
    HOLDS,
    LOSS,
    NO_INTERVAL,
    POINTS,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Cell,
    Choice,
    Comparison,
    Estimate,
    Measure,
    Score,
    Summary,
    Total,
    measure_of,
)

TITLES = {
    "natural": "in the models' own measure",
    "log": "in the log measure (M = −NLL)",
    "kl": "in −KL to the dense model",
}
USUAL = ("natural", "log")  # scales; people's own are printed besides
WINS = {"P wins": PRUNE_FIRST, "Q wins": QUANTIZE_FIRST, "open": UNDECIDED, "equal": EQUAL}
ROOMY, WIDE = 110, 142  # columns of console from which more is shown
WORST = 8  # rows of 'where PIH fails'
PROBLEMS = 10


def render(
    summary: Summary,
    console: Console | None = None,
    *,
    scales: tuple[str, ...] | None = None,
) -> None:
    """Print the findings: one table a scale, then where PIH fails, then what is missing.

    Consoles of 110 columns also see tau's interval, of 142 the size of A; pass a wider
    ``Console`` to write a file. ``scales``: which of ``summary.scales`` to print; by default
    'natural', 'log' and those of people's own measures.
    """
    console = console or Console()
    if scales is None:
        scales = tuple(s for s in summary.scales if s in USUAL or s not in TITLES)
    several = f", mean of {summary.mean_of}" if summary.mean_of else ""
    console.print(
        f"[bold]{escape(summary.study)}[/]: {summary.ok} variants measured, "
        f"{summary.failed} failed{several}. A(Q→P) = M(quantize first) − M(prune first): "
        f"positive means quantize first. An order wins a cell where A's {_interval(summary)} "
        "excludes 0; else the cell is open, or equal where the orders never differ. "
        "PIH: the stronger method (larger C*) goes last; C = dense bits / stored bits."
    )
    for model in summary.at_chance:
        console.print(
            f"[bold yellow]{escape(model)} is at chance before it is compressed[/]: which order "
            "is better cannot be seen on it; it counts in no total."
        )
    for scale in scales:
        if any(total.scale == scale for total in summary.totals):
            console.print()
            console.print(_table(summary, scale, console.width))
            _verdicts(summary, scale, console)
            _rules(summary, scale, console)
            _choices(summary, scale, console)
    if any(total.scale in scales for total in summary.totals):
        console.print(
            "[dim]P wins: prune first is better. tau: Kendall's tau-b of A against C*_P − C_Q (the "
            "trend); its interval leans to 0, because resampling adds noise. PIH right, P "
            "1st, Q 1st: the share of won cells whose winner is foretold by the hypothesis, by "
            "'always prune first' and by 'always quantize first'; won cells whose gap is exactly "
            "0, or too uncertain to have a sign, count for none of them.[/]"
        )
    for scale in scales:
        _failures(summary, scale, console)
    for note in summary.notes:
        console.print(f"\n{escape(note)}")
    if summary.problems:
        console.print(f"\n[bold yellow]Left out or missing[/] ({len(summary.problems)})")
        for problem in summary.problems[:PROBLEMS]:
            console.print(f"  {escape(problem)}")
        if len(summary.problems) > PROBLEMS:
            console.print(f"  ... and {len(summary.problems) - PROBLEMS} more")


def _interval(summary: Summary) -> str:
    """Over what a cell's interval goes, in words."""
    if summary.mean_of:
        return f"{summary.level:.0%} interval over {summary.mean_of} (and test examples)"
    return f"paired bootstrap {summary.level:.0%} interval"


def _titled(title: str, roomy: bool) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2 if roomy else 1, 0, 0),
    )


def _verdicts(summary: Summary, scale: str, console: Console) -> None:
    """Of a study with replicates: what they leave of PIH, and how far one speaks for another."""
    totals = [t for t in summary.totals if t.scale == scale and t.model is not None]
    if not summary.mean_of or not totals:
        return
    table = _titled(f"What survives of PIH over {summary.mean_of}", roomy=True)
    for name in ("model", "claim"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column(r"value \[interval]", justify="right", no_wrap=True)
    table.add_column("above")
    table.add_column("verdict")
    for v in summary.verdicts:
        if v.scale == scale:
            value = _tau(v.estimate, interval=True)
            above = f"{v.above:g}"
            style = {HOLDS: "green", FAILS: "red"}.get(v.verdict, "")
            table.add_row(escape(v.model), v.claim, value, above, v.verdict, style=style)
    console.print(table)
    for total in totals:
        console.print(f"[dim]{escape(str(total.model))}: {_replicated(summary, total)}[/]")
    console.print(
        "[dim]A claim holds where its whole interval is above, and fails where it is below. sign: "
        "the share of a run's won cells whose winner is the stronger method's order.[/]\n"
    )


def _rules(summary: Summary, scale: str, console: Console) -> None:
    """What names the better order beforehand, and what it costs to follow it."""
    totals = [t for t in summary.totals if t.scale == scale and t.model and t.rules]
    if not summary.mean_of or not totals:
        return
    roomy = console.width >= ROOMY
    table = _titled("Which rule names the order that wins, and what following it loses", roomy)
    table.add_column("rule", no_wrap=True, overflow="ellipsis")
    ends = r" \[interval]" if roomy else ""
    for name in (r"right of won cells \[interval]", f"loss per usable cell{ends}"):
        table.add_column(name, justify="right", no_wrap=True)
    for total in totals:
        unit = measure_of(summary.select(str(total.model), scale)[0].measure)
        table.add_row(f"[bold]{escape(str(total.model))}[/]")
        for rule in total.rules:
            lost = _sized(rule.regret, unit, roomy)
            table.add_row(f"  {rule.name}", share(rule.right), lost)
    console.print(table)
    for total in totals:
        console.print(f"[dim]{escape(str(total.model))}: {_of_states(total)}[/]")
    console.print(
        "[dim]gap (PIH): the stronger method last; zero fraction: quantize first where the "
        "quantizer alone sends at least the ratio to 0; layer errors: the order with the smaller "
        "relative output errors of its layers; ownership: the same if every weight had its owner's "
        "error alone. Usable: the better order loses at most "
        f"{LOSS:g} nats (or {100 * POINTS:g} points of accuracy) to the dense model; broken: it is "
        "no better than guessing.[/]\n"
    )


def _choices(summary: Summary, scale: str, console: Console) -> None:
    """What the settings that a study changes one at a time do, beside the order."""
    chosen = [c for c in summary.choices if c.scale == scale]
    if not chosen:
        return
    roomy, wide = console.width >= ROOMY, console.width >= WIDE
    table = _titled("What a choice moves, beside the order", roomy)
    table.add_column("choice", no_wrap=True, overflow="ellipsis")
    if roomy:
        table.add_column("instead of", no_wrap=True, overflow="ellipsis", max_width=16)
    ends = r" \[interval]" if roomy else ""
    toward = ["towards Q 1st"] if roomy else []
    for name in (f"moves A by{ends}", "/ |A|", *toward, "kept/lost/open"):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("verdicts that it changes")
    for model in dict.fromkeys(c.model for c in chosen):
        table.add_row(f"[bold]{escape(model)}[/]")
        measures = (x.measure for x in summary.comparisons_on(scale) if x.model == model)
        unit = measure_of(next(measures))
        for c in (c for c in chosen if c.model == model):
            ratio = (
                f"{c.moved.value / c.order.value:.2f}" if c.moved.value and c.order.value else "–"
            )
            row = [f"  {escape(setting_name(c))}", *([escape(c.usual)] if roomy else [])]
            row += [_sized(c.moved, unit, roomy), ratio]
            row += [escape(signed((c.shift.value or 0) * unit.factor))] if roomy else []
            row += [f"{c.kept}/{c.lost}/{c.won - c.kept - c.lost}"]
            table.add_row(*row, *([", ".join(changed_verdicts(c)) or "–"] if wide else []))
    console.print(table)
    console.print(
        "[dim]Means over the cells of each run, over runs. / |A|: over the effect of the order "
        "under the usual value. kept/lost/open: of the cells that an order wins under the usual "
        "value (5 % of them false at most), those that it keeps, that the other order wins, and "
        "open ones.[/]\n"
    )


def setting_name(choice: Choice) -> str:
    """'tie=index of the pruner'."""
    what, _, key = choice.setting.rpartition(": ")
    of = f" of the {what}" if what in ("pruner", "quantizer") else ""
    return f"{key}={choice.value}{of}"


def changed_verdicts(choice: Choice) -> list[str]:
    """'sign: undecided, then fails'."""
    return [
        f"{claim}: {before}, then {after}"
        for claim, (before, after) in choice.verdicts.items()
        if before != after
    ]


def _of_states(total: Total) -> str:
    told = []
    for state, counts in total.states.items():
        won = [f"{counts[w]} {w}" for w in (PRUNE_FIRST, QUANTIZE_FIRST) if w in counts]
        told.append(f"{counts['cells']} cells {state} ({', '.join(won) or 'none'} won)")
    added = total.added_by_gap
    if added.value is not None:
        told.append(
            "among won cells of which the zero fraction says one thing, quantize first wins "
            f"{share(added, signs=True)} more often where pruning is the stronger"
        )
    return "; ".join(told) + "."


def share(e: Estimate, signs: bool = False) -> str:
    """'63% [57%, 70%]'."""
    if e.value is None:
        return "–"
    form = "+.0%" if signs else ".0%"
    ends = "" if e.low is None or e.high is None else rf" \[{e.low:{form}}, {e.high:{form}}]"
    return f"{e.value:{form}}{ends}".replace("-", "−")


def _sized(e: Estimate, unit: Measure, interval: bool) -> str:
    if e.value is None:
        return "–"
    known = (x for x in (e.value, *((e.low, e.high) if interval else ())) if x is not None)
    value, *ends = (signed(x * unit.factor).lstrip("+") for x in known)
    told = rf" \[{', '.join(ends)}]" if ends else ""
    return f"{value}{told} {short_unit(unit)}"


def _replicated(summary: Summary, total: Total) -> str:
    measure = measure_of(summary.select(str(total.model), total.scale)[0].measure)

    def size(value: float) -> str:
        return f"{signed(value * measure.factor).lstrip('+')} {short_unit(measure)}"

    asked, moved = total.replication, []
    common = total.spread.size
    told = "" if common is None else f"What trainings have in common of A is {size(common)}. "
    for what, value in (
        ("from training to training", total.spread.seed),
        ("from calibration draw to draw", total.spread.draw),
        ("of its mean by the test examples", total.spread.examples),
    ):
        moved += [f"{size(value)} {what}"] if value is not None else []
    told += f"A moves by {', '.join(moved)}"
    if not asked.asked:
        return f"{told}."
    won, lost = (f"{n / asked.asked:.0%}" for n in (asked.won, asked.lost))
    return (
        f"{told}. Of the cells that one run gives to an order, another gives {won} to the same "
        f"and {lost} to the other."
    )


def _title(summary: Summary, scale: str) -> str:
    """The scale in words, and whether it is one without intervals."""
    words = TITLES.get(scale) or f"in {measure_of(scale).label}"
    won = {who for one in summary.comparisons_on(scale) for who in one.wins}
    return escape(words) + (" (no intervals)" if won == {NO_INTERVAL} else "")


def _table(summary: Summary, scale: str, width: int) -> Table:
    roomy, wide = width >= ROOMY, width >= WIDE
    table = _titled(f"Which order wins, {_title(summary, scale)}", roomy)
    words = WINS
    present = {who for one in summary.comparisons_on(scale) for who in one.wins}
    if NO_INTERVAL in present:
        words = {
            name: who for name, who in (WINS | {NO_INTERVAL: NO_INTERVAL}).items() if who in present
        }
    names = list(words)
    names += ["median A", "largest A (at)"] if wide else []
    names += [r"tau \[interval]" if roomy else "tau", "PIH right", "P 1st", "Q 1st"]
    table.add_column("pruner × quantizer", no_wrap=True, overflow="ellipsis")
    for name in ["cells", *names] if roomy else names:
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, source: Comparison | Total, cells: int, style: str = "") -> None:
        row = [str(cells)] if roomy else []
        wins = [source.wins.get(who, 0) for who in words.values()]
        row += [str(count) if count else "·" for count in wins]
        if wide:
            row += _sizes(source) if isinstance(source, Comparison) else ["", ""]
        table.add_row(name, *row, _tau(source.tau, roomy), *_score(source.score), style=style)

    totals = {total.model: total for total in summary.totals if total.scale == scale}
    for model in summary.models:
        chosen = summary.select(model, scale)
        if chosen:
            unit = short_unit(measure_of(chosen[0].measure))
            table.add_row(f"[bold]{escape(model)}[/] [dim]A in {unit}[/]")
            for one in chosen:
                add(f"  {escape(pair_name(one))}", one, len(one.cells))
            if model in totals:
                add("  all", totals[model], totals[model].cells, "bold")
            else:
                table.add_row("  at chance: in no total", style="bold")
            table.add_row("")
    if None in totals:
        add("all models", totals[None], totals[None].cells, "bold")
    return table


def _sizes(comparison: Comparison) -> list[str]:
    unit, cell = measure_of(comparison.measure), comparison.largest
    middle = comparison.median_advantage
    if cell is None or middle is None:
        return ["", ""]
    at = f"{cell.sparsity:.0%}, {cell.bits} bit"
    return [signed(middle * unit.factor), f"{signed(cell.advantage * unit.factor)} ({at})"]


def _score(score: Score) -> list[str]:
    if not score.counted:
        return ["–", "–", "–"]
    share = [n / score.counted for n in (score.pih, score.prune_first, score.quantize_first)]
    right = f"{score.pih}/{score.counted} {share[0]:4.0%}"
    return [right, f"{share[1]:.0%}", f"{share[2]:.0%}"]


def _tau(estimate: Estimate, interval: bool) -> str:
    if estimate.value is None:
        return "–"
    text = f"{estimate.value:+.2f}"
    if interval and estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:+.2f}, {estimate.high:+.2f}]"
    return escape(text.replace("-", "−"))


def _failures(summary: Summary, scale: str, console: Console) -> None:
    wrong = [
        (comparison, cell)
        for comparison in summary.comparisons_on(scale)
        if comparison.subject not in summary.at_chance
        for cell in comparison.failures
    ]
    totals = [total for total in summary.totals if total.scale == scale]
    counted = sum(total.score.counted for total in totals if total.model is not None)
    if not counted:
        return
    heading = (
        f"\n[bold]Where PIH fails, {_title(summary, scale)}[/]: {len(wrong)} of {counted} cells"
    )
    if not wrong:
        console.print(f"{heading}.")
        return
    wrong.sort(key=lambda pair: -strength(pair[1]))
    console.print(f"{heading}, the clearest first")
    roomy = console.width >= ROOMY
    table = Table(box=None, pad_edge=False, padding=(0, 2 if roomy else 1, 0, 0))
    for name in ("model", "pruner × quantizer", "cell"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in (r"A(Q→P) \[interval]" if roomy else "A(Q→P)", "C*_P − C_Q", "winner"):
        table.add_column(name, justify="right", no_wrap=True)
    for comparison, cell in wrong[:WORST]:
        unit = measure_of(comparison.measure)
        table.add_row(
            escape(comparison.subject),
            escape(pair_name(comparison)),
            f"{cell.sparsity:.0%}, {cell.bits} bit",
            f"{escape(advantage_text(cell, unit, roomy))} {short_unit(unit)}",
            gap_text(cell),
            cell.winner.removesuffix(" first"),
        )
    console.print(table)


def strength(cell: Cell) -> float:
    """|A| in its own interval's widths: comparable across units."""
    if cell.low is None or cell.high is None or cell.high <= cell.low:
        return math.inf
    return abs(cell.advantage) / (cell.high - cell.low)


def advantage_text(cell: Cell, measure: Measure, interval: bool) -> str:
    """A in the measure's unit, with its interval if there is one and it is wanted."""
    text = signed(cell.advantage * measure.factor)
    if not interval or cell.low is None or cell.high is None:
        return text
    return f"{text} [{signed(cell.low * measure.factor)}, {signed(cell.high * measure.factor)}]"


def gap_text(cell: Cell) -> str:
    """The gap with its censoring: '≥ 2.67' is a bound, not a value."""
    if cell.gap is None:
        return "unknown"
    bound = {"below": "≤ ", "above": "≥ "}.get(cell.status, "")
    return f"{bound}{cell.gap:+.2f}".replace("-", "−")


def signed(value: float) -> str:
    """Three significant digits with a sign, readable over the range a 2-bit model needs."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = f"{size:.3g}" if 1e-3 <= size < 1e4 else f"{size:.1e}"
    return ("−" if value < 0 else "+") + digits.replace("e-0", "e-").replace("e+0", "e").replace(
        "e+", "e"
    )


def pair_name(comparison: Comparison) -> str:
    return f"{comparison.pruner} × {comparison.quantizer}"


def short_unit(measure: Measure) -> str:
    """'pp', 'ppl' or 'nats'."""
    return {"percentage points": "pp", "perplexity": "ppl"}.get(measure.unit, measure.unit)
