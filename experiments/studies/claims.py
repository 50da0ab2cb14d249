"""What others say of order, each tried on one small model.

- Prune, then distill, then quantize is best, and quantizing early is severe (arXiv 2511.19495).
  Distilling after a quantizer is straight through its rounding: quantization-aware training.
- A low rank, then pruning, then 8 bits is better than any of them alone at equal storage
  (arXiv 2602.18420): here each takes about a quarter of the bits of the layers
  that are compressed.

Run:      python -m experiments run claims
"""

from functools import partial
from itertools import product

from experiments.study import Study, axis, permutations
from perturb import GPTQ, RTN, Distill, LowRank, Magnitude, SparseGPT, Wanda

TRAIN = axis(partial(Distill, steps=100, learning_rate=1e-3, examples=16))
QUARTER = tuple(
    plan
    for pruner, quantizer in ((Wanda, RTN), (SparseGPT, GPTQ))
    for plan in (
        (axis(pruner, sparsity=0.75),),
        (axis(pruner, sparsity=0.5), axis(quantizer, bits=8)),
        (
            axis(LowRank, ratio=0.2, whiten=True),
            axis(pruner, sparsity=0.375),
            axis(quantizer, bits=8),
        ),
    )
)

STUDY = Study(
    name="claims",
    description="what others claim: distilling between the two, three methods at equal storage",
    models=("llama-docs-mini",),
    seeds=(0, 1, 2, 3, 4),
    plans=tuple(
        plan
        for pruner, quantizer in product((Magnitude, SparseGPT), (RTN, GPTQ))
        for plan in permutations(axis(pruner, sparsity=0.5), TRAIN, axis(quantizer, bits=(4, 3)))
    )
    + QUARTER
    + ((axis(LowRank, ratio=0.75, whiten=True),),),
)
