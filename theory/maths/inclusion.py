"""Independent scores, the k smallest of which go: who goes with what probability, exactly.

The sign law (:mod:`theory.statements.signlaw`) is about these probabilities. Laws with finitely
many values, ties broken uniformly.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from theory.maths.algebra import Number, Numbers


def removal(score: Array, mass: Array, k: Array) -> Array:
    """P(unit i goes | it has its value l); score, mass [n, L] of independent units -> [n, L].

    With B of the others below and E at its own score, it goes with probability
    clip(k - B, 0, E + 1) / (E + 1); the law of (B, E) comes by adding the others one by one.
    """
    n = score.shape[0]
    below = jnp.sum(mass * (score < score[:, :, None, None]), -1)  # [n, L, n]: unit j below (i, l)
    equal = jnp.sum(mass * (score == score[:, :, None, None]), -1)
    law = jnp.zeros((*score.shape, n, n)).at[..., 0, 0].set(1.0)  # [n, L, B, E]
    for j in range(n):
        b, e = below[..., j, None, None], equal[..., j, None, None]
        more = jnp.pad(law, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]
        same = jnp.pad(law, ((0, 0), (0, 0), (0, 0), (1, 0)))[..., :-1]
        joined = b * more + e * same + (1 - b - e) * law
        law = jnp.where((jnp.arange(n) == j)[:, None, None, None], law, joined)
    count = jnp.arange(n)
    goes = jnp.clip(k - count[:, None], 0, count + 1) / (count + 1)
    return jnp.sum(law * goes, (-2, -1))


def order_advantage(dense: Number, seen: Number, noise: Numbers, goes: Number, p: Number) -> Any:
    """E A(Q->P)/kappa = E sum_S w^2 - E sum_T w^2 + sum_i eps_i^2 (P(i in T) - p).

    dense, seen: the two expected sums of squares of what goes; noise: eps^2 [n]; goes: P(i in T)
    [n]; p = k/n, which P(i in S) is for weights of one law.
    """
    return dense - seen + (noise * (goes - p)).sum()
