"""The third alternative to both orders: prune and quantize in one OBS pass."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.grid import GridSpec
from perturb.masks import TIE_RULES, NofM, TieRule, tie_key
from perturb.obs import Solver
from perturb.prune.common import resolve_sparsity
from perturb.quantize.common import BITS_DENSE
from perturb.registry import check_bits, check_choice, method
from perturb.types import Array, Layer, LayerStats, StageResult


@method("joint")
class Joint:
    """Objective: ``E||(W - W') x||^2`` over masks and grid points at once, greedily.

    SparseGPT's selection in each block, and every survivor rounded as GPTQ would when its
    column is settled; each compensation sees both errors. Settings as in those two.
    Source: Frantar & Alistarh, ICML 2023 (arXiv 2301.00774), section on joint quantization.
    """

    sparsity: float | Array | None = None
    bits: int | Array = 4
    scope: str | NofM = "block"
    grid: GridSpec = GridSpec()
    tie: TieRule = "index"
    damp: float = 0.01
    block: int = 128

    needs_stats = True

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        check_bits(self.bits)
        check_choice("tie", self.tie, TIE_RULES)
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("block",))

    @property
    def ratio(self) -> float:
        return BITS_DENSE / float(self.bits) / (1 - float(self.sparsity))  # type: ignore[arg-type]

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}, scale {self.grid}"

    def __call__(self, layer: Layer, stats: LayerStats | None, key: Array) -> StageResult:
        assert stats is not None
        assert self.sparsity is not None
        solution = Solver(self.damp, self.block)(
            jnp.where(layer.mask, layer.weight, 0),
            layer.mask,
            stats,
            select=self.scope,
            sparsity=self.sparsity,
            tie=tie_key(self.tie, layer, key),
            fit=self.grid,
            bits=self.bits,
        )
        done = layer._replace(weight=solution.weight, mask=solution.keep, grid=solution.grid)
        return StageResult(done, solution.report)
