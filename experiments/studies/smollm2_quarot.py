"""QuaRot on a real language model: SmolLM2-135M, rotated, through both orders.

The paper's own cell, 5 % pruned and 4 bits, and half pruned, after a Hadamard rotation of the
residual stream, with round-to-nearest and with GPTQ; model, text and groups as in the study
smollm2. A rotation folds the last norm into the head, so that the head has to be a matrix of its
own; it stays dense, as the embeddings do.

Run:      python -m experiments run smollm2_quarot      (where smollm2 runs)
"""

from dataclasses import replace
from functools import partial

from experiments.studies.smollm2 import GROUPS, MODEL
from experiments.study import Conditions, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, Rotate, SparseGPT

TURN = axis(partial(Rotate, kind="hadamard"))
ORDERS = pairs(
    [axis(method, sparsity=(0.05, 0.5)) for method in (SparseGPT, Magnitude)],
    [axis(partial(method, grid=GROUPS), bits=(16, 4)) for method in (GPTQ, RTN)],
)

STUDY = Study(
    name="smollm2_quarot",
    description="SmolLM2-135M, rotated: {magnitude, SparseGPT} x {RTN, GPTQ}, groups of 64",
    models=(replace(MODEL, untied=True),),
    exclude=("lm_head",),
    policies=(Conditions(examples=32),),
    plans=tuple((TURN, *plan) for plan in ORDERS),
)
