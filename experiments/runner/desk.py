"""Where a study's cells are handed in: its records, and who is told about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from experiments.records import Record, RecordLog, latest, load
from experiments.study import Study
from experiments.watch import CELLS, RECORDS, Watch
from perturb.files import write_atomic
from perturb.plain import plain


class Desk(Protocol):
    """What runs a training says of it, here or in another process (:mod:`.together`).

    done: the ids of cells that need not run again.
    """

    done: set[str]

    def model(self, line: str) -> None:
        """A model is there, and how good it is."""
        ...

    def note(self, line: str) -> None: ...

    def opened(self, cells: Mapping[str, str]) -> None:
        """Ids and labels of all that is measured of a training under one draw and policy."""
        ...

    def append(self, record: Record) -> None: ...

    def alone(self, cells: Sequence[str]) -> None:
        """These cells, the dense model and every stage alone, are recorded."""
        ...


class StudyDesk:
    """The desk that has the study's records, in the folder ``out/NAME``.

    Raises :class:`experiments.records.RecordLogLocked` while another run has them.
    """

    def __init__(self, study: Study, out: Path, watch: Watch) -> None:
        self.folder = Path(out) / study.name
        self.path = self.folder / RECORDS
        self._study, self._watch = study, watch
        self._log = RecordLog(self.path)
        self._mine: set[str] = set()
        try:
            held = _held(self.path)
        except BaseException:
            self._log.close()
            raise
        self.done = _ok(held)
        self._alone = {cell: r for cell, r in held.items() if len(r["stages"]) <= 1}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()

    def model(self, line: str) -> None:
        self._watch.model(line)

    def note(self, line: str) -> None:
        self._watch.note(line)

    def opened(self, cells: Mapping[str, str]) -> None:
        if not self._mine:
            self._watch.begin(len(cells) * self._study.runs)
        self._mine |= cells.keys()
        write_atomic(self.folder / CELLS, "\n".join(sorted(self._mine)))
        there = [label for cell, label in cells.items() if cell in self.done]
        if there:
            self._watch.note(f"{len(there)} cells are there already")
        for label in there:
            self._watch.cell(label)

    def append(self, record: Record) -> None:
        self._log.append(record)
        self.done.add(record["cell"])
        if len(record["stages"]) <= 1:
            self._alone[record["cell"]] = plain(record)  # as a later run reads it
        self._watch.cell(record["label"])

    def alone(self, cells: Sequence[str]) -> None:
        self._watch.alone([self._alone[cell] for cell in cells if cell in self._alone])


def finished(path: Path) -> set[str]:
    """Cells that need not run again: those recorded as ok."""
    return _ok(_held(path))


def _held(path: Path) -> dict[str, Record]:
    return latest(load(path)) if path.exists() else {}


def _ok(held: Mapping[str, Record]) -> set[str]:
    return {cell for cell, r in held.items() if r["status"] == "ok"}
