"""GPTQ: round column by column, compensating each rounding error in the columns to come."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.grid import GridSpec, fit_grid, relaid
from perturb.methods.quantize.common import check_quantizer, lay_grid, signed, start_weight
from perturb.obs import Relay, Solver, Steps, Task, settle
from perturb.registry import method
from perturb.types import Array, Grid, Matrix, Problem, Solved


@method("gptq")
class GPTQ:
    """Objective: ``E||(W - W') x||^2`` over points of a grid, greedily by column.

    Scales are per row from the incoming weights, or per group, fitted when the block of columns
    is entered that the group starts in (the reference's behaviour) unless ``static_groups``.
    ``act_order`` settles the columns of largest ``E x_j^2`` first. Settings shared with RTN mean
    the same there. mask="enforce" keeps pruned weights at 0 and compensates the drift they would
    have had; "free" is the unmasked reference, where some pruned weights return.
    Source: Frantar et al., ICLR 2023 (arXiv 2210.17323). Differences from its code: columns whose
    inputs were always 0 are rounded like any other (there they are set to 0, after the scales
    were fitted to them: the weights would be lost to inputs that calibration did not show);
    damping is relative to the mean over the other columns, so that nothing depends on the scale of
    H (2/n X X^T with n counting tokens here, sequences there); rows of one sign have the symmetric
    grid of their absmax (there they lose half of it); a group of zeros has scale 1 (there 2 over
    the number of steps); a convolution's columns are in the order of its kernel in JAX,
    [*window, channels] (there [channels, *window]), which decides who compensates whom.
    """

    bits: int | Array
    grid: GridSpec = GridSpec()
    mask: str = "enforce"
    scale_source: str = "current"
    on_grid: str = "refit"
    target: str = "current"
    act_order: bool = False
    static_groups: bool = False
    damp: float = 0.01
    block: int = 128

    needs_stats = True

    def __post_init__(self) -> None:
        check_quantizer(self)
        grouped = isinstance(self.grid.per, int)
        if self.act_order and grouped and not self.static_groups:
            raise ValueError("act_order with groups needs static_groups=True")

    @property
    def granularity(self) -> str:
        return f"weight, scale {self.grid}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        return settle(self.steps(matrix, problem, key), problem.inputs)

    def steps(self, matrix: Matrix, problem: Problem, key: Array) -> Steps:
        enforced = self.mask == "enforce"
        w = start_weight(matrix, problem, self.target, enforced)
        on_the_way = self.scale_source == "current" and self._fits_on_the_way
        solution = yield Task(
            w,
            matrix.mask if enforced else jnp.ones_like(matrix.mask),
            grid=lay_grid(self, problem, w),
            solver=self._solver,
            fit_groups=self.grid if on_the_way else None,
        )
        q = solution.weight
        mask = matrix.mask if enforced else matrix.mask | (q != 0)
        done = matrix._replace(weight=q, mask=mask, grid=solution.grid)
        return Solved(signed(done, self), solution.report)

    def relaying(self, matrix: Matrix, grid: Grid, problem: Problem) -> Relay:
        """Round what a pruner left of a matrix that was on ``grid``; see SparseGPT.on_grid."""
        w = jnp.where(matrix.mask, matrix.weight, 0)
        on_the_way = self._fits_on_the_way
        if not on_the_way:
            grid = relaid(grid, fit_grid(w, self.bits, self.grid), w, self.grid)
        solution = yield Task(
            w,
            matrix.mask,
            grid=grid,
            solver=self._solver,
            fit_groups=self.grid if on_the_way else None,
            refit=on_the_way,
        )
        return signed(matrix._replace(weight=solution.weight, grid=solution.grid), self)

    @property
    def _solver(self) -> Solver:
        return Solver(self.damp, self.block, self.act_order)

    @property
    def _fits_on_the_way(self) -> bool:
        return isinstance(self.grid.per, int) and not self.static_groups
