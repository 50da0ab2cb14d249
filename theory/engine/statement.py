"""What a statement is: assumptions, claims that can fail, a proof, and why each assumption stands.

A statement is a value. Its claims are inequalities ``left <= right`` or identities
``left == right`` between numbers computed from an *instance*; instances come from a *family*,
a map from the unit cube, so that the very family that :mod:`theory.engine.sweep` samples is the
one that :mod:`theory.engine.search` attacks.

Margins are relative: (right - left) / scale for a bound, -|left - right| / scale for an identity,
where ``scale`` is what the two sides are made of (the bound itself, where it is positive). A claim
holds on an instance when its margin is at least -1e-12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
import sympy
from jax import Array

Relation = Literal["<=", "=="]
TOLERANCE = 1e-12
CLEAR = 1e-9  # a bound's margin that is no rounding
SIZABLE = 1e-3  # of the scale, what sides of an identity are
ATTAINED = 1 - 1e-6  # a floor for bounds that some instance attains
TELLING = 0.05  # of the instances: a claim that nearly all instances say nothing of is no check


class Instance(Protocol):
    """What a family draws: a NamedTuple of arrays."""

    def _asdict(self) -> dict[str, Any]: ...


Drawn = TypeVar("Drawn", bound=Instance)
Judged = TypeVar("Judged", bound=Instance, contravariant=True)


class Sides(NamedTuple):
    """The two sides of a claim on one instance, and the size they are judged by; all ``[]``."""

    left: Array
    right: Array
    scale: Array


@dataclass(frozen=True)
class Claim(Generic[Judged]):
    """``left <= right`` or ``left == right`` on every instance of a family.

    sides: instance -> :class:`Sides`, in float64, traceable. A claim with both sides exactly 0 is
    *vacuous*: it holds, is counted, and is no sign of tightness. An instance *tells* when a bound's
    margin is above 1e-9, beyond what rounding could decide, or when an identity's sides are above
    1e-3 of their scale.

    telling: the least fraction of random instances that have to tell, up to chance. tight: left /
    right that the attack has to reach at least; every bound says one, so that one that is
    loosened fails as well as one that is false. A verification fails below.
    """

    name: str
    says: str
    relation: Relation
    sides: Callable[[Judged], Sides]
    telling: float = TELLING
    tight: float = 0.0

    def enough(self, telling: int, instances: int) -> bool:
        """Whether so many instances tell: no fewer than asked for by three standard deviations."""
        asked = self.telling * instances
        return telling >= asked - 3 * asked**0.5

    def margin(self, sides: Sides) -> tuple[Array, Array]:
        """(relative margin, whether the instance is vacuous), both ``[]``."""
        left, right, scale = sides
        difference = right - left
        if self.relation == "==":
            difference = -abs(difference)
        vacuous = (left == 0) & (right == 0)
        return difference / jax.numpy.where(scale > 0, scale, 1.0), vacuous

    def tells(self, sides: Sides) -> Array:
        """Whether the instance could have shown the claim wrong, ``[]``."""
        if self.relation == "<=":
            margin, vacuous = self.margin(sides)
            return (margin > CLEAR) & ~vacuous
        size = jax.numpy.maximum(abs(sides.left), abs(sides.right))
        return size > SIZABLE * sides.scale


@dataclass(frozen=True)
class Family(Generic[Drawn]):
    """Instances as a function of a point of the unit cube, and the claims made of all of them.

    decode: u [size] in [0, 1] -> instance (a NamedTuple of arrays), traceable. smooth: whether
    gradients with respect to u mean anything; the attack is evolutionary alone where not. share:
    the fraction of the requested instances that a check draws, for families whose instances
    are costly (an enumeration of masks, say). known: -> points [m, size] of instances that are
    known to be extreme, from which the attack starts as well as from the worst samples.
    """

    name: str
    says: str
    size: int
    decode: Callable[[Array], Drawn]
    claims: tuple[Claim[Drawn], ...]
    smooth: bool = True
    share: float = 1.0
    known: Callable[[], np.ndarray] | None = None


class Step(NamedTuple):
    """One step of a derivation: ``residual`` is what has to be 0, after simplification."""

    says: str
    residual: sympy.Expr

    @property
    def holds(self) -> bool:
        return self.residual == 0


@dataclass(frozen=True)
class Proof:
    """Steps that sympy has checked, and in words what they leave to the reader (if anything)."""

    steps: tuple[Step, ...]
    beyond: str = ""

    @property
    def holds(self) -> bool:
        return all(s.holds for s in self.steps)

    @property
    def words(self) -> str:
        if not self.steps:
            return "no symbolic proof"
        done = sum(s.holds for s in self.steps)
        return f"{done}/{len(self.steps)} steps" + (" + words" if self.beyond else "")


class Counterexample(NamedTuple):
    """What happens to a claim when one assumption alone is dropped: it fails, here.

    The claim is ``left relation right``; exact rationals wherever the instance is rational.
    """

    dropped: str
    instance: str
    relation: Relation
    left: float | Fraction
    right: float | Fraction

    @property
    def violates(self) -> bool:
        rounding = TOLERANCE * max(1.0, abs(float(self.right)))
        excess = self.left - self.right
        return bool(excess > rounding or (self.relation == "==" and -excess > rounding))


Verdict = Literal["holds", "narrower", "false", "measured"]


def verdict(everywhere: bool, somewhere: bool) -> Verdict:
    """holds; holds under a further condition; or does not."""
    return "holds" if everywhere else "narrower" if somewhere else "false"


@dataclass(frozen=True)
class Finding:
    """What became of a claim of the literature, decided by ``numbers``.

    verdict: "holds"; "narrower", it holds under more conditions than were stated; "false"; or
    "measured", where there was no claim to judge. required: a claim of ours, which has to hold for
    the verification to pass. columns, rows: a table behind it, if there is one.
    """

    name: str
    verdict: Verdict
    says: str
    numbers: Mapping[str, float]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    required: bool = False


def _nothing(key: Array) -> tuple[Finding, ...]:
    return ()


def _no_exact() -> None:
    return None


class Exact(NamedTuple):
    """A full enumeration in rational arithmetic: the number of cases, and the first that fails."""

    says: str
    cases: int
    failure: str | None

    @property
    def holds(self) -> bool:
        return self.cases > 0 and self.failure is None


class Decides(Protocol):
    """What a law that decides an order adds to its statement: :class:`theory.engine.law.Law`."""

    def record(
        self, holds: bool, violated: Mapping[str, bool], findings: Sequence[Finding]
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Statement:
    """A theorem with everything that makes it worth believing.

    prove, necessity, exact and measure do the work when called. Random instances of any statement
    are checked by :func:`theory.engine.sweep.check`, and searched by :mod:`theory.engine.search`.
    """

    name: str
    title: str
    source: str
    assumptions: tuple[str, ...]
    claim: str
    latex: str
    families: tuple[Family[Any], ...]
    prove: Callable[[], Proof]
    necessity: Callable[[], tuple[Counterexample, ...]]
    exact: Callable[[], Exact | None] = field(default=_no_exact)
    measure: Callable[[Array], tuple[Finding, ...]] = field(default=_nothing)
    law: Decides | None = None
