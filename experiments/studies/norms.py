"""BatchNorms that keep the dense model's statistics: the embedded study's policy undone.

Compare with the cells of the same name in the embedded study, where every stage is followed by
re-estimating them on the calibration data.

Run:      python -m experiments run norms
"""

from experiments.study import Policy, Study, axis, pairs
from perturb import RTN, Magnitude

STUDY = Study(
    name="norms",
    description="ResNet with the running statistics of the dense model",
    models=("resnet-digits",),
    plans=pairs([axis(Magnitude, sparsity=(0.3, 0.5, 0.6))], [axis(RTN, bits=(4, 3))]),
    policies=(Policy(norms="keep"),),
)
