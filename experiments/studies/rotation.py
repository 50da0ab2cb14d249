"""Does a rotation change which order wins, and does it make pruning worse?

Both orders of every pruner and quantizer, on the model as it is and after a rotation of its
residual stream (QuaRot's, without online rotations: the same function, weights without outliers).
The paper finds that rotating amplifies what pruning does (finding 3); and what a quantizer zeroes
alone, which the zero fraction goes by, is another share of rotated weights.

Run:      python -m experiments run rotation
"""

from functools import partial

from experiments.axes import Plan
from experiments.study import Own, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, Rotate, SparseGPT

QUANTIZERS = [axis(quantizer, bits=(12, 5, 4, 3)) for quantizer in (RTN, GPTQ)]
ORDERS = pairs(
    [axis(pruner, sparsity=(0.05, 0.2, 0.5)) for pruner in (Magnitude, SparseGPT)], QUANTIZERS
)
TURN = axis(partial(Rotate, kind="hadamard"))


def with_turn(orders: tuple[Plan, ...]) -> tuple[Plan, ...]:
    """These, and the same of the rotated model."""
    return orders + tuple((TURN, *plan) for plan in orders)


STUDY = Study(
    name="rotation",
    description="both orders before and after a rotation of the residual stream, 5 trainings",
    models=(Own("experiments.models.untied:llama_docs_mini"),),
    seeds=(0, 1, 2, 3, 4),
    exclude=("lm_head",),
    plans=with_turn(ORDERS),
)
