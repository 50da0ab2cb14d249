"""All statements, in the order in which they are verified and reported."""

from __future__ import annotations

from theory.engine.statement import Statement
from theory.statements.affine import claims as affine
from theory.statements.aware import claims as aware
from theory.statements.beta import claims as beta
from theory.statements.compensation import claims as compensation
from theory.statements.composability import claims as composability
from theory.statements.gaussian import claims as gaussian
from theory.statements.intensity import claims as intensity
from theory.statements.interference import claims as interference
from theory.statements.lowrank import claims as lowrank
from theory.statements.ordering import claims as ordering
from theory.statements.ownership import claims as ownership
from theory.statements.propagation import claims as propagation
from theory.statements.refit import claims as refit
from theory.statements.robust import claims as robust
from theory.statements.rotation import claims as rotation
from theory.statements.rounding import claims as rounding
from theory.statements.signlaw import claims as signlaw
from theory.statements.stages import claims as stages
from theory.statements.structured import claims as structured

STATEMENTS: tuple[Statement, ...] = (
    gaussian.STATEMENT,
    ownership.STATEMENT,
    intensity.STATEMENT,
    rounding.STATEMENT,
    refit.STATEMENT,
    affine.STATEMENT,
    structured.STATEMENT,
    signlaw.STATEMENT,
    aware.STATEMENT,
    beta.STATEMENT,
    compensation.STATEMENT,
    stages.STATEMENT,
    interference.STATEMENT,
    ordering.STATEMENT,
    robust.STATEMENT,
    lowrank.STATEMENT,
    rotation.STATEMENT,
    composability.STATEMENT,
    propagation.STATEMENT,
)
NAMES = tuple(s.name for s in STATEMENTS)
# Those that take the longest: begun first, so that no process is left alone with one at the end.
SLOWEST = ("propagation", "ordering", "aware", "compensation", "affine", "stages", "rounding")


def statement(name: str) -> Statement:
    """The statement of that name, which is to be one of NAMES."""
    return STATEMENTS[NAMES.index(name)]
