"""The causal test of :mod:`experiments.studies.zeros` on the vision models, with its predictions.

Without groups of columns: a stem of 9 inputs has none.

Run:      python -m experiments run zeros_vision
"""

from experiments.studies.zeros import EVERYWHERE, plans
from experiments.study import Study

STUDY = Study(
    name="zeros_vision",
    description="what the quantizer alone zeroes, moved by the grid alone; ResNet and ViT",
    models=("resnet-digits", "vit-digits"),
    seeds=(0, 1, 2, 3, 4),
    plans=plans(EVERYWHERE),
)
