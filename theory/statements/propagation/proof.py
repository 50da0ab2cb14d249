"""What stands behind theorem 6: its derivation, an enumeration, and why each assumption stands."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof, Step
from theory.maths.chains import (
    first_order,
    gauss_newton,
    input_bounds,
    interactions,
    lipschitz_bound,
    loss,
    product,
    remainder,
    telescoped,
)


def exact() -> Exact:
    """Telescoping in integers, for ALL pairs W_1, W_2, W'_1, W'_2 of 2 x 2 matrices of 0 and 1."""
    every = np.array(list(itertools.product((0, 1), repeat=4))).reshape(-1, 2, 2)
    index = np.array(list(itertools.product(range(len(every)), repeat=4))).T
    w1, w2, v1, v2 = (every[i] for i in index)
    wrong = (product([v1, v2]) - product([w1, w2]) != telescoped([w1, w2], [v1 - w1, v2 - w2])).any(
        (1, 2)
    )
    failure = None
    if wrong.any():
        at = int(np.argmax(wrong))
        failure = str([m[at].tolist() for m in (w1, w2, v1, v2)])
    return Exact("all depth-2 chains of 2 x 2 matrices of 0 and 1", len(wrong), failure)


class _Symbol:
    """A noncommutative symbol with ``@``, so that the closed forms above run on it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __matmul__(self, other: _Symbol) -> _Symbol:
        return _Symbol(self.value * other.value)

    def __add__(self, other: Any) -> _Symbol:
        return _Symbol(self.value + getattr(other, "value", other))

    __radd__ = __add__

    def __sub__(self, other: _Symbol) -> _Symbol:
        return _Symbol(self.value - other.value)


def _symbols(depth: int) -> tuple[list[_Symbol], list[_Symbol]]:
    w, d = (sympy.symbols(f"{n}1:{depth + 1}", commutative=False) for n in ("W", "D"))
    pairs = list(zip(w, d, strict=True))
    return [_Symbol(a) for a, _ in pairs], [_Symbol(b) for _, b in pairs]


def prove() -> Proof:
    """The identities by noncommutative algebra; the bounds by their recursion and a square."""
    steps = []
    for depth in (2, 3, 4):
        before, change = _symbols(depth)
        after = [w + d for w, d in zip(before, change, strict=True)]
        whole = (product(after) - product(before)).value
        first, rest = first_order(before, change).value, remainder(before, change).value
        steps += [
            symbolic.step(f"telescoping, {depth} layers", whole, telescoped(before, change).value),
            symbolic.step(f"the remainder of the first order, {depth} layers", whole, first + rest),
        ]
    # |d_l| <= L_l (|W'_l| |d_{l-1}| + |dW_l| |x_{l-1}|), unrolled
    lip, change, after_, x = (sympy.symbols(f"{n}1:5", positive=True) for n in ("L", "D", "V", "x"))
    unrolled: Any = 0
    for i in range(4):
        unrolled = lip[i] * (after_[i] * unrolled + change[i] * x[i])
    steps.append(
        symbolic.step(
            "the bound is the recursion d_l = L_l (|W'_l| d_{l-1} + |dW_l| |x_{l-1}|), unrolled",
            lipschitz_bound(lip, change, after_, x),
            unrolled,
        )
    )
    steps.append(_prove_gauss_newton())
    v = sympy.symbols("v1:5", real=True)
    pairs = itertools.combinations(v, 2)
    steps.append(
        symbolic.step(
            "L sum v_l^2 - (sum v_l)^2 = sum_{l<m} (v_l - v_m)^2 >= 0, so sum K <= L trace K",
            4 * sum(a**2 for a in v) - sum(v) ** 2,
            sum((a - b) ** 2 for a, b in pairs),
        )
    )
    a, b = sympy.symbols("a b", real=True)
    steps.append(
        symbolic.step(
            "tanh a - tanh b = tanh(a - b) (1 - tanh a tanh b)",
            (sympy.tanh(a) - sympy.tanh(b)).rewrite(sympy.exp),
            (sympy.tanh(a - b) * (1 - sympy.tanh(a) * sympy.tanh(b))).rewrite(sympy.exp),
        )
    )
    return Proof(
        tuple(steps),
        "induction over any depth; |A B|_2 <= |A|_2 |B|_2, the triangle inequality and the "
        "Lipschitz property give the recursion of which the bound is the solution; for vectors "
        "and H = A^T A the square is taken of each coordinate of A v_l",
    )


def _prove_gauss_newton() -> Step:
    """f = A (W + D) B x, 2 x 2, any A, W, D, B, x, r and symmetric H."""
    a, w, d, b = (
        np.array(sympy.symbols(f"{n}1:5", real=True), object).reshape(2, 2) for n in "awdb"
    )
    h1, h2, h3 = sympy.symbols("h1:4", real=True)
    hessian = np.array([[h1, h2], [h2, h3]], object)
    x, r = (np.array(sympy.symbols(f"{n}1:3", real=True), object)[None] for n in "xr")
    before, change = [b, w, a], [0 * b, d, 0 * a]
    rise = loss(x @ telescoped(before, change).T, 0, r, hessian) - loss(0 * r, 0, r, hessian)
    return symbolic.step(
        "one layer's perturbation raises a quadratic loss at a minimum by its Gauss-Newton form",
        gauss_newton(x @ first_order(before, change).T, hessian),
        rise,
    )


# ------------------------------------------------------------------------------------- necessity


def necessity() -> tuple[Counterexample, ...]:
    """Scalars: W = dW = x = 1 in one or two layers, unless it says otherwise."""
    one, two = Fraction(1), Fraction(2)
    ones = [one, one]
    unit = np.array([[one]], object)
    zero = 0 * unit
    chain, doubled = [unit, unit], [2 * unit, 2 * unit]
    rise = (product(doubled) - product(chain))[0, 0]  # 3: what the true bound says, too
    row, both = np.array([[one, one]], object), np.array([[one], [one]], object)
    after_relu = np.maximum((unit - 2 * unit) @ unit, 0)
    one_sided = interactions(np.array([unit, zero]), -unit)
    return (
        Counterexample(
            "the norm of W_k + dW_k behind the perturbed layer, not of W_k",
            "two scalars W = 1, dW = 1, x = 1: the output goes from 1 to 4",
            "<=",
            rise,
            lipschitz_bound(ones, ones, ones, ones),
        ),
        Counterexample(
            "g_l is L_l-Lipschitz with the L_l of the bound",
            "g(z) = 2 z taken for 1-Lipschitz; W = 1, dW = 1, x = 1",
            "<=",
            2 * (telescoped([unit], [unit]) @ unit)[0, 0],
            lipschitz_bound([one], [one], [two], [one]),
        ),
        Counterexample(
            "an operator norm of dW",
            "its largest entry instead: W = 0, dW = (1 1), x = (1, 1); both sides squared",
            "<=",
            (telescoped([0 * row], [row]) @ both)[0, 0] ** 2,
            lipschitz_bound([one], [row.max() ** 2], [two], [(both**2).sum()]),
        ),
        Counterexample(
            "|g_k(0)| in the bound from |x_0|; the bound with measured |x_{l-1}| is attained here",
            "x_0 = 0, g_1(z) = z + 1, g_2(z) = z, W = 1, dW_2 = 1: the output goes from 1 to 2",
            "<=",
            (telescoped([unit], [unit]) @ (unit @ zero + 1))[0, 0],
            lipschitz_bound(ones, [0, one], [one, two], input_bounds(ones, ones, 0 * one, [0, 0])),
        ),
        Counterexample(
            "Gauss-Newton: the loss is at a minimum",
            "loss 1/2 (w x - y)^2 with w = 1, x = 1, y = 0; dW = 1",
            "==",
            gauss_newton(first_order([unit], [unit]), unit),
            loss(2 * unit, zero, zero, unit) - loss(unit, zero, zero, unit),
        ),
        Counterexample(
            "Gauss-Newton: the network is linear",
            "relu(w x), w = x = 1, y = 1, dW = -2: the output goes from 1 to 0",
            "==",
            gauss_newton(first_order([unit], [-2 * unit]), unit),
            loss(after_relu, unit, zero, unit),
        ),
        Counterexample(
            "Gauss-Newton: one layer is perturbed",
            "two scalars W = 1, dW = 1, x = 1, y = 1: the output goes from 1 to 4",
            "==",
            gauss_newton(first_order(chain, chain), unit),
            loss(product(doubled), product(chain), zero, unit),
        ),
        Counterexample(
            "Gauss-Newton: the loss is quadratic",
            "(w x - 1)^4, w = x = 1, dW = 1: its Hessian at the minimum is 0",
            "==",
            gauss_newton(first_order([unit], [unit]), zero),
            (2 * loss(2 * unit, unit, zero, unit)) ** 2,
        ),
        Counterexample(
            "sum K <= L trace K: the loss is convex in the outputs",
            "two layers, J_1 dW_1 = 1 and J_2 dW_2 = 0, H = -1",
            "<=",
            one_sided.sum(),
            2 * one_sided.trace(),
        ),
    )
