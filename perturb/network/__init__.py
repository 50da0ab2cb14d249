"""Where matrices meet modules: the only package of perturb that knows Flax.

Any ``nnx.Module`` is walked for ``nnx.Linear``, ``nnx.LinearGeneral``, ``nnx.Conv``,
``nnx.ConvTranspose`` and ``nnx.Einsum`` (and subclasses), and for ``nnx.Embed`` by name. Each
kernel becomes a matrix ``W [out, in]`` acting on feature vectors x [in]: the inputs of a Linear,
the patches of a Conv, the contracted axes of an Einsum; or several, if it has batch axes.
"""

from perturb.network.apply import Network
from perturb.network.batches import (
    Forward,
    TokenWeights,
    batches_of,
    call,
    forget_programs,
    weights_of,
)
from perturb.network.capture import capture, inputs_report, moments, starved
from perturb.network.coverage import COVERED, NORMS, Coverage, coverage, inputs_notes, notes
from perturb.network.find import find_layers, matching
from perturb.network.layers import (
    KINDS,
    LayerSpec,
    get_weights,
    set_weights,
    size_of,
    with_weights,
)
from perturb.network.names import fits, short_names
from perturb.network.norms import (
    NormMoments,
    combine_norms,
    norm_moments,
    norms_of,
    reestimate,
    set_norms,
)
from perturb.network.order import blocks_of, call_blocks, call_order, check_runs
from perturb.network.refused import Refused
from perturb.network.smaller import cut, in_list
from perturb.network.stream import influence
from perturb.network.vectors import get_vectors, has_vector, set_vectors, trained

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
    "call_blocks",
    "call_order",
    "capture",
    "check_runs",
    "combine_norms",
    "coverage",
    "cut",
    "find_layers",
    "fits",
    "forget_programs",
    "get_vectors",
    "get_weights",
    "has_vector",
    "in_list",
    "influence",
    "inputs_notes",
    "inputs_report",
    "matching",
    "moments",
    "norm_moments",
    "norms_of",
    "notes",
    "reestimate",
    "set_norms",
    "set_vectors",
    "set_weights",
    "short_names",
    "size_of",
    "starved",
    "trained",
    "weights_of",
    "with_weights",
]
