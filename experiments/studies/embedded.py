"""Which order wins, and what survives another training and another calibration draw?

Five trainings of four models, trained on the spot, under three calibration draws each. The ratios
begin where quantizing is the stronger method (5 % at 3 to 5 bits), as cells whose gap always has
one sign test nothing; 12 bits are the control, which the order must not move.

Run:      python -m experiments run embedded
Result:   results/embedded/records.jsonl, summary.json with the verdicts, report.txt, figures
"""

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT

PLANS = pairs(
    [axis(pruner, sparsity=(0.05, 0.2, 0.5)) for pruner in (Magnitude, SparseGPT)],
    [axis(quantizer, bits=(12, 5, 4, 3)) for quantizer in (RTN, GPTQ)],
)

STUDY = Study(
    name="embedded",
    description="two Llamas, ResNet and ViT, 5 trainings x 3 calibration draws of each",
    models=("llama-docs", "llama-docs-mini", "resnet-digits", "vit-digits"),
    seeds=(0, 1, 2, 3, 4),
    calibrations=(0, 1, 2),
    plans=PLANS,
)
