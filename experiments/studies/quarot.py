"""Three pruners against {rotation} x {weight update}: Kim et al.'s second figure.

Their four quantizers are RTN, GPTQ, and both after a rotation of the residual stream (QuaRot). A
rotation leaves the function as it is, so it stands before both orders, which are compared on the
model that it leaves; pruned weights would not survive a rotation. Removing one of eight blocks
(SLEB) is the paper's structured pruner.

Run:      python -m experiments run quarot
"""

from functools import partial

from experiments.study import Own, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, RemoveBlocks, Rotate, SparseGPT

ORDERS = pairs(
    [
        *(axis(pruner, sparsity=(0.05, 0.2, 0.5)) for pruner in (Magnitude, SparseGPT)),
        axis(RemoveBlocks, n=1),
    ],
    [axis(quantizer, bits=(12, 5, 4, 3)) for quantizer in (RTN, GPTQ)],
)
TURN = axis(partial(Rotate, kind="hadamard"))

STUDY = Study(
    name="quarot",
    description="magnitude, SparseGPT and SLEB x {RTN, GPTQ} x {rotated or not}, eight layers",
    models=(Own("experiments.models.untied:llama_docs_deep"),),
    seeds=(0, 1, 2, 3, 4),
    exclude=("lm_head",),
    plans=ORDERS + tuple((TURN, *plan) for plan in ORDERS),
)
