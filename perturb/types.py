"""What a compression stage receives, and what it hands to the next one.

Shapes: a layer is a matrix ``weight [out, in]`` applied as ``y = W x``; convolutions and
einsums are brought to this form by :mod:`perturb.network`. Everything here is a pytree of
arrays, so every stage can be jitted, and vmapped over layers of one shape or over variants.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Array = jax.Array


class Grid(NamedTuple):
    """The lattice ``w = scale * (code - zero)``, ``code`` an integer in ``[0, 2**bits - 1]``.

    A symmetric signed grid ``-2**(b-1) .. 2**(b-1)-1`` is the case ``zero = 2**(b-1)``.
    Column ``j`` of a layer with ``in`` columns belongs to group ``j // (in / groups)``.
    """

    scale: Array  # [out, groups], > 0
    zero: Array  # [out, groups], integer-valued; of a grid without 0, half an odd number
    bits: Array  # [], integer 2..16


class Matrix(NamedTuple):
    """One matrix on its way through a chain of stages. ``grid is None``: it lies on no grid."""

    weight: Array  # [out, in], the simulated dense value after the stages so far
    mask: Array  # [out, in] bool, True = kept
    grid: Grid | None = None
    quantizer: Any = None  # the method that laid ``grid``: a later stage may lay a new one by it


class Moments(NamedTuple):
    """Moments of a layer's inputs x over its tokens; merging two batches is addition.

    The second moment is kept about the mean, ``sum x x^T = scatter + count mean mean^T``: an
    error dW mostly avoids the mean direction of its inputs, and float32 sums of x x^T would drown
    what is left where the mean is large. ``mean=None`` stands for a mean of 0.

    Of a convolution in groups every leaf has an axis [groups] in front, behind those of versions:
    each group has inputs of its own.
    """

    scatter: Array  # [in, in], sum over tokens of (x - mean)(x - mean)^T, float32 at least
    count: Array  # type: ignore[assignment]  # [], tokens, or the sum of their weights
    mean: Array | None = None  # [in]

    @property
    def gram(self) -> Array:
        """``sum x x^T`` [..., in, in]."""
        if self.mean is None:
            return self.scatter
        outer = self.mean[..., :, None] * self.mean[..., None, :]
        return self.scatter + self.count[..., None, None] * outer

    @property
    def energy(self) -> Array:
        """``E x_j^2`` [..., in]; 0 where there was no token."""
        square = jnp.diagonal(self.scatter, axis1=-2, axis2=-1)
        share = 1 / jnp.where(self.count > 0, self.count, 1)
        mean = 0 if self.mean is None else self.mean**2
        return square * share[..., None] + mean

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]
        """Moments of both sets of tokens (Chan, Golub, LeVeque 1983)."""
        count = self.count + other.count
        if self.mean is None and other.mean is None:
            return Moments(self.scatter + other.scatter, count)
        a, b = (
            jnp.zeros(s.scatter.shape[:-1]) if s.mean is None else s.mean for s in (self, other)
        )
        share = other.count / jnp.where(count > 0, count, 1)
        step = b - a
        between = (self.count * share)[..., None, None] * step[..., :, None] * step[..., None, :]
        return Moments(self.scatter + other.scatter + between, count, a + share[..., None] * step)


class Problem(NamedTuple):
    """What a method reads and never changes: what a matrix stands for, and what it acts on."""

    reference: Array  # [out, in], the weight that is approximated: before the first stage
    inputs: Moments | None = None


class SolveReport(NamedTuple):
    """What a second-order solver did to a layer's Hessian (diagnostics, never silent)."""

    damping: Array  # [], fraction of mean(diag H) finally added to the diagonal
    retries: Array  # [], times the damping was raised because the Hessian was not definite
    dead: Array  # [], columns whose input was always zero


class Solved(NamedTuple):
    matrix: Matrix
    report: SolveReport | None


@runtime_checkable
class MatrixMethod(Protocol):
    """A compression method on one matrix: an immutable value, itself a pytree.

    ``sparsity`` and ``bits`` are leaves, so one compiled program serves every ratio and bit
    width, and ``vmap`` over stacked methods is a family that shares the layer's work.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_stats(self) -> bool:
        """Whether the method looks at the matrix's inputs at all."""
        ...

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved: ...


@runtime_checkable
class WholeModelMethod(MatrixMethod, Protocol):
    """A method that has to see all matrices at once (a global ranking, say)."""

    def on_model(
        self,
        matrices: dict[str, Matrix],
        problems: dict[str, Problem],
        keys: dict[str, Array],
    ) -> dict[str, Solved]: ...
