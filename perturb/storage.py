"""What a compressed model takes to store: the only source of every compression ratio.

Counted are the weights alone, by the final masks and grids: a kept weight of a layer on a b-bit
grid takes b bits, any other kept weight BITS_DENSE, a pruned one nothing. Parameters outside the
compressed layers count with BITS_DENSE each. Scales, zero points and the positions of the kept
weights are not counted: they depend on a file format, the ratio C_f of the theory does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from perturb.types import Matrix

BITS_DENSE = 16  # the width that compression ratios are relative to, whatever the dtype


@dataclass(frozen=True)
class Storage:
    """Weights and bits, of the compressed layers and of the whole model.

    parameters: of the model; weights: of these in compressed layers; kept: of the weights, not
    pruned; bits: what the kept weights take.
    """

    parameters: int
    weights: int
    kept: int
    bits: float

    @property
    def sparsity(self) -> float:
        """Pruned fraction of the compressed layers' weights."""
        return 1 - self.kept / self.weights

    @property
    def layers_ratio(self) -> float:
        """Dense bits over compressed bits of the compressed layers alone."""
        return BITS_DENSE * self.weights / self.bits if self.bits else float("inf")

    @property
    def ratio(self) -> float:
        """C = dense bits over compressed bits of the whole model."""
        rest = BITS_DENSE * (self.parameters - self.weights)
        total = rest + self.bits
        return BITS_DENSE * self.parameters / total if total else float("inf")


def storage_of(layers: Mapping[str, Matrix], parameters: int | None = None) -> Storage:
    """Storage of layers in their final state, in a model of so many parameters (default: theirs).

    A quantizer with a free mask may return pruned weights: what is stored follows the mask.
    """
    weights = sum(x.mask.size for x in layers.values())
    kept = {n: int(np.sum(np.asarray(x.mask))) for n, x in layers.items()}
    bits = sum(kept[n] * width(x) for n, x in layers.items())
    return Storage(max(parameters or 0, weights), weights, sum(kept.values()), float(bits))


def width(layer: Matrix) -> int:
    """Bits of a kept weight."""
    return BITS_DENSE if layer.grid is None else int(np.asarray(layer.grid.bits))
