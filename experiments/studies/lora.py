"""LoRA before, between and after a pruner and a quantizer: which place is best?

Adapters are trained towards the dense model's outputs, on calibration data, for a short time. All
six orders of each pruner, each quantizer and LoRA, so that what others recommend is among them
(quantize, then 2:4, then LoRA: arXiv 2410.09615).

Run:      python -m experiments run lora
"""

from functools import partial
from itertools import product

from experiments.study import Study, axis, permutations
from perturb import GPTQ, RTN, LoRA, Magnitude, NofM, SparseGPT

ADAPT = axis(partial(LoRA, rank=8, steps=50, learning_rate=5e-3, examples=8))
PRUNERS = (
    axis(Magnitude, sparsity=0.5),
    axis(SparseGPT, sparsity=0.5),
    axis(SparseGPT, scope=NofM(2, 4)),
)

STUDY = Study(
    name="lora",
    description="LoRA before, between and after pruning and quantizing, all orders",
    models=("llama-docs-mini",),
    seeds=(0, 1, 2, 3, 4),
    plans=tuple(
        plan
        for pruner, quantizer in product(PRUNERS, (RTN, GPTQ))
        for plan in permutations(pruner, axis(quantizer, bits=(4, 3)), ADAPT)
    ),
)
