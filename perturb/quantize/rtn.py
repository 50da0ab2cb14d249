"""Round to nearest: every weight goes to its nearest grid point, alone."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.grid import GridSpec, fit_grid, round_to_grid
from perturb.quantize.common import BITS_DENSE, check_quantizer, start_weight
from perturb.registry import method
from perturb.types import Array, Layer, LayerStats, StageResult


@method("rtn")
class RTN:
    """Objective: minimise ``||W - W'||_F`` over the points of a fitted grid.

    ``w' = scale (clip(round(w / scale) + zero, 0, 2^b - 1) - zero)``.

    bits: 2..16; grid: how the scale is fitted (:class:`perturb.grid.GridSpec`).
    scale_source: fit the scale to the "current" weights (after pruning: to the survivors) or to
    the "dense" ones. mask: "enforce" keeps pruned weights at 0; "free" lets the grid decide
    (rounding 0 gives 0, so for RTN the two differ only with target="dense").
    target="dense" rounds the dense weights instead of the current ones.
    """

    bits: int | Array
    grid: GridSpec = GridSpec()
    mask: str = "enforce"
    scale_source: str = "current"
    target: str = "current"

    needs_stats = False

    def __post_init__(self) -> None:
        check_quantizer(self)

    @property
    def ratio(self) -> float:
        return BITS_DENSE / float(self.bits)

    @property
    def granularity(self) -> str:
        return f"weight, scale {self.grid}"

    def __call__(self, layer: Layer, stats: LayerStats | None, key: Array) -> StageResult:
        w = start_weight(layer, self.target, self.mask == "enforce")
        grid = fit_grid(layer.dense if self.scale_source == "dense" else w, self.bits, self.grid)
        q = round_to_grid(w, grid)
        mask = layer.mask if self.mask == "enforce" else layer.mask | (q != 0)
        return StageResult(layer._replace(weight=jnp.where(mask, q, 0), mask=mask, grid=grid), None)
