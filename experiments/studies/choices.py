"""How much do the choices decide that a comparison of orders usually leaves unsaid?

Tie rules of magnitude pruning after quantization (random, by index, by the dense weight),
reference-aware selection, and what SparseGPT does to a grid it is handed: round again, by the
quantizer that laid it ("refit"), round every survivor to it ("snap"), or leave it ("release",
whose Q->P result is no longer quantized: compare it knowing that).

Run:      python -m experiments run choices
"""

from functools import partial

from experiments.study import Study, axis, pairs
from perturb import RTN, Magnitude, SparseGPT

PRUNERS = (
    Magnitude,
    partial(Magnitude, tie="index"),
    partial(Magnitude, tie="dense"),
    partial(Magnitude, target="dense"),
    SparseGPT,
    partial(SparseGPT, on_grid="snap"),
    partial(SparseGPT, on_grid="release"),
)

STUDY = Study(
    name="choices",
    description="tie rules, reference-aware selection, SparseGPT on or off the grid; with RTN",
    models=("resnet-digits", "llama-docs"),
    plans=pairs(
        [axis(pruner, sparsity=(0.3, 0.5, 0.7)) for pruner in PRUNERS],
        [axis(RTN, bits=(4, 3, 2))],
    ),
)
