"""Closed forms for the weights of a layer: the errors of pruning and of a uniform grid, in SNR.

The forms are in :mod:`theory.maths.gaussian` and :mod:`theory.maths.grids`; the partial moments of
other weights in :mod:`theory.maths.densities`. Each is put to the integral that it stands for.

Source: Kuzmin et al., NeurIPS 2023 (arXiv 2307.02973) for the comparison; the formulas are
derived here, see THEORY.md, "Closed forms to reproduce" and theorem 2b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import densities
from theory.maths.densities import DENSITIES, Density
from theory.maths.gaussian import prune_error, prune_threshold
from theory.maths.grids import grid_error
from theory.maths.quadrature import integrate
from theory.statements.gaussian import measure, proof

FORMS = ("prune_error", "grid_error")


# ------------------------------------------------------------------------------ random instances


class Setting(NamedTuple):
    p: Array
    step: Array  # in standard deviations


def _setting(u: Array) -> Setting:
    return Setting(0.005 + 0.985 * u[0], instances.log_uniform(u[1], 0.05, 2.0))


def _pruning(x: Setting) -> Sides:
    """Judged by c, of which nearly all cancels when little is pruned."""
    true = integrate(lambda w: 2 * w**2 * norm.pdf(w), jnp.zeros(()), prune_threshold(x.p))
    return Sides(prune_error(x.p), true, x.p)


def _pruning_of(density: Density) -> Callable[[Setting], Sides]:
    def sides(x: Setting) -> Sides:
        t = density.threshold(x.p)
        true = integrate(lambda w: 2 * w**2 * density.pdf(w), jnp.zeros(()), t)
        return Sides(densities.prune_error(density, x.p), true, jnp.maximum(x.p, t**2))

    return sides


BITS = 3


def _rounding(x: Setting) -> Sides:
    level = x.step * jnp.arange(-(2 ** (BITS - 1)), 2 ** (BITS - 1))
    edge = jnp.concatenate([jnp.array([-14.0]), (level[1:] + level[:-1]) / 2, jnp.array([14.0])])
    cells = integrate(lambda w: (w - level[:, None, None]) ** 2 * norm.pdf(w), edge[:-1], edge[1:])
    return Sides(grid_error(x.step, BITS), jnp.sum(cells), jnp.ones(()))


FAMILIES = (
    Family(
        "ratios and steps",
        "any fraction pruned, steps of 0.05 to 2 standard deviations at 3 bits",
        2,
        _setting,
        (
            Claim(
                "pruning, normal",
                "c - 2 t phi(t) is the integral, relative to c",
                "==",
                _pruning,
                0.9,
            ),
            *(
                Claim(
                    f"pruning, {density.name}",
                    "the partial moment is the integral",
                    "==",
                    _pruning_of(density),
                    0.7,
                )
                for density in DENSITIES[1:]
            ),
            Claim("rounding, normal", "the sum over cells is the integral", "==", _rounding, 0.9),
        ),
        smooth=False,
        share=0.1,
    ),
)


STATEMENT = Statement(
    name="gaussian",
    title="Closed forms: the errors of pruning and of a uniform grid",
    source="derived here; compared with Kuzmin et al., NeurIPS 2023 (arXiv 2307.02973)",
    assumptions=("weights are normal",),
    claim="magnitude pruning of a fraction c costs c - 2 t phi(t) of the variance; the best b-bit "
    "uniform grid what the sum over its cells says",
    latex=r"\mathbb E[w^2;|w|\le t]=s^2\bigl(c-2t\varphi(t)\bigr),\quad "
    r"t=\Phi^{-1}\bigl(\tfrac{1+c}2\bigr)",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure.measure,
)
