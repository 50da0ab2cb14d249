"""Where matrices meet modules: the only package of perturb that knows Flax.

Any ``nnx.Module`` is walked for ``nnx.Linear``, ``nnx.LinearGeneral``, ``nnx.Conv`` and
``nnx.Einsum`` (and subclasses). Each becomes a matrix ``W [out, in]`` acting on feature vectors
x [in]: the inputs of a Linear, the patches of a Conv, the contracted axes of an Einsum.
"""

from perturb.network.apply import Network
from perturb.network.batches import Forward, TokenWeights, batches_of, call
from perturb.network.capture import capture, moments, starved
from perturb.network.coverage import COVERED, NORMS, Coverage, coverage, notes
from perturb.network.hear import blocks_of, call_order, check_runs
from perturb.network.layers import (
    KINDS,
    LayerSpec,
    find_layers,
    get_weights,
    matching,
    set_weights,
    with_weights,
)
from perturb.network.norms import (
    NormMoments,
    combine_norms,
    norm_moments,
    norms_of,
    reestimate,
    set_norms,
)
from perturb.network.refused import Refused
from perturb.network.vectors import get_vectors, has_vector, set_vectors

__all__ = [
    "COVERED",
    "KINDS",
    "NORMS",
    "Coverage",
    "Forward",
    "LayerSpec",
    "Network",
    "NormMoments",
    "Refused",
    "TokenWeights",
    "batches_of",
    "blocks_of",
    "call",
    "call_order",
    "capture",
    "check_runs",
    "combine_norms",
    "coverage",
    "find_layers",
    "get_vectors",
    "get_weights",
    "has_vector",
    "matching",
    "moments",
    "norm_moments",
    "norms_of",
    "notes",
    "reestimate",
    "set_norms",
    "set_vectors",
    "set_weights",
    "starved",
    "with_weights",
]
