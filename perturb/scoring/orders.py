"""Which stages are scored, by which letters, and in which orders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from perturb.composition import stages_of
from perturb.registry import to_config
from perturb.stage import Stage
from perturb.types import MatrixMethod

LETTERS = "ABCD"
ALL = ("all", "both")  # words for every order
USAGE = "score(model, A, B, calibration) or score(model, [A, B, C], calibration)"


@dataclass(frozen=True)
class Plan:
    """Stages by letter, each a sequence of steps (of a chain its own), and the orders to run."""

    stages: dict[str, tuple[Any, ...]]
    orders: tuple[str, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Every stage alone, then the orders."""
        return (*self.stages, *self.orders)

    @property
    def roles(self) -> bool:
        """Whether they are a pruner P and a quantizer Q."""
        return tuple(self.stages) == ("P", "Q")

    def after(self, path: str) -> Iterator[str]:
        """What may come next after a beginning of an order."""
        for letter in self.stages:
            wanted = not path or any(o.startswith(path + letter) for o in self.orders)
            if letter not in path and wanted:
                yield letter

    @property
    def runs(self) -> int:
        """Stages that are run: those that orders begin with alike once."""
        return len({v[: i + 1] for v in self.variants for i in range(len(v))})


def role(stage: Any) -> str:
    """ "P" of a pruner, "Q" of a quantizer, "" of anything else."""
    has = hasattr(stage, "sparsity"), hasattr(stage, "bits")
    return {(True, False): "P", (False, True): "Q"}.get(has, "")


def lettered(stages: Sequence[Any]) -> dict[str, Any]:
    """P and Q for a pruner and a quantizer (whichever is given first), else A, B, C, D as given.

    Raises ValueError unless they are two to four.
    """
    if not 2 <= len(stages) <= len(LETTERS):
        raise ValueError(f"two to {len(LETTERS)} stages have orders to compare; got {len(stages)}")
    roles = {role(s): s for s in stages}
    if len(stages) == 2 and roles.keys() == {"P", "Q"}:
        return {"P": roles["P"], "Q": roles["Q"]}
    return dict(zip(LETTERS, stages, strict=False))


def orders_of(text: str, letters: Sequence[str]) -> tuple[str, ...]:
    """``all`` (or ``both``), or orders such as ``pq`` or ``bca,abc``. Raises ValueError."""
    every = tuple(map("".join, permutations(letters)))
    if text.lower() in ALL:
        return every
    asked = [part.strip().upper() for part in re.split(r"[,\s]+", text.strip())]
    for order in asked:
        if order not in every:
            shown = ", ".join(o.lower() for o in every[:6]) + (", ..." if len(every) > 6 else "")
            raise ValueError(f"order must be all, or some of {shown}; got {text!r}")
    return tuple(o for o in every if o in asked)


def plan_of(stages: Sequence[Any], order: str) -> Plan:
    """Raises ValueError for stages that are equal, and for what is refused above."""
    named = lettered(stages)
    known: dict[str, str] = {}
    for letter, stage in named.items():
        told = str([to_config(s) for s in stages_of(stage)])
        if told in known:
            raise ValueError(
                f"stages {known[told]} and {letter} are both {stage.name} with the same settings: "
                "their orders are one"
            )
        known[told] = letter
    return Plan({k: stages_of(s) for k, s in named.items()}, orders_of(order, tuple(named)))


def is_stage(value: Any) -> bool:
    return not isinstance(value, type) and isinstance(value, (Stage, MatrixMethod))


def given(arguments: Sequence[Any], calibration: Any) -> tuple[tuple[Any, ...], Any]:
    """Stages and calibration data as :func:`perturb.score` takes them by position."""
    first = arguments[0] if arguments else None
    if isinstance(first, (list, tuple)) and first and all(map(is_stage, first)):
        stages, rest = tuple(first), arguments[1:]
    else:
        count = next((i for i, a in enumerate(arguments) if not is_stage(a)), len(arguments))
        stages, rest = tuple(arguments[:count]), arguments[count:]
    if len(rest) > 1 or (rest and calibration is not None):
        raise ValueError(
            f"{rest[0]!r:.100} is no stage (a method on matrices, or a stage of a model): {USAGE}"
        )
    return stages, rest[0] if rest else calibration
