"""Chains with activations for theorem 6, and the claims made of them: the Lipschitz bounds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Sides
from theory.maths.chains import (
    ACTIVATIONS,
    activate,
    activation_change,
    input_bounds,
    lipschitz_bound,
)
from theory.maths.norms import norm, spectral_norm

DEPTH, WIDTH = 3, 4


def scale(u: Array) -> Array:
    """Six decades."""
    return instances.log_uniform(u, 1e-3, 1e3)


def _matrices(take: instances.Take) -> Array:
    """[DEPTH, WIDTH, WIDTH], every layer at a scale of its own: a quarter of them a scalar in the
    corner, a quarter of rank one, the rest full."""
    full, shape, size = 2 * take(DEPTH, WIDTH, WIDTH) - 1, take(DEPTH, 1, 1), take(DEPTH, 1, 1)
    thin = full[:, :, :1] * full[:, :1, :]
    corner = jnp.zeros_like(full).at[:, 0, 0].set(full[:, 0, 0])
    return jnp.where(shape < 0.25, corner, jnp.where(shape < 0.5, thin, full)) * scale(size)


def pair(take: instances.Take) -> tuple[Array, Array]:
    """W and dW; in half of the instances dW_l = t_l W_l: all layers push the same way, which is
    where bounds on sums over layers are attained."""
    weight, change = _matrices(take), _matrices(take)
    shrink = 10 ** (4 * take(DEPTH, 1, 1) - 3)
    return weight, jnp.where(take() < 0.5, shrink * weight, change)


PAIR_SIZE = 2 * DEPTH * (WIDTH * WIDTH + 2) + DEPTH + 1


# ---------------------------------------------------------------------- chains with activations


class Chain(NamedTuple):
    """g_l(z) = gain_l act(z) + offset_l: Lipschitz with constant gain_l, and g_l(0) = offset_l."""

    weight: Array  # [DEPTH, WIDTH, WIDTH]
    change: Array  # [DEPTH, WIDTH, WIDTH]
    kind: Array  # [DEPTH], index into ACTIVATIONS
    gain: Array  # [DEPTH]
    offset: Array  # [DEPTH, WIDTH]
    x: Array  # [WIDTH]


def chain(u: Array) -> Chain:
    take = instances.Take(u)
    weight, change = pair(take)
    kind = instances.integer(take(DEPTH), 0, len(ACTIVATIONS) - 1)
    gain = instances.log_uniform(take(DEPTH), 0.1, 10.0)
    offset = (2 * take(DEPTH, WIDTH) - 1) * scale(take(DEPTH, 1))
    offset = jnp.where(take(DEPTH, 1) < 0.5, 0, offset)
    return Chain(weight, change, kind, gain, offset, (2 * take(WIDTH) - 1) * scale(take()))


CHAIN_SIZE = PAIR_SIZE + 4 * DEPTH + DEPTH * WIDTH + WIDTH + 1


Carried = tuple[Array, Array, Array]  # x_l, x'_l as computed, and x'_l - x_l


class Run(NamedTuple):
    """Both chains, layer by layer."""

    inputs: Array  # [DEPTH], |x_{l-1}| of the unperturbed chain
    change: Array  # [WIDTH], x'_L - x_L, carried: exact to rounding however small dW is
    direct: Array  # [WIDTH], the same by subtraction


def run(c: Chain) -> Run:
    """d_l = g_l(W_l x_{l-1} + [W'_l d_{l-1} + dW_l x_{l-1}]) - g_l(W_l x_{l-1})."""

    def layer(state: Carried, these: tuple[Array, ...]) -> tuple[Carried, Array]:
        x, y, d = state
        weight, change, kind, gain, offset = these
        z, dz = weight @ x, (weight + change) @ d + change @ x
        d = gain * activation_change(kind, z, dz)
        after = gain * activate(kind, (weight + change) @ y) + offset
        return (gain * activate(kind, z) + offset, after, d), norm(x)

    layers = (c.weight, c.change, c.kind, c.gain, c.offset)
    (x, y, d), inputs = jax.lax.scan(layer, (c.x, c.x, jnp.zeros_like(c.x)), layers)
    return Run(inputs, d, y - x)


def norms(weight: Array, change: Array) -> tuple[Array, Array, Array]:
    """|W_l|, |dW_l| and |W_l + dW_l|, each [DEPTH]."""
    before, moved, after = spectral_norm(jnp.stack([weight, change, weight + change]))
    return before, moved, after


def lipschitz_sides(c: Chain) -> Sides:
    """With |x_{l-1}| as measured; g_l(0) may be anything."""
    _, change, after = norms(c.weight, c.change)
    done = run(c)
    right = lipschitz_bound(c.gain, change, after, done.inputs)
    return Sides(norm(done.change), right, right)


def a_priori_sides(c: Chain) -> Sides:
    """With |x_{l-1}| bounded by norms, and by |g_k(0)| of the layers in front."""
    before, change, after = norms(c.weight, c.change)
    inputs = input_bounds(c.gain, before, norm(c.x), jnp.linalg.norm(c.offset, axis=-1))
    right = lipschitz_bound(c.gain, change, after, inputs)
    return Sides(norm(run(c).change), right, right)


def same(left: Array, right: Array, scale: Array) -> Sides:
    """Two vectors (or matrices) as an identity of lengths: left is right's plus that of their
    difference, so that the sides are as large as what is compared."""
    length = jnp.linalg.norm(right)
    return Sides(length + jnp.linalg.norm(left - right), length, scale)


def carried(c: Chain) -> Sides:
    done = run(c)
    size = jnp.linalg.norm(c.x)  # of the terms that are added up on the way
    here = jnp.linalg.norm(c.weight, axis=(1, 2)) + jnp.linalg.norm(c.change, axis=(1, 2))
    for i in range(DEPTH):
        size = c.gain[i] * here[i] * size + jnp.linalg.norm(c.offset[i])
    return same(done.change, done.direct, size)
