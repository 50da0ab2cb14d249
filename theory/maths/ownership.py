"""Errors by the owner of each unit: the two sides of theorem 1.

Written with operators only, so that one definition runs on floats, jax arrays, exact Fractions and
sympy symbols.
"""

from __future__ import annotations

from typing import Any

from theory.maths.algebra import Number, Numbers


def total_error(e1: Number, e2: Number, owned: Number) -> Any:
    """E = sum_u [f1 owns u] e1(u) + [f2 owns u] e2(u); owned [..., n] of 0 and 1."""
    return (owned * e1 + (1 - owned) * e2).sum(-1)


def advantage_by_definition(e1: Number, e2: Number, s12: Number, s21: Number, kappa: Number) -> Any:
    """A(f1->f2) = M(f2 o f1) - M(f1 o f2) = kappa [E(f2->f1) - E(f1->f2)]."""
    return kappa * (total_error(e1, e2, s21) - total_error(e1, e2, s12))


def advantage_by_ownership(e1: Number, e2: Number, s12: Number, s21: Number, kappa: Number) -> Any:
    """Theorem 1's right-hand side: only units whose owner changes with the order count."""
    gained, lost = s21 * (1 - s12), s12 * (1 - s21)  # S21 \ S12 and S12 \ S21
    return kappa * ((gained * (e1 - e2)).sum(-1) - (lost * (e1 - e2)).sum(-1))


def contested_share(error: Numbers, contested: Number) -> Any:
    """sum over the contested units of an error, over that of all; contested [..., n] of 0 and 1."""
    return (contested * error).sum(-1) / error.sum(-1)
