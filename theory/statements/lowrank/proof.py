"""Low rank and noise: the 2 x 2 case by second derivatives, and what the candidate overlooked."""

from __future__ import annotations

from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Proof
from theory.maths.lowrank import low_rank_advantage, tail_share, truncation_divergence


def prove() -> Proof:
    a, b, t, v = sympy.symbols("a b t v", positive=True)
    m, n, r, tail = sympy.symbols("m n r tail", positive=True)
    # S(W + N) = the smaller eigenvalue of (W + N)^T (W + N), W = diag(a, b), a > b; N along one
    # entry: its second derivative at 0, from trace and determinant
    laplacian = sympy.Integer(0)
    for i in range(2):
        for j in range(2):
            w = sympy.Matrix([[a, 0], [0, b]])
            w[i, j] += t
            trace = sum(x**2 for x in w)
            root = sympy.sqrt(trace**2 - 4 * w.det() ** 2)
            curve = ((trace - root) / 2).diff(t, 2).subs(t, 0)
            laplacian += sympy.simplify(curve.subs(sympy.sqrt((a**2 - b**2) ** 2), a**2 - b**2))
    gap = sympy.symbols("gap", positive=True)  # a^2 - b^2: roots of its square are it
    laplacian = sympy.simplify(laplacian.subs(a, sympy.sqrt(b**2 + gap)))
    two = truncation_divergence(2, 2, 1, tail_share([sympy.sqrt(b**2 + gap), b], 1))
    pairs = r * (r - 1) + r + sympy.Abs(m - n) * r  # among what is kept
    k = sympy.symbols("k", positive=True)  # min(m, n); m = k + d
    d = sympy.symbols("d", nonnegative=True)
    by_pairs = (pairs + 2 * (r * (k - r) + tail)).subs({m: k + d, n: k})
    return Proof(
        (
            symbolic.step(
                "2 x 2, r = 1: lap S = 2 (m n - divergence), second derivatives of the smaller "
                "eigenvalue",
                laplacian,
                2 * (4 - two),
            ),
            symbolic.step(
                "sigma_i^2/(sigma_i^2 - sigma_j^2) = 1 + sigma_j^2/(sigma_i^2 - sigma_j^2)",
                a**2 / (a**2 - b**2),
                1 + tail_share([a, b], 1),
            ),
            symbolic.step(
                "|m - n| r + r + r (r - 1) + 2 [r (min - r) + tail] = r (m + n - r) + 2 tail",
                by_pairs,
                truncation_divergence(k + d, k, r, tail),
            ),
            symbolic.step(
                "A = [S + v m n] - [S + v divergence]",
                v * m * n - v * truncation_divergence(m, n, r, tail),
                low_rank_advantage(v, m, n, r, tail),
            ),
        ),
        beyond="the divergence of a function of singular values f is |m - n| sum f_i/sigma_i + sum "
        "f_i' + 2 sum_{i != j} sigma_i f_i/(sigma_i^2 - sigma_j^2) (Candes, Sing-Long & Trzasko "
        "2013), for f_i = sigma_i up to r and 0 beyond: pairs among what is kept give 1 each; "
        "Stein's identity E<N, g(W + N)> = v E div g, and expansion in v",
    )


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    tail = tail_share([f(1), f(9, 10)], 1)
    return (
        Counterexample(
            "a matrix of rank r (the candidate, A = +v (m - r)(n - r))",
            "sigma = (1, 9/10), r = 1: v (1 - 162/19), low rank had better come first",
            "==",
            low_rank_advantage(f(1), 2, 2, 1, tail),
            f(1),
        ),
        Counterexample(
            "quantization is noise, independent of the weights",
            "W = diag(2, 1), r = 1, rounding adds 1 to the second: Q->L keeps diag(2, 0) of "
            "diag(2, 2), L->Q leaves diag(2, 0): A = 0, and the law has v/3, v = 1/4",
            "==",
            f(0),
            low_rank_advantage(f(1, 4), 2, 2, 1, tail_share([f(2), f(1)], 1)),
        ),
    )
