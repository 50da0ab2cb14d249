"""The answer a person came for: at one sparsity and bit width, which order to take.

Both orders of every pruner and quantizer on every model, on the model's natural measure (or the
first of a person's own), and one sentence of advice made from these numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.report.table import ROOMY, advantage_text, pair_name, short_unit, signed, strength
from experiments.summary import (
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    Cell,
    Comparison,
    Measure,
    Summary,
    measure_of,
)
from perturb.plain import plain

CLOSE = 1e-9  # sparsities that differ by less are one
BOTH = 90  # columns of console in which both the cells and the intervals find room
RIVAL = 0.5  # from this share of the leader's wins on, the other order is no exception


@dataclass(frozen=True)
class Point:
    """Where on the grid; None: anywhere along that axis."""

    sparsity: float | None
    bits: int | None

    def __str__(self) -> str:
        parts = [f"sparsity={self.sparsity:g}"] if self.sparsity is not None else []
        return ",".join([*parts, f"bits={self.bits}"] if self.bits is not None else parts)

    def __contains__(self, cell: Cell) -> bool:
        near = self.sparsity is None or abs(cell.sparsity - self.sparsity) < CLOSE
        return near and self.bits in (None, cell.bits)


def parse_point(text: str) -> Point:
    """``sparsity=0.5,bits=4``, or one of the two. Raises ValueError naming the part."""
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, raw = (word.strip() for word in part.partition("="))
        if name not in ("sparsity", "bits"):
            raise ValueError(f"--at {text}: {part!r} is no sparsity=0.5 or bits=4")
        if name in values:
            raise ValueError(f"--at {text}: {name} is given twice; leave one out")
        try:
            values[name] = float(raw) if name == "sparsity" else int(raw)
        except ValueError:
            right = "a number such as 0.5" if name == "sparsity" else "a whole number such as 4"
            raise ValueError(f"--at {text}: {name} must be {right}, got {raw!r}") from None
    bits = values.get("bits")
    return Point(values.get("sparsity"), None if bits is None else int(bits))


@dataclass(frozen=True)
class Row:
    """One pruner and quantizer on one model at one cell."""

    comparison: Comparison
    cell: Cell

    @property
    def measure(self) -> Measure:
        return measure_of(self.comparison.measure)

    @property
    def at(self) -> tuple[float, int]:
        return self.cell.sparsity, self.cell.bits

    @property
    def name(self) -> str:
        return f"{pair_name(self.comparison)} on {self.comparison.subject}"

    @property
    def size(self) -> str:
        """|A| in its unit."""
        size = signed(abs(self.cell.advantage) * self.measure.factor).removeprefix("+")
        return f"{size} {short_unit(self.measure)}"


def rows_at(summary: Summary, point: Point) -> list[Row]:
    """What was compared there. Raises ValueError, saying what there is, for a point without any."""
    usual = [
        comparison
        for model in summary.models
        for comparison in summary.select(model, summary.usual_scale(model))
    ]
    rows = [Row(one, cell) for one in usual for cell in one.cells if cell in point]
    if not rows:
        cells = [cell for one in usual for cell in one.cells]
        if not cells:
            raise ValueError(f"--at {point}: no cell has both orders yet")
        sparsities = ", ".join(f"{s:g}" for s in sorted({cell.sparsity for cell in cells}))
        bits = ", ".join(map(str, sorted({cell.bits for cell in cells}, reverse=True)))
        raise ValueError(
            f"--at {point}: no cell has both orders there; there are sparsities {sparsities} and "
            f"bits {bits}"
        )
    return rows


def advice(summary: Summary, rows: Sequence[Row]) -> str:
    """One sentence. Models at chance have no say."""
    told = [row for row in rows if row.comparison.subject not in summary.at_chance]
    if not told:
        return "No advice: every model here is at chance before it is compressed."
    if all(row.cell.winner == NO_INTERVAL for row in told):
        return "No advice: this measure has no intervals, so no order can be told to be better."
    won = {who: [row for row in told if row.cell.winner == who] for who in _OPPOSITE}
    first, other = sorted(won, key=lambda who: -len(won[who]))
    most, least = len(won[first]), len(won[other])
    count = f"{len(told)} comparison{'s' if len(told) != 1 else ''}"
    several = len({row.at for row in told}) > 1
    runs = summary.mean_of
    basis = f"each a mean of {runs}" if runs else "one training of each model: another may differ"
    if not most:
        return f"Either order: neither is shown to be better in any of {count} ({basis})."
    if not least:
        return (
            f"{first.capitalize()}: shown to be better in {most} of {count} and worse in none, "
            f"clearest by {_clearest(won[first], several)} ({basis})."
        )
    if least >= RIVAL * most:
        return (
            f"It depends: {first} is better in {most} of {count} (clearest: "
            f"{_clearest(won[first], several)}), {other} in {least} (clearest: "
            f"{_clearest(won[other], several)}; {basis})."
        )
    return (
        f"{first.capitalize()}: better in {most} of {count}, worse in {least} (clearest: "
        f"{_clearest(won[other], several)}; {basis})."
    )


_OPPOSITE = (PRUNE_FIRST, QUANTIZE_FIRST)


def _clearest(rows: Sequence[Row], several: bool) -> str:
    row = max(rows, key=lambda row: strength(row.cell))
    at = f" at {row.cell.sparsity:.3g}, {row.cell.bits} bits" if several else ""
    return f"{row.size} for {row.name}{at}"


def render_point(summary: Summary, point: Point, console: Console) -> None:
    """Print a table a model, and the advice."""
    rows = rows_at(summary, point)
    mean = f", mean of {summary.mean_of}" if summary.mean_of else ""
    title = f"{summary.study} at {point}: performance by what is first{mean}"
    console.print(f"[bold]{escape(title)}[/]")
    several = len({row.at for row in rows}) > 1
    for subject in dict.fromkeys(row.comparison.subject for row in rows):
        mine = [row for row in rows if row.comparison.subject == subject]
        measure = mine[0].measure
        what = f"{measure.label.removeprefix('−')}; A in {short_unit(measure)}"
        lost = ", at chance before it is compressed" if subject in summary.at_chance else ""
        console.print(f"\n[bold]{escape(subject)}[/] [dim]{escape(what)}{lost}[/]")
        widest = max(len(pair_name(row.comparison)) for row in rows)
        console.print(_table(summary, mine, widest, several, console.width))
    console.print(f"\n{escape(advice(summary, rows))}")


def _table(summary: Summary, rows: Sequence[Row], widest: int, several: bool, width: int) -> Table:
    """Of one model; the same widths for all. several: rows are told apart by their cell, too."""
    interval = not several or width >= BOTH
    a = rf"A(Q→P) \[{summary.level:.0%}]" if interval else "A(Q→P)"
    table = Table(box=None, pad_edge=False, padding=(0, 2 if width >= ROOMY else 1, 0, 0))
    table.add_column("pruner × quantizer", min_width=widest, no_wrap=True, overflow="ellipsis")
    columns = {"cell": 9} if several else {}
    columns |= {"prune": 8, "quantize": 8, a: 27 if interval else 8, "better": 8}
    for name, least in columns.items():
        table.add_column(name, justify="right", min_width=least, no_wrap=True)
    for row in rows:
        cell, measure = row.cell, row.measure
        at = [f"{cell.sparsity:.3g}, {cell.bits}"] * several
        orders = [value_text(x, measure) for x in (cell.prune_first, cell.quantize_first)]
        found = escape(advantage_text(cell, measure, interval))
        winner = escape(cell.winner.removesuffix(" first"))
        table.add_row(escape(pair_name(row.comparison)), *at, *orders, found, winner)
    return table


def value_text(performance: float, measure: Measure) -> str:
    """A performance as its metric is usually told: 97.9%, a perplexity of 4.29."""
    if measure.name == "accuracy":
        return f"{performance:.1%}"
    size = -performance
    return f"{size:.4g}" if math.isfinite(size) and abs(size) < 1e5 else f"{size:.1e}"


def point_json(summary: Summary, point: Point) -> dict[str, Any]:
    """What :func:`render_point` prints, as plain values."""
    rows = rows_at(summary, point)
    return {
        "study": summary.study,
        "at": plain(point),
        "level": summary.level,
        "rows": [
            {
                "model": row.comparison.model,
                "policy": row.comparison.policy,
                "pruner": row.comparison.pruner,
                "quantizer": row.comparison.quantizer,
                "measure": row.comparison.measure,
                **plain(row.cell),
            }
            for row in rows
        ],
        "advice": advice(summary, rows),
    }
