"""Absmax scales of groups and what pruning does to them: the closed forms of theorem 3.

Elementwise; those of a density in float64, under ``jax.enable_x64(True)``. The theorem is in
:mod:`theory.statements.interference`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from theory.maths.algebra import Number
from theory.maths.densities import Density
from theory.maths.quadrature import integrate

# Where the integral of max_square is cut; weights beyond 10^4 scale parameters are left out.
MAX_EDGES = (0, 1, 2, 4, 8, 20, 100, 1e3, 1e4)


def scale_step(absmax: Number, bits: int | Number) -> Any:
    """D = absmax / (2^(b-1) - 1), the "full" convention: the largest weight is on the grid."""
    return absmax / (2 ** (bits - 1) - 1)


def interference_bound(survivors: Number, step: Number) -> Any:
    """survivors D^2 / 4: every error is at most half a step."""
    return survivors * step**2 / 4


def expected_interference(survivors: Number, step: Number, step_after: Number) -> Any:
    """survivors (D^2 - D'^2) / 12, error before minus error after, for uniform errors."""
    return survivors * (step**2 - step_after**2) / 12


def max_square(density: Density, n: Array) -> Array:
    """E max_{i <= n} w_i^2 of n >= 0 iid weights, in units of the scale squared; n ``[...]``.

    For densities with a smooth distribution function (not the empirical one); about 1e-12 relative
    for tails that decay exponentially, 1e-6 for Student's t with 4 degrees of freedom.
    """
    n = jnp.asarray(n, jnp.float64)[..., None, None, None]
    edges = jnp.asarray(MAX_EDGES, jnp.float64)

    def tail(x: Array) -> Array:
        inside = density.moment(0, -x, x)
        return 2 * x * -jnp.expm1(n * jnp.log(inside))  # 2 x (1 - F^n)

    return jnp.sum(integrate(tail, edges[:-1], edges[1:]), -1)


def random_pruning(density: Density, bits: Array, n: Array, k: Array) -> Array:
    """E of the change, a group of n, k of which survive at random, by the expected law.

    k (E max_n^2 - E max_k^2) / (12 (2^(b-1)-1)^2); all ``[...]``.
    """
    unit = scale_step(1.0, bits) ** 2
    return k * unit * (max_square(density, n) - max_square(density, k)) / 12


def random_pruning_on_grid(density: Density, bits: Array, n: Array, k: Array) -> Array:
    """The same, less what the law gets wrong: the largest weight has no error, at either scale.

    Before, a survivor is the group's largest with probability 1/n; after, one survivor is:
    [k (1 - 1/n) E max_n^2 - (k - 1) E max_k^2] / (12 (2^(b-1)-1)^2), k >= 1.
    """
    unit = scale_step(1.0, bits) ** 2
    before = k * (1 - 1 / n) * max_square(density, n)
    return unit * (before - (k - 1) * max_square(density, k)) / 12
