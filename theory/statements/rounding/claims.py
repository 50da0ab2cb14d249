"""Theorem 2a: magnitude pruning and rounding to one symmetric grid: prune first never loses.

Scalar weights, pruning of the k smallest |w|, nearest rounding Q to a symmetric codebook that
contains 0, equal steps or not. With a kept set K the joint error is

    E = sum_{i in K} (w_i - Q(w_i))^2 + sum_{i not in K} w_i^2
      = sum_i (w_i - Q(w_i))^2 + sum_{i not in K} d(w_i),
    d(w) = w^2 - (w - Q(w))^2 = max over levels c of (2 c w - c^2).

d is a maximum of lines, hence convex; it is even, and 0 at 0: so it does not decrease in |w|, and
removing the k smallest |w| is optimal among ALL masks of that size. P -> Q removes just those,
Q -> P some other set of k: A(Q->P) = kappa [E(P->Q) - E(Q->P)] <= 0, always. (THEORY.md states this
for equal steps; convexity gives it for any symmetric codebook.) On the cell of c, d = 2 c w - c^2.

Only ties differ: Q -> P cannot tell apart the weights of one cell. Let c be the level that the
threshold falls into and theta the fraction of its weights that goes, ties broken uniformly:

    A(Q->P)/(kappa n) = -[theta E[d; cell c] - E[d; cell c, |w| < t]],

which is 0 where c = 0 (the order-free zone p <= P(Q(w) = 0)), and never below -2 c r times the
width of the cell, r the fraction of weights that change owner.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from perturb import RTN, GridSpec, Magnitude
from perturb.types import Matrix
from theory.compressors import compress, start
from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths import closed_forms as forms
from theory.maths.densities import DENSITIES, Density
from theory.maths.quadrature import integrate
from theory.statements.rounding import law, measure, proof

UNITS, LEVELS = 12, 5
FORMS = ("benefit", "expected_advantage")  # of theory.maths.closed_forms


# ------------------------------------------------------------------------------ random instances


class Scalars(NamedTuple):
    weight: Array  # [UNITS]
    levels: Array  # [2 LEVELS + 1], symmetric around 0
    k: Array  # number pruned
    tie: Array  # [UNITS], how ties in |Q(w)| are broken


def _scalars(u: Array) -> Scalars:
    take = instances.Take(u)
    w = instances.weights(take(UNITS), take(), take())
    size = jnp.max(jnp.abs(w)) + 1e-9
    step = size * instances.log_uniform(take(), 0.03, 2.0)
    return Scalars(
        w,
        instances.codebook(take(LEVELS), take(), jnp.where(take() < 0.3, 0.5, step)),
        instances.integer(take(), 0, UNITS),
        take(UNITS),
    )


def _losses(x: Scalars) -> dict[str, Array]:
    """Joint errors of P -> Q, Q -> P, and of the best mask of all; and what they are made of.

    "pq, changed", "qp, changed": those of the two orders over the weights that change owner."""
    q = instances.nearest(x.weight, x.levels)
    d = forms.benefit(x.weight, q)
    first = instances.smallest(jnp.abs(x.weight), x.k)
    last = instances.smallest(jnp.abs(q), x.k, x.tie)
    best = instances.smallest(d, x.k)

    def error(gone: Array) -> Array:
        return jnp.sum((jnp.where(gone, 0, q) - x.weight) ** 2)

    swapped = first != last
    changed = jnp.sum(first & ~last)

    def over(gone: Array) -> Array:
        return jnp.sum(jnp.where(swapped, (jnp.where(gone, 0, q) - x.weight) ** 2, 0))

    # the level of the threshold and how far its cell reaches, the outermost one to the last weight
    c = jnp.max(jnp.where(last, jnp.abs(q), 0))
    inside = jnp.abs(q) == c
    size = jnp.abs(x.weight)
    width = jnp.max(jnp.where(inside, size, -jnp.inf)) - jnp.min(jnp.where(inside, size, jnp.inf))
    by_tie = instances.smallest(jnp.abs(q), x.k, size)
    return {
        "pq": error(first),
        "qp": error(last),
        "best": error(best),
        "pq, changed": over(first),
        "qp, changed": over(last),
        "by_tie": error(by_tie),
        "energy": jnp.sum(x.weight**2) + jnp.sum((x.weight - q) ** 2),
        "range": changed * 2 * c * jnp.where(jnp.isfinite(width), width, 0),
        "free": (x.k <= jnp.sum(q == 0)).astype(jnp.float64),
    }


def _optimal(x: Scalars) -> Sides:
    e = _losses(x)
    return Sides(e["pq"], e["best"], e["energy"])


def _never_loses(x: Scalars) -> Sides:
    e = _losses(x)
    return Sides(e["pq, changed"], e["qp, changed"], e["qp, changed"])


def _at_most(x: Scalars) -> Sides:
    """Vacuous where the bound is below a thousandth of the energy: rounding would decide."""
    e = _losses(x)
    large = (e["range"] > 1e-3 * e["energy"]).astype(jnp.float64)
    return Sides(large * (e["qp"] - e["pq"]), large * e["range"], e["range"])


def _free_zone(x: Scalars) -> Sides:
    e = _losses(x)
    return Sides(e["free"] * e["pq"], e["free"] * e["qp"], e["energy"])


def _dense_ties(x: Scalars) -> Sides:
    e = _losses(x)
    return Sides(e["by_tie"], e["pq"], e["energy"])


class Grids(NamedTuple):
    p: Array
    step: Array  # in standard deviations


def _grids(u: Array) -> Grids:
    return Grids(0.01 + 0.98 * u[0], instances.log_uniform(u[1], 0.1, 3.0))


TOP = 7
BEYOND = (12.0, 80.0)  # normal and Laplace weights beyond have less than 1e-32 of the mass


def _by_quadrature(density: Density, beyond: float, p: Array, step: Array) -> Array:
    """A(Q->P)/(kappa n) by integrals over the cell of the threshold, from the definition."""
    t = density.threshold(p)
    code = jnp.minimum(jnp.floor(t / step + 0.5), TOP)
    low = jnp.maximum(step * (code - 0.5), 0)
    high = jnp.where(code == TOP, beyond, step * (code + 0.5))
    a, b = jnp.stack([low, low]), jnp.stack([t, jnp.maximum(high, t)])

    def saved(w: Array) -> Array:
        return 2 * density.pdf(w) * (w**2 - (w - step * code) ** 2)

    below, whole = integrate(saved, a, b)
    gone, mass = integrate(lambda w: 2 * density.pdf(w), a, b)
    return below - gone / mass * whole


def _closed_form(x: Grids) -> Sides:
    """Normal and Laplace at once: their differences are added up."""
    found, true = jnp.zeros(()), jnp.zeros(())
    for density, beyond in zip(DENSITIES[:2], BEYOND, strict=True):
        step = x.step * density.variance**0.5
        found += forms.expected_advantage(density, x.p, step, TOP)
        true += _by_quadrature(density, beyond, x.p, step)
    return Sides(found, true, jnp.ones(()))


class Compressed(NamedTuple):
    weight: Array  # [4, 8]
    sparsity: Array
    bits: Array


def _compressed(u: Array) -> Compressed:
    take = instances.Take(u)
    w = instances.weights(take(32), take(), take()).reshape(4, 8)
    return Compressed(w, take() * 0.95, instances.integer(take(), 2, 8))


def _both_orders(x: Compressed) -> tuple[Matrix, Matrix]:
    """P -> Q and Q -> P by perturb's Magnitude and RTN, on one grid, fitted to the dense layer."""
    prune = Magnitude(x.sparsity, tie="index")
    quantize = RTN(x.bits, GridSpec(per="tensor"), scale_source="dense")
    w, dense = x.weight, start(x.weight)
    pq = compress(quantize, compress(prune, dense, w), w)
    return pq, compress(prune, compress(quantize, dense, w), w)


def _perturb_never_loses(x: Compressed) -> Sides:
    """Over the weights in which the two results differ."""
    pq, qp = (y.weight for y in _both_orders(x))
    left, right = (jnp.sum(jnp.where(pq != qp, (y - x.weight) ** 2, 0)) for y in (pq, qp))
    return Sides(left, right, right)


FAMILIES = (
    Family(
        "scalars",
        f"{UNITS} weights (normal, Laplace, t, uniform, log-uniform, lattices), symmetric "
        f"codebooks of {2 * LEVELS + 1} levels with equal or unequal steps, any number pruned, "
        "random ties",
        2 * UNITS + LEVELS + 6,
        _scalars,
        (
            Claim("optimal", "P->Q has the least error of all masks", "==", _optimal, 0.9),
            Claim("never loses", "A(Q->P) <= 0", "<=", _never_loses, 0.15, ATTAINED),
            Claim(
                "at most",
                "-A <= (owners changed) 2 c (width of the cell)",
                "<=",
                _at_most,
                0.1,
                ATTAINED,
            ),
            Claim(
                "order-free",
                "A = 0 where the threshold is in the cell of 0",
                "==",
                _free_zone,
                0.3,
            ),
            Claim("dense ties", "A = 0 where ties are broken by |w|", "==", _dense_ties, 0.9),
        ),
        smooth=False,  # evolution attains the bounds, as in most families
    ),
    Family(
        "closed form",
        "normal and Laplace weights, any fraction pruned, steps of 0.1 to 3 standard deviations",
        2,
        _grids,
        (Claim("expected A", "the closed form is the integral", "==", _closed_form, 0.5),),
        smooth=False,
        share=0.1,
    ),
    Family(
        "perturb",
        "perturb.Magnitude and perturb.RTN on [4, 8] layers, 2 to 8 bits, scales of the dense "
        "layer",
        36,
        _compressed,
        (
            Claim(
                "perturb",
                "A(Q->P) <= 0 for the real compressors",
                "<=",
                _perturb_never_loses,
                0.15,
                0.99,
            ),
        ),
        smooth=False,
        share=0.1,
    ),
)


STATEMENT = Statement(
    name="rounding",
    title="Theorem 2a: with one symmetric grid, pruning by magnitude first never loses",
    source="derived here; contains the order result of Harma et al., ICLR 2025 (arXiv 2405.20935)",
    assumptions=(
        "nearest rounding to a codebook that does not change with the order",
        "the codebook is symmetric",
        "it contains 0, or masks are enforced",
        "pruning by |w| over units that share the codebook",
        "the error weighs all units alike",
    ),
    claim="the magnitude mask has the least joint error of all masks of its size; A(Q->P) <= 0, "
    "and = 0 while the threshold lies in the cell of 0",
    latex=r"A(Q\to P)=-\kappa n\,\bigl[\theta\,\mathbb E[d;\,\text{cell}]-"
    r"\mathbb E[d;\,\text{cell},|w|<t]\bigr]\le 0,\qquad d=w^2-(w-Q(w))^2",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
