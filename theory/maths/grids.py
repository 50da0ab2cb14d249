"""Uniform grids on normal and other weights: their errors, and the steps of least error.

Errors are per weight in units of s^2 (of the density's scale squared where one is given), steps in
units of s. Call everything under ``jax.enable_x64(True)``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.maths import densities
from theory.maths.closed_forms import expected_advantage, order_free_below
from theory.maths.densities import Density
from theory.maths.gaussian import snr_db

MOST_BITS = 8  # cells that are laid out whatever the width: one program serves all
SCAN = 64  # steps tried before the search by golden section
GOLDEN = 60  # each step keeps 0.618 of the bracket: to rounding
INVERSE_PHI = (5**0.5 - 1) / 2
Function = Callable[[Array], Array]


def grid_error(step: Array, bits: Array | int) -> Array:
    """E(w - Q(w))^2 / s^2 of nearest rounding to step * {-2^(b-1), ..., 2^(b-1) - 1}.

    With the cells (a_k, a_k+1) between the midpoints a_k = (k - 1/2) step, the outer ones open,
    integrating (w - k step)^2 phi(w) cell by cell and using that the cells cover the line:

        1 + sum_k [(k step)^2 (Phi(a_k+1) - Phi(a_k)) + 2 k step (phi(a_k+1) - phi(a_k))].

    step [...] > 0 in units of s; bits <= MOST_BITS, may be traced; returns [...].
    """
    step = jnp.asarray(step, jnp.float64)[..., None]
    half = 2 ** (jnp.asarray(bits) - 1)
    code = jnp.arange(-(2 ** (MOST_BITS - 1)), 2 ** (MOST_BITS - 1))
    level = step * code
    lower = jnp.where(code == -half, -jnp.inf, step * (code - 0.5))
    upper = jnp.where(code == half - 1, jnp.inf, step * (code + 0.5))
    weight = densities.Normal()
    mass, first = (weight.moment(k, lower, upper) for k in (0, 1))
    each = jnp.where((code >= -half) & (code < half), level**2 * mass - 2 * level * first, 0)
    return 1 + jnp.sum(each, -1)


def _least(error: Function, low: Array, high: Array) -> tuple[Array, Array]:
    """The minimiser of a function of a positive step between low and high, and its value.

    The bracket is the best of SCAN logarithmic steps with its neighbours; golden section from
    there."""
    steps = low * (high / low) ** jnp.linspace(0, 1, SCAN)
    best = jnp.clip(jnp.argmin(jax.lax.map(error, steps)), 1, SCAN - 2)

    def shrink(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        width = INVERSE_PHI * (high - low)
        left, right = error(jnp.stack([high - width, low + width]))
        return jnp.where(left < right, low, high - width), jnp.where(
            left < right, low + width, high
        )

    low, high = jax.lax.fori_loop(0, GOLDEN, shrink, (steps[best - 1], steps[best + 1]))
    step = (low + high) / 2
    return step, error(step)


def optimal_step(bits: int) -> tuple[Array, Array]:
    """The step of least :func:`grid_error`, and that error, in units of s and s^2.

    Raises ValueError for bits outside 2..MOST_BITS.
    """
    if bits not in range(2, MOST_BITS + 1):
        raise ValueError(f"bits must be a whole number from 2 to {MOST_BITS}, got {bits}")
    return _optimal_step(jnp.asarray(bits))


@jax.jit
def _optimal_step(bits: Array) -> tuple[Array, Array]:
    unit = 0.5**bits
    return _least(lambda step: grid_error(step, bits), 2 * unit, 16 * unit)


@partial(jax.jit, static_argnames=("density",))
def best_symmetric_step(density: Density, top: Array) -> Array:
    """The step of least error of the grid step * {-top, ..., top} on a density; top [] <= 127."""
    size = density.variance**0.5 / (top + 1)
    return _least(lambda step: densities.round_error(density, step, top), 0.25 * size, 20 * size)[0]


def grid_snr_db(bits: int) -> float:
    """SNR in dB of the MSE-optimal b-bit uniform grid, in float64."""
    with jax.enable_x64(True):
        return float(snr_db(optimal_step(bits)[1]))


BITS = tuple(range(2, 9))
SPARSITIES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)


@partial(jax.jit, static_argnames=("density",))
def _column(density: Density, top: Array) -> tuple[Array, Array, Array]:
    """(A, G) over kappa n and the variance, and P(Q(w) = 0), over SPARSITIES; one width."""
    p = jnp.asarray(SPARSITIES)
    step = best_symmetric_step(density, top)
    a = expected_advantage(density, p, step, top)
    gap = densities.prune_error(density, p) - densities.round_error(density, step, top)
    free = jnp.full_like(p, order_free_below(density, step))
    return a / density.variance, gap / density.variance, free


def grid_table(density: Density) -> dict[str, np.ndarray]:
    """A(Q->P) and the gap G(Q,P) = E_P - E_Q over kappa n, [sparsity, bits], in variances.

    The grid of b bits is the symmetric one, {-(2^(b-1)-1)..2^(b-1)-1}, with the step of least
    error. free: P(Q(w) = 0), below which the order cannot matter.
    """
    with jax.enable_x64(True):
        found = [_column(density, jnp.asarray(2 ** (b - 1) - 1)) for b in BITS]
        a, gap, free = (np.stack([np.asarray(c[i]) for c in found], 1) for i in range(3))
    return {"advantage": a, "gap": gap, "free": free}
