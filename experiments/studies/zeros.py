"""Does what the quantizer alone sends to 0 decide the order? A causal test.

The bits are fixed and the grid is varied, which moves the fraction Z of weights that the quantizer
ALONE rounds to 0: the "full" convention and one scale a tensor raise it, groups of 16 and a clip
that minimises the error lower it, and "midrise" has the steps of "half" and no 0 at all. The
ratios lie on both sides of every Z.

Predicted before it was run (for every pruner, quantizer and model of it):
    1. quantize first wins where Z >= the pruning ratio, prune first where Z < it: below Z pruning
       the quantized model only removes zeros, and costs nothing;
    2. so at one ratio and width A changes its sign from grid to grid where Z crosses the ratio;
    3. on "midrise" prune first wins at every ratio that either order wins;
    4. once Z is known the gap C*_P - C_Q, as PIH uses it, adds nothing to it.
The prediction fails on a model where, of its won cells, the rule's share is not above that of
"always prune first" by more than the interval over trainings; (3) where quantize first wins more
"midrise" cells than prune first does.

Run:      python -m experiments run zeros
Result:   results/zeros/records.jsonl, summary.json, report.txt: the section on rules
"""

from functools import partial

from experiments.axes import Plan
from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT
from perturb.grid import GridSpec

SPARSITIES = (0.05, 0.15, 0.3, 0.5)
BITS = (4, 3)
EVERYWHERE = (
    GridSpec(),
    GridSpec(convention="full"),
    GridSpec(convention="midrise"),
    GridSpec(clip="mse"),
    GridSpec(per="tensor"),
)
GROUPS = GridSpec(per=16)  # needs layers whose inputs are a multiple of it


def plans(grids: tuple[GridSpec, ...]) -> tuple[Plan, ...]:
    """Both orders of every pruner with every quantizer on every grid."""
    return pairs(
        [axis(pruner, sparsity=SPARSITIES) for pruner in (Magnitude, SparseGPT)],
        [
            axis(partial(quantizer, grid=grid), bits=BITS)
            for quantizer in (RTN, GPTQ)
            for grid in grids
        ],
    )


STUDY = Study(
    name="zeros",
    description="what the quantizer alone zeroes, moved by the grid alone; two Llamas",
    models=("llama-docs-mini", "llama-docs"),
    seeds=(0, 1, 2, 3, 4),
    calibrations=(0, 1, 2),
    plans=plans((*EVERYWHERE, GROUPS)),
)
