"""The study of the README's first command: two small models, three trainings of each.

A small grid with replicates says more than a large one without: whether an order wins is asked of
every training anew. At 5 % quantizing is the stronger method, at 50 % pruning; 12 bits are the
control: rounding changes next to nothing there, and so must the order. Every cell is one of the
larger study's (``embedded``), so that the two can be compared.

Run:      python -m experiments run start
Result:   results/start/records.jsonl, summary.json, report.txt, figures
"""

from experiments.study import Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT

STUDY = Study(
    name="start",
    description="ResNet and a small Llama, 3 trainings of each, 2 pruners x 2 quantizers",
    models=("resnet-digits", "llama-docs-mini"),
    seeds=(0, 1, 2),
    plans=pairs(
        [axis(pruner, sparsity=(0.05, 0.5)) for pruner in (Magnitude, SparseGPT)],
        [axis(quantizer, bits=(12, 4, 3)) for quantizer in (RTN, GPTQ)],
    ),
)
