"""More than two stages: every order of five methods, and pruning in two parts around a quantizer.

All 120 orders of five methods share their prefixes: 325 models and not 600, and every order of any
two, three or four of the five is among them. Sorting by intensity (what each method alone costs,
the weakest first) is Kim et al.'s answer for many stages.

Run:      python -m experiments run multistage
"""

from functools import partial
from itertools import product

from experiments.study import Study, axis, permutations
from perturb import GPTQ, RTN, Drop, LoRA, Magnitude, SparseGPT

FIVE = (
    axis(Drop, space="*.heads", ratio=0.5),
    axis(Drop, space="*.mlp", ratio=0.125),
    axis(SparseGPT, sparsity=0.4),
    axis(GPTQ, bits=4),
    axis(partial(LoRA, rank=4, steps=30, learning_rate=5e-3, examples=8)),
)
HALVES = tuple(
    plan
    for pruner, quantizer, bits in product((Magnitude, SparseGPT), (RTN, GPTQ), (4, 3))
    for whole, part, rounded in [
        (axis(pruner, sparsity=0.5), axis(pruner, sparsity=0.25), axis(quantizer, bits=bits))
    ]
    for plan in ((part, rounded, whole), (whole, rounded), (rounded, whole))
)

STUDY = Study(
    name="multistage",
    description="all 120 orders of five methods, and pruning before and after a quantizer",
    models=("llama-docs-mini",),
    seeds=(0, 1, 2, 3, 4),
    plans=permutations(*FIVE) + HALVES,
)
