"""The embedded study's SparseGPT on the grid it is handed: what clipping does to the verdicts.

The default ("refit") rounds again by the quantizer that laid the grid. Here every survivor is
rounded to the grid it came with, and what compensation pushed beyond its ends is clipped.

Run:      python -m experiments run snap
"""

import dataclasses
from functools import partial

from experiments.studies.embedded import STUDY as EMBEDDED
from perturb import SparseGPT

STUDY = dataclasses.replace(
    EMBEDDED,
    name="snap",
    description="the embedded study's SparseGPT, kept on the grid it is handed",
    pruners=(partial(SparseGPT, on_grid="snap"),),
)
