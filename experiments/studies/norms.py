"""BatchNorms that keep the dense model's statistics: the embedded study's policy undone.

Compare with the cells of the same name in the embedded study, where every stage is followed by
re-estimating them on the calibration data.

Run:      python -m experiments run norms
"""

from experiments.study import Study
from perturb import RTN, Magnitude

STUDY = Study(
    name="norms",
    description="ResNet with the running statistics of the dense model",
    models=("resnet-digits",),
    pruners=(Magnitude,),
    sparsities=(0.3, 0.5, 0.6),
    quantizers=(RTN,),
    bits=(4, 3),
    norms="keep",
)
