"""Factors of inverse Hessians: once for a Hessian, shared by all that is solved with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from perturb.linalg import cholesky, solve_upper
from perturb.types import Array, SolveReport

MAX_RETRIES = 10  # times the damping is raised, tenfold each


class Factor(NamedTuple):
    """``H^{-1} = U^T U`` of a damped Hessian, with what had to be done to get it."""

    upper: Array  # [in, in]
    dead: Array  # [in] bool, inputs that were always 0, unless all of them were
    report: SolveReport
    order: Array | None = None  # [in], the columns as they are settled, if not left to right


class Normalized(NamedTuple):
    """Hessians [..., in, in] on a scale of their own."""

    hessian: Any
    dead: Any  # [..., in] bool, in the order of the Hessian
    order: Any = None


def normalized(gram: Any, *, act_order: bool = False, xp: Any = jnp) -> Normalized:
    """``H = gram / m``, m the mean of diag(gram) over live inputs.

    A solution does not depend on the scale of H, so nothing here depends on the scale of the
    inputs or on whether tokens or sequences were counted. A dead input has no correlations: any
    positive H_dd leaves the others alone (1 here). Inputs that are dead altogether say nothing:
    H is then the identity. act_order: columns by decreasing diag(H), instead of left to right.
    xp: jax.numpy, or numpy, which compiles nothing.
    """
    order = None
    if act_order:  # stable: padding stays behind the dead inputs
        order = xp.argsort(-xp.diagonal(gram, axis1=-2, axis2=-1), axis=-1, stable=True)
        gram = xp.take_along_axis(gram, order[..., :, None], -2)
        gram = xp.take_along_axis(gram, order[..., None, :], -1)
    energy = xp.diagonal(gram, axis1=-2, axis2=-1)
    dead = energy == 0
    # Scaled twice, so that neither sum nor quotient leaves the floats' range.
    largest = xp.max(energy, -1)[..., None]
    largest = xp.where(largest > 0, largest, 1)
    live = xp.maximum(xp.sum(~dead, -1), 1).astype(gram.dtype)
    mean = xp.sum(energy / largest, -1) / live
    mean = xp.where(mean > 0, mean, 1)
    eye = xp.eye(gram.shape[-1], dtype=gram.dtype)
    scaled = gram / largest[..., None] / mean[..., None, None]
    return Normalized(xp.where(dead[..., None] & (eye > 0), eye, scaled), dead, order)


def factorize(gram: Array, damp: Array | float, *, act_order: bool = False) -> Factor:
    """Factor the inverse of ``H + damp I``, H the normalized gram matrix [in, in]."""
    return factor_of(normalized(gram, act_order=act_order), damp)


def factor_of(given: Normalized, damp: Array | float, inputs: Array | int | None = None) -> Factor:
    """Factor the inverse of ``H + damp I``.

    If the factor is not finite, the damping is raised tenfold (from at least 1e-4), up to
    MAX_RETRIES times, and the report says so. inputs: how many there are, if the rest is padding:
    that is no input, dead or not.

    With J the reversal, ``J H J = L L^T`` gives ``H = R R^T`` with R = J L J upper triangular,
    so U = R^{-1}: one Cholesky and one triangular solve instead of the textbook's Cholesky,
    inverse, Cholesky.
    """
    h, dead, order = given
    n = h.shape[0]
    eye = jnp.eye(n, dtype=h.dtype)

    def failed(state: tuple[Array, Array, Array]) -> Array:
        upper, _, tries = state
        return ~jnp.all(jnp.isfinite(upper)) & (tries <= MAX_RETRIES)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, fraction, tries = state
        fraction = jnp.where(tries == 0, fraction, jnp.maximum(10 * fraction, 1e-4))
        damped = h + fraction * eye
        upper = solve_upper(cholesky(damped[::-1, ::-1])[::-1, ::-1], eye)
        return upper, fraction, tries + 1

    # The first attempt is one of the loop's: what it does is compiled once.
    start = (jnp.full_like(h, jnp.nan), jnp.asarray(damp, h.dtype), jnp.asarray(0, jnp.int32))
    upper, fraction, tries = lax.while_loop(failed, attempt, start)
    padding = 0 if inputs is None else n - inputs
    report = SolveReport(fraction, tries - 1, jnp.sum(dead, dtype=jnp.int32) - padding)
    return Factor(upper, dead & jnp.any(~dead), report, order)
