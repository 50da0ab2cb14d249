"""Mixed precision: does it matter in which order the widths are given out?

Layers get 2 to 8 bits by a budget (HAWQ-V2's knapsack), all at once, from the most bits to the
least (8 -> 2) or from the least to the most (2 -> 8); each width sees the model that the widths
before it left. Kim et al. find that the advantage of 8 -> 2 grows with the compression. Without
weight updates (RTN) the orders are one: the control. Then pruning before or after all of it.

Run:      python -m experiments run mixed
"""

from functools import partial

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, MixedPrecision, SparseGPT

BUDGETS = (6.0, 5.0, 4.0, 3.0)
ORDERS = {
    order: axis(
        partial(MixedPrecision, quantizer=GPTQ(4), sensitivity="hessian", order=order),
        budget=BUDGETS,
    )
    for order in ("at-once", "strong-last", "strong-first")
}
CONTROL = axis(
    partial(MixedPrecision, quantizer=RTN(4), sensitivity="hessian"),
    order=("strong-last", "strong-first"),
    budget=(4.0, 3.0),
)

STUDY = Study(
    name="mixed",
    description="bit widths given out from 8 to 2 or from 2 to 8, and pruning around it",
    models=("llama-docs-mini",),
    seeds=(0, 1, 2, 3, 4),
    plans=(
        *((widths,) for widths in ORDERS.values()),
        (CONTROL,),
        *pairs([axis(SparseGPT, sparsity=(0.2, 0.5))], [ORDERS["strong-last"]]),
    ),
)
