"""The embedded study's SparseGPT on the grid it is handed: what clipping does to the verdicts.

The default ("refit") rounds again by the quantizer that laid the grid. Here every survivor is
rounded to the grid it came with, and what compensation pushed beyond its ends is clipped.

Run:      python -m experiments run snap
"""

from functools import partial

from experiments.studies.embedded import BITS, MODELS, QUANTIZERS, SPARSITIES
from experiments.study import Study, axis, pairs
from perturb import SparseGPT

STUDY = Study(
    name="snap",
    description="the embedded study's SparseGPT, kept on the grid it is handed",
    models=MODELS,
    plans=pairs(
        [axis(partial(SparseGPT, on_grid="snap"), sparsity=SPARSITIES)],
        [axis(quantizer, bits=BITS) for quantizer in QUANTIZERS],
    ),
)
