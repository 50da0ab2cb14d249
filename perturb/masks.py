"""Which weights go: exact-count masks with one stated tie rule.

A mask never holds "score <= threshold": after quantization most scores tie, and a threshold
asked for 50 % of a 3-bit layer removes 85 %. Here a mask removes the k smallest entries of the
lexicographic key (score, tie keys, flat index), so the count is exact whatever ties.

The k-th smallest key is found by building it bit by bit (a radix descent): every bit costs one
linear pass of compare-and-count, which vectorises, vmaps and takes a traced k. A sort of the
same array is an order of magnitude slower in XLA on a CPU, and cannot be batched by row cheaply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from perturb.types import Array

TieRule = Literal["index", "random", "dense"]
TIE_RULES: tuple[TieRule, ...] = ("index", "random", "dense")


@dataclass(frozen=True)
class NofM:
    """Semi-structured sparsity: of every m neighbours along the input, n are KEPT."""

    n: int
    m: int

    def __post_init__(self) -> None:
        if not (0 < self.n < self.m):
            raise ValueError(f"N:M sparsity keeps N of M weights: 0 < N < M, got {self.n}:{self.m}")

    @property
    def sparsity(self) -> float:
        return (self.m - self.n) / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def prune_count(n: int | Array, sparsity: Array | float) -> Array:
    """``floor(n * sparsity)`` exactly, for a traced sparsity rounded to 6 decimals.

    In float32 ``floor(100 * 0.29)`` is 28. The product is formed in integers instead, in two
    base-1000 digits so that nothing leaves int32 for n up to 2e9.
    """
    ppm = jnp.round(jnp.asarray(sparsity) * 1e6).astype(jnp.int32)
    hi, lo = ppm // 1000, ppm % 1000
    n_hi, n_lo = divmod(n, 1000)
    whole = n_hi * hi + (n_lo * hi) // 1000
    rest = (n_lo * hi) % 1000 + n_hi * lo + (n_lo * lo) // 1000
    return whole + rest // 1000


def _ordered_bits(x: Array) -> Array:
    """Unsigned integers in the order of the floats x (with -0 = 0).

    In integers throughout: XLA drops the textbook's ``x + 0``, and flushes subnormals at times.
    """
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return x
    width = jnp.finfo(x.dtype).bits
    unsigned = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}[width]
    bits = jax.lax.bitcast_convert_type(x, unsigned)
    sign = jnp.asarray(1, unsigned) << (width - 1)
    bits = jnp.where(bits == sign, jnp.zeros_like(bits), bits)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _kth_smallest(key: Array, candidates: Array, k: Array, n_bits: int | Array) -> Array:
    """The k-th smallest (k >= 1) of ``key[candidates]`` along the last axis; key unsigned."""

    def descend(i: Array, found: Array) -> Array:
        bit = jnp.asarray(n_bits - 1 - i).astype(key.dtype)
        trial = found | (jnp.asarray(1, key.dtype) << bit)
        below = jnp.sum(candidates & (key < trial), axis=-1, keepdims=True, dtype=jnp.int32)
        return jnp.where(below < k, trial, found)

    start = jnp.zeros((*key.shape[:-1], 1), key.dtype)
    return jax.lax.fori_loop(0, n_bits, descend, start)


def smallest_k(score: Array, k: Array | int, ties: Sequence[Array] = ()) -> Array:
    """Mark exactly the k smallest entries along the last axis.

    score: [..., n] floats without nan; k: [...] counts, 0 <= k <= n, may be traced;
    ties: [..., n] each (floats or unsigned integers), what equal scores go by, the first first.
    What still ties goes by index, lowest first. Returns bool [..., n] with ``sum(-1) == k``.
    """
    n = score.shape[-1]
    left = jnp.broadcast_to(jnp.asarray(k, jnp.int32), score.shape[:-1])[..., None]
    index = jnp.broadcast_to(jnp.arange(n, dtype=jnp.uint32), score.shape)
    keys = [_ordered_bits(score), *map(_ordered_bits, ties), index]
    chosen = jnp.zeros(score.shape, bool)
    candidates = jnp.ones(score.shape, bool)
    for key in keys:
        n_bits = max(1, math.ceil(math.log2(n + 1))) if key is index else key.dtype.itemsize * 8
        # a key is looked at only where those before it left a choice
        number = jnp.sum(candidates, axis=-1, keepdims=True, dtype=jnp.int32)
        tied = jnp.any((left > 0) & (left < number))
        kth = _kth_smallest(key, candidates, left, jnp.where(tied, n_bits, 0))
        below = candidates & (key < kth)
        chosen |= below
        left = left - jnp.sum(below, axis=-1, keepdims=True, dtype=jnp.int32)
        candidates &= ~tied | (key == kth)
    return chosen | (candidates & (left > 0))


def rank_smallest(score: Array, k: int, ties: Sequence[Array] = ()) -> Array:
    """:func:`smallest_k` for a short last axis (N:M groups): ranks by pairwise comparison."""
    i = jnp.arange(score.shape[-1])
    before = i[:, None] > i[None, :]  # [j, l]: l stands before j
    for key in (*reversed(ties), score):
        bits = _ordered_bits(key)
        j, other = bits[..., :, None], bits[..., None, :]
        before = (other < j) | ((other == j) & before)
    return jnp.sum(before, axis=-1) < k


def dead_first(score: Array, size: Array, dead: Array) -> Array:
    """The scores (>= 0), but below all of them for weights of dead inputs, ordered by their size.

    An input that calibration never moves says nothing of its weights, and removing one costs
    nothing there. It may cost elsewhere: the smallest |w| go first, and two masks of a model that
    was hardly changed in between differ hardly.
    """
    return jnp.where(dead, -1 / jnp.maximum(size, jnp.finfo(size.dtype).tiny), score)


def tie_key(rule: TieRule, reference: Array, key: Array) -> Array | None:
    """The second key of a matrix's weights [out, in]: none, random, or the dense magnitude."""
    if rule == "index":
        return None
    if rule == "random":
        return jax.random.bits(key, reference.shape, jnp.uint32)
    return jnp.abs(reference)


def keep_mask(
    score: Array,
    sparsity: Array | float,
    scope: str | NofM,
    *,
    already: Array,
    ties: Sequence[Array] = (),
) -> Array:
    """The keep mask [out, in] that removes the smallest scores of a layer.

    scope: "layer" (k = floor(s out in) of the whole matrix), "row" (k = floor(s in) of every
    row) or :class:`NofM`. Weights already removed (``already`` False) score -inf: they are
    removed first, count towards k, and never return.
    """
    out, n_in = score.shape
    score = jnp.where(already, score, -jnp.inf)
    if isinstance(scope, NofM):
        shape: tuple[int, ...] = (out, n_in // scope.m, scope.m)
        gone = rank_smallest(
            score.reshape(shape), scope.m - scope.n, [t.reshape(shape) for t in ties]
        )
    else:
        shape = (out, n_in) if scope == "row" else (out * n_in,)
        gone = smallest_k(
            score.reshape(shape), prune_count(shape[-1], sparsity), [t.reshape(shape) for t in ties]
        )
    return already & ~gone.reshape(out, n_in)
