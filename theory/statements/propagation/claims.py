"""Theorem 6: from the perturbation of layers to the error of the output, and of the loss.

A chain x_l = g_l(W_l x_{l-1}), l = 1..L, and the same chain on W'_l = W_l + dW_l, from one x_0.

    Lipschitz     |x'_L - x_L| <= sum_l L_l |dW_l|_2 |x_{l-1}| prod_{k>l} L_k |W'_k|_2
    telescoping   W'_L..W'_1 - W_L..W_1 = sum_l W'_L..W'_{l+1} dW_l W_{l-1}..W_1
    first order   ... - sum_l W_L..dW_l..W_1 = sum_{l<m} W'_L..W'_{m+1} dW_m ..W.. dW_l W_{l-1}..W_1
    Gauss-Newton  1/2 E (J dW)^T H (J dW), and K_lm = E (J_l dW_l)^T H (J_m dW_m)

Derived here; nothing asks that layers be independent. What a sum over layers leaves out is the
off-diagonal part of K, and sum K <= L trace K bounds how much that can be. g_l(0) = 0 is needed
only where |x_{l-1}| is not measured but bounded by a product of norms.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Finding, Sides, Statement
from theory.maths.chains import (
    ACTIVATIONS,
    activate,
    activation_change,
    first_order,
    gauss_newton,
    input_bounds,
    interactions,
    lipschitz_bound,
    loss,
    product,
    remainder,
    remainder_bound,
    telescoped,
)
from theory.maths.norms import norm, spectral_norm
from theory.statements.propagation import measure, proof

DEPTH, WIDTH = 3, 4
INPUTS = 3  # of the Gauss-Newton claims; each appears twice, with opposite residuals


def _scale(u: Array) -> Array:
    """Six decades."""
    return instances.log_uniform(u, 1e-3, 1e3)


def _matrices(take: instances.Take) -> Array:
    """[DEPTH, WIDTH, WIDTH], every layer at a scale of its own: a quarter of them a scalar in the
    corner, a quarter of rank one, the rest full."""
    full, shape, size = 2 * take(DEPTH, WIDTH, WIDTH) - 1, take(DEPTH, 1, 1), take(DEPTH, 1, 1)
    thin = full[:, :, :1] * full[:, :1, :]
    corner = jnp.zeros_like(full).at[:, 0, 0].set(full[:, 0, 0])
    return jnp.where(shape < 0.25, corner, jnp.where(shape < 0.5, thin, full)) * _scale(size)


def _pair(take: instances.Take) -> tuple[Array, Array]:
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


def _chain(u: Array) -> Chain:
    take = instances.Take(u)
    weight, change = _pair(take)
    kind = instances.integer(take(DEPTH), 0, len(ACTIVATIONS) - 1)
    gain = instances.log_uniform(take(DEPTH), 0.1, 10.0)
    offset = (2 * take(DEPTH, WIDTH) - 1) * _scale(take(DEPTH, 1))
    offset = jnp.where(take(DEPTH, 1) < 0.5, 0, offset)
    return Chain(weight, change, kind, gain, offset, (2 * take(WIDTH) - 1) * _scale(take()))


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


def _norms(c: Chain | Linear) -> tuple[Array, Array, Array]:
    """|W_l|, |dW_l| and |W_l + dW_l|, each [DEPTH]."""
    before, change, after = spectral_norm(jnp.stack([c.weight, c.change, c.weight + c.change]))
    return before, change, after


def lipschitz_sides(c: Chain) -> Sides:
    """With |x_{l-1}| as measured; g_l(0) may be anything."""
    _, change, after = _norms(c)
    done = run(c)
    right = lipschitz_bound(c.gain, change, after, done.inputs)
    return Sides(norm(done.change), right, right)


def a_priori_sides(c: Chain) -> Sides:
    """With |x_{l-1}| bounded by norms, and by |g_k(0)| of the layers in front."""
    before, change, after = _norms(c)
    inputs = input_bounds(c.gain, before, norm(c.x), jnp.linalg.norm(c.offset, axis=-1))
    right = lipschitz_bound(c.gain, change, after, inputs)
    return Sides(norm(run(c).change), right, right)


def _same(left: Array, right: Array, scale: Array) -> Sides:
    """Two vectors (or matrices) as an identity of lengths: left is right's plus that of their
    difference, so that the sides are as large as what is compared."""
    length = jnp.linalg.norm(right)
    return Sides(length + jnp.linalg.norm(left - right), length, scale)


def _carried(c: Chain) -> Sides:
    done = run(c)
    size = jnp.linalg.norm(c.x)  # of the terms that are added up on the way
    here = jnp.linalg.norm(c.weight, axis=(1, 2)) + jnp.linalg.norm(c.change, axis=(1, 2))
    for i in range(DEPTH):
        size = c.gain[i] * here[i] * size + jnp.linalg.norm(c.offset[i])
    return _same(done.change, done.direct, size)


# --------------------------------------------------------------------------------- linear chains


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


def _linear(u: Array) -> Linear:
    take = instances.Take(u)
    weight, change = _pair(take)
    layer = instances.integer(take(), 0, DEPTH - 1)
    hessian = instances.positive_definite(take(WIDTH, WIDTH), 2 * take() - 1)
    x = (2 * take(INPUTS, WIDTH) - 1) * _scale(take())
    # of the outputs' size: a minimum far above what a layer changes leaves of that only rounding
    away = jnp.linalg.norm(x @ product(weight).T) * instances.log_uniform(take(), 1e-2, 1.0)
    return Linear(weight, change, layer, hessian, x, (2 * take(INPUTS, WIDTH) - 1) * away)


LINEAR_SIZE = PAIR_SIZE + WIDTH * WIDTH + 2 * INPUTS * WIDTH + 4


def _split(c: Linear) -> tuple[list[Array], list[Array]]:
    return list(c.weight), list(c.change)


def _size(weight: Array, change: Array) -> Array:
    """prod_l (|W_l| + |dW_l|), Frobenius: what every term of every sum here is bounded by."""
    return jnp.prod(jnp.linalg.norm(weight, axis=(1, 2)) + jnp.linalg.norm(change, axis=(1, 2)))


def _telescoping(c: Linear) -> Sides:
    before, change = _split(c)
    true = product(c.weight + c.change) - product(before)
    return _same(telescoped(before, change), true, _size(c.weight, c.change))


def _second_telescoping(c: Linear) -> Sides:
    true = telescoped(*_split(c)) - first_order(*_split(c))
    return _same(remainder(*_split(c)), true, _size(c.weight, c.change))


def _remainder_bound(c: Linear) -> Sides:
    right = remainder_bound(*_norms(c)) * norm(c.x[0])
    return Sides(norm(remainder(*_split(c)) @ c.x[0]), right, right)


def _gauss_newton(c: Linear) -> Sides:
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


def _gram(c: Linear) -> Sides:
    whole = gauss_newton(c.x @ first_order(*_split(c)).T, c.hessian)
    here, moved = (jnp.linalg.norm(a, axis=(1, 2)) for a in (c.weight, c.change))
    first = jnp.sum(moved / here) * jnp.prod(here)  # what J dW is bounded by
    size = jnp.linalg.norm(c.hessian) * (first * jnp.linalg.norm(c.x)) ** 2
    return Sides(jnp.sum(_interactions(c)) / 2, whole, size)


def _depth(c: Linear) -> Sides:
    k = _interactions(c)
    return Sides(jnp.sum(k), DEPTH * jnp.trace(k), DEPTH * jnp.trace(k))


FAMILIES = (
    Family(
        "chains",
        f"depth {DEPTH}, width {WIDTH}; identity, relu, tanh or leaky relu a layer, with gain and "
        "offset; weights, perturbations, offsets and inputs each over six decades",
        CHAIN_SIZE,
        _chain,
        (
            Claim(
                "lipschitz", "the bound with measured |x_{l-1}|", "<=", lipschitz_sides, 0.9, 0.999
            ),
            Claim(
                "a priori",
                "the same from |x_0|, |W_k| and |g_k(0)|",
                "<=",
                a_priori_sides,
                0.9,
                0.999,
            ),
            Claim(
                "carried", "the change carried layer by layer is f(W') - f(W)", "==", _carried, 0.2
            ),
        ),
        smooth=False,  # evolution attains the bounds; gradients would cost most to compile
    ),
    Family(
        "linear",
        f"linear chains of depth {DEPTH}, width {WIDTH}; a quadratic loss at a minimum above 0",
        LINEAR_SIZE,
        _linear,
        (
            Claim("telescoping", "product' - product = sum over layers", "==", _telescoping, 0.2),
            Claim("remainder", "what the first order leaves out", "==", _second_telescoping, 0.2),
            Claim(
                "remainder bound",
                "which is of second order in dW",
                "<=",
                _remainder_bound,
                0.9,
                0.999,
            ),
            Claim("gauss-newton", "one layer: 1/2 (J dW)^T H (J dW)", "==", _gauss_newton, 0.08),
            Claim("gram", "1/2 sum K is Gauss-Newton of all layers", "==", _gram, 0.2),
            Claim("depth", "sum K <= L trace K", "<=", _depth, 0.9, 0.999),
        ),
        smooth=False,
    ),
)


def _measure(key: Array) -> tuple[Finding, ...]:
    def ratios(u: Array) -> tuple[Array, Array, Array]:
        c = _chain(u)
        left, right, _ = lipschitz_sides(c)
        unaware = a_priori_sides(c._replace(offset=jnp.zeros_like(c.offset))).right
        return left / right, left / unaware, jnp.any(c.offset[:-1] != 0)

    return measure.measure(key, ratios, CHAIN_SIZE)


STATEMENT = Statement(
    name="propagation",
    title="Theorem 6: from layer perturbations to the error of the output and of the loss",
    source="derived here",
    assumptions=(
        "g_l is L_l-Lipschitz",
        "the bound from |x_0| alone: |g_k(0)| of the layers in front (product form: g_k(0) = 0)",
        "Gauss-Newton is exact for a linear network, one layer, a quadratic loss at a minimum",
        "sum K <= L trace K: a loss convex in the outputs",
    ),
    claim="The output moves by at most the sum of the layers' |dW_l| |x_{l-1}|, carried through "
    "the perturbed layers behind; to second order all layers together cost at most L times the "
    "sum of their single costs",
    latex=r"\|f'-f\|\le\sum_l L_l\|dW_l\|_2\|x_{l-1}\|\prod_{k>l}L_k\|W_k+dW_k\|_2,\qquad "
    r"\tfrac12\,\mathbb E(J\,dW)^\top H(J\,dW)=\tfrac12\sum_{lm}K_{lm}"
    r"\le\tfrac L2\operatorname{tr}K",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=_measure,
)

FORMS = (
    "spectral_norm",
    "lipschitz_bound",
    "input_bounds",
    "telescoped",
    "first_order",
    "remainder",
    "remainder_bound",
    "gauss_newton",
    "interactions",
    "activation_change",
)
