"""Theorem 5: the derivation, the enumeration and the counterexamples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths import swaps as forms
from theory.maths.rational import Vec, roundings, smallest_masks


def rational_errors(
    w: Vec, q: Vec, first: Sequence[int], last: Sequence[int], top: int
) -> dict[str, np.ndarray]:
    """eps_s, eps_q, eps_qs, eps_sq of one block. q: w, rounded; first, last: what s removes of w
    and of q, 0 or 1. In q o s the survivors are rounded anew (ties to even), unless D is the same.
    """
    x, r, s, t = (np.array(a, object) for a in (w, q, first, last))
    sparse = x * (1 - s)
    step = max(abs(v) for v in sparse) / Fraction(top)
    if max(abs(v) for v in x) == step * top:
        after = r * (1 - s)
    else:
        after = np.array([step * round(v / step) if step else step for v in sparse], object)
    return {"s": x - sparse, "q": x - r, "qs": x - after, "sq": x - r * (1 - t)}


def _l1(v: np.ndarray) -> Any:
    return abs(v).sum()


def exact() -> Exact:
    """All blocks of 3 weights 0..3 in quarters, 3 bits, all k, all ways to break and round ties."""
    cases, failure, attained = 0, None, False
    top = 3
    for w in itertools.combinations_with_replacement([Fraction(i, 4) for i in range(13)], 3):
        step = max(w) / Fraction(top)
        if step == 0:
            continue
        for q, k in itertools.product(roundings(w, step), range(4)):
            for first, last in itertools.product(smallest_masks(w, k), smallest_masks(q, k)):
                e = rational_errors(w, q, first, last, top)
                swaps = sum(a > b for a, b in zip(first, last, strict=True))
                total = _l1(e["s"]) + _l1(e["q"])
                excess = _l1(e["sq"]) - total
                most = forms.swap_bound(swaps, step, 1)
                kept = 1 - np.array(first, object)
                square = (e["qs"] ** 2).sum()
                level = max(
                    (b for b, a, c in zip(q, first, last, strict=True) if a != c), default=0
                )
                right = (
                    _l1(e["qs"]) <= total
                    and square == forms.disjoint_square(e["s"], e["q"], kept)
                    and excess <= most
                    and 0
                    <= (e["sq"] ** 2).sum() - square
                    <= forms.square_bound(swaps, level * step)
                )
                attained |= swaps > 0 and excess == most
                cases += 1
                if not right and failure is None:
                    failure = f"w = {[str(v) for v in w]}, k = {k}, {first}, {last}"
    if failure is None and not attained:
        failure = "the excess bound is not attained"
    says = "3 weights in quarters at 3 bits, all k, all ties: both orders in L1 and in squares"
    return Exact(says, cases, failure)


def _excess_at_the_edges(step: sympy.Expr, p: int) -> sympy.Expr:
    """In Lp, of x_i = 3/2 D, x_j = 1/2 D, both of which round to D."""

    def length(*v: sympy.Expr) -> sympy.Expr:
        return sum(x**p for x in v) ** sympy.Rational(1, p)

    half = step / 2
    return length(3 * half, half) - length(half) - length(half, half)


def prove() -> Proof:
    x, y, q, step, c = sympy.symbols("x y q Delta c", positive=True)
    half, third = step / 2, sympy.Rational(1, 3)
    upper, lower = c * step + half, c * step - half  # x_i and x_j, at the edges of the cell of c

    def saved(v: sympy.Expr) -> sympy.Expr:
        return v**2 - (v - c * step) ** 2

    # T = {i}, S = {j}: eps_sq = (x_i, e_j), eps_s = (0, x_j), eps_q = (D/2, D/2) up to signs
    excess = (upper + half) - lower - 2 * half
    return Proof(
        (
            symbolic.step("x^2 - (x - q)^2 = q (2 x - q)", x**2 - (x - q) ** 2, q * (2 * x - q)),
            symbolic.step(
                "two weights of one cell: d_i - d_j = 2 c D (x_i - x_j)",
                saved(x) - saved(y),
                2 * c * step * (x - y),
            ),
            symbolic.step(
                "at the edges of the cell it is the bound, 2 c D^2",
                saved(upper) - saved(lower),
                forms.square_bound(1, c * step * step),
            ),
            symbolic.step(
                "and the L1 excess is its bound, D/2",
                excess,
                forms.swap_bound(1, step, sympy.Integer(1)),
            ),
            symbolic.step(
                "and the Linf excess, x_i - x_j - D/2 (c >= 1), is too",
                upper - lower - half,
                forms.swap_bound(1, step, sympy.Integer(0)),
            ),
            *(
                symbolic.step(
                    f"and for c = 1 the L{power} excess is the bound of one block",
                    _excess_at_the_edges(step, power),
                    forms.one_block_bound(1, step, sympy.Rational(1, power)),
                )
                for power in (2, 3, 4)
            ),
            symbolic.step(
                "which falls with c: its slope is (x_i / |(x_i, e_j)|)^(p-1) - 1 (p = 3)",
                ((x**3 + y**3) ** third - (x - q) - step).diff(x),
                (x / (x**3 + y**3) ** third) ** 2 - 1,
            ),
            symbolic.step(
                "different levels a <= b with errors e, f: (a + e) - (b + f) <= |e| + |f| where "
                "|q| of i is at most |q| of j: their difference is a - b",
                (x + y) - (q + c) - (y - c),
                x - q,
            ),
        ),
        beyond="the kept set holds each block's maximum, so D stays; absolute norms grow with "
        "the absolute values of the entries; Lp norms are blind to permutations of the entries; "
        "one block: Minkowski and monotonicity, as the module says",
    )


def necessity() -> tuple[Counterexample, ...]:
    """One block at 3 bits (levels 0, +-D, +-2 D, +-3 D), one weight removed, D = 1 but for once."""
    f = Fraction
    w, q = (f(3, 4), f(5, 4), f(3)), (f(1), f(1), f(3))
    e = rational_errors(w, q, (1, 0, 0), (1, 0, 0), 3)
    out = {name: abs(v.sum()) for name, v in e.items()}  # the output for the input (1, 1, 1)
    a, b = f(4, 5), f(49, 20)
    matrix = (f(3), a, b, b, b, a, -a, -b, -b)
    codes, small = (3, 1, 2, 2, 2, 1, -1, -2, -2), tuple(int(abs(v) == a) for v in matrix)
    square = {
        name: float(np.linalg.norm(v.astype(float).reshape(3, 3), 2))
        for name, v in rational_errors(matrix, [f(c) for c in codes], small, small, 3).items()
    }
    integers = (f(1), f(2), f(3))
    biggest = rational_errors(integers, integers, (0, 0, 1), (0, 0, 1), 3)
    edges, cell = (f(7, 5), f(3, 5), f(3)), (f(1), f(1), f(3))
    tied = rational_errors(edges, cell, (0, 1, 0), (1, 0, 0), 3)
    wild = rational_errors((f(19, 10), f(1, 10), f(3)), cell, (0, 1, 0), (1, 0, 0), 3)
    h = np.array([f(1), f(1, 10), f(1)])
    return (
        Counterexample(
            "the norm is absolute (output error of correlated inputs)",
            "w = (3/4, 5/4, 3), the first removed, inputs (1, 1, 1): |eps_q| is |-1/4 + 1/4|",
            "<=",
            out["qs"],
            out["s"] + out["q"],
        ),
        Counterexample(
            "the norm is absolute (spectral norm)",
            "W = (3, a, b; b, b, a; -a, -b, -b), a = 4/5, b = 49/20, the three a removed",
            "<=",
            square["qs"],
            square["s"] + square["q"],
        ),
        Counterexample(
            "s keeps the block's maximum",
            "w = (1, 2, 3), the 3 removed: 1 and 2 were on the grid, 1 is not on that of D = 2/3",
            "<=",
            _l1(biggest["qs"]),
            _l1(biggest["s"]) + _l1(biggest["q"]),
        ),
        Counterexample(
            "sparsity comes first",
            "w = (7/5, 3/5, 3): both are 1 when quantized, and s may then remove the larger",
            "<=",
            _l1(tied["sq"]),
            _l1(tied["s"]) + _l1(tied["q"]),
        ),
        Counterexample(
            "sparsity comes first (squares of disjoint supports)",
            "the same weights",
            "==",
            (tied["sq"] ** 2).sum(),
            forms.disjoint_square(tied["s"], tied["q"], np.array([1, 0, 1], object)),
        ),
        Counterexample(
            "rounding goes to the nearest level (excess)",
            "w = (19/10, 1/10, 3) rounded at random to (1, 1, 3)",
            "<=",
            _l1(wild["sq"]) - _l1(wild["s"]) - _l1(wild["q"]),
            forms.swap_bound(1, f(1), 1),
        ),
        Counterexample(
            "the norm weighs all entries alike (excess)",
            "w = (7/5, 3/5, 3), L1 weighed by h = (1, 1/10, 1)",
            "<=",
            _l1(h * tied["sq"]) - _l1(h * tied["s"]) - _l1(h * tied["q"]),
            forms.swap_bound(1, f(1), 1),
        ),
    )
