"""Errors of sparsity and rounding in Lp, and what swaps of weights add: bounds of theorem 5.

Written with operators only: they run on arrays, exact fractions and sympy. The theorem is in
:mod:`theory.statements.composability`.
"""

from __future__ import annotations

from typing import Any

from theory.maths.algebra import Number, Numbers

POWERS = {"L1": 1, "L2": 0.5, "Linf": 0}  # 1/p


def disjoint_square(eps_s: Numbers, eps_q: Numbers, kept: Number) -> Any:
    """||eps_s||^2 + ||eps_q on the kept||^2: the squared error of sparsifying first."""
    return (eps_s**2).sum() + (kept * eps_q**2).sum()


def swap_bound(swaps: Number, step: Number, power: float) -> Any:
    """r^(1/p) D / 2, what quantizing first exceeds the sum by in Lp; ``power`` is 1/p."""
    return swaps**power * step / 2


def one_block_bound(swaps: Number, step: Number, power: float) -> Any:
    """r^(1/p) (D/2) [(3^p + 1)^(1/p) - 1 - 2^(1/p)], the sharp bound of a single block in Lp.

    The factor is 1 in L1 and Linf, 0.748 in L2."""
    p = 1 / power if power else 0
    factor = (3**p + 1) ** power - 1 - 2**power if power else 1
    return swap_bound(swaps, step, power) * factor


def square_bound(swaps: Number, level_step: Number) -> Any:
    """2 r max |q| D: what quantizing first costs in squares over sparsifying first."""
    return 2 * swaps * level_step
