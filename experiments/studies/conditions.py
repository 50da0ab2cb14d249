"""How much do the conditions decide under which a chain of stages is run?

Each is changed alone: what a stage's inputs come from (the model it is handed, block after block,
or the dense model), whether BatchNorms are re-estimated, whether zeros count as pruned, how many
calibration examples there are, and whether the first and the last layer stay dense (of the vision
models: the Llama's embeddings and head are dense anyway).

Run:      python -m experiments run conditions
Result:   python -m experiments choices results/conditions: the effect of each on A and the verdicts
"""

from experiments.study import Conditions, Policy, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT

FIRST_AND_LAST = ("conv1", "fc", "patch_embed.proj", "head")

STUDY = Study(
    name="conditions",
    description="what stages see and which layers stay dense, each changed alone",
    models=("llama-docs-mini", "resnet-digits"),
    seeds=(0, 1, 2, 3, 4),
    policies=(
        Policy(),
        Policy(calibrate="sequential"),
        Policy(calibrate="dense"),
        Policy(norms="keep"),
        Policy(zeros="keep"),
        Conditions(examples=16),
        Conditions(exclude=FIRST_AND_LAST),
    ),
    plans=pairs(
        [axis(pruner, sparsity=(0.05, 0.2, 0.5)) for pruner in (Magnitude, SparseGPT)],
        [axis(quantizer, bits=(5, 4, 3)) for quantizer in (RTN, GPTQ)],
    ),
)
