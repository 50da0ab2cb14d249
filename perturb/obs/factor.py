"""Factors of inverse Hessians: computed once for a Hessian, shared by all that is solved with it."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from perturb.types import Array, SolveReport

MAX_RETRIES = 10  # times the damping is raised, tenfold each


class Factor(NamedTuple):
    """``H^{-1} = U^T U`` of a damped Hessian, with what had to be done to get it."""

    upper: Array  # [in, in]
    dead: Array  # [in] bool, inputs that were always 0, unless all of them were
    report: SolveReport
    order: Array | None = None  # [in], the columns as they are settled, if not left to right


def factorize(
    gram: Array,
    damp: Array | float,
    *,
    act_order: bool = False,
    inputs: Array | int | None = None,
) -> Factor:
    """Factor the inverse of ``H = gram / m + damp I``, m the mean of diag(gram) over live inputs.

    A solution does not depend on the scale of H, so nothing here depends on the scale of the
    inputs or on whether tokens or sequences were counted. A dead input has no correlations: any
    positive H_dd leaves the others alone (1 here). Inputs that are dead altogether say nothing:
    H is then the identity. If the factor is not finite, the damping is raised tenfold (from at
    least 1e-4), up to MAX_RETRIES times, and the report says so.

    act_order: of the columns by decreasing diag(H), instead of left to right. inputs: how many
    there are, if the rest of gram is padding with zeros: that is no input, dead or not.

    With J the reversal, ``J H J = L L^T`` gives ``H = R R^T`` with R = J L J upper triangular,
    so U = R^{-1}: one Cholesky and one triangular solve instead of the textbook's Cholesky,
    inverse, Cholesky.
    """
    n = gram.shape[0]
    real = jnp.arange(n) < (n if inputs is None else inputs)
    order = None
    if act_order:  # stable: padding stays behind the dead inputs
        order = jnp.argsort(-jnp.diagonal(gram), stable=True)
        gram = gram[order][:, order]
    energy = jnp.diagonal(gram)
    dead = energy == 0
    largest = jnp.max(energy)  # twice, so that neither sum nor quotient leaves the floats' range
    scaled = gram / jnp.where(largest > 0, largest, 1)
    mean = jnp.sum(jnp.diagonal(scaled)) / jnp.maximum(jnp.sum(~dead), 1)
    eye = jnp.eye(n, dtype=gram.dtype)
    h = jnp.where(dead[:, None] & (eye > 0), eye, scaled / jnp.where(mean > 0, mean, 1))

    def failed(state: tuple[Array, Array, Array]) -> Array:
        upper, _, tries = state
        return ~jnp.all(jnp.isfinite(upper)) & (tries <= MAX_RETRIES)

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, fraction, tries = state
        fraction = jnp.where(tries == 0, fraction, jnp.maximum(10 * fraction, 1e-4))
        damped = h + fraction * eye
        upper = lax.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)[::-1, ::-1]
        upper = lax.linalg.triangular_solve(upper, eye, left_side=True, lower=False)
        return upper, fraction, tries + 1

    # The first attempt is one of the loop's: what it does is compiled once.
    start = (jnp.full_like(h, jnp.nan), jnp.asarray(damp, h.dtype), jnp.asarray(0, jnp.int32))
    upper, fraction, tries = lax.while_loop(failed, attempt, start)
    report = SolveReport(fraction, tries - 1, jnp.sum(dead & real, dtype=jnp.int32))
    return Factor(upper, dead & jnp.any(~dead), report, order)
