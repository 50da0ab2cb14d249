"""Joint optimality as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from theory.engine import instances
from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.statements.refit.measure import ROWS, WEIGHTS, over_rows

TOP = 3  # 3 bits
REMOVED = np.arange(4, WEIGHTS, 4)


def _draw(findings: Mapping[str, Finding]) -> Picture:
    with jax.enable_x64(True):
        w = jnp.asarray(instances.generator(jax.random.key(0)).normal(size=(ROWS, WEIGHTS)))
        found = [[np.mean(x) for x in over_rows(w, jnp.asarray(k), TOP)] for k in REMOVED]
    saved, order = np.array(found).T
    p = REMOVED / WEIGHTS
    return Picture(
        "fraction pruned",
        "A(Q->P) over the error, 3 bits",
        (Line("grid of the dense weights", p, -order), Line("refitted", p, -order - saved)),
    )


LAW = Law(
    "Prune by magnitude, then fit the grid to the survivors: no order, interleaving or awareness "
    "has less error, at any ratio and width.",
    _draw,
)
