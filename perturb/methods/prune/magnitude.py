"""Magnitude pruning: remove the weights of smallest absolute value, layer by layer."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.masks import TIE_RULES, NofM, TieRule, keep_mask, tie_key
from perturb.methods.prune.common import resolve_sparsity, selection_score
from perturb.registry import check_choice, method
from perturb.types import Array, Matrix, Problem, Solved


@method("magnitude")
class Magnitude:
    """Objective: minimise ``||W - W'||_F`` over masks of the given size.

    Score ``|w|``; with ``target="dense"`` (reference-aware: the loss to the dense weight d that
    removing the current weight w adds) score ``d^2 - (d - w)^2``.

    sparsity: fraction removed, in [0, 1); scope: "layer", "row" or N:M (N kept);
    tie: "index", "random" or "dense" (see :mod:`perturb.masks`).
    Source: Han et al. 2015 (arXiv 1506.02626); per layer as in the Wanda repository's baseline,
    with exact counts instead of a threshold.
    """

    sparsity: float | Array | None = None
    scope: str | NofM = "layer"
    tie: TieRule = "random"
    target: str = "current"

    needs_stats = False

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("layer", "row"))
        check_choice("tie", self.tie, TIE_RULES)
        check_choice("target", self.target, ("current", "dense"))

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        assert self.sparsity is not None
        score = selection_score(matrix, problem, self.target, jnp.ones(matrix.weight.shape[1]))
        tie = tie_key(self.tie, problem.reference, key)
        mask = keep_mask(score, self.sparsity, self.scope, already=matrix.mask, tie=tie)
        return Solved(matrix._replace(weight=jnp.where(mask, matrix.weight, 0), mask=mask), None)
