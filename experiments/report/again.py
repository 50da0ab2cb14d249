"""``python -m experiments report``: the findings again, from the records alone."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.analysis import Summary, render, summarize
from experiments.records import Record, latest, load
from experiments.report.point import parse_point, point_json, render_point
from experiments.watch import CELLS, RECORDS
from perturb.cli import BadInput
from perturb.plain import to_json

SHOWN = 10  # reasons of failures


def report_again(given: Path, console: Console, at: str | None, as_json: bool) -> int:
    """Print what the records say, in all or at one point (:func:`.point.parse_point`).

    As JSON that stands alone on standard output: what else there is to say goes to stderr. The
    exit code: 1 if cells failed. Raises :class:`perturb.cli.BadInput` and ValueError, in one line.
    """
    point = None if at is None else parse_point(at)
    beside = Console(stderr=True) if as_json else console
    summary, records = _read(given, beside)
    if as_json:
        sys.stdout.write(
            summary.to_json() if point is None else to_json(point_json(summary, point))
        )
    elif point is not None:
        render_point(summary, point, console)
    else:
        render(summary, console)
    return 1 if failed_cells(records, beside) else 0


def _read(given: Path, console: Console) -> tuple[Summary, list[Record]]:
    """All that a file holds, of a folder the cells of its last run."""
    path, cells = given, None
    if given.is_dir():
        if (given / CELLS).is_file():
            cells = set((given / CELLS).read_text(encoding="utf-8").split("\n"))
        names = (RECORDS, f"{RECORDS}.gz")
        path = next((given / n for n in names if (given / n).is_file()), given)
    if not path.is_file():
        raise BadInput(f"no records at {path}: run the study first, or give its folder")
    try:
        held = load(path)
    except zlib.error as error:
        raise BadInput(f"{path}: damaged gzip file ({error}); copy it again") from error
    if cells is not None:
        mine = [record for record in held if record["cell"] in cells]
        if len(mine) < len(held):
            console.print(
                f"{len(held) - len(mine)} records of other cells or seeds are left out; "
                f"{path} alone shows them too"
            )
        held = mine
    return summarize(held), held


def failed_cells(records: Sequence[Record], console: Console) -> int:
    """Print the first line of what made cells fail, each reason once; returns how many did."""
    reasons: dict[str, list[str]] = {}
    for record in latest(records).values():
        if record["status"] != "ok":
            line = (str(record.get("error") or "").strip().splitlines() or ["no message"])[0]
            reasons.setdefault(line, []).append(record["label"])
    for line, cells in list(reasons.items())[:SHOWN]:
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        console.print(f"failed: {cells[0]}{more}: {line}", markup=False, soft_wrap=True)
    failed = sum(map(len, reasons.values()))
    if failed:
        console.print(f"[bold red]{failed} cells failed[/]")
    return failed
