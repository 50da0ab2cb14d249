"""GPTQ: round column by column, compensating each rounding error in the columns to come."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.grid import GridSpec
from perturb.obs import Solver
from perturb.quantize.common import BITS_DENSE, check_quantizer, start_weight
from perturb.registry import method
from perturb.types import Array, Layer, LayerStats, StageResult


@method("gptq")
class GPTQ:
    """Objective: ``E||(W - W') x||^2`` over points of a grid, greedily by column.

    Scales are per row from the incoming weights, or per group, fitted when a block of columns
    is entered (the reference's behaviour) unless ``static_groups``. ``act_order`` settles the
    columns of largest ``E x_j^2`` first. Settings shared with RTN mean the same there.
    mask="enforce" keeps pruned weights at 0 and compensates the drift they would have had;
    "free" is the unmasked reference, where some pruned weights return.
    Source: Frantar et al., ICLR 2023 (arXiv 2210.17323).
    """

    bits: int | Array
    grid: GridSpec = GridSpec()
    mask: str = "enforce"
    scale_source: str = "current"
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
    def ratio(self) -> float:
        return BITS_DENSE / float(self.bits)

    @property
    def granularity(self) -> str:
        return f"weight, scale {self.grid}"

    def __call__(self, layer: Layer, stats: LayerStats | None, key: Array) -> StageResult:
        assert stats is not None
        enforced = self.mask == "enforce"
        solution = Solver(self.damp, self.block, self.act_order)(
            start_weight(layer, self.target, enforced),
            layer.mask if enforced else jnp.ones_like(layer.mask),
            stats,
            fit=self.grid,
            bits=self.bits,
            fit_on=layer.dense if self.scale_source == "dense" else None,
            static_groups=self.static_groups,
        )
        w = solution.weight
        mask = layer.mask if enforced else layer.mask | (w != 0)
        done = layer._replace(weight=w, mask=mask, grid=solution.grid)
        return StageResult(done, solution.report)
