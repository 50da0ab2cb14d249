"""The embedded study on Fashion-MNIST: do the verdicts on vision models change with the images?

A ResNet of the same shapes and a wider ViT, trained on images of clothes instead of digits. One
calibration draw, as in :mod:`experiments.studies.larger`: how far another draw moves A is not
known here. Debian's package dataset-fashion-mnist has the images; from a folder of one's own they
are read with --images-dir.

Run:      python -m experiments run fashion
"""

from experiments.studies.embedded import PLANS
from experiments.study import Study

STUDY = Study(
    name="fashion",
    description="ResNet and ViT on Fashion-MNIST, 5 trainings, on the grid of embedded",
    models=("resnet-fashion", "vit-fashion"),
    seeds=(0, 1, 2, 3, 4),
    plans=PLANS,
)
