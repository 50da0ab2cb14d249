"""Magnitude pruning: remove the weights of smallest absolute value, layer by layer."""

from __future__ import annotations

from perturb.masks import TIE_RULES, NofM, TieRule
from perturb.methods.prune.common import resolve_sparsity, select
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
        return select(self, matrix, problem, key, None)
