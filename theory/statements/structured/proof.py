"""Structured pruning: the derivation for 1, 2 and 4 weights a block, and counterexamples."""

from __future__ import annotations

import math
from fractions import Fraction

import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Proof
from theory.maths import blocks as forms

SIZES = (1, 2, 4)


def _density(m: sympy.Expr, x: sympy.Expr) -> sympy.Expr:
    return x ** (m / 2 - 1) * sympy.exp(-x / 2) / (2 ** (m / 2) * sympy.gamma(m / 2))


def prove() -> Proof:
    q, x, s2, v, r = sympy.symbols("q x s2 v r", positive=True)
    m, p, inside = sympy.symbols("m p inside", positive=True)
    total = s2 + v
    a, b, u = s2 / total, v / total, s2 * v / total
    small = total * m * inside  # E[|y|^2; pruned], y = w + e
    by_parts = a**2 * small + u * m * p + b**2 * (m * total - small) + u * m * (1 - p)
    pq = forms.blocks_prune_first(m, p, inside, s2, v)
    qp = forms.blocks_quantize_first(m, inside, s2, v)
    gap = forms.blocks_gap(m, inside, s2, v)
    f = _density(m, q)
    steps = [
        symbolic.step("E(Q->P) by the projection on w + e", by_parts, qp),
        symbolic.step("A = m v (F_{m+2} - F_m)", pq - qp, m * v * (inside - p)),
        symbolic.step(
            "d/dq of m (F_{m+2} - F_m) is that of -2 q f_m, every m",
            sympy.simplify((m * (_density(m + 2, q) - f) + (2 * q * f).diff(q)) / f).rewrite(
                sympy.gamma
            ),
        ),
        symbolic.step("A = (p - F)(G - m s^2 F)", pq - qp, (p - inside) * (gap - m * s2 * inside)),
        symbolic.step(
            "d/dq q f_m = f_m (m - q)/2: the turning point is q = m",
            sympy.simplify((q * f).diff(q) / f),
            (m - q) / 2,
        ),
    ]
    for size in SIZES:
        k = sympy.Integer(size)
        near, far = (
            sympy.integrate(sympy.simplify(_density(d, r**2) * 2 * r), (r, 0, sympy.sqrt(q)))
            for d in (k, k + 2)
        )
        a_form = forms.blocks_advantage(v, q, _density(k, q))
        steps.append(
            symbolic.step(
                f"m = {size}: the integrals give -2 v q f_m(q)",
                sympy.simplify(k * v * (far - near)),
                sympy.simplify(a_form),
            )
        )
    two = sympy.exp(-1)
    at_turn = sympy.integrate(_density(sympy.Integer(2), x), (x, 0, 2))
    steps.append(symbolic.step("m = 2: p = 1 - 1/e at the turn", at_turn, 1 - two))
    k = sympy.symbols("k", positive=True)  # m / 2
    floor = sympy.sqrt(2 * sympy.pi / k) * (k / sympy.E) ** k
    most = (2 * k) ** (k - 1) * sympy.exp(-k) / (2**k * floor)
    steps.append(
        symbolic.step(
            "2 f_m(m) <= 1/sqrt(pi m) with Gamma(m/2) >= sqrt(4 pi/m) (m/2e)^(m/2)",
            sympy.simplify(sympy.powsimp(sympy.expand_power_base(4 * most**2 * 2 * k), force=True)),
            1 / sympy.pi,
        )
    )
    return Proof(
        tuple(steps),
        beyond="F_{m+2} = F_m and q f_m = 0 at q = 0, so the derivatives give the identity for all "
        "m; that w and e given w + e are normal is the standard projection; Stirling's formula "
        "bounds the gamma function from below; that p at the turn falls to 1/2 is the median of "
        "chi^2 nearing its mean, computed and not proved",
    )


def necessity() -> tuple[Counterexample, ...]:
    f = Fraction
    one, other, noise = (f(1), f(1)), (f(1), f(11, 10)), f(-1, 2)
    dependent = sum((x * x for x in one), noise**2) - sum(x * x for x in other)
    v = f(1, 16)
    t = 0.6744897501960817  # Phi^-1(3/4): half of normal weights are within
    density = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) / t  # of chi^2_1 at t^2
    half = 2 * math.log(2)  # the median of chi^2_2, where f_2 = 1/4
    return (
        Counterexample(
            "quantization is noise, independent of the weights",
            "blocks (1, 1) and (1, 1.1), noise -0.5 on the last weight alone, one block pruned: "
            "P->Q removes the first, Q->P sees (1, 0.6) and removes the second",
            "<=",
            dependent,
            f(0),
        ),
        Counterexample(
            "weights are normal",
            "weights +-1 and noise +-1/4, m = 1, p = 1/2: Q->P prunes where |w + e| = 3/4, at no "
            "loss over P->Q, against the law at the same variances",
            "==",
            0.0,
            float(forms.blocks_advantage(v, t**2, density)),
        ),
        Counterexample(
            "blocks go by their norm",
            "half of the blocks of 2 go at random, in either order: A = 0, against -v ln 2",
            "==",
            0.0,
            float(forms.blocks_advantage(v, half, 1 / 4)),
        ),
    )
