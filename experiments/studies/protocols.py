"""What pruning a quantized model means decides which order wins: three protocols for SparseGPT.

After a quantizer the survivors' compensation leaves the grid. "refit": a new grid is fitted to
them and they are rounded to it; "snap": they are rounded to the grid they came with; "release":
they stay off it, as published, and the Q->P result is no longer quantized.

Run:      python -m experiments run protocols
Takes:    some minutes on 2 CPU cores with the models cached
"""

from functools import partial

from experiments.study import Study
from perturb import GPTQ, RTN, SparseGPT

STUDY = Study(
    name="protocols",
    description="SparseGPT after a quantizer: on a new grid, on the grid it got, or off it",
    models=("resnet-digits", "vit-digits", "llama-docs"),
    pruners=tuple(partial(SparseGPT, on_grid=rule) for rule in ("refit", "snap", "release")),
    sparsities=(0.3, 0.5, 0.7),
    quantizers=(RTN, GPTQ),
    bits=(12, 8, 4, 3),
)
