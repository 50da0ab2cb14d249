"""Wanda: remove the weights whose magnitude times input norm is smallest, row by row."""

from __future__ import annotations

from perturb.masks import TIE_RULES, NofM, TieRule
from perturb.methods.prune.common import resolve_sparsity, select
from perturb.registry import check_choice, method
from perturb.types import Array, Matrix, Problem, Solved


@method("wanda")
class Wanda:
    """Objective: minimise ``E||dW x||^2`` over masks as if inputs were uncorrelated.

    Score ``|w_ij| sqrt(E x_j^2)``, compared within each row (or N:M group, N kept); with
    ``target="dense"`` the error to the dense weight that a removal adds, times ``E x_j^2``.
    Exactly ``floor(s in)`` weights of every row go. What ties, as all weights of an input that is
    always 0, goes by ``|w|`` (as if inputs were alike), then by ``tie``.
    Source: Sun et al., ICLR 2024 (arXiv 2306.11695).
    """

    sparsity: float | Array | None = None
    scope: str | NofM = "row"
    tie: TieRule = "random"
    target: str = "current"

    needs_stats = True

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("row", "layer"))
        check_choice("tie", self.tie, TIE_RULES)
        check_choice("target", self.target, ("current", "dense"))

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        assert problem.inputs is not None
        energy = problem.inputs.energy.astype(matrix.weight.dtype)
        return select(self, matrix, problem, key, energy)
