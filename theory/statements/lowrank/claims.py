"""Low rank last, or not: quantizing first wins unless the singular values fall too slowly.

W [m, n] with singular values sigma, falling; L keeps r of them (T_r), Q adds independent noise of
variance v to every entry it stores. By errors of the weights, S = sum of sigma_j^2 beyond r:

    L -> Q   S + v m n                    every entry of the product is rounded
    Q -> L   S + v tr dT_r/dW + O(v^2)    truncation lets a part of the noise through

for E|W - T_r(W + N)|^2 = E S(W + N) - 2 E<N, W + N - T_r(W + N)> + v m n, the gradient of S is
2 (W - T_r(W)), and E<N, grad S> = v E lap S (Stein). With the divergence of T_r,

    A(Q->L)/kappa = v [(m - r)(n - r) - 2 sum_{i <= r < j} sigma_j^2 / (sigma_i^2 - sigma_j^2)].

The candidate, +v (n - r)(m - r) whatever the gap, is the case of a matrix of rank r; it is narrower
than it was put: where the spectrum is flat the sum wins and low rank had better come first
(2 x 2, r = 1: where sigma_2^2 > sigma_1^2 / 3). The intensity gap, S against v m n, does not
appear. The two orders do not end in the same format: L -> Q leaves a rounded matrix of any rank,
Q -> L one of rank r off the grid; the comparison is of errors, not of sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import lowrank as forms
from theory.statements.lowrank import law, measure, proof

SIDE = 3
FORMS = ("truncation_divergence", "low_rank_advantage")  # of theory.maths.lowrank
BASIS = jnp.eye(SIDE * SIDE).reshape(-1, SIDE, SIDE)


class Spectrum(NamedTuple):
    weight: Array  # [SIDE, SIDE]
    sigma: Array  # [SIDE], falling
    r: Array  # 1..SIDE - 1


def _spectrum(u: Array) -> Spectrum:
    """Neighbouring singular values differ by a factor of 1.1 to 4."""
    take = instances.Take(u)
    gap = instances.log_uniform(take(SIDE - 1), 1.1, 4.0)
    sigma = jnp.concatenate([jnp.ones(1), 1 / jnp.cumprod(gap)])
    turn = [
        jnp.linalg.qr(jax.scipy.special.ndtri(jnp.clip(take(SIDE, SIDE), 1e-3, 1 - 1e-3)))[0]
        for _ in range(2)
    ]
    r = instances.integer(take(), 1, SIDE - 1)
    return Spectrum(turn[0] @ jnp.diag(sigma) @ turn[1].T, sigma, r)


def _truncated(w: Array, r: Array) -> Array:
    left, sigma, right = jnp.linalg.svd(w)
    return (left * jnp.where(jnp.arange(SIDE) < r, sigma, 0)) @ right


def _tail(x: Spectrum) -> tuple[Array, Array]:
    """The sum over pairs, and the size of the terms that differentiation adds up."""
    each = jnp.stack([forms.tail_share(list(x.sigma), r) for r in range(1, SIDE)])
    near = jnp.min(1 - (x.sigma[1:] / x.sigma[:-1]) ** 2)
    return each[x.r - 1], SIDE**2 / near**2


def _divergence(x: Spectrum) -> Sides:
    def along(direction: Array) -> Array:
        moved = jax.jvp(lambda w: _truncated(w, x.r), (x.weight,), (direction,))[1]
        return jnp.sum(moved * direction)

    tail, size = _tail(x)
    found = jnp.sum(jax.vmap(along)(jnp.asarray(BASIS, jnp.float64)))
    return Sides(forms.truncation_divergence(SIDE, SIDE, x.r, tail), found, size)


def _second_order(x: Spectrum) -> Sides:
    """A over v from the definition: m n less half the Laplacian of |W - T_r(W + N)|^2 at N = 0."""

    def error(noise: Array) -> Array:
        return jnp.sum((_truncated(x.weight + noise, x.r) - x.weight) ** 2)

    def curved(direction: Array) -> Array:
        def slope(t: Array) -> Array:
            return jax.jvp(lambda s: error(s * direction), (t,), (jnp.ones(()),))[1]

        return jax.jvp(slope, (jnp.zeros(()),), (jnp.ones(()),))[1]

    tail, size = _tail(x)
    half = jnp.sum(jax.vmap(curved)(jnp.asarray(BASIS, jnp.float64))) / 2
    law = forms.low_rank_advantage(1.0, SIDE, SIDE, x.r, tail)
    return Sides(law, SIDE**2 - half, size)


FAMILIES = (
    Family(
        "spectra",
        f"{SIDE} x {SIDE} matrices, singular values that fall by factors of 1.1 to 4, any singular "
        f"vectors, rank 1 to {SIDE - 1}",
        SIDE - 1 + 2 * SIDE * SIDE + 1,
        _spectrum,
        (
            Claim("divergence", "of T_r is r (m + n - r) + 2 sum", "==", _divergence, 0.5),
            Claim("second order", "A is the law, to first order in v", "==", _second_order, 0.5),
        ),
        smooth=False,
        share=0.02,
    ),
)

STATEMENT = Statement(
    name="lowrank",
    title="Low rank last wins by v (m - r)(n - r), less what a slowly falling spectrum takes",
    source="derived here (Stein 1981 for the identity)",
    assumptions=(
        "quantization is noise, independent of the weights, of one variance",
        "the noise is small against the gap between sigma_r and sigma_{r+1}",
        "errors are of the weights, whatever the formats the orders end in",
    ),
    claim="A(Q->L) = kappa v [(m - r)(n - r) - 2 sum sigma_j^2/(sigma_i^2 - sigma_j^2)] + O(v^2): "
    "low rank had better come last exactly where the spectrum falls fast enough",
    latex=r"A(Q\to L)=\kappa v\Bigl[(m-r)(n-r)-2\sum_{i\le r<j}"
    r"\frac{\sigma_j^2}{\sigma_i^2-\sigma_j^2}\Bigr]+O(v^2)",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure.measure,
)
