"""Theorem 2d: the residual derived for three weights, and counterexamples to any law of sign."""

from __future__ import annotations

import itertools
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Proof


def prove() -> Proof:
    """Three weights, a general H, one or two of them moved."""
    a, b, c, d, e, f = sympy.symbols("a b c d e f", real=True)
    h = sympy.Matrix([[a, b, c], [b, d, e], [c, e, f]])
    h_inv = h.inv()
    x, y, z1, z2 = sympy.symbols("x y z1 z2", real=True)
    steps = []
    for moved, free in (([x], [z1, z2]), ([x, y], [z2])):
        m = len(moved)
        whole = sympy.Matrix([*moved, *free])
        cost = (whole.T * h * whole)[0]
        solved = sympy.solve([cost.diff(z) for z in free], free, dict=True)[0]
        e_e = sympy.Matrix(moved)
        formula = (e_e.T * h_inv[:m, :m].inv() * e_e)[0]
        steps.append(
            symbolic.step(
                f"{m} of 3 weights moved: the minimum over the others is the residual",
                sympy.together(cost.subs(solved) - formula),
            )
        )
    pivot = h_inv[0, 0]
    downdated = h_inv - h_inv[:, 0] * h_inv[0, :] / pivot
    steps.append(
        symbolic.step(
            "after settling a weight, the downdated inverse is that of the free block",
            sum(sympy.simplify(v) ** 2 for v in (downdated[1:, 1:] * h[1:, 1:] - sympy.eye(2))),
        )
    )
    return Proof(
        tuple(steps),
        beyond="n weights: the same elimination, by induction on the weights settled; which order "
        "wins has no closed form and is enumerated",
    )


def _both(w: tuple[Fraction, ...], c: Fraction, h: int) -> tuple[Fraction, Fraction]:
    """Errors of (P -> Q, Q -> P), exactly: two weights, H = [[1, c], [c, h]], one removed, grid
    {-1, 0, 1}."""
    grid = (Fraction(-1), Fraction(0), Fraction(1))

    def cost(x: tuple[Fraction, ...], target: tuple[Fraction, ...]) -> Fraction:
        p, q = x[0] - target[0], x[1] - target[1]
        return p * p + h * q * q + 2 * c * p * q

    def prune(target: tuple[Fraction, ...]) -> tuple[tuple[Fraction, ...], int]:
        a, b = target
        options = [((Fraction(0), b + c * a / h), 0), ((a + c * b, Fraction(0)), 1)]
        return min(options, key=lambda o: cost(o[0], target))

    def rounded(target: tuple[Fraction, ...], gone: int | None) -> tuple[Fraction, ...]:
        points = [p for p in itertools.product(grid, grid) if gone is None or p[gone] == 0]
        return min(points, key=lambda p: cost(p, target))

    def prune_then_round(target: tuple[Fraction, ...]) -> tuple[Fraction, ...]:
        return rounded(*prune(target))

    return cost(prune_then_round(w), w), cost(prune_then_round(rounded(w, None)), w)


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    quantize_wins = _both((f(19, 10), f(8, 10)), f(9, 5), 4)
    prune_wins = _both((f(2), f(-1, 2)), f(0), 1)
    e, c = f(1), f(1, 2)
    return (
        Counterexample(
            "the other weights are free",
            "H = [[1, 0.5], [0.5, 1]], the first weight moved by 1, the second fixed: error 1, "
            "not [(H^-1)_11]^-1 = 3/4",
            "==",
            (1 - c * c) * e * e,
            e * e,
        ),
        Counterexample(
            "(theorem 2a) errors are not compensated",
            "w = (1.9, 0.8), H = [[1, 9/5], [9/5, 4]], grid {-1, 0, 1}, one removed: quantizing "
            "first wins, A(Q->P) > 0",
            "<=",
            quantize_wins[0] - quantize_wins[1],
            f(0),
        ),
        Counterexample(
            "(the opposite law) quantizing first never loses",
            "w = (2, -1/2), H = 1, the same grid: pruning first wins",
            "<=",
            prune_wins[1] - prune_wins[0],
            f(0),
        ),
    )
