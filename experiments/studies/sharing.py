"""Sharing parameters and low rank, before or after a quantizer or a pruner.

A low rank leaves a product of two thin matrices that are quantized after it; the other way round
the grid is left, as products of rounded matrices lie on none: the two orders end in different
formats, and the storage says so. Layers of neighbouring blocks that share a basis store it once.

Run:      python -m experiments run sharing
"""

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, LowRank, ShareBasis, SparseGPT

RATIOS = (0.1, 0.2, 0.4)
BITS = (12, 6, 5, 4, 3)

STUDY = Study(
    name="sharing",
    description="low rank and a basis that blocks share, before or after quantizing or pruning",
    models=("llama-docs-mini",),
    seeds=(0, 1, 2, 3, 4),
    plans=pairs(
        [
            # ranks are shapes: an axis of its own for each
            *(axis(LowRank, whiten=True, release=True, ratio=ratio) for ratio in RATIOS),
            *(axis(ShareBasis, release=True, ratio=ratio) for ratio in RATIOS),
        ],
        [
            axis(RTN, bits=BITS),
            axis(GPTQ, bits=BITS),
            axis(SparseGPT, sparsity=(0.2, 0.5)),
        ],
    ),
)
