"""Two compensated stages as projections: what is removed, what is rounded, and what twice.

A row w [n] with H [n, n], lengths |x|_H^2 = x^T H x. For a set S of removed weights, Pi_S is the
H-projection onto the rows that are 0 in S: pruning with full compensation. The theorem is
:mod:`theory.statements.stages`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from theory.maths.algebra import Number


def projection(gone: Array, h_inv: Array) -> Array:
    """Pi_S [n, n] = 1 - (H^-1)_:S [(H^-1)_SS]^-1 1_S:; gone [n] True in S, h_inv = H^-1."""
    unit = jnp.eye(gone.shape[0])
    block = jnp.where(gone[:, None] & gone[None, :], h_inv, unit)
    return unit - jnp.where(gone, h_inv, 0) @ jnp.linalg.solve(block, jnp.where(gone, unit, 0))


def stages_advantage(first: Number, last: Number, once: Number, twice: Number) -> Any:
    """A(Q->P)/kappa = [R_S(w) - R_T(w)] + |eta|_H^2 - |Pi_T zeta + eta'|_H^2, in this order."""
    return first - last + once - twice


def noise_energy(variance: Number, pi: Array, h: Array) -> Any:
    """E |Pi zeta|_H^2 = variance tr(Pi^T H Pi), zeta uncorrelated with that variance a weight."""
    return variance * jnp.trace(pi.T @ h @ pi)
