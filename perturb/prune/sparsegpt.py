"""SparseGPT: remove weights by OBS saliency and let the rest of the row compensate."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.masks import TIE_RULES, NofM, TieRule, tie_key
from perturb.obs import Solver
from perturb.prune.common import resolve_sparsity
from perturb.registry import check_choice, method
from perturb.types import Array, Layer, LayerStats, StageResult


@method("sparsegpt")
class SparseGPT:
    """Objective: ``E||(W - W') x||^2`` over masks and the values of the survivors, greedily.

    Per block of columns, over all rows, the smallest ``w^2 / U_jj^2`` go (exact counts, from
    the weights as updated so far), or N of M are kept per row; every removal is compensated by
    the columns to its right (:mod:`perturb.obs`).

    After a quantizer, compensation would move nearly all survivors off the grid. ``on_grid``:
    "snap" (default) rounds every survivor to the grid it came with while compensating, so that
    both orders end in the same format; "release" is the published method, whose result is no
    longer quantized (``grid`` becomes None).
    target="dense": start again from the dense weights, under the earlier mask and grid.
    Source: Frantar & Alistarh, ICML 2023 (arXiv 2301.00774).
    """

    sparsity: float | Array | None = None
    scope: str | NofM = "block"
    tie: TieRule = "index"
    on_grid: str = "snap"
    target: str = "current"
    damp: float = 0.01
    block: int = 128

    needs_stats = True

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("block",))
        check_choice("tie", self.tie, TIE_RULES)
        check_choice("on_grid", self.on_grid, ("snap", "release"))
        check_choice("target", self.target, ("current", "dense"))

    @property
    def ratio(self) -> float:
        return 1 / (1 - float(self.sparsity))  # type: ignore[arg-type]

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}"

    def __call__(self, layer: Layer, stats: LayerStats | None, key: Array) -> StageResult:
        assert stats is not None
        assert self.sparsity is not None
        start = layer.dense if self.target == "dense" else layer.weight
        solution = Solver(self.damp, self.block)(
            jnp.where(layer.mask, start, 0),
            layer.mask,
            stats,
            select=self.scope,
            sparsity=self.sparsity,
            tie=tie_key(self.tie, layer, key),
            grid=layer.grid if self.on_grid == "snap" else None,
        )
        done = layer._replace(weight=solution.weight, mask=solution.keep, grid=solution.grid)
        return StageResult(done, solution.report)
