"""Theorem 2c as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths.closed_forms import noise_advantage
from theory.statements.aware.measure import advantage

PRUNED = np.linspace(0.02, 0.98, 49)
NOISE = 0.1


def _draw(findings: Mapping[str, Finding]) -> Picture:
    with jax.enable_x64(True):
        p, v = jnp.asarray(PRUNED), jnp.asarray(NOISE)
        aware, blind = advantage(p, v), np.asarray(noise_advantage(p, v))
    return Picture(
        "fraction pruned",
        f"A(Q->P), normal weights, v = {NOISE:g}",
        (Line("P blind", PRUNED, blind), Line("P, last, knows the dense weights", PRUNED, aware)),
    )


LAW = Law(
    "Whichever stage knows the dense model goes last: it then never loses, whatever the gap, and "
    "what it sees is worth as much as the order.",
    _draw,
)
