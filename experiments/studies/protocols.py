"""What pruning a quantized model means decides which order wins: three protocols for SparseGPT.

After a quantizer, compensation moves the survivors off their grid. "refit": they are rounded again
by the quantizer that laid it, onto a new grid where they have outgrown the old; "snap": they are
rounded to the grid they came with, and clipped where it ends; "release": they stay off it, as
published, and the Q->P result is no longer quantized. 12 bits are the control: rounding hardly
changes a weight there, so what is left of A is the protocol's.

Run:      python -m experiments run protocols
"""

from functools import partial

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, SparseGPT

RULES = ("refit", "snap", "release")

STUDY = Study(
    name="protocols",
    description="SparseGPT after a quantizer: rounded again, on the grid it came with, or off it",
    models=("resnet-digits", "vit-digits", "llama-docs"),
    plans=pairs(
        [axis(partial(SparseGPT, on_grid=rule), sparsity=(0.3, 0.5, 0.7)) for rule in RULES],
        [axis(quantizer, bits=(12, 8, 4, 3)) for quantizer in (RTN, GPTQ)],
    ),
)
