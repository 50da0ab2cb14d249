"""Sharing parameters and low rank, before or after a quantizer or a pruner.

A low rank leaves a product of two thin matrices that are quantized after it; the other way round
the grid (or the mask) is left, as products of rounded matrices lie on none: the two orders end in
different formats, and the storage says so. So that both end in one, the first method is also put
last again: Q, low rank, Q against low rank, Q. Layers of neighbouring blocks that share a basis
store it once.

Run:      python -m experiments run sharing
"""

from functools import partial

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, LowRank, ShareBasis, SparseGPT

RATIOS = (0.1, 0.2, 0.4)
BITS = (12, 6, 5, 4, 3)

# ranks are shapes: an axis of its own for each
THIN = tuple(
    axis(method, release=True, ratio=ratio)
    for method in (partial(LowRank, whiten=True), ShareBasis)
    for ratio in RATIOS
)
OTHERS = (
    *(axis(quantizer, bits=bits) for quantizer in (RTN, GPTQ) for bits in BITS),
    *(axis(SparseGPT, sparsity=sparsity) for sparsity in (0.2, 0.5)),
)

STUDY = Study(
    name="sharing",
    description="low rank and a basis that blocks share, before or after quantizing or pruning",
    models=("llama-docs-mini",),
    seeds=(0, 1, 2, 3, 4),
    plans=pairs(THIN, OTHERS) + tuple((m, thin, m) for m in OTHERS for thin in THIN),
)
