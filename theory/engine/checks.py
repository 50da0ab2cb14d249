"""What sampling and attacks found of claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from theory.engine.statement import TOLERANCE, Relation


class Where(NamedTuple):
    """An instance of a claim: the point of the cube, what it decodes to, its two sides."""

    point: np.ndarray
    instance: dict[str, Any]
    left: float
    right: float


@dataclass(frozen=True)
class ClaimCheck:
    """What sampling found: it checks a claim and never proves one.

    histogram: counts of margins by :data:`theory.engine.sweep.EDGES`; vacuous: 0 <= 0 or 0 == 0;
    telling: instances that tell (see :class:`theory.engine.statement.Claim`), ``enough`` if no
    fewer than it asks for.
    margin: the smallest of the others (inf if there are none), which is that of ``where``.
    """

    claim: str
    relation: Relation
    instances: int
    failures: int
    vacuous: int
    margin: float
    where: Where
    histogram: np.ndarray
    telling: int
    enough: bool

    @property
    def holds(self) -> bool:
        return self.instances > 0 and self.failures == 0


@dataclass(frozen=True)
class Check:
    """All claims of a statement over ``instances`` random instances; seconds exclude compiling."""

    claims: tuple[ClaimCheck, ...]
    instances: int
    seconds: float

    @property
    def holds(self) -> bool:
        return bool(self.claims) and all(c.holds for c in self.claims)

    @property
    def margin(self) -> float:
        return min((c.margin for c in self.claims), default=float("nan"))

    @property
    def throughput(self) -> float:
        """Instances a second, compiled; every one is put to all claims of its family."""
        return self.instances / self.seconds if self.seconds else float("nan")


@dataclass(frozen=True)
class ClaimAttack:
    """The smallest margin that a search found, vacuous instances aside.

    tightness: for a bound whose scale is its right side, left / right at that instance: 1 is
    attained, 0 is nowhere near. None for identities.
    """

    claim: str
    relation: Relation
    margin: float
    tightness: float | None
    where: Where

    @property
    def holds(self) -> bool:
        return self.margin >= -TOLERANCE


@dataclass(frozen=True)
class Attack:
    claims: tuple[ClaimAttack, ...]
    evaluations: int

    @property
    def holds(self) -> bool:
        return bool(self.claims) and all(c.holds for c in self.claims)

    @property
    def margin(self) -> float:
        return min((c.margin for c in self.claims), default=float("nan"))
