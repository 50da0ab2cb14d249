"""Exact-count selection against sorting, for any scores that a layer may produce."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from perturb.masks import NofM, keep_mask, prune_count, rank_smallest, smallest_k

ROWS, N = 3, 24  # one shape, compiled once
# Values that collide often, with both zeros, infinities, and the ends of the exponent range.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, np.inf, -np.inf, 1e-30, -1e-30, 3e38, -3e38, 1 + 2**-23]
SPECIAL += [1e-40, -1e-40]  # subnormal in float32
jit_smallest = jax.jit(smallest_k)
jit_rank = jax.jit(rank_smallest, static_argnums=1)


def scores(dtype: Any, shape: tuple[int, ...] = (ROWS, N)) -> st.SearchStrategy[np.ndarray]:
    width = np.dtype(dtype).itemsize * 8
    values = st.floats(allow_nan=False, allow_subnormal=False, width=width)  # type: ignore[arg-type]
    return hnp.arrays(dtype, shape, elements=st.one_of(st.sampled_from(SPECIAL), values))


def by_sorting(score: np.ndarray, k: np.ndarray, tie: np.ndarray | None = None) -> np.ndarray:
    """Mark the k[r] smallest of each row by (score, tie, index)."""
    marked = np.zeros(score.shape, bool)
    for r, row in enumerate(score):
        keys = [np.arange(row.size), row + 0] if tie is None else [
            np.arange(row.size), tie[r], row + 0
        ]  # fmt: skip
        marked[r, np.lexsort(keys)[: k[r]]] = True
    return marked


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_smallest_k_is_what_sorting_says(dtype: Any, data: Any) -> None:
    score = data.draw(scores(dtype))
    k = data.draw(hnp.arrays(np.int32, ROWS, elements=st.integers(0, N)))
    tie = data.draw(
        st.one_of(
            st.none(),
            scores(dtype),
            hnp.arrays(np.uint32, (ROWS, N), elements=st.sampled_from([0, 1, 2**31, 2**32 - 1])),
        )
    )
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(jit_smallest(score, k, () if tie is None else [tie]))
    np.testing.assert_array_equal(got.sum(-1), k)
    np.testing.assert_array_equal(got, by_sorting(score, k, None if tie is None else tie + 0))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 100, 1025])
def test_smallest_k_at_every_size_and_end(n: int) -> None:
    score = np.random.default_rng(n).integers(-2, 3, n).astype(np.float32)
    ks = sorted({0, 1, n // 2, n - 1, n})
    got = np.asarray(smallest_k(np.tile(score, (len(ks), 1)), np.array(ks)))
    np.testing.assert_array_equal(got, by_sorting(np.tile(score, (len(ks), 1)), np.array(ks)))


@given(
    score=scores(np.float32, (5, 4)),
    tie=st.one_of(st.none(), scores(np.float32, (5, 4))),
    k=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_ranking_by_pairs_is_the_same_selection(
    score: np.ndarray, tie: np.ndarray | None, k: int
) -> None:
    ties = [] if tie is None else [tie]
    ranked = np.asarray(jit_rank(score, k, ties))
    np.testing.assert_array_equal(ranked, by_sorting(score, np.full(5, k), tie))
    np.testing.assert_array_equal(ranked, np.asarray(jit_smallest(score, np.full(5, k), ties)))


@given(
    keys=hnp.arrays(np.float32, (3, 6, 4), elements=st.sampled_from([-1.0, 0.0, 2.0])),
    k=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_later_key_decides_what_the_earlier_ones_left(keys: np.ndarray, k: int) -> None:
    expected = np.zeros((6, 4), bool)
    for r in range(6):
        expected[r, sorted(range(4), key=lambda i: (*keys[:, r, i], i))[:k]] = True
    score, *ties = keys
    np.testing.assert_array_equal(np.asarray(jit_rank(score, k, ties)), expected)
    np.testing.assert_array_equal(np.asarray(jit_smallest(score, np.full(6, k), ties)), expected)


@given(n=st.integers(0, 2_000_000_000), ppm=st.integers(0, 999_999))
@example(n=100, ppm=290_000)  # float32 floor(100 * 0.29) is 28
@example(n=2_000_000_000, ppm=999_999)
@settings(max_examples=60, deadline=None)
def test_prune_count_is_the_exact_floor(n: int, ppm: int) -> None:
    exact = int(n * Fraction(ppm, 1_000_000))
    assert int(prune_count(n, ppm / 1_000_000)) == exact
    assert int(prune_count(n, jnp.float32(ppm / 1_000_000))) == exact


@given(
    score=hnp.arrays(np.float32, (4, 12), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])),
    already=hnp.arrays(bool, (4, 12)),
    sparsity=st.sampled_from([0.0, 0.25, 0.5, 0.77, 0.99]),
    scope=st.sampled_from(["layer", "row", NofM(1, 4), NofM(2, 3)]),
)
@settings(max_examples=60, deadline=None)
def test_a_mask_is_never_undone_and_counts_what_was_there(
    score: np.ndarray, already: np.ndarray, sparsity: float, scope: str | NofM
) -> None:
    keep = np.asarray(keep_mask(score, sparsity, scope, already=already))
    assert not np.any(keep & ~already)
    if isinstance(scope, NofM):
        shape, k = (-1, scope.m), scope.m - scope.n
    else:
        shape = (-1, 12) if scope == "row" else (-1, 48)
        k = int(prune_count(shape[1], sparsity))
    gone, before = (~keep).reshape(shape).sum(-1), (~already).reshape(shape).sum(-1)
    np.testing.assert_array_equal(gone, np.maximum(before, k))


def test_n_of_m_keeps_n_and_refuses_nonsense() -> None:
    assert NofM(1, 4).sparsity == 0.75
    for n, m in ((0, 4), (4, 4), (5, 4)):
        with pytest.raises(ValueError, match=f"{n}:{m}"):
            NofM(n, m)
