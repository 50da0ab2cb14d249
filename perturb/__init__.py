"""Perturbation intensities of compression methods, alone and in either order.

A method is an immutable value; ``chain(f1, f2)`` applies f1 first; ``compress`` lifts either to
an ``nnx.Module``; ``score`` measures what they do, layer by layer.
"""

from perturb.backend import turn_off_broken_fusion
from perturb.composition import Chain, chain
from perturb.compression import Compression, compress
from perturb.grid import GridSpec
from perturb.masks import NofM
from perturb.methods.prune.global_magnitude import GlobalMagnitude
from perturb.methods.prune.magnitude import Magnitude
from perturb.methods.prune.sparsegpt import SparseGPT
from perturb.methods.prune.wanda import Wanda
from perturb.methods.quantize.gptq import GPTQ
from perturb.methods.quantize.joint import Joint
from perturb.methods.quantize.rtn import RTN
from perturb.score import Scores, score

__version__ = "0.2.0"

turn_off_broken_fusion()

__all__ = [
    "GPTQ",
    "RTN",
    "Chain",
    "Compression",
    "GlobalMagnitude",
    "GridSpec",
    "Joint",
    "Magnitude",
    "NofM",
    "Scores",
    "SparseGPT",
    "Wanda",
    "chain",
    "compress",
    "score",
]
