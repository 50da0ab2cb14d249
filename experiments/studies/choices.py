"""How much do the settings of methods decide that a comparison of orders usually leaves unsaid?

Each choice is changed alone, from the defaults: tie rules of magnitude pruning after quantization,
reference-aware stages (target "dense"), what SparseGPT does to a grid it is handed ("refit": round
again, by the quantizer that laid it; "snap": to it; "release": leave it, and then Q->P is no longer
quantized), and of the quantizers the clip, the groups and the convention of the grid, which weights
the scale is fitted to, and whether pruned weights may come back.

Run:      python -m experiments run choices
Result:   python -m experiments choices results/choices: the effect of each on A and on the verdicts
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from experiments.axes import Plan
from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT
from perturb.grid import GridSpec

SPARSITIES, BITS = (0.05, 0.2, 0.5), (5, 4, 3)
PRUNERS, QUANTIZERS = (Magnitude, SparseGPT), (RTN, GPTQ)
OTHER_PRUNERS = (
    partial(Magnitude, tie="index"),
    partial(Magnitude, tie="dense"),
    partial(Magnitude, target="dense"),
    partial(SparseGPT, on_grid="snap"),
    partial(SparseGPT, on_grid="release"),
    partial(SparseGPT, target="dense"),
)
OTHER_QUANTIZERS = tuple(
    partial(quantizer, **settings)
    for quantizer in QUANTIZERS
    for settings in (
        {"grid": GridSpec(clip="mse")},
        {"grid": GridSpec(per="tensor")},
        {"grid": GridSpec(convention="full")},
        {"scale_source": "dense"},
        {"mask": "free"},
        {"target": "dense"},
    )
)


def _both_orders(pruners: Sequence[Any], quantizers: Sequence[Any]) -> tuple[Plan, ...]:
    return pairs(
        [axis(pruner, sparsity=SPARSITIES) for pruner in pruners],
        [axis(quantizer, bits=BITS) for quantizer in quantizers],
    )


STUDY = Study(
    name="choices",
    description="the settings of methods, each changed alone: what they do to A and the verdicts",
    models=("llama-docs-mini", "resnet-digits"),
    seeds=(0, 1, 2, 3, 4),
    plans=_both_orders(PRUNERS, QUANTIZERS + OTHER_QUANTIZERS)
    + _both_orders(OTHER_PRUNERS, QUANTIZERS),
)
