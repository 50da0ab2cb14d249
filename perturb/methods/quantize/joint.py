"""The third alternative to both orders: prune and quantize in one OBS pass."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp

from perturb.grid import GridSpec, fit_grid, relaid
from perturb.masks import TIE_RULES, NofM, TieRule
from perturb.methods.prune.common import resolve_sparsity
from perturb.methods.quantize.common import signed
from perturb.methods.quantize.gptq import GPTQ
from perturb.obs import Solver, Steps, Task, settle, tie_of
from perturb.registry import check_bits, check_choice, method
from perturb.types import Array, Matrix, Problem, Solved


@method("joint")
class Joint:
    """Objective: ``E||(W - W') x||^2`` over masks and grid points at once, greedily.

    SparseGPT's selection in each block, and every survivor rounded as GPTQ would when its
    column is settled; each compensation sees both errors. Settings as in those two.
    on_grid: scales of rows and of the tensor are fitted beforehand, and compensation pushes
    weights beyond them. "snap" clips there; "refit" (default) lays those grids on what the
    pruning alone, compensated, makes of the weights. Group scales are fitted on the way.
    Source: Frantar & Alistarh, ICML 2023 (arXiv 2301.00774), section on joint quantization.
    """

    sparsity: float | Array | None = None
    bits: int | Array = 4
    scope: str | NofM = "block"
    grid: GridSpec = GridSpec()
    tie: TieRule = "random"
    on_grid: str = "refit"
    damp: float = 0.01
    block: int = 128

    needs_stats = True

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        check_bits(self.bits)
        check_choice("tie", self.tie, TIE_RULES)
        check_choice("on_grid", self.on_grid, ("refit", "snap"))
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("block",))

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}, scale {self.grid}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        return settle(self.steps(matrix, problem, key), problem.inputs)

    def steps(self, matrix: Matrix, problem: Problem, key: Array) -> Steps:
        assert self.sparsity is not None
        w = jnp.where(matrix.mask, matrix.weight, 0)
        pruning = Task(
            w,
            matrix.mask,
            self.sparsity,
            *tie_of(self.tie, problem.reference, key),
            solver=Solver(self.damp, self.block),
            pattern=self.scope if isinstance(self.scope, NofM) else None,
        )
        grid = fit_grid(w, self.bits, self.grid)
        grouped = isinstance(self.grid.per, int)
        if self.on_grid == "refit" and not grouped:
            pruned = (yield pruning).weight
            grid = relaid(grid, fit_grid(pruned, self.bits, self.grid), pruned, self.grid)
        solution = yield replace(pruning, grid=grid, fit_groups=self.grid if grouped else None)
        done = matrix._replace(weight=solution.weight, mask=solution.keep, grid=solution.grid)
        laid_by = GPTQ(self.bits, self.grid, damp=self.damp, block=self.block)
        return Solved(signed(done, laid_by), solution.report)
