"""What a compressed model takes to store: the only source of every compression ratio.

Counted are the weights alone, by the final masks and grids: a kept weight of a layer on a b-bit
grid takes b bits, any other kept weight BITS_DENSE, a pruned one nothing. Parameters outside the
compressed layers count with BITS_DENSE each. Scales, zero points and the positions of the kept
weights are not counted: they depend on a file format, the ratio C_f of the theory does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from perturb.state import State, uses
from perturb.types import Array, Matrix

BITS_DENSE = 16  # the width that compression ratios are relative to, whatever the dtype


@dataclass(frozen=True)
class Storage:
    """Weights and bits, of the compressed layers and of the whole model.

    parameters: of the dense model; weights: of these in compressed layers; kept: weights that are
    stored for these layers, neither pruned nor removed; bits: what they take; removed: other
    parameters that are gone (biases of dropped units, say).
    """

    parameters: int
    weights: int
    kept: int
    bits: float
    removed: int = 0

    @property
    def sparsity(self) -> float:
        """Fraction of the compressed layers' weights that is not stored."""
        return 1 - self.kept / self.weights

    @property
    def layers_ratio(self) -> float:
        """Dense bits over compressed bits of the compressed layers alone."""
        return BITS_DENSE * self.weights / self.bits if self.bits else float("inf")

    @property
    def ratio(self) -> float:
        """C = dense bits over compressed bits of the whole model."""
        rest = BITS_DENSE * (self.parameters - self.weights - self.removed)
        total = rest + self.bits
        return BITS_DENSE * self.parameters / total if total else float("inf")


def storage_of(
    state: State, shapes: Mapping[str, tuple[int, int]], parameters: int | None = None
) -> Storage:
    """Storage of a single version (:func:`storages_of`)."""
    return storages_of(jax.tree.map(lambda a: a[None], state), shapes, parameters)[0]


def storages_of(
    state: State, shapes: Mapping[str, tuple[int, int]], parameters: int | None = None
) -> list[Storage]:
    """Storage of every version [R] of a state; shapes: of the dense layers, (out, in).

    parameters: of the dense model (default: those of the layers). A matrix that several layers
    are made of is stored once. A quantizer with a free mask may return pruned weights: what is
    stored follows the mask.
    """
    stored = {n: state.matrices[n] for n in uses(state, shapes) if n in state.matrices}
    masks = {n: m.mask for n, m in stored.items()}
    counts, widths, gone = jax.device_get(
        (_counts(masks), {n: width(m) for n, m in stored.items()}, _gone(dict(state.kept)))
    )
    counted = {n: (k, np.broadcast_to(widths[n], np.shape(k))) for n, k in counts.items()}
    weights = sum(map(math.prod, shapes.values()))
    sizes = [np.shape(a)[0] for a in jax.tree.leaves((counted, gone))]
    found = []
    for r in range(sizes[0] if sizes else 1):
        kept = {n: int(k[r]) for n, (k, _) in counted.items()}
        bits = sum(kept[n] * int(width[r]) for n, (_, width) in counted.items())
        removed = sum(int(g[r]) for g in gone.values())
        total = max(parameters or 0, weights)
        found.append(Storage(total, weights, sum(kept.values()), float(bits), removed))
    return found


def width(matrix: Matrix) -> Array | int:
    """Bits of a kept weight, of each version."""
    return BITS_DENSE if matrix.grid is None else matrix.grid.bits


@jax.jit
def _counts(masks: Mapping[str, Array]) -> dict[str, Array]:
    """Of matrices [R, out, in], the kept weights."""
    return {n: jnp.sum(m, (-2, -1), dtype=jnp.int32) for n, m in masks.items()}


@jax.jit
def _gone(kept: Mapping[str, Array]) -> dict[str, Array]:
    return {n: jnp.sum(~k, -1, dtype=jnp.int32) for n, k in kept.items()}
