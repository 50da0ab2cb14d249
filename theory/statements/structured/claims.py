"""Structured pruning, exactly: theorem 2b for blocks of m weights, pruned by their norm.

Weights N(0, s^2), independent normal noise of variance v, the fraction p of the blocks with the
smallest norm goes; q = F_m^-1(p) of chi^2 with m degrees of freedom, f_m its density. A block given
w + e is s^2/(s^2 + v) (w + e) plus a part of its own, as in theorem 2b, and
E[chi^2_m; <= q] = m F_{m+2}(q) = m F_m(q) - 2 q f_m(q), so that a block has

    P -> Q   m [s^2 F_{m+2}(q) + v (1 - p)]
    Q -> P   m [v + (s^2 - v) F_{m+2}(q)]
    A(Q->P)/kappa = -2 v q f_m(q) <= 0.

With the gap G = kappa m (s^2 F_{m+2} - v): A = (p - F_{m+2}) (G - kappa m s^2 F_{m+2}), affine and
increasing along the noise at fixed p. d/dq q f_m = f_m (m - q)/2: along the sparsity A falls up to
q = m and rises beyond, p = 0.683, 0.632, 0.608, 0.594 for m = 1 to 4 and to 1/2 in the end. At most
-A/(kappa m) = 2 v f_m(m) <= v/sqrt(pi m) a weight (Stirling: Gamma(x) >= sqrt(2 pi/x) (x/e)^x, from
below): the coarser the blocks, the less the order matters. m = 1 is theorem 2b, q = t^2.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import blocks as forms
from theory.maths.closed_forms import noise_advantage
from theory.maths.quadrature import integrate
from theory.statements.structured import law, measure, proof

LARGEST = 64
REACH = 9.0  # of the noise's length in standard deviations, that quadrature covers
FORMS = (  # of theory.maths.blocks
    "blocks_prune_first",
    "blocks_quantize_first",
    "blocks_advantage",
    "blocks_gap",
    "most_a_weight",
)


class Setting(NamedTuple):
    m: Array  # a float, whole
    q: Array
    q2: Array
    s2: Array
    v: Array
    v2: Array


def _setting(u: Array, sizes: Array) -> Setting:
    take = instances.Take(u)
    m = sizes[instances.integer(take(), 0, len(sizes) - 1)].astype(jnp.float64)

    def threshold(z: Array) -> Array:  # Wilson & Hilferty: p is about Phi(z), 1 to 99 %
        return m * jnp.maximum(1 - 2 / (9 * m) + z * jnp.sqrt(2 / (9 * m)), 0.02) ** 3

    q, q2 = (threshold(4.6 * take() - 2.3) for _ in range(2))
    s2 = instances.log_uniform(take(), 1e-2, 1e2)
    v, v2 = (s2 * instances.log_uniform(take(), 1e-3, 2.0) for _ in range(2))
    return Setting(m, q, q2, s2, v, v2)


class Laws(NamedTuple):
    p: Array
    inside: Array
    density: Array


def _laws(x: Setting) -> Laws:
    return Laws(forms.chi2_cdf(x.m, x.q), forms.chi2_cdf(x.m + 2, x.q), forms.chi2_pdf(x.m, x.q))


def _difference(x: Setting) -> Sides:
    f = _laws(x)
    pq = forms.blocks_prune_first(x.m, f.p, f.inside, x.s2, x.v)
    qp = forms.blocks_quantize_first(x.m, f.inside, x.s2, x.v)
    # F_m and F_{m+2} are right to rounding of 1, and multiplied by m v
    return Sides(forms.blocks_advantage(x.v, x.q, f.density), pq - qp, qp)


def _affine(x: Setting) -> Sides:
    f = _laws(x)
    gap = forms.blocks_gap(x.m, f.inside, x.s2, x.v)
    line = (f.p - f.inside) * (gap - x.m * x.s2 * f.inside)
    return Sides(forms.blocks_advantage(x.v, x.q, f.density), line, x.m * (x.v + x.s2 * f.inside))


def _along_bits(x: Setting) -> Sides:
    """The slope against the gap is p - F_{m+2} > 0, whatever the noises."""
    f = _laws(x)
    a, b = (forms.blocks_advantage(v, x.q, f.density) for v in (x.v, x.v2))
    g, h = (forms.blocks_gap(x.m, f.inside, x.s2, v) for v in (x.v, x.v2))
    return Sides(a - b, (f.p - f.inside) * (g - h), x.m * (x.v + x.v2 + x.s2 * f.inside))


def _turning(x: Setting) -> Sides:
    """Of two thresholds on one side of m, the nearer has the larger loss; else vacuous."""
    a, b = (-forms.blocks_advantage(x.v, q, forms.chi2_pdf(x.m, q)) for q in (x.q, x.q2))
    nearer = jnp.abs(x.q - x.m) < jnp.abs(x.q2 - x.m)
    same = ((x.q - x.m) * (x.q2 - x.m) > 0).astype(jnp.float64)
    low, high = jnp.where(nearer, b, a), jnp.where(nearer, a, b)
    return Sides(same * low, same * high, high)


def _decay(x: Setting) -> Sides:
    bound = forms.most_a_weight(x.m, x.v)
    loss = -forms.blocks_advantage(x.v, x.q, forms.chi2_pdf(x.m, x.q)) / x.m
    return Sides(loss, bound, bound)


def _scalars(x: Setting) -> Sides:
    """m = 1 at the threshold t^2: theorem 2b, whose t and f are others'."""
    one = jnp.ones(())
    q = (4 * norm.cdf(jnp.sqrt(x.q / x.m)) - 2) ** 2 + 1e-3
    p = 2 * norm.cdf(jnp.sqrt(q)) - 1
    return Sides(
        forms.blocks_advantage(x.v, q, forms.chi2_pdf(one, q)), noise_advantage(p, x.v), x.v
    )


def _by_definition(x: Setting) -> Array:
    """E(Q->P) for m = 2 or 4: given the noise's length r, w along it and across it.

    What goes has (along + r)^2 + across^2 <= cut^2; along = cut sin - r, across <= cut cos.
    """
    s, cut = jnp.sqrt(x.s2), jnp.sqrt(x.q * (x.s2 + x.v))

    def given(length: Array) -> Array:  # [..., nodes]
        def at(angle: Array) -> Array:
            along = cut * jnp.sin(angle) - length[..., None, None] * jnp.sqrt(x.v)
            one, three, five = forms.odd_cdfs((cut * jnp.cos(angle)) ** 2 / x.s2)
            mass, more = jnp.where(x.m == 2, one, three), jnp.where(x.m == 2, three, five)
            squares = along**2 * mass + x.s2 * (x.m - 1) * more
            kept = (length**2 * x.v)[..., None, None]
            return norm.pdf(along / s) / s * cut * jnp.cos(angle) * (squares - kept * mass)

        ends = jnp.full(length.shape, jnp.pi / 2)
        return integrate(at, -ends, ends)

    def chi(r: Array) -> Array:
        weight = jnp.where(x.m == 2, r, r**3 / 2) * jnp.exp(-(r**2) / 2)
        return weight * given(r)

    return x.m * x.v + integrate(chi, jnp.zeros(()), jnp.asarray(REACH))


def _definition(x: Setting) -> Sides:
    true = _by_definition(x)
    return Sides(forms.blocks_quantize_first(x.m, _laws(x).inside, x.s2, x.v), true, true)


def _sign(x: Setting) -> Sides:
    f, qp = _laws(x), _by_definition(x)
    return Sides(forms.blocks_prune_first(x.m, f.p, f.inside, x.s2, x.v), qp, qp)


FAMILIES = (
    Family(
        "blocks",
        f"blocks of 1 to {LARGEST} weights, 1 to 99 % pruned, weight variances over 4 decades, "
        "noise of 1e-3 to 2 times that variance",
        6,
        lambda u: _setting(u, jnp.arange(1, LARGEST + 1)),
        (
            Claim("difference", "A is the difference of the errors", "==", _difference, 0.7),
            Claim("affine", "A = (p - F_{m+2})(G - m s^2 F_{m+2})", "==", _affine, 0.7),
            Claim("along bits", "A - A' = (p - F_{m+2})(G - G')", "==", _along_bits, 0.7),
            Claim(
                "along sparsity",
                "A falls with p up to q = m, then rises",
                "<=",
                _turning,
                0.3,
                0.999,
            ),
            Claim("decay", "-A <= m v / sqrt(pi m)", "<=", _decay, 0.9, 0.99),
            Claim("m = 1", "is theorem 2b", "==", _scalars, 0.9),
        ),
        smooth=False,
        share=0.5,
    ),
    Family(
        "definition",
        "blocks of 2 and 4 weights, the same settings; E(Q->P) by integrals over noise and weights",
        6,
        lambda u: _setting(u, jnp.array([2, 4])),
        (
            Claim("E(Q->P)", "the law is the integral", "==", _definition, 0.9),
            Claim("sign", "E(P->Q) <= E(Q->P)", "<=", _sign, 0.9, 0.999),
        ),
        smooth=False,
        share=0.01,
    ),
)


STATEMENT = Statement(
    name="structured",
    title="Theorem 2b for blocks: structured pruning of normal weights, exactly",
    source="derived here; corrects the monotonicity of Kim et al., ICLR 2026 (arXiv 2603.18426)",
    assumptions=(
        "weights are normal",
        "quantization is noise, independent of the weights",
        "blocks go by their norm",
    ),
    claim="A(Q->P) = -2 kappa v q f_m(q) <= 0 a block: increasing in the gap along the bits; along "
    "the sparsity only beyond q = m, and at most v/sqrt(pi m) a weight",
    latex=r"A(Q\to P)=-2\kappa v\,q\,f_{\chi^2_m}(q)=(p-F_{m+2})\bigl(G-\kappa ms^2F_{m+2}\bigr),"
    r"\quad q=F_{\chi^2_m}^{-1}(p)",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure.measure,
)
