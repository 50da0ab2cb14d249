"""Perturbation intensities of compression methods, alone and in either order.

A method is an immutable value; ``chain(f1, f2)`` applies f1 first; ``compress`` lifts either to
an ``nnx.Module``; ``score`` measures what they do, layer by layer.

Names are imported when they are first taken, so that what needs no jax (the command lines'
frame, files, the numbers of a study) comes without it.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Any

from perturb.backend import turn_off_broken_fusion

if TYPE_CHECKING:
    from perturb.composition import Chain, chain
    from perturb.compression import Compression, compress
    from perturb.grid import GridSpec
    from perturb.masks import NofM
    from perturb.methods.adapt.distill import Distill
    from perturb.methods.adapt.lora import LoRA
    from perturb.methods.lowrank.svd import LowRank
    from perturb.methods.mixed.bits import MixedPrecision
    from perturb.methods.mixed.sparsity import MixedSparsity
    from perturb.methods.prune.global_magnitude import GlobalMagnitude
    from perturb.methods.prune.magnitude import Magnitude
    from perturb.methods.prune.sparsegpt import SparseGPT
    from perturb.methods.prune.wanda import Wanda
    from perturb.methods.quantize.activations import Activations
    from perturb.methods.quantize.gptq import GPTQ
    from perturb.methods.quantize.joint import Joint
    from perturb.methods.quantize.obr import OBR
    from perturb.methods.quantize.rtn import RTN
    from perturb.methods.rotate.learned import LearnedRotation
    from perturb.methods.rotate.residual import Rotate
    from perturb.methods.scale.awq import AWQ
    from perturb.methods.scale.smoothquant import SmoothQuant
    from perturb.methods.share.basis import ShareBasis
    from perturb.methods.structure.drop import Drop
    from perturb.methods.structure.remove import RemoveBlocks
    from perturb.policy import Policy
    from perturb.programs import cache_programs
    from perturb.scoring.engine import score
    from perturb.scoring.types import Scores
    from perturb.stage import layerwise, per_layer

__version__ = "0.3.0"

__all__ = [
    "AWQ",
    "GPTQ",
    "OBR",
    "RTN",
    "Activations",
    "Chain",
    "Compression",
    "Distill",
    "Drop",
    "GlobalMagnitude",
    "GridSpec",
    "Joint",
    "LearnedRotation",
    "LoRA",
    "LowRank",
    "Magnitude",
    "MixedPrecision",
    "MixedSparsity",
    "NofM",
    "Policy",
    "RemoveBlocks",
    "Rotate",
    "Scores",
    "ShareBasis",
    "SmoothQuant",
    "SparseGPT",
    "Wanda",
    "cache_programs",
    "chain",
    "compress",
    "layerwise",
    "per_layer",
    "score",
]

_HOMES = {
    "AWQ": "methods.scale.awq",
    "GPTQ": "methods.quantize.gptq",
    "OBR": "methods.quantize.obr",
    "RTN": "methods.quantize.rtn",
    "Activations": "methods.quantize.activations",
    "Chain": "composition",
    "Compression": "compression",
    "GlobalMagnitude": "methods.prune.global_magnitude",
    "GridSpec": "grid",
    "Joint": "methods.quantize.joint",
    "Magnitude": "methods.prune.magnitude",
    "NofM": "masks",
    "Policy": "policy",
    "Scores": "scoring.types",
    "ShareBasis": "methods.share.basis",
    "SmoothQuant": "methods.scale.smoothquant",
    "SparseGPT": "methods.prune.sparsegpt",
    "Wanda": "methods.prune.wanda",
    "cache_programs": "programs",
    "chain": "composition",
    "compress": "compression",
    "Distill": "methods.adapt.distill",
    "Drop": "methods.structure.drop",
    "LoRA": "methods.adapt.lora",
    "LowRank": "methods.lowrank.svd",
    "MixedPrecision": "methods.mixed.bits",
    "MixedSparsity": "methods.mixed.sparsity",
    "RemoveBlocks": "methods.structure.remove",
    "LearnedRotation": "methods.rotate.learned",
    "Rotate": "methods.rotate.residual",
    "layerwise": "stage",
    "per_layer": "stage",
    "score": "scoring.engine",
}

# At once, though it is for jax: whoever imports a module of ours by its path takes no name here.
# It is an environment variable, and costs no import.
with suppress(PackageNotFoundError):
    turn_off_broken_fusion()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
