"""The sign law: with weights of one even unimodal law, pruning first never loses on average.

Units i = 1..n with weights w_i, iid, even, unimodal, and errors eps, independent of w: of ANY joint
law, biased, skewed, heavy-tailed, dependent between units. S: the k smallest |w|. T: the k smallest
|w + eps|. Ties at random. From the errors of the two orders,

    A(Q->P)/kappa = [sum_S w^2 - sum_T w^2] + [sum_T eps^2 - sum_S eps^2],

and E A <= 0 for every n and k, even given eps:

1. The first bracket is never positive: S is the best set of its size.
2. Anderson: P(|w + e| <= c) falls in |e|. An even unimodal law is a mixture of uniform laws on
   (-h, h) (Khinchin), for which the overlap of two intervals is plain.
3. So if |eps_i| <= |eps_j|, |w_i + eps_i| is stochastically the smaller, and unit i goes no less
   often than j: given the other scores, "i goes and j stays" is an event that falls in the score of
   i and grows in that of j.
4. Chebyshev: eps_i^2 grows where P(i in T | eps) falls, so that
   sum eps_i^2 P(i in T | eps) <= (1/n) sum eps_i^2 sum P(i in T | eps) = (k/n) sum eps_i^2,
   and P(i in S) = k/n as weights are of one law.

Symmetry and zero mean of the error, which Kim et al. assume, are not needed; nor is independence
between units. Blocks of m weights with an isotropic unimodal law: the same, as P(|w + e| <= c)
depends on |e| alone and falls in it. Without unimodality, evenness, one law for all, or isotropy
quantizing first can win: :func:`theory.statements.signlaw.proof.necessity`.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import inclusion as forms
from theory.maths.densities import DENSITIES
from theory.statements.signlaw import law, measure, proof
from theory.statements.signlaw.many import ATOMS, blocks, many, mixed

UNITS, REACH, MOST = 3, 4, 6  # weights -REACH..REACH, errors -MOST..MOST
FORMS = ("removal", "order_advantage")  # of theory.maths.inclusion
VALUES = np.arange(-REACH, REACH + 1.0)
POINTS = np.array(list(itertools.product(range(len(VALUES)), repeat=UNITS)))


# ---------------------------------------------------------------------- finite laws, every outcome


class Lattice(NamedTuple):
    mass: Array  # [2 REACH + 1], even, unimodal
    eps: Array  # [UNITS], whole
    k: Array  # 1..UNITS - 1, a float
    cut: Array
    shift: Array


def unimodal(share: Array) -> Array:
    """The even unimodal law on VALUES that mixes uniform ones on -j..j; share [REACH + 1]."""
    inside = jnp.abs(VALUES) <= jnp.arange(REACH + 1)[:, None]
    each = inside / jnp.sum(inside, 1, keepdims=True)
    return share @ each / jnp.sum(share)


def _lattice(u: Array) -> Lattice:
    take = instances.Take(u)
    share = jnp.maximum(take(REACH + 1) - 0.5, 0) ** 2 + 1e-6
    eps = instances.integer(take(UNITS), -MOST, MOST).astype(jnp.float64)
    eps = eps.at[0].set(jnp.where(jnp.any(eps != 0), eps[0], 1.0))
    k, cut, shift = take(), take(), take()
    return Lattice(
        unimodal(share),
        eps,
        instances.integer(k, 1, UNITS - 1).astype(jnp.float64),
        instances.integer(cut, 0, MOST),
        instances.integer(shift, 0, MOST),
    )


def _enumerated(x: Lattice) -> tuple[Array, Array]:
    """E of the errors of P -> Q and Q -> P: every outcome, every weight, from the definition."""
    w = jnp.asarray(VALUES)[POINTS]
    chance = jnp.prod(x.mass[POINTS], 1)

    def error(score: Array) -> Array:
        below = jnp.sum(score[:, None, :] < score[:, :, None], -1)
        equal = jnp.sum(score[:, None, :] == score[:, :, None], -1)
        goes = jnp.clip(x.k - below, 0, equal) / equal
        return chance @ jnp.sum(goes * w**2 + (1 - goes) * x.eps**2, 1)

    return error(jnp.abs(w)), error(jnp.abs(w + x.eps))


def _by_removal(x: Lattice) -> tuple[Array, Array, Array]:
    """E sum_S w^2, E sum_T w^2, P(i in T) [UNITS]."""
    mass = jnp.broadcast_to(x.mass, (UNITS, len(VALUES)))
    w = jnp.broadcast_to(jnp.asarray(VALUES), mass.shape)
    first = forms.removal(jnp.abs(w), mass, x.k)
    last = forms.removal(jnp.abs(w + x.eps[:, None]), mass, x.k)
    return jnp.sum(mass * first * w**2), jnp.sum(mass * last * w**2), jnp.sum(mass * last, 1)


def _formula(x: Lattice) -> Sides:
    pq, qp = _enumerated(x)
    dense, seen, goes = _by_removal(x)
    found = forms.order_advantage(dense, seen, x.eps**2, goes, x.k / UNITS)
    return Sides(found, pq - qp, qp)


def _sign(x: Lattice) -> Sides:
    pq, qp = _enumerated(x)
    return Sides(pq, qp, qp)


def _best_mask(x: Lattice) -> Sides:
    dense, seen, _ = _by_removal(x)
    return Sides(dense, seen, seen)


def _errors(x: Lattice) -> Sides:
    _, _, goes = _by_removal(x)
    fair = x.k / UNITS * jnp.sum(x.eps**2)
    return Sides(jnp.sum(x.eps**2 * goes), fair, fair)


def _larger_errors_stay(x: Lattice) -> Sides:
    """The neighbours in |eps| that come nearest to breaking the order of P(i in T)."""
    _, _, goes = _by_removal(x)
    goes = goes[jnp.argsort(jnp.abs(x.eps))]
    near = jnp.argmin(goes[:-1] - goes[1:])
    return Sides(goes[near + 1], goes[near], goes[near])


def _anderson(x: Lattice) -> Sides:
    def inside(e: Array) -> Array:
        return jnp.sum(jnp.where(jnp.abs(VALUES + e) <= x.cut, x.mass, 0))

    return Sides(inside(x.shift + 1), inside(x.shift), inside(x.shift) + 1e-300)


FAMILIES = (
    Family(
        "lattice",
        f"{UNITS} weights with one even unimodal law on -{REACH}..{REACH}, any whole errors up to "
        f"{MOST}, not all 0; every outcome; 1 to {UNITS - 1} pruned",
        REACH + 1 + UNITS + 3,
        _lattice,
        (
            Claim("formula", "E A is what the law is read off", "==", _formula, 0.9),
            Claim("sign law", "E(P->Q) <= E(Q->P), for every eps", "<=", _sign, 0.9, 0.999),
            Claim("best mask", "E sum_S w^2 <= E sum_T w^2", "<=", _best_mask, 0.9, 0.9),
            Claim(
                "errors stay",
                "sum eps^2 P(i in T) <= (k/n) sum eps^2",
                "<=",
                _errors,
                0.8,
                1 - 1e-9,
            ),
            Claim(
                "larger errors stay",
                "P(i in T) falls in |eps_i|",
                "<=",
                _larger_errors_stay,
                0.4,
                1 - 1e-9,
            ),
            Claim("Anderson", "P(|w + e| <= c) falls in |e|", "<=", _anderson, 0.4, 1 - 1e-9),
        ),
        smooth=False,
        share=0.05,
    ),
    Family(
        "densities",
        "many normal, Laplace, t and uniform weights; errors with three values of any sign, size "
        "and probability",
        2 + 3 * ATOMS,
        lambda u: mixed(u, 0, len(DENSITIES) - 1, (0.05, 3.0)),
        (
            Claim("sign law, densities", "E A(Q->P) <= 0", "<=", lambda x: many(x)[0], 0.9, 0.999),
            Claim(
                "errors stay, densities",
                "E[eps^2; T] <= p E eps^2",
                "<=",
                lambda x: many(x)[1],
                0.9,
                0.999,
            ),
        ),
        smooth=False,
        share=0.2,
    ),
    Family(
        "blocks",
        "many blocks of 2 to 8 normal weights; errors of three lengths, any direction",
        2 + 3 * ATOMS,
        lambda u: mixed(u, 2, 8, (0.5, 5.0)),
        (
            Claim("sign law, blocks", "E A(Q->P) <= 0", "<=", lambda x: blocks(x)[0], 0.9, 0.999),
            Claim(
                "errors stay, blocks",
                "E[|eps|^2; T] <= p E |eps|^2",
                "<=",
                lambda x: blocks(x)[1],
                0.9,
                0.999,
            ),
        ),
        smooth=False,
        share=0.02,
    ),
)


STATEMENT = Statement(
    name="signlaw",
    title="Sign law: with even unimodal weights and any independent error, prune first",
    source="derived here (Anderson 1955; Chebyshev's sum inequality); needs less of the error than "
    "Kim et al., ICLR 2026 (arXiv 2603.18426)",
    assumptions=(
        "the law of the weights is unimodal",
        "it is even",
        "all weights have one law, independently (blocks: an isotropic one)",
        "the error is independent of the weights",
    ),
    claim="E A(Q->P) <= 0 for every number of weights, every number pruned and every error, "
    "whatever its joint law; blocks with an isotropic unimodal law too",
    latex=r"\mathbb E\,A(Q\to P)=\kappa\,\mathbb E\Bigl[\sum_Sw^2-\sum_Tw^2\Bigr]+"
    r"\kappa\sum_i\epsilon_i^2\bigl[P(i\in T)-\tfrac kn\bigr]\le 0",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
