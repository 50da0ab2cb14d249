"""The beta law: what the order costs by what happens at the pruning threshold alone.

Per unit, over kappa. Operators only: arrays, fractions and sympy. The theorem is
:mod:`theory.statements.beta`.
"""

from __future__ import annotations

from typing import Any

from theory.maths.algebra import Number


def beta_advantage(density: Number, variance: Number, slope: Number, beta: Number) -> Any:
    """A(Q->P) = -f_a(tau) Var(delta) [(1 - e')/2 + beta]; slope = e', all at the threshold."""
    return density * variance * ((slope - 1) / 2 - beta)


def beta_error(
    density: Number, tilt: Number, slope: Number, variance: Number, cube: Number, cross: Number
) -> Any:
    """What the law is off by at most where f_a has the slope ``tilt`` f_a(tau) over the reach.

    f |f'/f| [|1 - e'| (|f'/f| V^2 / 2 + E|s - delta|^3 / 3) + E[|e - E e| (s - delta)^2] / 2];
    cube and cross: the two means, V: the variance of delta, tilt = |f'/f|, slope = |1 - e'|.
    """
    return density * tilt * (slope * (tilt * variance**2 / 2 + cube / 3) + cross / 2)


def noise_correction(v: Number, t: Number) -> Any:
    """3 v / (2 t^2): what the law overstates the exact A of theorem 2b by, relatively."""
    return 3 * v / (2 * t**2)


def aware_correction(v: Number, t: Number) -> Any:
    """(2/3) v (1 + 1/t^2): what the law overstates the exact A of 2c by at most, relatively."""
    return 2 * v * (1 + 1 / t**2) / 3


def grid_advantage(theta: Number, level: Number, step: Number, density: Number) -> Any:
    """-24 theta (1 - theta) v t f, v = D^2/12, t the cell's level: fine grids, ties at random."""
    return -2 * theta * (1 - theta) * step**2 * level * density


def grid_correction(edge: Number, tilt: Number, bend: Number, step: Number) -> Any:
    """(2/3) (|1 - 2 theta| D |f'/f| + D^2 c), c above |f''/f| and (f'/f)^2: off by at most that.

    Relatively; edge = |1 - 2 theta|, tilt = |f'/f|, bend = c, both over the cell."""
    return 2 * (edge * tilt * step + bend * step**2) / 3
