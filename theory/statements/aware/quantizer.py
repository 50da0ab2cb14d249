"""What knowing the dense row is worth to a quantizer that comes last, by enumeration of the grid.

A row w [WEIGHTS] whose weights in S have been removed, whatever else was done to the others: y,
error |x - w|_H^2. Every x that is 0 in S is off by R_S(w) + |x - Pi_S w|_H^2 (Pythagoras; Pi_S as
in :mod:`theory.statements.stages`), so that to aim at the dense row is to aim at Pi_S w, its
compensated pruning. With x_a the grid point nearest to Pi_S w and x_b the one nearest to y,

    E(x_b) - E(x_a) = |x_b - Pi_S w|_H^2 - |x_a - Pi_S w|_H^2 >= 0
    |x_b - Pi_S w|_H - |x_a - Pi_S w|_H <= 2 |y - Pi_S w|_H

by the triangle |x_b - Pi| <= |x_b - y| + |y - Pi| <= |x_a - y| + |y - Pi|. After a pruner that
compensates in full (and after any where inputs are uncorrelated) y is Pi_S w: knowing the dense row
is worth nothing. After one that does not, it is worth at most what that left undone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Sides
from theory.maths import elimination as obs
from theory.maths import stages

WEIGHTS, TOP = 3, 3
SIZE = WEIGHTS * WEIGHTS + 3 * WEIGHTS + 6
SMALL = 1e-6  # of the row: a length whose square is rounding


class Pruned(NamedTuple):
    w: Array  # [WEIGHTS]
    h: Array  # [WEIGHTS, WEIGHTS]
    kept: Array  # [WEIGHTS], bool
    step: Array
    y: Array  # [WEIGHTS], what the quantizer is handed


def pruned(u: Array) -> Pruned:
    """y: the survivors as they were, half of the time; else moved by up to a step each."""
    take = instances.Take(u)
    n = WEIGHTS
    h = instances.positive_definite(take(n, n), 1.8 * take() - 0.9)
    w = instances.weights(take(n), take() * 0.59, take())
    kept = ~instances.smallest(take(n), instances.integer(take(), 1, n - 1))
    step = instances.log_uniform(take(), 0.1, 2.0)
    moved = (take() < 0.5) * step * (2 * take(n) - 1)
    return Pruned(w, h, kept, step, jnp.where(kept, w + moved, 0))


def _lengths(x: Pruned, handed: Array) -> tuple[Array, Array, Array, Array]:
    """|x_b - Pi|, |x_a - Pi|, |handed - Pi| in H, and the size of the row there. x_a is found by
    its error to the dense row, which Pi has no part in."""
    points = x.step * jnp.asarray(obs.lattice(WEIGHTS, TOP))
    pi = stages.projection(~x.kept, jnp.linalg.inv(x.h)) @ x.w
    blind = obs.by_lattice(handed, x.kept, x.h, points)
    aware = obs.by_lattice(x.w, x.kept, x.h, points)
    off, near, left = (jnp.sqrt(obs.error(a, pi, x.h)) for a in (blind, aware, handed))
    return off, near, left, jnp.sqrt(x.w @ x.h @ x.w) + x.step


def never_loses(x: Pruned) -> Sides:
    off, near, _, _ = _lengths(x, x.y)
    return Sides(near, off, off)


def at_most(x: Pruned) -> Sides:
    off, near, left, size = _lengths(x, x.y)
    right = 2 * left
    clear = (left > SMALL * size).astype(jnp.float64)
    return Sides(clear * (off - near), clear * right, right)


def nothing(x: Pruned) -> Sides:
    """After compensation in full."""
    pi = stages.projection(~x.kept, jnp.linalg.inv(x.h)) @ x.w
    off, near, _, size = _lengths(x, jnp.where(x.kept, pi, 0))
    return Sides(near, off, size)
