"""Three pruners against {rotation} x {weight update}: Kim et al.'s second figure.

Their four quantizers are RTN, GPTQ, and both after a rotation of the residual stream (QuaRot). A
rotation leaves the function as it is, so it stands before both orders, which are compared on the
model that it leaves; pruned weights would not survive a rotation. Removing one of eight blocks
(SLEB) is the paper's structured pruner.

Run:      python -m experiments run quarot
"""

from experiments.studies.rotation import ORDERS, QUANTIZERS, with_turn
from experiments.study import Own, Study, axis, pairs
from perturb import RemoveBlocks

STUDY = Study(
    name="quarot",
    description="magnitude, SparseGPT and SLEB x {RTN, GPTQ} x {rotated or not}, eight layers",
    models=(Own("experiments.models.untied:llama_docs_deep"),),
    seeds=(0, 1, 2, 3, 4),
    exclude=("lm_head",),
    plans=with_turn(ORDERS + pairs([axis(RemoveBlocks, n=1)], QUANTIZERS)),
)
