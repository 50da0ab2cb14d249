"""A law that decides an order: one sentence, one picture, and what became of it.

The sentence says which order wins as a function of what; the picture shows A over that. Verdicts
are computed from the statement's verification, never written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from theory.engine.statement import Finding

PROVED, NARROWER, FAILS = "proved", "narrower", "fails"


class Line(NamedTuple):
    """``points``: measured, marks instead of a line."""

    label: str
    x: ArrayLike
    y: ArrayLike
    points: bool = False


class Picture(NamedTuple):
    """A(Q->P), or what ``up`` says, over what ``across`` says."""

    across: str
    up: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Law:
    """says: the sentence; draw: what the statement measured -> its picture. narrower: the dropped
    assumption whose counterexample contradicts the law as it was first put, if it was put wider."""

    says: str
    draw: Callable[[Mapping[str, Finding]], Picture]
    narrower: str = ""

    def verdict(self, holds: bool, violated: Mapping[str, bool]) -> str:
        """violated: by dropped assumption, whether the claim is violated without it. Raises
        KeyError for a ``narrower`` that is none of them."""
        if not holds:
            return FAILS
        return NARROWER if self.narrower and violated[self.narrower] else PROVED

    def record(
        self, holds: bool, violated: Mapping[str, bool], findings: Sequence[Finding]
    ) -> dict[str, Any]:
        picture = self.draw({f.name: f for f in findings})
        return {
            "says": self.says,
            "verdict": self.verdict(holds, violated),
            "picture": {
                "across": picture.across,
                "up": picture.up,
                "lines": [
                    {
                        "label": line.label,
                        "x": np.asarray(line.x, float).tolist(),
                        "y": np.asarray(line.y, float).tolist(),
                        "points": line.points,
                    }
                    for line in picture.lines
                ],
            },
        }
