"""The sign law for many weights with a density, and for blocks of them: both claims by integrals.

The error takes ATOMS values (lengths, for blocks) of any size and probability.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.engine import instances
from theory.engine.statement import Sides
from theory.maths.blocks import chi2_cdf_small, chi2_pdf, chi2_quantile
from theory.maths.densities import DENSITIES
from theory.maths.quadrature import integrate

ATOMS = 3


class Mixed(NamedTuple):
    density: Array  # which of DENSITIES; for blocks, the size of a block
    eps: Array  # [ATOMS], values of the error (for blocks |eps|)
    chance: Array  # [ATOMS]
    cut: Array  # what goes has |w + eps| <= cut


def mixed(u: Array, low: int, high: int, cuts: tuple[float, float]) -> Mixed:
    take = instances.Take(u)
    kind = instances.integer(take(), low, high)
    eps = jnp.where(take(ATOMS) < 0.5, -1, 1) * instances.log_uniform(take(ATOMS), 1e-2, 4.0)
    chance = instances.log_uniform(take(ATOMS), 1e-3, 1.0)
    return Mixed(kind, eps, chance / jnp.sum(chance), instances.log_uniform(take(), *cuts))


def _orders(
    x: Mixed, goes: Array, square: Array, pruned: Array, dense: Array
) -> tuple[Sides, Sides]:
    """Both claims: given per atom P(it goes) and E[w^2; it goes], and the dense mask's sum."""
    noise = x.chance @ x.eps**2
    kept = x.chance @ (x.eps**2 * (1 - goes))
    pq, qp = dense + (1 - pruned) * noise, x.chance @ square + kept
    cost = x.chance @ (x.eps**2 * goes)
    return Sides(pq, qp, qp), Sides(cost, pruned * noise, pruned * noise)


def many(x: Mixed) -> tuple[Sides, Sides]:
    low, high = -x.cut - x.eps, x.cut - x.eps

    def of(i: int) -> tuple[Array, Array, Array]:
        f = DENSITIES[i]
        goes, square = f.moment(0, low, high), f.moment(2, low, high)
        t = f.threshold(jnp.clip(x.chance @ goes, 1e-12, 1 - 1e-9))
        return goes, square, f.moment(2, -t, t)

    each = [of(i) for i in range(len(DENSITIES))]
    goes, square, dense = (jnp.stack(part)[x.density] for part in zip(*each, strict=True))
    return _orders(x, goes, square, x.chance @ goes, dense)


def blocks(x: Mixed) -> tuple[Sides, Sides]:
    """Blocks of m normal weights: along eps a normal coordinate, across it chi^2 with m - 1."""
    m = x.density.astype(jnp.float64)

    def at(angle: Array) -> Array:  # along = -|eps| + cut sin, across <= cut cos
        along = x.cut * jnp.sin(angle) - jnp.abs(x.eps)[:, None, None]
        most = (x.cut * jnp.cos(angle)) ** 2
        inside = chi2_cdf_small(m - 1, most)
        # E[chi^2_{m-1}; <= y] = (m-1) F_{m+1}(y) = (m-1) F_{m-1}(y) - 2 y f_{m-1}(y)
        across = (m - 1) * inside - 2 * most * chi2_pdf(m - 1, most)
        density = norm.pdf(along) * x.cut * jnp.cos(angle)
        return density * jnp.stack([inside, along**2 * inside + across])

    ends = jnp.full(ATOMS, jnp.pi / 2)
    goes, square = integrate(at, -ends, ends)
    pruned = x.chance @ goes
    dense = m * chi2_cdf_small(m + 2, chi2_quantile(m, pruned))
    return _orders(x, goes, square, pruned, dense)
