"""What a compression stage receives, and what it hands to the next one.

Shapes: a layer is a matrix ``weight [out, in]`` applied as ``y = W x``; convolutions and
einsums are brought to this form by :mod:`perturb.modules`. Everything here is a pytree of
arrays, so every stage can be jitted, and vmapped over layers of one shape or over variants.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array


class Grid(NamedTuple):
    """The lattice ``w = scale * (code - zero)``, ``code`` an integer in ``[0, 2**bits - 1]``.

    A symmetric signed grid ``-2**(b-1) .. 2**(b-1)-1`` is the case ``zero = 2**(b-1)``.
    Column ``j`` of a layer with ``in`` columns belongs to group ``j // (in / groups)``.
    """

    scale: Array  # [out, groups], > 0
    zero: Array  # [out, groups], integer-valued
    bits: Array  # [], integer 2..16


class Layer(NamedTuple):
    """One layer on its way through a chain of stages.

    ``dense`` never changes: it is what reference-aware stages, dense scale sources and the
    dense tie rule look at. ``grid is None`` means that the weights lie on no grid.
    """

    weight: Array  # [out, in], the simulated dense value after the stages so far
    mask: Array  # [out, in] bool, True = kept
    grid: Grid | None
    dense: Array  # [out, in], the weight before the first stage


class LayerStats(NamedTuple):
    """Second moments of a layer's inputs, as sums: merging two batches is addition."""

    gram: Array  # [in, in], sum over tokens of x x^T, float32 at least
    count: Array  # type: ignore[assignment]  # [], number of tokens summed

    def __add__(self, other: LayerStats) -> LayerStats:  # type: ignore[override]
        return LayerStats(self.gram + other.gram, self.count + other.count)


class SolveReport(NamedTuple):
    """What a second-order solver did to a layer's Hessian (diagnostics, never silent)."""

    damping: Array  # [], fraction of mean(diag H) finally added to the diagonal
    retries: Array  # [], times the damping was raised because the Hessian was not definite
    dead: Array  # [], columns whose input was always zero


class StageResult(NamedTuple):
    layer: Layer
    report: SolveReport | None


@runtime_checkable
class LayerCompressor(Protocol):
    """A compression method on one matrix: an immutable value, itself a pytree.

    ``sparsity`` and ``bits`` are leaves, so one compiled program serves every ratio and bit
    width, and ``vmap`` over stacked compressors is a family that shares the layer's work.
    """

    @property
    def name(self) -> str: ...

    @property
    def ratio(self) -> float:
        """C_f = dense bits / compressed bits, with 16-bit dense weights."""
        ...

    @property
    def granularity(self) -> str: ...

    @property
    def needs_stats(self) -> bool:
        """Whether the method looks at the layer's inputs at all."""
        ...

    def __call__(self, layer: Layer, stats: LayerStats | None, key: Array) -> StageResult: ...


@runtime_checkable
class ModelCompressor(LayerCompressor, Protocol):
    """A method that has to see all layers at once (a global ranking, say)."""

    def on_model(
        self,
        layers: dict[str, Layer],
        stats: dict[str, LayerStats] | None,
        keys: dict[str, Array],
    ) -> dict[str, StageResult]: ...
