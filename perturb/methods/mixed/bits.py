"""Mixed precision: a bit width for every layer, by what its rounding costs and a budget of bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from perturb.architecture import Architecture
from perturb.methods.mixed.sensitivity import Sensitivity
from perturb.methods.mixed.share import Order, check_mixed, share_out
from perturb.methods.quantize.gptq import GPTQ
from perturb.methods.quantize.rtn import RTN
from perturb.registry import check_bits, check_layers
from perturb.stage import Outcome, Sight, matching
from perturb.state import State

USUAL = RTN(4)


@dataclass(frozen=True)
class MixedPrecision:
    """Objective: bits b_l of ``choices`` for every layer that minimise ``sum_l s_l(b_l)`` while
    ``sum_l n_l b_l <= budget sum_l n_l``, n_l the kept weights: exactly (:func:`allocate`).

    budget: mean bits of a kept weight. quantizer: what rounds, at each of the widths; its own bits
    do not count. sensitivity: how s_l(b) is found on the calibration data, by the measured
    "outputs" or the "hessian" (:func:`perturb.methods.mixed.sensitivity.costs_of`).
    order: the layers are rounded "at-once", all from the model that came in; or width by width,
    each from the model that the widths before it left: "strong-last" from the most bits to the
    least (8 -> 2), "strong-first" from the least to the most (2 -> 8). Which layer gets which
    width is the same. With a quantizer that looks at no inputs the orders are one.
    Layers that are rounded are those of ``where``; others stay as they are and count for nothing.
    Source: Dong et al., NeurIPS 2020 (HAWQ-V2, arXiv 1911.03852), with Gauss-Newton for the
    Hessian, which needs no labels, and every layer's own choice for its groups of layers.
    """

    budget: float = 4.0
    choices: tuple[int, ...] = (2, 3, 4, 6, 8)
    quantizer: RTN | GPTQ = USUAL
    sensitivity: Sensitivity = "outputs"
    order: Order = "at-once"
    probes: int = 16
    where: str = "*"

    name: ClassVar[str] = "mixed"
    needs_stats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mixed(self, "widths")
        for bits in self.choices:
            check_bits(bits)

    def layers(self, architecture: Architecture) -> list[str]:
        return matching(architecture, self.where, self.name)

    def check(self, architecture: Architecture) -> None:
        names = self.layers(architecture)
        check_layers(self.quantizer, {n: architecture.layers[n] for n in names})

    def on_state(self, state: State, context: Sight) -> Outcome:
        widths = sorted(self.choices, reverse=True)
        methods = [replace(self.quantizer, bits=bits) for bits in widths]
        return share_out(self, state, context, methods, widths, self.budget)
