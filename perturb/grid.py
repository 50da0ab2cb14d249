"""Quantization grids: how a scale is fitted, and rounding to the nearest point.

Every grid is ``w = scale * (code - zero)`` with ``code`` in ``[0, 2^b - 1]`` (:class:`Grid`).
Two conventions for the symmetric scale live in the field and differ at low bits:

    "half"   absmax / (2^(b-1) - 1/2)   GPTQ's code, compressed-tensors, qwix
    "full"   absmax / (2^(b-1) - 1)     QuaRot, OBR

Asymmetric grids span [min(0, w_min), max(0, w_max)]. So 0 is on the grid and a pruned weight stays
exactly 0, with one exception, which exists to ask what 0 is there for:

    "midrise"  the steps of "half", moved by half a step: +-s/2, +-3s/2, ..., +-absmax, all 2^b of
               them, and no 0 (zero = 2^(b-1) - 1/2). What a mask removed stays 0 by the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from perturb.types import Array, Grid

MSE_STEPS = 100  # clip search of the GPTQ reference: 100 steps of shrinking,
MSE_MAX_SHRINK = 0.8  # down to 1 - 0.8 of the range,
MSE_NORM = 2.4  # by the 2.4-norm
# Steps beyond the end of a grid from which on a weight has outgrown it. Half a step is what
# rounding may move it; the "half" convention has a group's absmax exactly there.
OUTGROWN = 0.51


@dataclass(frozen=True)
class GridSpec:
    """How to lay a grid over a matrix (static: part of what is compiled).

    per: "tensor", "row", or a group size along the input; clip: "absmax" or "mse".
    """

    symmetric: bool = True
    per: str | int = "row"
    clip: Literal["absmax", "mse"] = "absmax"
    convention: Literal["half", "full", "midrise"] = "half"

    def __post_init__(self) -> None:
        if self.per not in ("tensor", "row") and not (isinstance(self.per, int) and self.per > 0):
            raise ValueError(f"per must be 'tensor', 'row' or a group size > 0, got {self.per!r}")
        if self.clip not in ("absmax", "mse"):
            raise ValueError(f"clip must be 'absmax' or 'mse', got {self.clip!r}")
        if self.convention not in ("half", "full", "midrise"):
            raise ValueError(
                f"convention must be 'half', 'full' or 'midrise', got {self.convention!r}"
            )
        if self.convention == "midrise" and not self.symmetric:
            raise ValueError("convention 'midrise' is a symmetric grid: leave symmetric=True")

    def groups(self, n_in: int) -> int:
        """Number of groups along an input of width n_in."""
        return n_in // self.per if isinstance(self.per, int) else 1

    def __str__(self) -> str:
        per = f"group of {self.per}" if isinstance(self.per, int) else str(self.per)
        return f"per {per}"


def top_code(bits: Array) -> Array:
    """2^b - 1, exactly (exp2 is only approximate on some devices)."""
    return ((jnp.asarray(1, jnp.int32) << jnp.asarray(bits, jnp.int32)) - 1).astype(jnp.float32)


def nearest_integer(t: Array) -> Array:
    """Round half to even, where t within 8 ulp of a half is that half.

    Ties here are structural: with the "half" convention the largest weight of a group always
    lies half way between two codes. Division differs in its last bit from compiler to compiler
    (XLA turns w / s into w (1/s)), and must not decide such a tie.
    """
    half = jnp.round(2 * t) / 2
    snap = jnp.abs(t - half) <= 8 * jnp.finfo(t.dtype).eps * jnp.abs(t)
    return jnp.round(jnp.where(snap, half, t))


def _scale_zero(
    lo: Array, hi: Array, bits: Array, spec: GridSpec, dtype: jnp.dtype
) -> tuple[Array, Array]:
    top = top_code(bits).astype(dtype)
    half = (top + 1) / 2
    if spec.symmetric:
        absmax = jnp.maximum(-lo, hi)
        scale = absmax / (half - (1.0 if spec.convention == "full" else 0.5))
        center = half - 0.5 if spec.convention == "midrise" else half
        zero = jnp.broadcast_to(center, scale.shape)
    else:
        scale = (hi - lo) / top
        zero = nearest_integer(-lo / jnp.where(scale > 0, scale, 1))
    # A group of zeros has no scale of its own: any will do that has a 0, and 1 is the reference's
    # choice; without a 0, the smallest.
    none = jnp.finfo(dtype).tiny if spec.convention == "midrise" else 1
    return jnp.where(scale > 0, scale, none), zero


def round_to(w: Array, scale: Array, zero: Array, top: Array) -> Array:
    """The nearest grid point (see :func:`nearest_integer`); all arguments broadcast."""
    whole = jnp.floor(zero)  # what is left of it is 0, or 1/2 of a grid without 0
    code = jnp.clip(nearest_integer(w / scale + (zero - whole)) + whole, 0, top)
    return scale * (code - zero)


def fit_ranges(w: Array, bits: Array, spec: GridSpec) -> tuple[Array, Array]:
    """Scale and zero point [...] of populations w [..., n], each with its own range.

    bits broadcasts against [...].
    """
    lo = jnp.minimum(jnp.min(w, -1), 0)
    hi = jnp.maximum(jnp.max(w, -1), 0)
    if spec.clip == "absmax":
        return _scale_zero(lo, hi, bits, spec, w.dtype)
    top = top_code(bits).astype(w.dtype)

    def shrink(best: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        best_err, best_p = best
        p = (1 - i / MSE_STEPS).astype(w.dtype)
        scale, zero = _scale_zero(p * lo, p * hi, bits, spec, w.dtype)
        q = round_to(w, scale[..., None], zero[..., None], top[..., None])
        err = jnp.sum(jnp.abs(q - w) ** MSE_NORM, -1)
        better = err < best_err
        return (jnp.where(better, err, best_err), jnp.where(better, p, best_p)), None

    start = (jnp.full(lo.shape, jnp.inf, w.dtype), jnp.ones(lo.shape, w.dtype))
    (_, p), _ = jax.lax.scan(shrink, start, jnp.arange(int(MSE_MAX_SHRINK * MSE_STEPS)))
    return _scale_zero(p * lo, p * hi, bits, spec, w.dtype)


def excess(w: Array, scale: Array, zero: Array, top: Array) -> Array:
    """How far the farthest of the weights w [..., n] lies beyond the ends of a grid [...]."""
    beyond = jnp.maximum(jnp.max(w, -1) - scale * (top - zero), scale * (0 - zero) - jnp.min(w, -1))
    return jnp.maximum(beyond, 0)


def relaid(grid: Grid, new: Grid, w: Array, spec: GridSpec, fitted_to: Array | None = None) -> Grid:
    """``grid``, with the scales of ``new`` in the groups that the weights w [out, in] outgrew.

    A group has outgrown its grid where a weight lies more than OUTGROWN steps beyond the grid's
    end, so that rounding would clip it, and farther than any weight did that the grid was
    ``fitted_to`` (a clip that the fit chose is none of compensation's doing).
    """
    top = top_code(grid.bits).astype(w.dtype)

    def beyond(x: Array) -> Array:
        return excess(x.reshape(*grid.scale.shape, -1), grid.scale, grid.zero, top)

    allowed = OUTGROWN * grid.scale
    if fitted_to is not None:
        allowed = jnp.maximum(allowed, 2 * OUTGROWN * beyond(fitted_to))
    outgrown = beyond(w) > allowed
    if spec.per == "tensor":
        outgrown = jnp.broadcast_to(jnp.any(outgrown), outgrown.shape)
    return grid._replace(
        scale=jnp.where(outgrown, new.scale, grid.scale),
        zero=jnp.where(outgrown, new.zero, grid.zero),
    )


def fit_grid(w: Array, bits: Array | int, spec: GridSpec) -> Grid:
    """The grid of a matrix w [out, in]."""
    out, n_in = w.shape
    bits = jnp.asarray(bits, jnp.int32)
    if spec.per == "tensor":
        scale, zero = fit_ranges(w.reshape(-1), bits, spec)
        scale, zero = (jnp.broadcast_to(a, (out, 1)) for a in (scale, zero))
    else:
        groups = spec.groups(n_in)
        scale, zero = fit_ranges(w.reshape(out, groups, n_in // groups), bits, spec)
    return Grid(scale, zero, bits)


def expand(grid: Grid, n_in: int) -> tuple[Array, Array]:
    """Scale and zero point of every weight, [out, in]."""
    times = n_in // grid.scale.shape[-1]
    return jnp.repeat(grid.scale, times, -1), jnp.repeat(grid.zero, times, -1)


def round_to_grid(w: Array, grid: Grid) -> Array:
    """Nearest point of the grid for each weight [out, in]."""
    scale, zero = expand(grid, w.shape[-1])
    return round_to(w, scale, zero, top_code(grid.bits).astype(w.dtype))
