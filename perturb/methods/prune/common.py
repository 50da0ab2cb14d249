"""What the pruners share: the sparsity of an N:M scope, and the two selection scores."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from perturb.masks import NofM
from perturb.registry import check_sparsity
from perturb.types import Array, Matrix, Problem


def resolve_sparsity(pruner: Any) -> None:
    """Fill in the sparsity that an N:M scope implies; refuse a missing or contradictory one."""
    if pruner.sparsity is None:
        if not isinstance(pruner.scope, NofM):
            raise ValueError(f"{pruner.name} needs a sparsity in [0, 1), or an N:M scope")
        object.__setattr__(pruner, "sparsity", pruner.scope.sparsity)
    check_sparsity(pruner.sparsity, pruner.scope)


def selection_score(matrix: Matrix, problem: Problem, target: str, column: Array) -> Array:
    """What removing each weight costs, [out, in]; ``column [in]`` weighs the inputs.

    current: ``w^2 column`` up to a monotone map (``|w| sqrt(column)``);
    dense:   ``(d^2 - (d - w)^2) column``, the error to the dense weight d that is added. It is
    negative where removing a badly rounded weight helps.
    """
    if target == "dense":  # w (2 d - w), at a scale where no square leaves the floats' range
        size = jnp.max(jnp.abs(problem.reference))
        d, w = (x / jnp.where(size > 0, size, 1) for x in (problem.reference, matrix.weight))
        return w * (2 * d - w) * (column / jnp.max(column))
    return jnp.abs(matrix.weight) * jnp.sqrt(column)
