"""Theorem 2c: a last stage that knows the dense model never loses to going first blindly.

Units u with errors e1(u), e2(u) (disjoint selectivity, errors add). In f1 -> f2 the last stage f2
chooses its k units T to minimise the final error sum_T e2 + sum_{not T} e1, given f1's output; in
f2 -> f1 the stage f2 goes first and chooses T' of the same size without knowing f1. T' is one of
the sets that T is the best of, whatever the first stage knew, so

    A(f1->f2) = kappa [E(T') - E(T)] >= 0, and 0 only if no exchange of units would pay.

T is the k units of smallest e2 - e1. For a quantizer and a pruner that is d = w^2 - e_Q(w): by
theorem 2a the blind magnitude mask is optimal already on one symmetric grid, where A is exactly 0.

The same for every pruner that is last, whatever its units (weights, Wanda's with E x_j^2, blocks,
rows): it gains sum d over T' less that over T. For a quantizer that is last the owners are settled
and knowing the dense row is knowing its compensated pruning, :mod:`.quantizer`: worth nothing after
a pruner that compensated. A compensated pruner that is last and starts from the dense row gains all
that :mod:`theory.statements.stages` says Q -> P loses by: it hands to the same rounding what P -> Q
does. :mod:`.worth` measures them.

With normal weights N(0, s^2) and independent normal noise of variance v, the gap is exact:
(w, e) = rho (s cos a, sqrt(v) sin a), rho^2 exponential of mean 2, so d = rho^2 g(a),
g = s^2 cos^2 a - v sin^2 a, and

    A(Q->P)/(kappa n) = s^2 m(p) - v p - E[d; d <= tau],   P(d <= tau) = p >= 0,

two integrals over a. At tau = 0, p = 1 - (2/pi) arctan(s/sqrt v), in closed form:
E[d; d < 0] = (2/pi) [(s^2 - v) arctan(sqrt(v)/s) - s sqrt(v)].
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf
from jax.scipy.stats import norm

from perturb import RTN, GridSpec, Wanda
from perturb.types import Moments
from theory.compressors import compress, start
from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths import closed_forms as forms
from theory.maths.quadrature import integrate
from theory.statements.aware import law, measure, proof, quantizer

UNITS = 16
FORMS = ("aware_mass", "aware_sum", "zero_threshold_sum")  # of theory.maths.closed_forms


# ------------------------------------------------------------------------------ random instances


class Units(NamedTuple):
    e1: Array  # [UNITS]
    e2: Array
    score: Array  # what the blind first stage goes by
    k: Array


def _units(u: Array) -> Units:
    take = instances.Take(u)
    e1, e2 = (10 ** (4 * take(UNITS) - 2) for _ in range(2))
    return Units(e1, e2, take(UNITS), instances.integer(take(), 0, UNITS))


def _never_loses(x: Units) -> Sides:
    """Over the units that change owner."""
    aware = instances.smallest(x.e2 - x.e1, x.k)
    blind = instances.smallest(x.score, x.k)

    def error(owned_by_2: Array) -> Array:
        return jnp.sum(jnp.where(aware != blind, jnp.where(owned_by_2, x.e2, x.e1), 0))

    return Sides(error(aware), error(blind), error(blind))


def _exchange(x: Units) -> Sides:
    """No exchange of one unit for another improves the aware choice: optimality, locally.

    Of the two units that come nearest to it, the errors as they are and exchanged."""
    gain = x.e2 - x.e1
    aware = instances.smallest(gain, x.k)
    i = jnp.argmax(jnp.where(aware, gain, -jnp.inf))
    j = jnp.argmin(jnp.where(aware, jnp.inf, gain))
    inner = ((x.k > 0) & (x.k < UNITS)).astype(jnp.float64)
    exchanged = x.e1[i] + x.e2[j]
    return Sides(inner * (x.e2[i] + x.e1[j]), inner * exchanged, exchanged)


class Noise(NamedTuple):
    p: Array
    s2: Array
    v: Array
    tau: Array


def _noise(u: Array) -> Noise:
    s2 = instances.log_uniform(u[1], 0.1, 10.0)
    v = s2 * instances.log_uniform(u[2], 1e-3, 1.0)
    tau = jnp.where(u[3] < 0.5, -1, 1) * instances.log_uniform((2 * u[3]) % 1, 1e-3, 3.0) * s2
    return Noise(0.02 + 0.96 * u[0], s2, v, tau)


def _by_conditioning(x: Noise) -> tuple[Array, Array]:
    """P(d <= tau) and E[d; d <= tau] given the noise: |w| <= sqrt(tau + e^2), in one dimension."""
    start = jnp.sqrt(jnp.maximum(-x.tau, 0) / x.v)

    def at(z: Array) -> tuple[Array, Array]:
        t = jnp.sqrt(jnp.maximum(x.tau + x.v * z**2, 0) / x.s2)
        mass = erf(t / jnp.sqrt(2.0))
        removed = x.s2 * (mass - 2 * t * norm.pdf(t))
        return mass, removed - x.v * z**2 * mass

    def over(part: int) -> Array:
        # z = start + y^2 smooths the square root at the start, or (tau > 0) its bend near 0
        def inner(y: Array) -> Array:
            z = start + y**2
            return 2 * norm.pdf(z) * at(z)[part] * 2 * y

        ends = jnp.sqrt(jnp.array([0.0, 0.02, 0.3, 1.5, 9.0]))
        return jnp.sum(integrate(inner, ends[:-1], ends[1:]))

    return over(0), over(1)


def _mass(x: Noise) -> Sides:
    return Sides(forms.aware_mass(x.tau, x.s2, x.v), _by_conditioning(x)[0], jnp.ones(()))


def _sum(x: Noise) -> Sides:
    return Sides(forms.aware_sum(x.tau, x.s2, x.v), _by_conditioning(x)[1], x.s2 + x.v)


def _zero(x: Noise) -> Sides:
    return Sides(
        forms.zero_threshold_sum(x.s2, x.v), forms.aware_sum(jnp.zeros(()), x.s2, x.v), x.s2 + x.v
    )


def _aware_gains(x: Noise) -> Sides:
    """E(Q->P) of a pruner that knows w, v + E[d; d <= tau], against that of P->Q."""
    pq = forms.noise_prune_first(x.p, x.s2, x.v)
    return Sides(pq - forms.aware_advantage(x.p, x.s2, x.v), pq, pq)


def _blind_loses(x: Noise) -> Sides:
    qp = forms.noise_quantize_first(x.p, x.s2, x.v)
    return Sides(qp + forms.noise_advantage(x.p, x.v), qp, qp)


class Compressed(NamedTuple):
    weight: Array  # [4, 8]
    energy: Array  # [8], E x_j^2
    sparsity: Array
    bits: Array


def _compressed(u: Array) -> Compressed:
    take = instances.Take(u)
    w = instances.weights(take(32), take(), take()).reshape(4, 8)
    return Compressed(
        w,
        instances.log_uniform(take(8), 0.01, 100.0),
        take() * 0.95,
        instances.integer(take(), 2, 6),
    )


def _perturb(x: Compressed) -> Sides:
    """Wanda after RTN, against the dense weights, loses to no Wanda before RTN; one grid a row."""
    w, dense, inputs = x.weight, start(x.weight), Moments(jnp.diag(x.energy), jnp.ones(()))
    blind = Wanda(x.sparsity, tie="index")
    aware = Wanda(x.sparsity, tie="index", target="dense")
    quantize = RTN(x.bits, GridSpec(symmetric=False), scale_source="dense")

    pq = compress(quantize, compress(blind, dense, w, inputs), w, inputs).weight
    qp = compress(aware, compress(quantize, dense, w, inputs), w, inputs).weight

    def error(after: Array) -> Array:  # where the two differ
        return jnp.sum(jnp.where(pq != qp, x.energy * (after - w) ** 2, 0))

    return Sides(error(qp), error(pq), error(pq))


FAMILIES = (
    Family(
        "units",
        f"{UNITS} units with errors over four decades, any number owned, any blind choice",
        3 * UNITS + 1,
        _units,
        (
            Claim("never loses", "A(f1->f2) >= 0 with an aware f2", "<=", _never_loses, 0.7, 0.999),
            Claim("exchange", "no exchange of two units pays", "<=", _exchange, 0.7, ATTAINED),
        ),
        smooth=False,
    ),
    Family(
        "noise",
        "normal weights and noise, v from 1e-3 to 1 times s^2, thresholds of 1e-3 to 3 s^2, "
        "either sign",
        4,
        _noise,
        (
            Claim("mass", "P(d <= tau) over angles is that over the noise", "==", _mass, 0.7),
            Claim("sum", "E[d; d <= tau] likewise", "==", _sum, 0.5),
            Claim("tau = 0", "the closed form at tau = 0", "==", _zero, 0.5),
            Claim("aware gains", "E(Q->P), aware, <= E(P->Q)", "<=", _aware_gains, 0.9, 0.999),
            Claim("blind loses", "E(P->Q) <= E(Q->P), blind", "<=", _blind_loses, 0.9, 0.999),
        ),
        smooth=False,
        share=0.02,
    ),
    Family(
        "perturb",
        "perturb.Wanda(target='dense') after asymmetric RTN against Wanda before it, [4, 8] layers",
        44,
        _compressed,
        (Claim("perturb", "A(Q->P) >= 0 for the real compressors", "<=", _perturb, 0.15, 0.99),),
        smooth=False,
        share=0.1,
    ),
    Family(
        "quantizer last",
        f"rows of {quantizer.WEIGHTS} weights with correlated inputs, one or two removed and the "
        "others as they were or moved; every grid point tried",
        quantizer.SIZE,
        quantizer.pruned,
        (
            Claim(
                "quantizer never loses",
                "the grid point nearest to the dense row <= that nearest to what is handed over",
                "<=",
                quantizer.never_loses,
                0.1,
                ATTAINED,
            ),
            Claim(
                "quantizer gains at most",
                "|x_b - Pi| - |x_a - Pi| <= 2 |y - Pi|",
                "<=",
                quantizer.at_most,
                0.4,
                0.999,
            ),
            Claim(
                "nothing after compensation",
                "y = Pi_S w: both are as good",
                "==",
                quantizer.nothing,
                0.5,
            ),
        ),
        smooth=False,
        share=0.1,
    ),
)


STATEMENT = Statement(
    name="aware",
    title="Theorem 2c: a last stage that knows the dense model never loses",
    source="derived here",
    assumptions=(
        "errors of units add up",
        "f2 minimises the final error to the dense model",
        "the same number of units in both orders",
    ),
    claim="A(f1->f2) >= 0, with the exact gap for normal weights; with 2a it brackets practice: "
    "A blind <= 0 <= A aware; to a quantizer the dense row is worth its distance from what it is "
    "handed, and nothing after a pruner that compensated",
    latex=r"A(Q\to P)/(\kappa n)=s^2m(p)-vp-\mathbb E[d;d\le\tau]\ge0,\quad d=w^2-\varepsilon^2",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
