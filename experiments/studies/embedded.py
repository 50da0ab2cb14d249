"""Three small models, trained on the spot, through both orders of every pruner and quantizer.

Run:      python -m experiments run embedded
Result:   results/embedded/records.jsonl, summary.json, report.txt, figures
"""

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda

MODELS = ("resnet-digits", "vit-digits", "llama-docs")
SPARSITIES = (0.1, 0.3, 0.5, 0.6, 0.7)
QUANTIZERS = (RTN, GPTQ)
BITS = (8, 6, 5, 4, 3, 2)

STUDY = Study(
    name="embedded",
    description="ResNet, ViT and Llama, 3 pruners x 2 quantizers, 5 sparsities x 6 bit widths",
    models=MODELS,
    plans=pairs(
        [axis(pruner, sparsity=SPARSITIES) for pruner in (Magnitude, Wanda, SparseGPT)],
        [axis(quantizer, bits=BITS) for quantizer in QUANTIZERS],
    ),
)
