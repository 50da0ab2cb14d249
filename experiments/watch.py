"""Who is told how a run goes on, and the files that it leaves. Needs no jax."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

RECORDS, CELLS = "records.jsonl", "cells.txt"  # of a study's folder; ids of its last run's cells
LINE_EVERY = 30.0  # seconds between two lines of a run without a terminal


class Watch(Protocol):
    """Who is told how a run goes on."""

    def begin(self, cells: int) -> None:
        """So many cells are the study's, those that are there already among them."""
        ...

    def model(self, line: str) -> None:
        """A model is there, and how good it is."""
        ...

    def note(self, line: str) -> None: ...

    def cell(self, label: str) -> None:
        """A record has been written, or is there from an earlier run."""
        ...

    def alone(self, records: list[dict[str, Any]]) -> None:
        """The dense model and every stage alone are recorded."""
        ...


class Lines:
    """Plain lines on stderr, one now and then: for a run without a terminal."""

    def __init__(self, every: float = LINE_EVERY) -> None:
        self.every, self.total, self.seen = every, 0, 0
        self._start = self._told = time.monotonic()

    def _say(self, text: str) -> None:
        self._told = time.monotonic()
        print(f"[{self._told - self._start:6.0f} s] {text}", file=sys.stderr, flush=True)

    def begin(self, cells: int) -> None:
        self.total, self.seen = cells, 0
        self._say(f"{cells} cells to measure")

    def model(self, line: str) -> None:
        self._say(line)

    def note(self, line: str) -> None:
        self._say(line)

    def cell(self, label: str) -> None:
        self.seen += 1
        if time.monotonic() - self._told >= self.every:
            self._say(f"{self.seen} of {self.total} cells, at {label}")

    def alone(self, records: list[dict[str, Any]]) -> None:
        self._say("the methods alone are recorded")
