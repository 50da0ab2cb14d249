"""Compensated stages: what quantizing first loses is mask regret plus rounding twice.

One row w of a layer, error |x - w|_H^2, H the second moment of the inputs. Pruning a set S with
compensation is the H-projection Pi_S w onto {x_S = 0} and costs the residual R_S(w) of optimal
brain surgeon; any x of that subspace, Pi_S w + eta, is off by R_S(w) + |eta|_H^2 (Pythagoras). So

    P -> Q   x = Pi_S w + eta                  R_S(w) + |eta|_H^2
    Q -> P   x = Pi_T (w + zeta) + eta'        R_T(w) + |Pi_T zeta + eta'|_H^2
    A(Q->P)/kappa = [R_S(w) - R_T(w)] + |eta|_H^2 - |Pi_T zeta + eta'|_H^2

exactly, with zeta the noise of rounding first, eta and eta' those of rounding last, whatever rounds
(nearest, GPTQ, anything that keeps the mask). Consequences:

- with S the best mask the first bracket, the regret of Q->P's mask, is never positive;
- with one mask, noises uncorrelated with zeta and E|eta|^2 = E|eta'|^2: E A = -E|Pi zeta|_H^2 <= 0,
  that is -delta^2 tr(Pi^T H Pi) if zeta has variance delta^2 a weight: rounded twice;
- the third variant of theorem 2d, Q -> P with the dense row as target (x the rounding of Pi_T w,
  mask T chosen on the rounded row), removes the double rounding and not the regret. With the
  nearest grid point of the mask in H it is no worse than the blind Q -> P on any row.

On real rows rounding is not uncorrelated (survivors that stay on the grid are not rounded again),
which is why theorem 2d has no sign.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import elimination as obs
from theory.maths import stages as forms
from theory.statements.stages import law, measure, proof

WEIGHTS, TOP = 4, 3
FORMS = ("projection", "stages_advantage", "noise_energy")  # of theory.maths.stages
SIGNS = np.array(list(itertools.product((-1.0, 1.0), repeat=WEIGHTS)))
ROUNDING = 1e-4  # a rounding, 1e-16, over the tolerance of claims: see _rounding


class Instance(NamedTuple):
    w: Array  # [WEIGHTS]
    h: Array  # [WEIGHTS, WEIGHTS]
    first: Array  # [WEIGHTS], S
    last: Array  # [WEIGHTS], T, as many
    step: Array
    rounder: Array  # 0 nearest, 1 GPTQ, 2 anything
    zeta: Array  # [WEIGHTS], for "anything"
    eta: Array
    k: Array


def _instance(u: Array) -> Instance:
    take = instances.Take(u)
    n = WEIGHTS
    h = instances.positive_definite(take(n, n), 1.98 * take() - 0.99)
    w = instances.weights(take(n), take() * 0.59, take())
    k = instances.integer(take(), 1, n - 1)
    return Instance(
        jnp.where(w == 0, 0.25, w),
        h,
        instances.smallest(take(n), k),
        instances.smallest(take(n), k),
        instances.log_uniform(take(), 0.1, 2.0),
        instances.integer(take(), 0, 2),
        2 * take(n) - 1,
        2 * take(n) - 1,
        k,
    )


def _length(x: Array, h: Array) -> Array:
    return x @ h @ x


def _rounding(x: Instance) -> Array:
    """What compensation adds to the size of terms: along weak inputs rows move far at little cost,
    by the square root of the condition c of H (|Pi_S| in 2-norm), and H^-1 is exact to c roundings,
    so that the cross terms that Pythagoras leaves out are 0 to c^(3/2) roundings."""
    condition = jnp.linalg.norm(x.h) * jnp.linalg.norm(jnp.linalg.inv(x.h))
    return ROUNDING * condition**1.5 * (x.w @ x.w + WEIGHTS * x.step**2)


def _settled(w: Array, gone: Array, h_inv: Array) -> Array:
    """Pi_S w by elimination, one weight after the other."""
    row = obs.Row(w, h_inv)
    for j in range(WEIGHTS):
        done = obs.settle(row, j, jnp.zeros(()))
        row = jax.tree.map(lambda a, b, j=j: jnp.where(gone[j], a, b), done, row)
    return jnp.where(gone, 0, row.x)


def _round(x: Instance, w: Array, gone: Array, noise: Array, h_inv: Array) -> Array:
    """Pruned, compensated and rounded, by one of the three rounders; 0 where gone."""
    top = jnp.asarray(float(TOP))
    settled = _settled(w, gone, h_inv)
    nearest = x.step * jnp.clip(jnp.round(settled / x.step), -top, top)
    columns = obs.by_columns(w, ~gone, h_inv, x.step, top)
    options = jnp.stack([nearest, columns, settled + x.step * noise])
    return jnp.where(gone, 0, options[x.rounder])


def _identity(x: Instance) -> Sides:
    """Final rows from elimination; the formula from projections and the closed residual."""
    h_inv = jnp.linalg.inv(x.h)
    rounded = _round(x, x.w, jnp.zeros(WEIGHTS, bool), x.zeta, h_inv)
    pq = _round(x, x.w, x.first, x.eta, h_inv)
    qp = _round(x, rounded, x.last, x.eta, h_inv)
    by_definition = _length(pq - x.w, x.h) - _length(qp - x.w, x.h)
    pi_s, pi_t = (forms.projection(gone, h_inv) for gone in (x.first, x.last))
    zeta, eta, again = rounded - x.w, pq - pi_s @ x.w, qp - pi_t @ rounded
    terms = (
        obs.residual(x.w, x.first, h_inv),
        obs.residual(x.w, x.last, h_inv),
        _length(eta, x.h),
        _length(pi_t @ zeta + again, x.h),
    )
    return Sides(forms.stages_advantage(*terms), by_definition, sum(terms) + _rounding(x))


def _best_mask(x: Instance) -> Sides:
    h_inv = jnp.linalg.inv(x.h)
    kept, _, cost = obs.all_masks(x.w, h_inv)
    best = cost[obs.best_of_size(kept, cost)[x.k]]
    other = obs.residual(x.w, x.last, h_inv)
    return Sides(best, other, other + _rounding(x))


def _ensemble(x: Instance) -> tuple[Array, Array, Array]:
    """E of both orders over all signs of zeta and of one last noise, with mask S; and Pi_S.

    zeta = step signs; the last noise half a step, in the weights that are kept.
    """
    h_inv = jnp.linalg.inv(x.h)
    signs = jnp.asarray(SIGNS)

    def off(row: Array) -> Array:
        return _length(row - x.w, x.h)

    dense = _settled(x.w, x.first, h_inv)
    seen = jax.vmap(lambda s: _settled(x.w + x.step * s, x.first, h_inv))(signs)
    last = jnp.where(x.first, 0, x.step / 2 * signs)
    pq = jnp.mean(jax.vmap(lambda e: off(dense + e))(last))
    qp = jnp.mean(jax.vmap(lambda y: jnp.mean(jax.vmap(lambda e: off(y + e))(last)))(seen))
    return pq, qp, forms.projection(x.first, h_inv)


def _double_rounding(x: Instance) -> Sides:
    pq, qp, pi = _ensemble(x)
    return Sides(-forms.noise_energy(x.step**2, pi, x.h), pq - qp, qp + _rounding(x))


def _never_gains(x: Instance) -> Sides:
    pq, qp, _ = _ensemble(x)
    return Sides(pq, qp, qp)


def _dense_target(x: Instance) -> Sides:
    """Q->P with the nearest grid point of the mask: the dense row as target, or the rounded one."""
    points = x.step * jnp.asarray(obs.lattice(WEIGHTS, TOP))
    h_inv = jnp.linalg.inv(x.h)
    rounded = obs.by_lattice(x.w, jnp.ones(WEIGHTS, bool), x.h, points)
    kept, values, cost = obs.all_masks(rounded, h_inv)
    i = obs.best_of_size(kept, cost)[x.k]
    blind = obs.by_lattice(values[i], kept[i], x.h, points)
    dense = obs.by_lattice(_settled(x.w, ~kept[i], h_inv), kept[i], x.h, points)
    left, right = obs.error(dense, x.w, x.h), obs.error(blind, x.w, x.h)
    return Sides(left, right, right)


SIZE = WEIGHTS * WEIGHTS + 5 * WEIGHTS + 6
FAMILIES = (
    Family(
        "rows",
        f"rows of {WEIGHTS} weights (normal, Laplace, t, lattices), AR(1) inputs of correlation "
        "-0.99 to 0.99 plus a random part, any masks S and T, rounding to nearest, by GPTQ, or "
        "anywhere",
        SIZE,
        _instance,
        (
            Claim("Pythagoras", "A is regret and roundings", "==", _identity, 0.8),
            Claim("best mask", "R_S(w) <= R_T(w), S the best", "<=", _best_mask, 0.4, 0.999),
            Claim(
                "double rounding",
                "one mask, uncorrelated noises: E A = -delta^2 tr(Pi^T H Pi)",
                "==",
                _double_rounding,
                0.9,
            ),
            Claim("rounding twice", "E(P->Q) <= E(Q->P) then", "<=", _never_gains, 0.9, 0.99),
        ),
        smooth=False,
        share=0.2,
    ),
    Family(
        "dense target",
        f"the same rows; all {2**WEIGHTS} masks and {(2 * TOP + 1) ** WEIGHTS} grid points",
        SIZE,
        _instance,
        (
            Claim(
                "third variant",
                "Q->P with a dense target <= Q->P",
                "<=",
                _dense_target,
                0.05,
                0.999,
            ),
        ),
        smooth=False,
        share=0.01,
    ),
)


STATEMENT = Statement(
    name="stages",
    title="Compensated stages: quantizing first costs mask regret plus rounding twice",
    source="derived here, on the residual of Hassibi & Stork 1993",
    assumptions=(
        "the error is quadratic",
        "survivors are compensated in full",
        "what is pruned stays 0",
        "(signs) P->Q's mask is the best of its size",
        "(signs) roundings are uncorrelated",
        "(signs) of equal energy in both orders",
    ),
    claim="A(Q->P) is [R_S - R_T] + |eta|^2 - |Pi_T zeta + eta'|^2 exactly; with one mask and "
    "uncorrelated noises of equal energy E A = -E|Pi zeta|^2, which a dense target removes",
    latex=r"A(Q\to P)/\kappa=[R_S(w)-R_T(w)]+|\eta|_H^2-|\Pi_T\zeta+\eta'|_H^2",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
