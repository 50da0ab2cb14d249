"""Low rank: every layer's weight as a product of two thin matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from perturb.architecture import Architecture
from perturb.registry import SHOWN
from perturb.stage import Outcome, Sight, check_single, matching
from perturb.state import FACTORS, State
from perturb.types import Matrix, Moments

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
DAMP = 0.01  # of the mean of diag H: inputs that calibration did not show still count a little


@dataclass(frozen=True)
class LowRank:
    """Objective: ``W [out, in] -> U V`` of rank r, the nearest to W in ``||W - U V||_F``, or, with
    ``whiten``, in ``E||(W - U V) x||^2`` over the inputs that calibration shows.

    ratio: the fraction of a layer's weights that goes at least, ``r = floor((1 - ratio) out in /
    (out + in))``, 1 or more. Plain: ``U = A s^(1/2)``, ``V = s^(1/2) B^T`` of the singular value
    decomposition ``W = A s B^T`` cut at r. Whitened: of ``W H^(1/2)``, ``V`` times ``H^(-1/2)``,
    H = E[x x^T] plus DAMP of its mean diagonal. The factors are matrices of their own, ``NAME.u``
    and ``NAME.v``, on which later stages work; rows and columns that were dropped stay so in them.
    A product has no zeros and lies on no grid: pruned weights come back and a grid is left, which
    is refused unless ``release=True``.
    Solved in float64 on the host. What is cut is ``sum of s_i^2, i > r`` (Eckart and Young 1936),
    in the chosen norm.
    Source: Wang et al., ICLR 2025 (SVD-LLM, arXiv 2403.07378), with a symmetric root of H in place
    of its Cholesky factor (the same product U V).
    """

    ratio: float = 0.2
    whiten: bool = False
    where: str = "*"
    release: bool = False

    name: ClassVar[str] = "lowrank"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def needs_stats(self) -> bool:
        return self.whiten

    def rank(self, shape: tuple[int, int]) -> int:
        """Of a layer [out, in]."""
        return rank_of(self.ratio, shape)

    def layers(self, architecture: Architecture) -> list[str]:
        return matching(architecture, self.where, self.name)

    def check(self, architecture: Architecture) -> None:
        architecture.check_groupless(self.layers(architecture), self.name)

    def on_state(self, state: State, context: Sight) -> Outcome:
        names = self.layers(context.architecture)
        check_single(state, names, context.architecture, self.name)
        held = jax.device_get({n: state.matrices[n] for n in names})
        if not self.release:
            check_kept(held, self.name)
        moments = context.moments if self.whiten else {}
        for name, matrix in held.items():
            made = factors_of(matrix, self.rank(matrix.weight.shape), moments.get(name))
            pair = {f"{name}{end}": m for end, m in zip(FACTORS, made, strict=True)}
            state = state.with_matrices(pair).with_terms(name, (tuple(pair),))
        return Outcome(state)


def check_ratio(ratio: object) -> None:
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), got {ratio!r}")


def rank_of(ratio: float, shape: tuple[int, int]) -> int:
    """The largest rank whose factors of a matrix [out, in] save that fraction of it; 1 or more."""
    out, n_in = shape
    return max(1, int((1 - ratio) * out * n_in / (out + n_in) + 1e-9))


def _dropped(matrix: Matrix) -> tuple[Bools, Bools]:
    """Rows [out] and columns [in] of which anything is left."""
    mask = np.asarray(matrix.mask)
    return np.any(mask, axis=1, keepdims=True), np.any(mask, axis=0, keepdims=True)


def check_kept(held: Mapping[str, Matrix], stage: str) -> None:
    """Refuse to lose the grids, or the masks that are no whole rows and columns, of these."""
    laid = [n for n, m in held.items() if m.grid is not None]
    cut = []
    for n, m in held.items():
        rows, columns = _dropped(m)
        cut += [n] if np.any(np.asarray(m.mask) != (rows & columns)) else []
    for what, names in (("grid", laid), ("mask", cut)):
        if names:
            told = ", ".join(names[:SHOWN])
            raise ValueError(
                f"{stage} would destroy the {what} of {len(names)} matrices ({told}): put it "
                "first, or allow that with release=True"
            )


class _Root(NamedTuple):
    """``H^(1/2)`` and its inverse [in, in]."""

    root: Floats
    inverse: Floats


def _root(moments: Moments) -> _Root:
    h: Floats = np.asarray(jax.device_get(moments.gram), np.float64)
    h = h / max(float(moments.count), 1.0)
    mean = float(np.trace(h)) / len(h) or 1.0
    damped = h + DAMP * mean * np.eye(len(h))
    values, vectors = np.linalg.eigh(damped)
    values = np.sqrt(np.maximum(values, values[-1] * 1e-12))
    return _Root((vectors * values) @ vectors.T, (vectors / values) @ vectors.T)


def factors_of(matrix: Matrix, rank: int, moments: Moments | None) -> tuple[Matrix, Matrix]:
    """U [out, rank] and V [rank, in]; moments: whiten with these."""
    dtype = matrix.weight.dtype
    weight = np.asarray(matrix.weight, np.float64)
    whitened = None if moments is None else _root(moments)
    scaled = weight if whitened is None else weight @ whitened.root
    a, s, b = np.linalg.svd(scaled, full_matrices=False)
    spread = np.sqrt(s[:rank])
    u, v = a[:, :rank] * spread, spread[:, None] * b[:rank]
    if whitened is not None:
        v = v @ whitened.inverse
    rows, columns = _dropped(matrix)
    u_mask = np.broadcast_to(rows, u.shape)
    v_mask = np.broadcast_to(columns, v.shape)
    return (
        Matrix(jnp.asarray(np.where(u_mask, u, 0), dtype), jnp.asarray(u_mask)),
        Matrix(jnp.asarray(np.where(v_mask, v, 0), dtype), jnp.asarray(v_mask)),
    )
