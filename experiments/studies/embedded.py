"""The study of the README: three small models that are trained on the spot.

Run:      python -m experiments run embedded
Result:   results/embedded/records.jsonl, summary.json, report.txt, figures
"""

from experiments.study import Study
from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda

STUDY = Study(
    name="embedded",
    description="ResNet, ViT and Llama, 3 pruners x 2 quantizers, 5 sparsities x 6 bit widths",
    models=("resnet-digits", "vit-digits", "llama-docs"),
    pruners=(Magnitude, Wanda, SparseGPT),
    sparsities=(0.1, 0.3, 0.5, 0.6, 0.7),
    quantizers=(RTN, GPTQ),
    bits=(8, 6, 5, 4, 3, 2),
)
