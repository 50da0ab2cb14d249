"""Both at once: is a joint method better than either order, and with activations in four bits?

SparseGPT's joint mode, and the closed form of "Optimal Brain Restoration" (arXiv 2509.11177),
against both orders of SparseGPT and GPTQ and against Wanda with RTN; on the model as it is, and
rotated (QuaRot, with its online rotations) with the activations of every layer rounded to 4 bits.

Run:      python -m experiments run joint
"""

from functools import partial

from experiments.study import Own, Study, axis
from perturb import GPTQ, OBR, RTN, Activations, Joint, Rotate, SparseGPT, Wanda

BITS = (4, 3)
HALF = 0.5
PLANS = (
    (axis(partial(OBR, sparsity=HALF), bits=BITS),),
    (axis(partial(Joint, sparsity=HALF), bits=BITS),),
    (axis(SparseGPT, sparsity=HALF), axis(GPTQ, bits=BITS)),
    (axis(GPTQ, bits=BITS), axis(SparseGPT, sparsity=HALF)),
    (axis(Wanda, sparsity=HALF), axis(RTN, bits=BITS)),
    (axis(RTN, bits=BITS), axis(Wanda, sparsity=HALF)),
)
QUAROT = (axis(partial(Rotate, kind="hadamard", online=True)), axis(Activations, width=4))

STUDY = Study(
    name="joint",
    description="both at once against both orders, also rotated with 4-bit activations",
    models=(Own("experiments.models.untied:llama_docs_mini"),),
    seeds=(0, 1, 2, 3, 4),
    exclude=("lm_head",),
    plans=PLANS + tuple((*QUAROT, *plan) for plan in PLANS),
)
