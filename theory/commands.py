"""What ``python -m theory`` does, once its arguments are known to be good."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from perturb import cli, sources
from perturb.cli import BadInput
from perturb.files import write_atomic
from perturb.plain import plain, to_json
from theory.engine import report
from theory.engine.statement import Statement
from theory.engine.verify import Record, finding_record
from theory.models.findings import findings as model_findings
from theory.models.measure import measure_named
from theory.statements.affine.measure import curves
from theory.statements.catalogue import NAMES, SLOWEST, STATEMENTS, statement
from theory.workers import PHASE, Task, prepare, share

MODELS = ("resnet-digits", "vit-digits", "llama-docs")
NO_DIAGRAMS: Record = {"diagrams": [], "findings": []}
FEWEST = 3  # statements a process: fewer take less than starting it does


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else cli.columns())


def chosen(names: Sequence[str]) -> tuple[Statement, ...]:
    """The statements of these names, all if there are none; raises :class:`BadInput`."""
    unknown = [n for n in names if n not in NAMES]
    if unknown:
        raise BadInput(f"no statement {unknown[0]!r}: there are {', '.join(NAMES)}")
    return tuple(statement(n) for n in names) or STATEMENTS


def show(statements: Sequence[Statement]) -> int:
    """Their titles and sources."""
    console = _console()
    for s in statements:
        console.print(f"{s.name:<14}{s.title}", highlight=False, markup=False)
        console.print(f"{'':<14}source: {s.source}", highlight=False, markup=False)
    return 0


def verify(
    statements: Sequence[Statement], instances: int, seed: int, out: Path, draw: bool
) -> int:
    """Everything about these statements, into a folder; 1 if something does not hold. Stopped by
    Ctrl-C, the statements that are finished are written, without figures."""
    prepare()
    console, start = _console(), time.perf_counter()
    columns = (
        TextColumn("{task.description:<13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    done: dict[str, Record] = {}
    whole = tuple(statements) == STATEMENTS
    names = [*(s.name for s in statements), *([PHASE] if whole else [])]
    others = min(_cores(), len(names) // FEWEST) - 1
    if others > 0:
        first = (*SLOWEST, PHASE)
        names.sort(key=lambda n: first.index(n) if n in first else len(first))
    tasks = [Task(n, instances, seed) for n in names]
    # instances, then as many again for the proof, the attack and what is measured
    total = 2 * instances * sum(len(s.families) for s in statements)
    err = Console(stderr=True)

    def write(draw: bool) -> Record:
        record: Record = plain(
            {
                "statements": [done[s.name] for s in statements if s.name in done],
                "phase": done.get(PHASE, NO_DIAGRAMS),
                "affine": curves(seed),
                "settings": {"instances": instances, "seed": seed},
                "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
                "device": jax.default_backend(),
                "seconds": time.perf_counter() - start,
            }
        )
        file = out / "verify.json"
        write_atomic(file, to_json(record, indent=1))
        figures = _draw(file, out / "figures") if draw else []
        relative = [os.path.relpath(f, out) for f in figures]
        write_atomic(out / "report.md", report.markdown(record, relative))
        return record

    try:
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
            bar = bars.add_task("", total=total)
            share(
                tasks,
                max(others, 0),
                done,
                lambda name: bars.update(bar, description=name),
                partial(bars.advance, bar),
            )
    except KeyboardInterrupt:
        if any(s.name in done for s in statements):  # what is finished is kept
            write(draw=False)
        raise
    record = write(draw)
    _print(record, console)
    console.print(f"\n{report.setting(record)}", highlight=False)
    console.print(f"{out / 'report.md'}: proofs, margins, counterexamples", highlight=False)
    failed = [r for r in record["statements"] if not r["holds"]]
    for r in failed:
        print(f"{r['name']} does not hold: {'; '.join(r['failures'])}", file=sys.stderr)
    return 1 if failed else 0


def _cores() -> int:
    """How many this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1


def _draw(file: Path, out: Path) -> list[str]:
    """A process of its own: figures are drawn from the record, never from what is in memory."""
    drawn = subprocess.run(
        [sys.executable, "-m", "figures", "--theory", str(file), "--out", str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    return drawn.stdout.split("\n")[:-1]


def _print(record: Record, console: Console) -> None:
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(report.COLUMNS):
        text = column in ("statement", "sympy proof", "tightness")
        grid.add_column(column, justify="left" if text else "right", no_wrap=i == 0)
    for row in report.summary_rows(record):
        grid.add_row(*(escape(cell.replace("**", "")) for cell in row))
    console.print(grid)
    console.print()
    for f in report.findings(record):
        if f["verdict"] != "measured":
            colour = {"holds": "green", "narrower": "yellow", "false": "red"}[f["verdict"]]
            console.print(
                f"[{colour}]{f['verdict']:<8}[/] {escape(f['name'])}: {escape(f['says'])}",
                highlight=False,
            )


def models(names: Sequence[str], seed: int, out: Path) -> int:
    """How far these models keep the assumptions, or ours if none is named."""
    for name in names:
        sources.loader(name)  # refuse an unknown name before any long work
    prepare()
    console, err = _console(), Console(stderr=True)
    results: dict[str, Record] = {}
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=1.0)

        def tell(what: str, done: float) -> None:
            progress.update(bar, description=what, completed=done)

        for name in names or MODELS:
            with sources.printing_to_stderr():
                results[name] = measure_named(name, seed, tell)
    found = [finding_record(f) for f in model_findings(results)]
    record = {
        "models": results,
        "findings": found,
        "settings": {"seed": seed},
        "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
        "device": jax.default_backend(),
    }
    file = out / "models.json"
    write_atomic(file, to_json(record, indent=None))
    for f in found:
        console.print(f"{f['verdict']:<9} {f['name']}: {f['says']}", highlight=False, markup=False)
    console.print(f"{file}", highlight=False)
    return 0
