"""Theorem 2b: normal weights, independent noise; A is affine in the gap, and never positive.

w ~ N(0, s^2), quantization as independent noise of variance v on the weights that are kept,
magnitude pruning of a fraction p, blind to the noise. With t = Phi^-1((1+p)/2), m = p - 2 t phi(t):

    P -> Q   s^2 m + v (1 - p)            error per weight
    Q -> P   v + m (s^2 - v)
    A(Q->P) = kappa n [E(P->Q) - E(Q->P)] = -kappa n v (p - m) = -2 kappa n v t phi(t) <= 0.

With the gap G(Q,P) = kappa n (s^2 m - v), A = (p - m) (G - kappa n s^2 m): at fixed p affine and
increasing in G, so PIH's trend holds along the bits; its sign claim does not (A <= 0 whatever the
gap). At fixed v, t phi(t) grows until t = 1, p = erf(1/sqrt 2) = 0.6827: there the trend is
reversed below 0.6827 and holds only above.

Other densities f, small v: A = -2 kappa n v t f(t) + O(v^2), which turns where t f'(t) = -f(t):
Laplace at t = 1, p = 1 - 1/e = 0.632; Student's t at t = 1 for every number of degrees of freedom;
uniform weights never. For Laplace weights of scale 1 the next term is the last: A is
-2 v t f(t) (1 + 3 v/4t) but for noise that reaches from t to 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import closed_forms as forms
from theory.maths import gaussian
from theory.maths.densities import Laplace, Normal
from theory.maths.quadrature import integrate
from theory.statements.affine import law, measure, proof

TURN = measure.TURN
REACH = 9.0  # standard deviations of the noise that quadrature covers
FORMS = (  # of theory.maths.closed_forms
    "noise_prune_first",
    "noise_quantize_first",
    "noise_advantage",
    "noise_gap",
    "small_noise_advantage",
    "laplace_correction",
)


# ------------------------------------------------------------------------------ random instances


class Setting(NamedTuple):
    p: Array
    p2: Array
    s2: Array
    v: Array
    v2: Array


def _setting(u: Array) -> Setting:
    s2 = instances.log_uniform(u[2], 1e-2, 1e2)
    v, v2 = (s2 * instances.log_uniform(u[i], 1e-6, 2.0) for i in (3, 4))
    return Setting(0.01 + 0.98 * u[0], 0.01 + 0.98 * u[1], s2, v, v2)


def _noisy_error(x: Setting) -> Array:
    """E(Q -> P) from the definition: given the noise e, the weights with |w + e| < T go."""
    s, sigma = jnp.sqrt(x.s2), jnp.sqrt(x.v)
    cut = gaussian.prune_threshold(x.p) * jnp.sqrt(x.s2 + x.v)
    weight = Normal()

    def error(z: Array) -> Array:
        e = sigma * z
        low, high = (-cut - e) / s, (cut - e) / s
        removed = x.s2 * weight.moment(2, low, high)
        return norm.pdf(z) * (removed + e**2 * (1 - weight.moment(0, low, high)))

    # the noise beyond the cut may be where the integrand bends: pieces meet there
    bend = jnp.minimum(cut / sigma, REACH)
    edge = jnp.stack([-REACH, -bend, 0.0, bend]), jnp.stack([-bend, 0.0, bend, REACH])
    return jnp.sum(integrate(error, *edge))


def _definition(x: Setting) -> Sides:
    return Sides(forms.noise_quantize_first(x.p, x.s2, x.v), _noisy_error(x), x.s2 + x.v)


def _difference(x: Setting) -> Sides:
    a = forms.noise_prune_first(x.p, x.s2, x.v) - forms.noise_quantize_first(x.p, x.s2, x.v)
    return Sides(forms.noise_advantage(x.p, x.v), a, x.s2 + x.v)


def _affine(x: Setting) -> Sides:
    m = gaussian.prune_error(x.p)
    affine = (x.p - m) * (forms.noise_gap(x.p, x.s2, x.v) - x.s2 * m)
    return Sides(forms.noise_advantage(x.p, x.v), affine, x.s2 + x.v)


def _sign(x: Setting) -> Sides:
    qp = _noisy_error(x)
    return Sides(forms.noise_prune_first(x.p, x.s2, x.v), qp, qp)


def _along_bits(x: Setting) -> Sides:
    """The slope of A against the gap is p - m > 0, whatever the noises."""
    a, b = (forms.noise_advantage(x.p, v) for v in (x.v, x.v2))
    g, h = (forms.noise_gap(x.p, x.s2, v) for v in (x.v, x.v2))
    slope = x.p - gaussian.prune_error(x.p)
    return Sides(a - b, slope * (g - h), slope * (jnp.abs(g) + jnp.abs(h)) + x.v + x.v2)


def _turning(x: Setting) -> Sides:
    """Of two p on one side of TURN, the nearer has the larger loss; else vacuous."""
    a, b = (-forms.noise_advantage(p, x.v) for p in (x.p, x.p2))
    nearer = jnp.abs(x.p - TURN) < jnp.abs(x.p2 - TURN)
    same = ((x.p - TURN) * (x.p2 - TURN) > 0).astype(jnp.float64)
    low, high = jnp.where(nearer, b, a), jnp.where(nearer, a, b)
    return Sides(same * low, same * high, high)


def _laplace(x: Setting) -> Sides:
    """Laplace weights: A by integrals over the weights between the thresholds, v <= 1e-3.

    Noise that reaches from one threshold to 0 (eleven standard deviations here) is left out.
    """
    weight = Laplace()
    p = 0.3 + 0.65 * x.p
    v = 1e-3 * jnp.minimum(x.v / x.s2, 1.0) + 1e-5
    sigma = jnp.sqrt(v)
    t = weight.threshold(p)

    # as many stay: E (e^-(cut - e) + e^-(cut + e)) / 2 = e^-t
    cut = t + jnp.log(_noise_average(jnp.cosh, sigma))

    def between(e: Array) -> Array:  # what Q -> P removes beyond P -> Q, on one side
        def gain(w: Array) -> Array:
            return (w**2 - e[..., None, None] ** 2) * weight.pdf(w)

        return integrate(gain, jnp.broadcast_to(t, e.shape), cut - e)

    def size(e: Array) -> Array:
        return jnp.abs(cut - e - t) * (t**2 + e**2) * weight.pdf(t)

    law = forms.small_noise_advantage(weight, p, v) * (1 + forms.laplace_correction(t, v))
    return Sides(law, -2 * _noise_average(between, sigma), 2 * _noise_average(size, sigma))


def _noise_average(f: Callable[[Array], Array], sigma: Array) -> Array:
    """E f(sigma z), z standard normal."""
    limit = jnp.stack([-REACH, 0.0]), jnp.stack([0.0, REACH])
    return jnp.sum(integrate(lambda z: norm.pdf(z) * f(sigma * z), *limit))


FAMILIES = (
    Family(
        "noise",
        "1 to 99 % pruned, weight variances over 4 decades, noise of 1e-6 to 2 times that variance",
        5,
        _setting,
        (
            Claim("E(Q->P)", "the law is the integral", "==", _definition, 0.9),
            Claim("difference", "A is the difference of the errors", "==", _difference, 0.3),
            Claim("affine", "A = (p - m)(G - s^2 m)", "==", _affine, 0.3),
            Claim("sign", "E(P->Q) <= E(Q->P)", "<=", _sign, 0.9, 0.999),
            Claim("along bits", "A - A' = (p - m)(G - G')", "==", _along_bits, 0.5),
            Claim(
                "along sparsity",
                "A falls with G below p = 0.6827, grows above",
                "<=",
                _turning,
                0.4,
                0.999,
            ),
        ),
        smooth=False,  # evolution reaches the bounds; gradients would cost most to compile
        share=0.2,
    ),
    # of its own: integrals over integrals, which an identity's shorter attack is enough for
    Family(
        "Laplace",
        "the same ratios on Laplace weights, 30 to 95 % pruned, noise of up to 1e-3",
        5,
        _setting,
        (Claim("Laplace", "A = -2 v t f(t) (1 + 3 v/4t)", "==", _laplace, 0.8),),
        smooth=False,
        share=0.2,
    ),
)


STATEMENT = Statement(
    name="affine",
    title="Theorem 2b: with normal weights and independent noise, A is affine in the gap",
    source="derived here; corrects the monotonicity of Kim et al., ICLR 2026 (arXiv 2603.18426)",
    assumptions=(
        "weights are normal",
        "quantization is noise (and not rounding to a grid)",
        "the noise is independent of the weight",
    ),
    claim="A(Q->P) = (p - m)(G - kappa n s^2 m) <= 0: increasing in the gap along the bits; along "
    "the sparsity only beyond p = 0.6827",
    latex=r"A(Q\to P)=-2\kappa n\,v\,t\varphi(t)=(p-m)\bigl(G-\kappa n s^2m\bigr),\quad "
    r"m=p-2t\varphi(t)",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure.measure,
)
