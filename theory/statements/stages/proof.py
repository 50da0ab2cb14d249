"""Compensated stages: Pythagoras for three weights, an enumeration, and where the signs stop."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof, Step
from theory.maths.stages import stages_advantage

GRAMS = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((2, 1, 0), (1, 2, 1), (0, 1, 2)),
    ((5, -4, 2), (-4, 5, -3), (2, -3, 3)),
)


def prove() -> Proof:
    a, b, c, d, e, f = sympy.symbols("a b c d e f", real=True)
    h = sympy.Matrix([[a, b, c], [b, d, e], [c, e, f]])
    h_inv = h.inv()
    w, y = sympy.symbols("w1:4", real=True), sympy.symbols("y1:4", real=True)
    steps: list[Step] = []
    for gone in ((0,), (1, 2)):
        m = len(gone)
        rows = h_inv.extract(list(gone), list(gone)).inv()
        pick = sympy.eye(3).extract(list(gone), [0, 1, 2])
        pi = (sympy.eye(3) - h_inv[:, list(gone)] * rows * pick).applyfunc(sympy.cancel)
        x = sympy.Matrix(w)
        eta = sympy.Matrix([0 if i in gone else y[i] for i in range(3)])
        cost = (pick * x).T * rows * (pick * x)  # the residual
        moved = pi * x + eta - x
        steps += [
            symbolic.step(
                f"{m} of 3 removed: Pi w is 0 there",
                sum(sympy.cancel(v) ** 2 for v in pick * pi),
            ),
            symbolic.step(
                f"{m} of 3 removed: |Pi w + eta - w|^2 = R(w) + |eta|^2",
                sympy.cancel((moved.T * h * moved)[0] - cost[0] - (eta.T * h * eta)[0]),
            ),
        ]
    delta = sympy.symbols("delta", positive=True)
    z = [sympy.Matrix(s) * delta for s in itertools.product((-1, 1), repeat=3)]
    eta = sympy.Matrix(y)
    mean = sum(((v + eta).T * h * (v + eta))[0] for v in z) / len(z)
    steps.append(
        symbolic.step(
            "uncorrelated signs add delta^2 tr(H) to |eta'|^2 (in general tr(Pi^T H Pi))",
            mean,
            (eta.T * h * eta)[0] + delta**2 * h.trace(),
        )
    )
    first, last, once, twice = sympy.symbols("R_S R_T once twice", nonnegative=True)
    steps.append(
        symbolic.step(
            "A is the difference of the two sums",
            (first + once) - (last + twice),
            stages_advantage(first, last, once, twice),
        )
    )
    return Proof(
        tuple(steps),
        beyond="n weights: w - Pi w is H-orthogonal to the subspace, by the normal equations of "
        "the free weights, and Pi_T zeta + eta' lies in it; the nearest grid point to Pi_T w under "
        "the mask is that to w, by the same identity, and so no worse than any other under it",
    )


def exact() -> Exact:
    """One of three weights removed, all masks, in fractions."""
    f = Fraction
    cases, failure = 0, None
    rows = tuple(itertools.product((f(-1, 2), f(1), f(7, 4)), repeat=3))
    noises = ((f(1, 4), f(-1, 4), f(1, 4)), (f(0), f(1, 2), f(-1, 3)))
    for h, (s, t) in itertools.product(GRAMS, itertools.product(range(3), repeat=2)):
        for w, zeta, eta, again in itertools.product(rows, noises, noises, noises):
            once, twice = (
                [f(0) if i == j else v for i, v in enumerate(n)] for n, j in ((eta, s), (again, t))
            )
            seen = [x + y for x, y in zip(w, zeta, strict=True)]
            pq = [x + y for x, y in zip(_project(h, s, w), once, strict=True)]
            qp = [x + y for x, y in zip(_project(h, t, seen), twice, strict=True)]
            both = [x + y for x, y in zip(_project(h, t, zeta), twice, strict=True)]
            law = stages_advantage(
                _square(h, w, _project(h, s, w)),
                _square(h, w, _project(h, t, w)),
                _square(h, once),
                _square(h, both),
            )
            cases += 1
            if law != _square(h, pq, w) - _square(h, qp, w) and failure is None:
                failure = f"H = {h}, S = {s}, T = {t}, w = {[str(x) for x in w]}"
    return Exact(
        "3 weights, one removed, 3 matrices H, all S and T, 27 rows, 8 triples of noises",
        cases,
        failure,
    )


def _square(
    h: Sequence[Sequence[int]], x: Sequence[Fraction], y: Sequence[Fraction] = ()
) -> Fraction:
    z = [a - b for a, b in zip(x, y or [Fraction(0)] * len(x), strict=True)]
    return sum((z[i] * h[i][j] * z[j] for i in range(3) for j in range(3)), Fraction(0))


def _project(h: Sequence[Sequence[int]], gone: int, w: Sequence[Fraction]) -> list[Fraction]:
    """Pi w for one weight removed: the other two solve their normal equations (Cramer)."""
    i, j = (k for k in range(3) if k != gone)
    det = h[i][i] * h[j][j] - h[i][j] ** 2
    p, q = h[i][gone] * w[gone], h[j][gone] * w[gone]
    moved = {
        gone: Fraction(0),
        i: w[i] + (p * h[j][j] - q * h[i][j]) / det,
        j: w[j] + (q * h[i][i] - p * h[i][j]) / det,
    }
    return [moved[k] for k in range(3)]


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    c, half = f(1, 2), f(1, 2)  # H = [[1, c], [c, 1]]
    residual = 1 - c * c  # of the first weight, 1, removed from w = (1, 1): the other goes to 1 + c

    def square(x: Fraction, y: Fraction) -> Fraction:
        return x * x + y * y + 2 * c * x * y

    return (
        Counterexample(
            "survivors are compensated in full",
            "H = [[1, 1/2], [1/2, 1]], w = (1, 1) pruned to (0, 1) and rounded by 1/2: against 1 + "
            "1/4",
            "==",
            square(f(-1), half),
            1 + half**2,
        ),
        Counterexample(
            "what is pruned stays 0",
            "the same row pruned to (0, 3/2), the first rounded up to 1 again: against R + 1",
            "==",
            square(f(0), half),
            residual + 1,
        ),
        Counterexample(
            "(signs) P->Q's mask is the best of its size",
            "H = diag(4, 1), w = (1, 1.1): by magnitude the first goes, R = 4, and Q->P that sees "
            "(1, 1) and weighs by H removes the second",
            "<=",
            f(4) - f(11, 10) ** 2,
            f(0),
        ),
        Counterexample(
            "(signs) roundings are uncorrelated",
            "H = 1, one mask, nearest rounding: what was rounded first is on the grid and stays, A "
            "= 0, against -|zeta|^2 with zeta = 1/4",
            "==",
            f(1, 16) - f(1, 16),
            -f(1, 16),
        ),
        Counterexample(
            "(signs) of equal energy in both orders",
            "one kept weight, H = 1: signs of 1/2 as last noise after pruning, of 1/4 after "
            "quantizing by signs of 1/4",
            "<=",
            f(1, 4) - (f(1, 16) + f(1, 16)),
            f(0),
        ),
    )
