"""Mixed sparsity: a pruning ratio for every layer, by what its pruning costs and one budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from perturb.architecture import Architecture
from perturb.masks import NofM
from perturb.methods.mixed.sensitivity import Sensitivity
from perturb.methods.mixed.share import Order, check_mixed, share_out
from perturb.methods.prune.magnitude import Magnitude
from perturb.methods.prune.sparsegpt import SparseGPT
from perturb.methods.prune.wanda import Wanda
from perturb.registry import check_layers, check_sparsity
from perturb.stage import Outcome, Sight, matching
from perturb.state import State

USUAL = Wanda(0.5)


@dataclass(frozen=True)
class MixedSparsity:
    """Objective: ratios p_l of ``choices`` for every layer that minimise ``sum_l s_l(p_l)`` while
    ``sum_l n_l p_l >= budget sum_l n_l``, n_l the kept weights: exactly (:func:`allocate`).

    budget: the fraction of the kept weights that goes at least, up to what the pruner's scope
    rounds. pruner: what prunes, at each of the ratios; its own does not count. A layer that was
    pruned before is pruned to the ratio, as the pruner has it. sensitivity, order and where: as of
    mixed precision, "strong-last" from the least ratio to the largest.
    Source: the allocation of Dong et al., NeurIPS 2020 (HAWQ-V2, arXiv 1911.03852), with ratios.
    """

    budget: float = 0.5
    choices: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    pruner: Magnitude | Wanda | SparseGPT = USUAL
    sensitivity: Sensitivity = "outputs"
    order: Order = "at-once"
    probes: int = 16
    where: str = "*"

    name: ClassVar[str] = "mixed-sparsity"
    needs_stats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mixed(self, "ratios")
        for ratio in self.choices:
            check_sparsity(ratio, self.pruner.scope)
        if isinstance(self.pruner.scope, NofM):
            raise ValueError(f"pruner must have no N:M scope, got {self.pruner.scope}")

    def layers(self, architecture: Architecture) -> list[str]:
        return matching(architecture, self.where, self.name)

    def check(self, architecture: Architecture) -> None:
        names = self.layers(architecture)
        check_layers(self.pruner, {n: architecture.layers[n] for n in names})

    def on_state(self, state: State, context: Sight) -> Outcome:
        ratios = sorted(self.choices)
        methods = [replace(self.pruner, sparsity=ratio) for ratio in ratios]
        loads = [1 - ratio for ratio in ratios]
        return share_out(self, state, context, methods, loads, 1 - self.budget)
