"""SparseGPT: remove weights by OBS saliency and let the rest of the row compensate."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.masks import TIE_RULES, NofM, TieRule
from perturb.methods.prune.common import resolve_sparsity
from perturb.obs import OBSQuantizer, Solver, Steps, Task, settle, tie_of
from perturb.registry import check_choice, method
from perturb.types import Array, Matrix, Problem, Solved


@method("sparsegpt")
class SparseGPT:
    """Objective: ``E||(W - W') x||^2`` over masks and the values of the survivors, greedily.

    Per block of columns, over all rows, the smallest ``w^2 / U_jj^2`` go (exact counts, from
    the weights as updated so far), or N of M are kept per row; every removal is compensated by
    the columns to its right (:mod:`perturb.obs`).

    After a quantizer, compensation moves nearly all survivors off the grid, and some beyond its
    ends. ``on_grid``:

    "refit"    (default) prune with compensation off the grid, then round again by the quantizer
               that laid it: onto the grid it came with, and in the groups that have outgrown it
               onto a new one of the same bits. Both orders end in the same format, and neither
               is clipped: what is left of A is the order's.
    "snap"     round every survivor to the grid it came with, while compensating; what
               compensation pushes out of range is clipped. A does not vanish as the bits grow.
    "release"  the published method: the result is no longer quantized (``grid`` is None, and
               storage says so).

    target="dense": start again from the dense weights, under the earlier mask and grid.
    Source: Frantar & Alistarh, ICML 2023 (arXiv 2301.00774). Differences from its code: exact
    counts; columns whose inputs were always 0 are pruned first but not all set to 0; for the
    rest see GPTQ.
    """

    sparsity: float | Array | None = None
    scope: str | NofM = "block"
    tie: TieRule = "random"
    on_grid: str = "refit"
    target: str = "current"
    damp: float = 0.01
    block: int = 128

    needs_stats = True

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("block",))
        check_choice("tie", self.tie, TIE_RULES)
        check_choice("on_grid", self.on_grid, ("refit", "snap", "release"))
        check_choice("target", self.target, ("current", "dense"))

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        return settle(self.steps(matrix, problem, key), problem.inputs)

    def steps(self, matrix: Matrix, problem: Problem, key: Array) -> Steps:
        assert self.sparsity is not None
        start = problem.reference if self.target == "dense" else matrix.weight
        solution = yield Task(
            jnp.where(matrix.mask, start, 0),
            matrix.mask,
            self.sparsity,
            *tie_of(self.tie, problem.reference, key),
            matrix.grid if self.on_grid == "snap" else None,
            Solver(self.damp, self.block),
            pattern=self.scope if isinstance(self.scope, NofM) else None,
        )
        done = matrix._replace(weight=solution.weight, mask=solution.keep, grid=solution.grid)
        if matrix.grid is not None and self.on_grid == "refit":
            quantizer = matrix.quantizer
            if quantizer is None:
                raise ValueError(
                    "on_grid='refit' lays a new grid by the quantizer that laid the first, and "
                    "this matrix does not say which: give Matrix.quantizer, or 'snap' or 'release'"
                )
            if isinstance(quantizer, OBSQuantizer):
                done = yield from quantizer.relaying(done, matrix.grid, problem)
            else:
                done = quantizer.relay(done, matrix.grid, problem)
        elif self.on_grid == "release":
            done = done._replace(quantizer=None)
        return Solved(done, solution.report)
