"""Truncated singular values under noise: what low rank keeps of it, to first order.

A matrix [m, n] with singular values sigma, falling; rank r. Operators but for the sums over pairs,
which are of sequences. The theorem is :mod:`theory.statements.lowrank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from theory.maths.algebra import Number


def tail_share(sigma: Sequence[Any], r: int) -> Any:
    """sum over i <= r < j of sigma_j^2 / (sigma_i^2 - sigma_j^2): 0 for a matrix of rank r."""
    return sum(b**2 / (a**2 - b**2) for a in sigma[:r] for b in sigma[r:])


def truncation_divergence(m: Number, n: Number, r: Number, tail: Number) -> Any:
    """tr dT_r/dW = r (m + n - r) + 2 tail: how much of independent noise low rank lets through."""
    return r * (m + n - r) + 2 * tail


def low_rank_advantage(v: Number, m: Number, n: Number, r: Number, tail: Number) -> Any:
    """A(Q->L)/kappa = v [(m - r)(n - r) - 2 tail], to first order in the noise's variance v."""
    return v * ((m - r) * (n - r) - 2 * tail)
