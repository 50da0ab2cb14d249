"""Where a study's cells are handed in: its records, and who is told about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from experiments.records import Record, RecordLog, latest, load
from experiments.study import Study
from experiments.watch import CELLS, RECORDS, Watch
from perturb.files import write_atomic


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
            self.done = finished(self.path)
        except BaseException:
            self._log.close()
            raise

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
        self._watch.cell(record["label"])

    def alone(self, cells: Sequence[str]) -> None:
        held = latest(load(self.path))
        self._watch.alone([held[cell] for cell in cells if cell in held])


def finished(path: Path) -> set[str]:
    """Cells that need not run again: those recorded as ok."""
    if not path.exists():
        return set()
    return {cell for cell, r in latest(load(path)).items() if r["status"] == "ok"}
