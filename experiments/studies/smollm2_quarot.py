"""QuaRot on a real language model: SmolLM2-135M, rotated, through both orders.

The paper's own cell, 5 % pruned by SparseGPT and 4 bits by GPTQ, half pruned instead, and 5 % of
the smallest weights rounded to nearest, after a Hadamard rotation of the residual stream; and what
rotating makes of pruning alone, the paper's 40 % with and without it. Model, text, groups and draws
are those of the study smollm2. A rotation folds the last norm into the head, so that the head has
to be a matrix of its own; it stays dense, as the embeddings do.

Run:      python -m experiments run smollm2_quarot      (where smollm2 runs)
"""

from dataclasses import replace
from functools import partial

from experiments.studies.smollm2 import MODEL, to
from experiments.study import Conditions, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, Rotate, SparseGPT, Wanda

TURN = axis(partial(Rotate, kind="hadamard"))
ORDERS = (
    *pairs([axis(SparseGPT, sparsity=(0.05, 0.5))], [to(4, GPTQ)]),
    *pairs([axis(Magnitude, sparsity=0.05)], [to(4, RTN)]),
)
ALONE = tuple((axis(method, sparsity=0.4),) for method in (SparseGPT, Wanda, Magnitude))

STUDY = Study(
    name="smollm2_quarot",
    description="SmolLM2-135M, rotated: SparseGPT x GPTQ, magnitude x RTN, groups of 64",
    models=(replace(MODEL, untied=True),),
    exclude=("lm_head",),
    policies=(Conditions(examples=32),),
    calibrations=(0, 1, 2),
    plans=(*ALONE, *((TURN, *plan) for plan in (*ORDERS, *ALONE))),
)
