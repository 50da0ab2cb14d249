"""Round to nearest: every weight goes to its nearest grid point, alone."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.grid import GridSpec, fit_grid, relaid, round_to_grid
from perturb.methods.quantize.common import check_quantizer, lay_grid, signed, start_weight
from perturb.registry import method
from perturb.types import Array, Grid, Matrix, Problem, Solved


@method("rtn")
class RTN:
    """Objective: minimise ``||W - W'||_F`` over the points of a fitted grid.

    ``w' = scale (clip(round(w / scale) + zero, 0, 2^b - 1) - zero)``.

    bits: 2..16; grid: how the scale is fitted (:class:`perturb.grid.GridSpec`).
    scale_source: fit the scale to the "current" weights (after pruning: to the survivors) or to
    the "dense" ones; ``on_grid`` says what happens where the current weights lie beyond the dense
    range: "refit" lays those groups anew, "snap" clips.
    mask: "enforce" keeps pruned weights at 0; "free" lets the grid decide
    (rounding 0 gives 0, so for RTN the two differ only with target="dense", and on a grid
    without 0, where "free" brings all pruned weights back).
    target="dense" rounds the dense weights instead of the current ones.
    """

    bits: int | Array
    grid: GridSpec = GridSpec()
    mask: str = "enforce"
    scale_source: str = "current"
    on_grid: str = "refit"
    target: str = "current"

    needs_stats = False

    def __post_init__(self) -> None:
        check_quantizer(self)

    @property
    def granularity(self) -> str:
        return f"weight, scale {self.grid}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        w = start_weight(matrix, problem, self.target, self.mask == "enforce")
        grid = lay_grid(self, problem, w)
        q = round_to_grid(w, grid)
        mask = matrix.mask if self.mask == "enforce" else matrix.mask | (q != 0)
        done = matrix._replace(weight=jnp.where(mask, q, 0), mask=mask, grid=grid)
        return Solved(signed(done, self), None)

    def relay(self, matrix: Matrix, grid: Grid, problem: Problem) -> Matrix:
        """Round what a pruner left of a matrix that was on ``grid``; see SparseGPT.on_grid."""
        w = jnp.where(matrix.mask, matrix.weight, 0)
        grid = relaid(grid, fit_grid(w, self.bits, self.grid), w, self.grid)
        q = jnp.where(matrix.mask, round_to_grid(w, grid), 0)
        return signed(matrix._replace(weight=q, grid=grid), self)
