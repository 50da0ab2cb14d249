"""Interference by granularity: from single weights to whole blocks, against grids of every width.

A pruner whose units are finer than the quantizer's groups changes the groups' scales, a coarser one
does not (Theorem 3); by Kim et al. structured pruning has A = 0 exactly at 7 to 9 bits. One eighth
goes at every granularity: of the weights, of every eight neighbours one, of the MLPs' neurons, or
one of the eight blocks.

Run:      python -m experiments run granularity
"""

from functools import partial

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, Drop, GridSpec, Magnitude, NofM, RemoveBlocks, SparseGPT

EIGHTH = 0.125
BITS = (9, 8, 7, 6, 5, 4)

STUDY = Study(
    name="granularity",
    description="weights, 7:8, neurons or a block against grids a tensor, row or group wide",
    models=("llama-docs-deep",),
    seeds=(0, 1, 2, 3, 4),
    plans=pairs(
        [
            axis(Magnitude, sparsity=EIGHTH),
            axis(SparseGPT, sparsity=EIGHTH),
            axis(Magnitude, scope=NofM(7, 8)),
            axis(Drop, space="*.mlp", ratio=EIGHTH),
            axis(RemoveBlocks, n=1),
        ],
        [
            axis(partial(RTN, grid=GridSpec(per=16)), bits=BITS),
            axis(RTN, bits=BITS),
            axis(partial(RTN, grid=GridSpec(per="tensor")), bits=BITS),
            axis(GPTQ, bits=BITS),
        ],
    ),
)
