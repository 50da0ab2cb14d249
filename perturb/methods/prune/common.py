"""What the pruners share: the sparsity of an N:M scope, and selection by two scores."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from perturb.masks import NofM, keep_mask, tie_key
from perturb.registry import check_sparsity
from perturb.types import Array, Matrix, Problem, Solved


def resolve_sparsity(pruner: Any) -> None:
    """Fill in the sparsity that an N:M scope implies; refuse a missing or contradictory one."""
    if pruner.sparsity is None:
        if not isinstance(pruner.scope, NofM):
            raise ValueError(f"{pruner.name} needs a sparsity in [0, 1), or an N:M scope")
        object.__setattr__(pruner, "sparsity", pruner.scope.sparsity)
    check_sparsity(pruner.sparsity, pruner.scope)


def select(
    pruner: Any, matrix: Matrix, problem: Problem, key: Array, energy: Array | None
) -> Solved:
    """Remove the weights of smallest score; energy: ``E x_j^2`` of the inputs, None: all alike.

    Equal scores go by what their removal costs where inputs are alike, then by the pruner's rule.
    All weights of an input that calibration never moves score 0: their size decides.
    """
    plain = selection_score(matrix, problem, pruner.target)
    score, ties = plain, []
    if energy is not None:
        score, ties = selection_score(matrix, problem, pruner.target, energy), [plain]
    tie = tie_key(pruner.tie, problem.reference, key)
    if tie is not None:
        ties.append(tie)
    mask = keep_mask(score, pruner.sparsity, pruner.scope, already=matrix.mask, ties=ties)
    return Solved(matrix._replace(weight=jnp.where(mask, matrix.weight, 0), mask=mask), None)


def selection_score(
    matrix: Matrix, problem: Problem, target: str, energy: Array | None = None
) -> Array:
    """What removing each weight costs, [out, in]; energy [in]: of the inputs, None: all 1.

    current: ``w^2 energy`` up to a monotone map (``|w| sqrt(energy)``);
    dense:   ``(d^2 - (d - w)^2) energy``, the error to the dense weight d that is added. It is
    negative where removing a badly rounded weight helps.
    """
    if target == "dense":  # w (2 d - w), at a scale where no square leaves the floats' range
        d, w = (x / _positive(problem.reference) for x in (problem.reference, matrix.weight))
        score = w * (2 * d - w)
        return score if energy is None else score * (energy / _positive(energy))
    score = jnp.abs(matrix.weight)
    return score if energy is None else score * jnp.sqrt(energy)


def _positive(x: Array) -> Array:
    """The largest ``|x|``, or 1 where all are 0."""
    size = jnp.max(jnp.abs(x))
    return jnp.where(size > 0, size, 1)
