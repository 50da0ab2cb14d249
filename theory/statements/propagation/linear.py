"""Linear chains for theorem 6, and the claims made of them: telescoping sums and Gauss-Newton."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Sides
from theory.maths.chains import (
    first_order,
    gauss_newton,
    interactions,
    loss,
    product,
    remainder,
    remainder_bound,
    telescoped,
)
from theory.maths.norms import norm
from theory.statements.propagation.chains import DEPTH, PAIR_SIZE, WIDTH, norms, pair, same, scale

INPUTS = 3  # of the Gauss-Newton claims; each appears twice, with opposite residuals


class Linear(NamedTuple):
    """A linear chain and a quadratic loss 1/2 (f - y)^T H (f - y) with targets y = f(x) +- r.

    Every input has two targets, r to either side: the loss is stationary in all weights, and
    its minimum is not 0.
    """

    weight: Array  # [DEPTH, WIDTH, WIDTH]
    change: Array  # [DEPTH, WIDTH, WIDTH]
    layer: Array  # [], the one that the Gauss-Newton claim perturbs
    hessian: Array  # [WIDTH, WIDTH], positive definite
    x: Array  # [INPUTS, WIDTH]
    residual: Array  # [INPUTS, WIDTH]


def linear(u: Array) -> Linear:
    take = instances.Take(u)
    weight, change = pair(take)
    layer = instances.integer(take(), 0, DEPTH - 1)
    hessian = instances.positive_definite(take(WIDTH, WIDTH), 2 * take() - 1)
    x = (2 * take(INPUTS, WIDTH) - 1) * scale(take())
    # of the outputs' size: a minimum far above what a layer changes leaves of that only rounding
    away = jnp.linalg.norm(x @ product(weight).T) * instances.log_uniform(take(), 1e-2, 1.0)
    return Linear(weight, change, layer, hessian, x, (2 * take(INPUTS, WIDTH) - 1) * away)


LINEAR_SIZE = PAIR_SIZE + WIDTH * WIDTH + 2 * INPUTS * WIDTH + 4


def _split(c: Linear) -> tuple[list[Array], list[Array]]:
    return list(c.weight), list(c.change)


def _size(weight: Array, change: Array) -> Array:
    """prod_l (|W_l| + |dW_l|), Frobenius: what every term of every sum here is bounded by."""
    return jnp.prod(jnp.linalg.norm(weight, axis=(1, 2)) + jnp.linalg.norm(change, axis=(1, 2)))


def telescoping(c: Linear) -> Sides:
    before, change = _split(c)
    true = product(c.weight + c.change) - product(before)
    return same(telescoped(before, change), true, _size(c.weight, c.change))


def second_telescoping(c: Linear) -> Sides:
    true = telescoped(*_split(c)) - first_order(*_split(c))
    return same(remainder(*_split(c)), true, _size(c.weight, c.change))


def remainder_sides(c: Linear) -> Sides:
    right = remainder_bound(*norms(c.weight, c.change)) * norm(c.x[0])
    return Sides(norm(remainder(*_split(c)) @ c.x[0]), right, right)


def one_layer(c: Linear) -> Sides:
    one = (jnp.arange(DEPTH) == c.layer)[:, None, None] * c.change
    targets, outputs = c.x @ product(c.weight).T, c.x @ product(c.weight + one).T
    at_rest = loss(targets, targets, c.residual, c.hessian)
    tangents = c.x @ first_order(list(c.weight), list(one)).T
    size = _size(c.weight, one) * jnp.linalg.norm(c.x) + jnp.linalg.norm(c.residual)
    return Sides(
        gauss_newton(tangents, c.hessian),
        loss(outputs, targets, c.residual, c.hessian) - at_rest,
        jnp.linalg.norm(c.hessian) * size**2,
    )


def _interactions(c: Linear) -> Array:
    one = [list(alone) for alone in jnp.eye(DEPTH)[:, :, None, None] * c.change]
    tangents = jnp.stack([c.x @ first_order(list(c.weight), change).T for change in one])
    return interactions(tangents, c.hessian)


def gram(c: Linear) -> Sides:
    whole = gauss_newton(c.x @ first_order(*_split(c)).T, c.hessian)
    here, moved = (jnp.linalg.norm(a, axis=(1, 2)) for a in (c.weight, c.change))
    first = jnp.sum(moved / here) * jnp.prod(here)  # what J dW is bounded by
    size = jnp.linalg.norm(c.hessian) * (first * jnp.linalg.norm(c.x)) ** 2
    return Sides(jnp.sum(_interactions(c)) / 2, whole, size)


def depth(c: Linear) -> Sides:
    k = _interactions(c)
    return Sides(jnp.sum(k), DEPTH * jnp.trace(k), DEPTH * jnp.trace(k))
