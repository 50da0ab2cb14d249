"""The beta law: the sign of the order is decided at the threshold, by one statistic.

A unit has the dense saliency a (what removing it costs), density f near the threshold tau, an
error e if it is kept, and a score a + delta once it is quantized. S: a <= tau. T: as many, a +
delta <= tau + s. Let (delta, e - e' (a - tau)) have one law over the reach of delta around tau.
With x = a - tau the units between the thresholds give

    A(Q->P)/(kappa N) = -E int_0^(s - delta) [tau - E e + (1 - e') x - (e - E e)] f dx

and, with f constant, s = E delta, the first term vanishes and the rest is exactly

    A(Q->P) = -kappa N f Var(delta) [(1 - e')/2 + beta],    beta = Cov(e, delta) / Var(delta):

quantizing first wins iff beta < -(1 - e')/2; the intensity gap does not appear. With f (1 + rho x)
it is off by at most :func:`theory.maths.beta.beta_error`, of third order in delta. Cases:

    2b   a = w^2, f = phi(t)/t, delta = 2 w eps + eps^2, e = eps^2: Var = 4 t^2 v + 2 v^2,
         Cov = 2 v^2; the law is the exact -2 v t phi(t) times 1 + 3 v/(2 t^2) (delta's law changes
         with a)
    2c   delta = -e: beta = -1, A = +phi(t) v^2/t; the exact A is below it, relatively by up to
         (2/3) v (1 + 1/t^2)
    grid rounding to a fine grid, ties at random: -24 theta (1 - theta) v t f, theta the place of
         the threshold in its cell; its mean is -4 v t f. NOT a case of the law, which gives half of
         that: delta is a function of a there, and its law changes within its own reach
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import beta as forms
from theory.maths import closed_forms
from theory.maths.densities import Density, Laplace, Normal
from theory.maths.quadrature import integrate
from theory.statements.beta import law, measure, proof

ATOMS = 3
MARGIN = 2.0  # signs are judged where the law is so many times its error
FORMS = (  # of theory.maths.beta
    "beta_advantage",
    "beta_error",
    "noise_correction",
    "aware_correction",
    "grid_advantage",
    "grid_correction",
)


class Threshold(NamedTuple):
    """A model at the threshold: (delta, e - e' x) takes ATOMS values."""

    delta: Array  # [ATOMS]
    chance: Array  # [ATOMS]
    error: Array  # [ATOMS]
    slope: Array  # e'
    level: Array  # tau
    density: Array  # f at tau
    tilt: Array  # rho = f'/f, 0 in the flat family


def _threshold(u: Array, tilted: float) -> Threshold:
    take = instances.Take(u)
    chance = instances.log_uniform(take(ATOMS), 1e-3, 1.0)
    chance = chance / jnp.sum(chance)
    delta = 2 * take(ATOMS) - 1
    delta = delta.at[:2].set(jnp.array([-1.0, 1.0]) * (0.6 + 0.4 * delta[:2]))  # they differ
    # errors that go against delta, with it, or on their own
    own, share = take(ATOMS), take()
    error = 4 * (share - 0.5) * delta + 0.3 * own
    slope, level, density = 2 * take() - 1, 3 * take(), instances.log_uniform(take(), 0.1, 10.0)
    reach = jnp.max(delta) - jnp.min(delta) + 1e-6
    tilt = tilted * (take() - 0.5) / reach
    return Threshold(delta, chance, error, slope, level, density, tilt)


class Moments(NamedTuple):
    variance: Array
    beta: Array
    distance: Array  # s - delta [ATOMS]
    centred: Array  # e - E e [ATOMS]


def _moments(x: Threshold) -> Moments:
    def about_the_mean(value: Array) -> Array:  # by differences: a likely value is next to it
        return (value[:, None] - value) @ x.chance

    moved, centred = about_the_mean(x.delta), about_the_mean(x.error)
    variance = x.chance @ moved**2
    # as many units on both sides: r + rho (r^2 + V)/2 = 0, s = mean + r
    more = -x.tilt * variance / (1 + jnp.sqrt(1 - x.tilt**2 * variance))
    beta = x.chance @ (centred * moved) / variance
    return Moments(variance, beta, more - moved, centred)


def _by_definition(x: Threshold) -> tuple[Array, Array]:
    """A per unit, by integrals over the units between the thresholds; and the size of its terms."""
    m = _moments(x)

    def gain(y: Array) -> Array:  # [ATOMS, ..., nodes]
        saved = x.level - x.error[:, None, None] + (1 - x.slope) * y
        return saved * x.density * (1 + x.tilt * y)

    found = x.chance @ integrate(gain, jnp.zeros(ATOMS), m.distance)
    far = jnp.abs(m.distance)
    terms = (jnp.abs(x.level) + jnp.abs(x.error)) * far + jnp.abs(1 - x.slope) * far**2 / 2
    return -found, x.density * (x.chance @ terms)


def _law(x: Threshold) -> Array:
    m = _moments(x)
    return forms.beta_advantage(x.density, m.variance, x.slope, m.beta)


def _error(x: Threshold) -> Array:
    m = _moments(x)
    return forms.beta_error(
        x.density,
        jnp.abs(x.tilt),
        jnp.abs(1 - x.slope),
        m.variance,
        x.chance @ jnp.abs(m.distance) ** 3,
        x.chance @ (jnp.abs(m.centred) * m.distance**2),
    )


def _flat(x: Threshold) -> Sides:
    true, terms = _by_definition(x)
    return Sides(_law(x), true, terms)


def _within(x: Threshold) -> Sides:
    true, terms = _by_definition(x)
    bound = _error(x)
    # an error that the terms' rounding would decide says nothing
    known = (bound > 1e-3 * terms).astype(jnp.float64)
    return Sides(known * jnp.abs(true - _law(x)), known * bound, bound)


def _within_errors(x: Threshold) -> Sides:
    """The same where e' = 1: what the tilt does to errors alone."""
    return _within(x._replace(slope=jnp.ones(())))


def _within_scores(x: Threshold) -> Sides:
    """And where kept units cost nothing."""
    return _within(x._replace(error=jnp.zeros(ATOMS)))


def _which_order(x: Threshold) -> Sides:
    """Quantizing first wins iff beta < -(1 - e')/2, by half the law at least where that is clear of
    its error."""
    true, terms = _by_definition(x)
    law = _law(x)
    wins = jnp.where(_moments(x).beta < -(1 - x.slope) / 2, 1.0, -1.0)
    clear = (jnp.abs(law) > MARGIN * _error(x)) & (jnp.abs(law) > 1e-3 * terms)
    judged = clear.astype(jnp.float64)
    return Sides(judged * jnp.abs(law) * (1 - 1 / MARGIN), judged * wins * true, jnp.abs(law))


class Case(NamedTuple):
    t: Array
    v: Array
    code: Array  # of the threshold's cell, a float
    place: Array  # of the threshold in it


def _case(u: Array) -> Case:
    take = instances.Take(u)
    t = 0.3 + 2.2 * take()
    v = instances.log_uniform(take(), 2e-3, 0.1)
    code = instances.integer(take(), 1, 200).astype(jnp.float64)
    return Case(t, v, code, 0.02 + 0.96 * take())


def _independent(x: Case) -> Sides:
    """2b: the law from the moments of delta at the threshold, against the exact A."""
    variance = 4 * x.t**2 * x.v + 2 * x.v**2
    law = forms.beta_advantage(norm.pdf(x.t) / x.t, variance, 0.0, 2 * x.v**2 / variance)
    true = closed_forms.noise_advantage(2 * norm.cdf(x.t) - 1, x.v)
    return Sides(law, true * (1 + forms.noise_correction(x.v, x.t)), jnp.abs(law))


def _aware(x: Case) -> Sides:
    """2c: delta = -e, e = eps^2."""
    law = forms.beta_advantage(norm.pdf(x.t) / x.t, 2 * x.v**2, 0.0, -1.0)
    true = closed_forms.aware_advantage(2 * norm.cdf(x.t) - 1, jnp.ones(()), x.v)
    bound = forms.aware_correction(x.v, x.t)
    return Sides(jnp.abs(true / law - 1), bound, bound)


def _grid(x: Case, density: Density, tilt: Array, bend: Array) -> Sides:
    """Steps that make t the threshold; over the cell tilt bounds |f'/f|, and bend |f''/f| too."""
    low, high = (x.t * (x.code + s) / (x.code - 0.5 + x.place) for s in (-0.5, 0.5))
    step = x.t / (x.code - 0.5 + x.place)
    theta = density.moment(0, low, x.t) / density.moment(0, low, high)
    law = forms.grid_advantage(theta, step * x.code, step, density.pdf(x.t))
    p = 2 * density.moment(0, jnp.zeros(()), x.t)
    true = closed_forms.expected_advantage(density, p, step, 1000)
    bound = forms.grid_correction(jnp.abs(1 - 2 * theta), tilt, bend, step)
    # coarse cells, and thresholds where two cells meet, are others' business
    fine = (tilt * step < 0.3).astype(jnp.float64)
    return Sides(fine * jnp.abs(true / law - 1), fine * bound, bound)


def _normal_grid(x: Case) -> Sides:
    far = x.t * (x.code + 0.5) / (x.code - 0.5 + x.place)
    return _grid(x, Normal(), far, jnp.maximum(far**2, 1.0))


def _laplace_grid(x: Case) -> Sides:
    return _grid(x, Laplace(), jnp.ones(()), jnp.ones(()))


SIZE = 3 * ATOMS + 5
FAMILIES = (
    Family(
        "flat",
        f"a constant density at the threshold; (delta, e) of {ATOMS} values of any probabilities, "
        "with e for, against and apart from delta",
        SIZE,
        lambda u: _threshold(u, 0.0),
        (Claim("flat", "the law is exact", "==", _flat, 0.8),),
    ),
    Family(
        "tilted",
        "the same with a density that changes by up to half over the reach of delta",
        SIZE,
        lambda u: _threshold(u, 1.0),
        (
            Claim("error", "|A - law| <= its error term", "<=", _within, 0.8, 0.999),
            Claim("error, e' = 1", "the part of the errors", "<=", _within_errors, 0.8, 0.999),
            Claim("error, e = 0", "the part of the scores", "<=", _within_scores, 0.8, 0.999),
            Claim(
                "which order",
                "quantizing first wins iff beta < -(1 - e')/2, by at least half the law, where the "
                "law is twice its error",
                "<=",
                _which_order,
                0.5,
                0.95,
            ),
        ),
        smooth=False,
    ),
    Family(
        "cases",
        "thresholds of 0.3 to 2.5 s, noise of 0.2 to 10 % of the variance; grids with the "
        "threshold anywhere in cells 1 to 200",
        4,
        _case,
        (
            Claim("2b", "the law is -2 v t phi(t) (1 + 3 v/2t^2)", "==", _independent, 0.9),
            Claim("2c", "|A/law - 1| <= (2/3) v (1 + 1/t^2)", "<=", _aware, 0.9, 0.98),
            Claim(
                "normal grid",
                "|A/law - 1| <= (2/3) (|1 - 2 theta| D |f'/f| + D^2 c)",
                "<=",
                _normal_grid,
                0.5,
                0.98,
            ),
            Claim("laplace grid", "the same for Laplace weights", "<=", _laplace_grid, 0.5, 0.98),
        ),
        smooth=False,
        share=0.05,
    ),
)


STATEMENT = Statement(
    name="beta",
    title="The beta law: the order is decided at the pruning threshold, not by the gap",
    source="derived here",
    assumptions=(
        "errors of units add up",
        "the law of (delta, e) does not change over the reach of delta around the threshold",
        "delta is small against the scale on which the density of saliencies changes",
    ),
    claim="A(Q->P) = -kappa N f Var(delta) [(1 - e')/2 + beta] to third order in delta: quantizing "
    "first wins iff Cov(e, delta)/Var(delta) < -(1 - e')/2",
    latex=r"A(Q\to P)\simeq-\kappa N f_a(\tau)\operatorname{Var}(\delta)"
    r"\Bigl[\frac{1-e'}2+\beta\Bigr],\quad\beta=\frac{\operatorname{Cov}(e,\delta)}{\operatorname{Var}(\delta)}",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure.measure,
)
