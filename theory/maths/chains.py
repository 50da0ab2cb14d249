"""Chains of layers: the closed forms of theorem 6.

Sums over layers run on anything that multiplies: arrays, exact fractions, noncommutative symbols.
Lists are ordered from the first layer to the last, W_1 ... W_L; matrices are [out, in].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.maths.algebra import Factor, Number

Tensor = Array | np.ndarray
Several = Iterable[Number] | Tensor  # numbers, one a layer

LEAK = 0.1
ACTIVATIONS: tuple[Callable[[Array], Array], ...] = (
    lambda z: z,
    lambda z: jnp.maximum(z, 0),
    jnp.tanh,
    lambda z: jnp.where(z > 0, z, LEAK * z),
)  # all of Lipschitz constant 1, times the gain of their layer


def lipschitz_bound(lipschitz: Several, change: Several, after: Several, inputs: Several) -> Any:
    """sum_l L_l |dW_l| |x_{l-1}| prod_{k>l} L_k |W'_k|; all arguments [L] numbers a layer.

    change: |dW_l|; after: |W_l + dW_l|; inputs: |x_{l-1}| of the unperturbed chain.
    """
    total, behind = 0, 1
    for lip, d, w, x in reversed(list(zip(lipschitz, change, after, inputs, strict=True))):
        total, behind = total + lip * d * x * behind, behind * lip * w
    return total


def input_bounds(lipschitz: Several, before: Several, start: Number, at_zero: Several) -> list[Any]:
    """Bounds of |x_{l-1}|, l = 1..L, by |x_l| <= L_l |W_l| |x_{l-1}| + |g_l(0)| from |x_0|.

    before: |W_l|; at_zero: |g_l(0)|. Without the latter, |x_0| prod_{k<l} L_k |W_k|.
    """
    found = [start]
    for lip, w, c in list(zip(lipschitz, before, at_zero, strict=True))[:-1]:
        found.append(lip * w * found[-1] + c)
    return found


def product(matrices: Sequence[Factor] | Array) -> Any:
    """W_L ... W_1 of (W_1, ..., W_L)."""
    total = matrices[0]
    for w in matrices[1:]:
        total = w @ total
    return total


def telescoped(before: Sequence[Factor], change: Sequence[Factor]) -> Any:
    """sum_l W'_L..W'_{l+1} dW_l W_{l-1}..W_1, with W' = W + dW."""
    after = [w + d for w, d in zip(before, change, strict=True)]
    return sum(product([*before[:i], d, *after[i + 1 :]]) for i, d in enumerate(change))


def first_order(before: Sequence[Factor], change: Sequence[Factor]) -> Any:
    """J dW = sum_l W_L..dW_l..W_1 of a linear chain."""
    return sum(product([*before[:i], d, *before[i + 1 :]]) for i, d in enumerate(change))


def remainder(before: Sequence[Factor], change: Sequence[Factor]) -> Any:
    """What the first order leaves out: sum_{l<m} W'..W' dW_m W..W dW_l W..W (telescoped twice)."""
    after = [w + d for w, d in zip(before, change, strict=True)]
    return sum(
        product([*before[:i], change[i], *before[i + 1 : j], change[j], *after[j + 1 :]])
        for i, j in itertools.combinations(range(len(before)), 2)
    )


def gauss_newton(tangents: Tensor, hessian: Tensor) -> Any:
    """1/2 mean_x (J dW)^T H (J dW); tangents [x, out] = J dW at every input, hessian [out, out]."""
    return ((tangents @ hessian) * tangents).sum() / (2 * len(tangents))


def interactions(tangents: Tensor, hessian: Tensor) -> Any:
    """K_lm = mean_x (J_l dW_l)^T H (J_m dW_m); tangents [L, x, out], hessian [out, out] -> [L, L].

    1/2 sum_lm K_lm is :func:`gauss_newton` of all layers, 1/2 K_ll that of layer l alone.
    """
    image = tangents @ hessian
    flat = (len(tangents), -1)
    return image.reshape(flat) @ tangents.reshape(flat).T / tangents.shape[1]


def remainder_bound(before: Array, change: Array, after: Array) -> Any:
    """sum_{l<m} |dW_l| |dW_m| prod_{k<m, k != l} |W_k| prod_{k>m} |W'_k|; all [L]: O(|dW|^2)."""
    total: Any = 0
    for i, j in itertools.combinations(range(len(before)), 2):
        term = change[i] * change[j]
        for k in range(len(before)):
            term = term * (after[k] if k > j else 1 if k in (i, j) else before[k])
        total = total + term
    return total


def loss(outputs: Tensor, targets: Tensor | int, residual: Tensor, hessian: Tensor) -> Any:
    """mean over inputs and both targets y +- r of 1/2 (f - y)^T H (f - y); all [inputs, out]."""
    total: Any = 0
    for sign in (1, -1):
        off = outputs - targets - sign * residual
        total = total + ((off @ hessian) * off).sum() / (4 * len(off))
    return total


def activate(kind: Array, z: Array) -> Array:
    return jnp.stack([f(z) for f in ACTIVATIONS])[kind]


def activation_change(kind: Array, z: Array, dz: Array) -> Array:
    """act(z + dz) - act(z) without the cancellation of the subtraction, elementwise.

    tanh: tanh(dz) (1 - tanh(z + dz) tanh(z)). The others are linear on each side of 0; where
    z and z + dz lie on different sides, neither is larger than dz and subtracting is exact enough.
    """
    side, other = z > 0, z + dz > 0
    slope = jnp.stack([jnp.ones_like(z), 1.0 * side, jnp.ones_like(z), jnp.where(side, 1, LEAK)])
    crossing = activate(kind, z + dz) - activate(kind, z)
    bent = jnp.where(side == other, slope[kind] * dz, crossing)
    smooth = jnp.tanh(dz) * (1 - jnp.tanh(z + dz) * jnp.tanh(z))
    return jnp.where(kind == 2, smooth, bent)
