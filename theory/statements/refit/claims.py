"""Joint optimality: prune by magnitude, fit the grid to what survives; nothing does better.

Grids step * a, the levels a from one symmetric shape (equal steps or not, with 0 or without), any
step > 0; k weights go, and what is pruned stays 0. For every grid of the family the magnitude mask
is the best of its size (theorem 2a), and minima commute:

    min over masks, steps  =  min over steps of the magnitude mask's error
                           =  the magnitude mask with the step fitted to its survivors,

by least squares, over all steps. So pruning first and refitting is optimal jointly:

    A_refit <= A_fixed <= 0,    A_. = kappa [E(P->Q with that grid) - E(Q->P)],

where A_fixed keeps the grid fitted to the dense weights: no interleaving (a step refitted after
Q->P's mask, say) and no second stage that knows the dense weights beats it. With codes a fixed, the
fit is s = (w a)/(a a) and takes (w a)^2/(a a) off the energy, so the joint optimum is

    |w|^2 - max over codes a with k zeros or more of (|w| a)^2 / (a a)     (shapes with a 0).
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
from theory.maths import refit as forms
from theory.statements.refit import law, measure, proof

UNITS, LEVELS = 5, 3
FORMS = ("fitted_step", "fitted_gain")  # of theory.maths.refit
MASKS = np.array(list(itertools.product((False, True), repeat=UNITS)))
CODES = np.array(list(itertools.product(range(LEVELS), repeat=UNITS)))
LITTLE = 1e-6  # of the energy: what an error is judged by where it is next to 0


class Row(NamedTuple):
    weight: Array  # [UNITS]
    shape: Array  # [LEVELS], rising, the first 0 or above
    k: Array  # pruned, 1..UNITS - 2
    tie: Array  # [UNITS]


def _row(u: Array) -> Row:
    take = instances.Take(u)
    w = instances.weights(take(UNITS), take() * 0.79, take())  # not the widest: one weight is all
    w = jnp.where(w == 0, 0.5, w)
    gaps = jnp.where(take() < 0.5, jnp.ones(LEVELS), 0.2 + 2 * take(LEVELS))
    zero = take() < 0.7
    shape = jnp.cumsum(gaps) - jnp.where(zero, gaps[0], gaps[0] / 2)
    return Row(w, shape, instances.integer(take(), 1, UNITS - 2), take(UNITS))


def _error(w: Array, gone: Array, q: Array) -> Array:
    return jnp.sum((jnp.where(gone, 0, q) - w) ** 2)


def _refitted(x: Row, gone: Array) -> Array:
    """The error with that mask and the step fitted to its survivors."""
    return _error(x.weight, gone, forms.fit(x.weight, ~gone, x.shape)[1])


class Found(NamedTuple):
    refit: Array  # P -> Q, the grid fitted to the survivors
    fixed: Array  # P -> Q on the dense weights' grid
    last: Array  # Q -> P on that grid
    again: Array  # the same, the step refitted to what Q -> P keeps
    scale: Array


def _orders(x: Row) -> Found:
    size = jnp.abs(x.weight)
    first = instances.smallest(size, x.k)
    _, dense = forms.fit(x.weight, jnp.ones(UNITS, bool), x.shape)
    last = instances.smallest(jnp.abs(dense), x.k, x.tie)
    return Found(
        _refitted(x, first),
        _error(x.weight, first, dense),
        _error(x.weight, last, dense),
        _refitted(x, last),
        LITTLE * jnp.sum(x.weight**2),
    )


def _joint(x: Row) -> Sides:
    """Every mask of the size, every step worth trying."""
    masks = jnp.asarray(MASKS)
    cost = jax.vmap(lambda gone: _refitted(x, gone))(masks)
    best = jnp.min(jnp.where(jnp.sum(masks, 1) == x.k, cost, jnp.inf))
    found = _orders(x)
    return Sides(found.refit, best, best + found.scale)


def _by_codes(x: Row) -> Sides:
    """Every vector of codes with k zeros or more, on the shape moved to start at 0."""
    moved = x._replace(shape=x.shape - x.shape[0])
    size, codes = jnp.abs(x.weight), moved.shape[CODES]
    square = jnp.sum(codes**2, 1)
    sparse = jnp.sum(codes == 0, 1) >= x.k
    gain = forms.fitted_gain(codes @ size, jnp.where(square > 0, square, 1))
    best = jnp.argmax(jnp.where(sparse & (square > 0), gain, -jnp.inf))
    energy = jnp.sum(x.weight**2)
    return Sides(energy - gain[best], _orders(moved).refit, energy)


def _least_squares(x: Row) -> Sides:
    """One assignment: the fitted step against a parabola through three steps."""
    size, level = jnp.abs(x.weight), x.shape[jnp.arange(UNITS) % LEVELS] + 0.1

    def at(step: Array) -> Array:
        return jnp.sum((size - step * level) ** 2)

    unit = jnp.sqrt(size @ size / (level @ level))  # the step is at most this
    less, middle, more = at(0 * unit), at(unit), at(2 * unit)
    bottom = unit * (1 + (less - more) / (2 * (less - 2 * middle + more)))
    return Sides(forms.fitted_step(size @ level, level @ level), bottom, unit)


def _refit_pays(x: Row) -> Sides:
    found = _orders(x)
    return Sides(found.refit, found.fixed, found.fixed + found.scale)


def _fixed_never_loses(x: Row) -> Sides:
    found = _orders(x)
    return Sides(found.fixed, found.last, found.last + found.scale)


def _no_interleaving(x: Row) -> Sides:
    found = _orders(x)
    return Sides(found.refit, found.again, found.again + found.scale)


FAMILIES = (
    Family(
        "rows",
        f"{UNITS} weights, symmetric shapes of {LEVELS} levels a side, steps equal or not, with 0 "
        f"or without, 1 to {UNITS - 2} pruned; every mask, every step at which the fit can be best",
        2 * UNITS + LEVELS + 5,
        _row,
        (
            Claim("joint", "refit = the best of all masks and steps", "==", _joint, 0.5),
            Claim("codes", "= |w|^2 - max (|w| a)^2/(a a)", "==", _by_codes, 0.5),
            Claim("least squares", "the fitted step is the least", "==", _least_squares, 0.9),
            Claim("A_refit <= A_fixed", "refitting pays", "<=", _refit_pays, 0.5, 0.999),
            Claim("A_fixed <= 0", "theorem 2a", "<=", _fixed_never_loses, 0.05, 0.999),
            Claim(
                "interleaved",
                "Q->P's mask with a refitted step is no better",
                "<=",
                _no_interleaving,
                0.05,
                0.99,
            ),
        ),
        smooth=False,
        share=0.05,
    ),
)


STATEMENT = Statement(
    name="refit",
    title="Joint optimality: prune by magnitude, then fit the grid to the survivors",
    source="derived here, from theorem 2a",
    assumptions=(
        "the grids are one symmetric shape at any step",
        "units of one mask share the grid",
        "the fit is the least error over all steps",
        "the error weighs all units alike",
        "what is pruned stays 0",
    ),
    claim="among all masks of a size and all steps, magnitude pruning with the step fitted to the "
    "survivors has the least error: A_refit <= A_fixed <= 0",
    latex=r"\min_{|S|=k,\,s}\Bigl[\sum_Sw^2+\sum_{\bar S}(w-Q_s(w))^2\Bigr]="
    r"\min_s E_s(S_{|w|}),\qquad A_{\rm refit}\le A_{\rm fixed}\le 0",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
