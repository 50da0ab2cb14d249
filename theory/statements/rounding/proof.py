"""Theorem 2a: the derivation, the enumeration in rational arithmetic, and the counterexamples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.closed_forms import benefit
from theory.maths.rational import Vec, masked_error, masks, may_remove, round_half_up


def exact() -> Exact:
    """All vectors of 4 weights in quarters of the step (up to order), all k, masks and ties."""
    cases, failure = 0, None
    step = Fraction(1)
    for w in itertools.combinations_with_replacement([Fraction(i, 4) for i in range(-4, 7)], 4):
        q = [round_half_up(x, step) for x in w]
        saved = [benefit(a, b) for a, b in zip(w, q, strict=True)]
        for k in range(5):
            errors = {m: masked_error(w, q, m) for m in masks(4, k)}
            pq = {e for m, e in errors.items() if may_remove([abs(x) for x in w], m)}
            qp = [e for m, e in errors.items() if may_remove([abs(x) for x in q], m)]
            lower = sum((a - b) ** 2 for a, b in zip(w, q, strict=True)) + sum(sorted(saved)[:k])
            free = k <= sum(x == 0 for x in q)
            right = (
                pq == {min(errors.values())} == {lower}
                and min(qp) >= min(pq)
                and (not free or set(qp) == pq)
            )
            cases += 1
            if not right and failure is None:
                failure = f"w = {[str(x) for x in w]}, k = {k}"
    return Exact(
        "4 weights in quarters of a step: all k, all masks, all ways to break ties", cases, failure
    )


def prove() -> Proof:
    w, step, a, b = sympy.symbols("w Delta a b", positive=True)
    j = sympy.symbols("j", integer=True, nonnegative=True)
    c = sympy.symbols("c", real=True)
    d = benefit(w, j * step)
    edge = (j + sympy.Rational(1, 2)) * step
    t = sympy.symbols("t", positive=True)
    phi = symbolic.normal_pdf
    inside = sympy.integrate(benefit(w, c) * phi(w), (w, a, b))
    m0 = symbolic.normal_cdf(b) - symbolic.normal_cdf(a)
    return Proof(
        (
            symbolic.step("w^2 - (w - c)^2 = c (2 w - c)", w**2 - (w - c) ** 2, benefit(w, c)),
            symbolic.step("the slope of d on cell j is 2 j Delta >= 0", d.diff(w), 2 * j * step),
            symbolic.step(
                "d is continuous where cells meet",
                d.subs(w, edge),
                benefit(w, (j + 1) * step).subs(w, edge),
            ),
            symbolic.step(
                "the nearest level maximises c (2 w - c): the difference to any other level c' is "
                "(w - c')^2 - (w - c)^2",
                benefit(w, c) - benefit(w, t),
                (w - t) ** 2 - (w - c) ** 2,
            ),
            symbolic.step(
                "over a cell, d grows by 2 j Delta times its width Delta",
                d.subs(w, edge) - d.subs(w, edge - step),
                2 * j * step * step,
            ),
            symbolic.step(
                "for normal weights E[d; a < w < b] = 2 c (phi(a) - phi(b)) - c^2 (Phi(b) - "
                "Phi(a))",
                inside,
                2 * c * (phi(a) - phi(b)) - c**2 * m0,
            ),
        ),
        beyond="a maximum of lines is convex; convex, even and least at 0 means nondecreasing in "
        "|w|; the k smallest values of a nondecreasing function of |w| belong to the k smallest "
        "|w|",
    )


def necessity() -> tuple[Counterexample, ...]:
    """Two weights, one of which is pruned; A(Q->P) > 0 once an assumption is dropped."""
    f = Fraction
    first, second = (1, 0), (0, 1)

    def advantage(
        w: Vec, q: Vec, pq: Sequence[int], qp: Sequence[int], h: Vec | None = None
    ) -> Fraction:
        return masked_error(w, q, pq, h) - masked_error(w, q, qp, h)

    half, low = f(1, 2), f(1, 10)
    returned = (low - half) ** 2 + (1 - half) ** 2  # P->Q where a pruned 0 becomes 1/2 again
    return (
        Counterexample(
            "rounding goes to the nearest level",
            "w = (0.6, 0.7) rounded at random to (1, 0): P->Q removes 0.6, Q->P removes 0.7",
            "<=",
            advantage((f(6, 10), f(7, 10)), (1, 0), first, second),
            f(0),
        ),
        Counterexample(
            "the codebook is symmetric",
            "levels {-1, 0, 2}, w = (-0.8, 0.9): Q = (-1, 0); P->Q removes -0.8, Q->P removes 0.9",
            "<=",
            advantage((f(-8, 10), f(9, 10)), (-1, 0), first, second),
            f(0),
        ),
        Counterexample(
            "it contains 0, or masks are enforced",
            "levels {-1/2, 1/2}, w = (0.1, 1): both orders remove 0.1 (Q->P by a tie), but P->Q "
            "rounds the 0 up to 1/2 again",
            "<=",
            returned - masked_error((low, f(1)), (half, half), first),
            f(0),
        ),
        Counterexample(
            "units that share the codebook",
            "w = (0.9, 1) on grids of step (1, 3): Q = (1, 0); P->Q removes 0.9, Q->P removes 1",
            "<=",
            advantage((f(9, 10), f(1)), (1, 0), first, second),
            f(0),
        ),
        Counterexample(
            "pruning by |w|",
            "error and score weighed by h = (1, 2) as Wanda does, w = (0.6, 0.45), step 1: "
            "h w^2 = (0.36, 0.405) removes the first, h Q^2 = (1, 0) the second",
            "<=",
            advantage((f(6, 10), f(45, 100)), (1, 0), first, second, (1, 2)),
            f(0),
        ),
        Counterexample(
            "the error weighs all units alike",
            "pruning by |w|, error weighed by h = (10, 1), w = (0.6, 1.1), step 1: Q = (1, 1) ties "
            "and Q->P removes the second",
            "<=",
            advantage((f(6, 10), f(11, 10)), (1, 1), first, second, (10, 1)),
            f(0),
        ),
    )
