"""The sign law: its steps, an enumeration in whole numbers, and where it stops."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.inclusion import order_advantage
from theory.maths.rational import masked_error

LAWS = ((1, 0, 0), (1, 1, 0), (1, 1, 1), (3, 1, 0), (5, 2, 1), (9, 4, 4), (2, 2, 1))
LARGEST, TIES = 4, 12  # of |eps|; lcm of 1..4, by which shares of ties are whole


def _outcomes(eps: Sequence[int], k: int) -> np.ndarray:
    """TIES times sum_S w^2, sum_T w^2 and sum_T eps^2, of all 5^n outcomes: [3, 5^n], whole."""
    w = np.array(list(itertools.product(range(-2, 3), repeat=len(eps))))

    def goes(score: np.ndarray) -> np.ndarray:
        below = (score[:, None, :] < score[:, :, None]).sum(-1)
        equal = (score[:, None, :] == score[:, :, None]).sum(-1)
        return TIES // equal * np.clip(k - below, 0, equal)

    noise = np.array(eps)
    first, last = goes(np.abs(w)), goes(np.abs(w + noise))
    return np.stack([(x * y).sum(1) for x, y in ((first, w**2), (last, w**2), (last, noise**2))])


def exact() -> Exact:
    """Every error given, the mean over all weights. Signs of errors do not matter: w is even.

    LAWS are the masses of |w| = 0, 1, 2 (each sign has that mass). Sums are of int64, exact.
    """
    cases, failure = 0, None
    for n in (2, 3, 4):
        size = np.abs(np.array(list(itertools.product(range(-2, 3), repeat=n))))
        mass = {law: np.prod(np.array(law)[size], 1) for law in LAWS}
        for eps in itertools.combinations_with_replacement(range(LARGEST + 1), n):
            for k in range(1, n):
                outcomes = _outcomes(eps, k)
                for law in LAWS:
                    dense, seen, noise = (int(x) for x in outcomes @ mass[law])
                    fair = TIES * int(mass[law].sum()) * k * sum(e * e for e in eps)
                    cases += 1
                    if not (dense <= seen and n * noise <= fair) and failure is None:
                        failure = f"masses {law}, eps = {eps}, k = {k}"
    return Exact(
        f"E A given eps, weights with {len(LAWS)} even unimodal laws on -2..2, 2 to 4 of them, "
        f"all |eps| up to {LARGEST}, all k, all outcomes, ties shared",
        cases,
        failure,
    )


def prove() -> Proof:
    h, c, e = sympy.symbols("h c e", positive=True)
    a = sympy.symbols("a1:5", real=True)
    b = sympy.symbols("b1:5", real=True)
    w = sympy.symbols("w1:4", real=True)
    eps = sympy.symbols("eps1:4", real=True)
    s, t = sympy.symbols("s1:4"), sympy.symbols("t1:4")  # 1 where the unit is in S, in T
    pq = sum(i * x**2 + (1 - i) * y**2 for i, x, y in zip(s, w, eps, strict=True))
    qp = sum(i * x**2 + (1 - i) * y**2 for i, x, y in zip(t, w, eps, strict=True))
    formula = order_advantage(
        sum(i * x**2 for i, x in zip(s, w, strict=True)),
        sum(i * x**2 for i, x in zip(t, w, strict=True)),
        np.array([y**2 for y in eps]),
        np.array(t),
        np.array(s),
    )
    part = (h + c - e) / (2 * h)  # the share of (-h, h) in (-c - e, c - e) while one end is inside
    pairs = list(itertools.combinations(range(4), 2))
    return Proof(
        (
            symbolic.step(
                "A = [sum_S w^2 - sum_T w^2] + [sum_T eps^2 - sum_S eps^2], 3 weights",
                pq - qp,
                formula,
            ),
            symbolic.step(
                "uniform on (-h, h), |h - c| < e < h + c: P(|w + e| <= c) = (h + c - e) / 2h, "
                "which falls",
                part.diff(e),
                -1 / (2 * h),
            ),
            symbolic.step(
                "it starts where it is constant, at min(1, c/h): c < h, e = h - c",
                part.subs(e, h - c),
                c / h,
            ),
            symbolic.step("and c > h, e = c - h", part.subs(e, c - h), 1),
            symbolic.step("and ends at 0", part.subs(e, h + c)),
            symbolic.step(
                "Chebyshev: n sum a b - sum a sum b is a sum over pairs of products of differences",
                4 * sum(x * y for x, y in zip(a, b, strict=True)) - sum(a) * sum(b),
                sum((a[i] - a[j]) * (b[i] - b[j]) for i, j in pairs),
            ),
        ),
        beyond="an even unimodal law is a mixture of uniform laws on (-h, h) and a mass at 0, for "
        "which P(|e| <= c) falls too; given the n - 2 other scores, let x be the score of i, y "
        "that of j: 'i goes, j stays' is x < y, x < b, y > a with a <= b order statistics of the "
        "others (ties: scores with a uniform number each, in lexical order), an event that falls "
        "in x and grows in y, so its probability is largest with the stochastically smaller score "
        "first; pairs of Chebyshev's sum then have one sign; isotropic unimodal laws of blocks are "
        "mixtures of uniform laws on balls, the overlap of two of which falls in the distance of "
        "their centres (Anderson 1955)",
    )


def spread_around_one(half: Fraction, p: Fraction, often: Fraction) -> Fraction:
    """A per weight, |w| uniform on 1 -+ half, eps = +-1 with probability ``often``, else 0.

    Many weights, p <= often/2 and half < 1/4. S: the smallest |w|, up to 1 - half + 2 half p. T:
    where eps takes w next to 0, |w + eps| = ||w| - 1| up to 2 half p / often.
    """

    def mean_square(a: Fraction, b: Fraction) -> Fraction:
        return (b**3 - a**3) / (3 * (b - a))

    dense = mean_square(1 - half, 1 - half + 2 * half * p)
    near = 2 * half * p / often
    seen = mean_square(1 - near, 1 + near)
    return p * (dense - seen) + p * (1 - often)


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    two, two_q = (f(1), f(11, 10)), (f(1), f(6, 10))
    rare, side = f(1, 10), f(1, 4)
    p = rare * side
    blocks = p * (p**2 / 3 - f(7, 12)) + p * (1 - (rare + (1 - rare) * side))
    one_sided = f(1, 10) * (1 - f(3, 10))  # all of T has eps^2 = 1, a fraction 0.3 of S
    near = (8 - f(27, 8)) / (3 * f(1, 2))  # E[w2^2; w2 in (-2, -3/2)]
    unlike = f(1, 8) * (9 - near - f(9, 4))
    dependent = masked_error(two, two_q, (1, 0)) - masked_error(two, two_q, (0, 1))
    return (
        Counterexample(
            "the law of the weights is unimodal",
            "|w| uniform on (0.9, 1.1), eps = +-1 with probability 0.3, else 0, p = 0.1: A = "
            "+0.0527 a weight; where eps takes w to 0, Q->P prunes the error with it",
            "<=",
            spread_around_one(f(1, 10), f(1, 10), f(3, 10)),
            f(0),
        ),
        Counterexample(
            "it is even",
            "w = 1 always, eps = -1 with probability 0.3, else 0, p = 0.1",
            "<=",
            one_sided,
            f(0),
        ),
        Counterexample(
            "all weights have one law",
            "w1 = 0, w2 uniform on (-2, 2), eps = (3/2, 3), one pruned: P->Q prunes the first, "
            "Q->P the second where w2 < -3/2",
            "<=",
            unlike,
            f(0),
        ),
        Counterexample(
            "the law of blocks is isotropic",
            "w = (x, 0), x uniform on (-1, 1), eps = (1, 0) with probability 0.1, else (0, 1/2), "
            "p = 1/40: Q->P prunes x in (-1, -1/2) with the large error, no other score is below "
            "1/2",
            "<=",
            blocks,
            f(0),
        ),
        Counterexample(
            "the error is independent of the weights",
            "w = (1, 1.1), eps = (0, -0.5), one pruned: Q->P sees (1, 0.6) and prunes the second",
            "<=",
            dependent,
            f(0),
        ),
    )
