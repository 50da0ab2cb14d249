"""Rotation and pruning: rotating a scale mixture to normal weights never helps magnitude pruning.

w = sigma z with z standard normal and sigma > 0 independent of it: Laplace weights, Student's t,
layers whose rows or blocks differ in scale. Pruning a fraction p by magnitude costs the least of
all sets of that mass, so no more than the set {|z| <= t}, P(|z| <= t) = p, which goes by z alone:

    E[w^2; p smallest] <= E[sigma^2 z^2; |z| <= t] = E w^2 (p - 2 t phi(t)).

The right side is what pruning costs once a rotation has made the weights normal with the same
energy (many weights, rotated at random). Equality only where sigma is constant. It is no theorem of
all weights, as was first thought: uniform ones cost p^3, more than normal ones, and rotating helps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths import gaussian
from theory.maths import mixtures as forms
from theory.maths.densities import DENSITIES, Density, prune_error
from theory.maths.quadrature import integrate
from theory.statements.rotation import law, measure, proof

SCALES = 3
FORMS = ("mixture_mass", "mixture_error")  # of theory.maths.mixtures
MIXTURES = DENSITIES[1:3]  # Laplace: sigma^2 exponential; Student's t: 1/sigma^2 gamma


class Mixture(NamedTuple):
    scale: Array  # [SCALES]
    share: Array  # [SCALES]
    cut: Array
    p: Array  # for densities that are mixtures


def _mixture(u: Array) -> Mixture:
    take = instances.Take(u)
    scale = instances.log_uniform(take(SCALES), 0.1, 10.0)
    share = instances.log_uniform(take(SCALES), 1e-2, 1.0)
    share = share / jnp.sum(share)
    energy = jnp.sum(share * scale**2)
    cut = jnp.sqrt(energy) * instances.log_uniform(take(), 0.05, 3.0)
    return Mixture(scale, share, cut, 0.02 + 0.97 * take())


def _pruned(x: Mixture) -> Sides:
    p = jnp.clip(forms.mixture_mass(x.cut, x.scale, x.share), 0, 1 - 1e-12)
    bound = jnp.sum(x.share * x.scale**2) * gaussian.prune_error(p)
    # p - 2 t phi(t) cancels where little is pruned: judged by p, as in the closed forms
    scale = jnp.maximum(bound, 3e-2 * p * jnp.sum(x.share * x.scale**2))
    return Sides(forms.mixture_error(x.cut, x.scale, x.share), bound, scale)


def _by_quadrature(x: Mixture) -> Sides:
    """The mixture's error from its density."""

    def second(w: Array) -> Array:
        at = w[..., None] / x.scale
        return 2 * w**2 * jnp.sum(x.share / x.scale * norm.pdf(at), -1)

    # the narrowest scale bends the density near 0
    edges = x.cut * jnp.array([0.0, 0.02, 0.1, 0.3, 1.0])
    true = jnp.sum(integrate(second, edges[:-1], edges[1:]))
    terms = x.share * x.scale**2 * (2 * norm.cdf(x.cut / x.scale) - 1)  # nearly all may cancel
    return Sides(forms.mixture_error(x.cut, x.scale, x.share), true, jnp.sum(terms))


def _density(density: Density) -> Callable[[Mixture], Sides]:
    def sides(x: Mixture) -> Sides:
        bound = gaussian.prune_error(x.p)
        return Sides(prune_error(density, x.p) / density.variance, bound, bound)

    return sides


# where almost all is pruned, 99 %: these densities are no limit of the bound
REACHED = {"laplace": 0.915, "student-t 4": 0.842}
FAMILIES = (
    Family(
        "mixtures",
        f"{SCALES} scales over two decades at any shares, cuts of 0.05 to 3 standard deviations; "
        "Laplace and Student's t at 2 to 99 %",
        2 * SCALES + 2,
        _mixture,
        (
            Claim("pruned", "E[w^2; p smallest] <= E w^2 m(p)", "<=", _pruned, 0.9, ATTAINED),
            Claim("error", "the closed form is the integral", "==", _by_quadrature, 0.7),
            *(
                Claim(f.name, "the same of a density", "<=", _density(f), 0.9, REACHED[f.name])
                for f in MIXTURES
            ),
        ),
        smooth=False,
        share=0.2,
    ),
)

STATEMENT = Statement(
    name="rotation",
    title="Rotation never helps magnitude pruning of scale mixtures",
    source="derived here",
    assumptions=(
        "weights are a scale mixture of normal ones",
        "the rotated weights are normal, of the same energy",
        "pruning is by magnitude",
    ),
    claim="the error of pruning a fraction p is at most E w^2 (p - 2 t phi(t)), what it is after a "
    "rotation to normal weights",
    latex=r"w=\sigma z:\quad\mathbb E[w^2;\,p\text{ smallest}]\le\mathbb E w^2\,(p-2t\varphi(t))",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure.measure,
)
