"""Factorisations under ``jax.vmap`` that come to an end on a CPU of few cores.

jaxlib 0.10.2 hands a BATCH of LAPACK's problems to its thread pool and has the thread that asked
wait for them. That thread is one of the pool's: once as many batches are under way as the pool
has threads (two, on two cores) nobody is left to work on them: the program stands still for ever.
Problems that come one after another never wait; LAPACK takes its time on each anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax


def one_by_one(solve: Callable[..., Any]) -> Callable[..., Any]:
    """The function of arrays as it is, but that ``jax.vmap`` makes a loop of it on CPUs."""

    @jax.custom_batching.custom_vmap
    def alone(*arrays: Any) -> Any:
        return solve(*arrays)

    @alone.def_vmap
    def batched(size: int, which: list[bool], *arrays: Any) -> tuple[Any, Any]:
        axes = tuple(0 if has else None for has in which)

        def loop(*arrays: Any) -> Any:
            def body(mine: tuple[Any, ...]) -> Any:
                left = iter(mine)
                pairs = zip(which, arrays, strict=True)
                return alone(*(next(left) if has else array for has, array in pairs))

            return lax.map(body, tuple(a for has, a in zip(which, arrays, strict=True) if has))

        found = lax.platform_dependent(*arrays, cpu=loop, default=jax.vmap(solve, axes))
        return found, jax.tree.map(lambda _: True, found)

    return alone


@one_by_one
def cholesky(matrix: Any) -> Any:
    """``L`` of ``L L^T``, from the lower half of the matrix [n, n]; NaN where there is none."""
    return lax.linalg.cholesky(matrix, symmetrize_input=False)


@one_by_one
def solve_lower(lower: Any, right: Any) -> Any:
    """``L^-1 B``; L [n, n], B [n, m]."""
    return lax.linalg.triangular_solve(lower, right, left_side=True, lower=True)


@one_by_one
def solve_lower_transposed(lower: Any, right: Any) -> Any:
    """``L^-T B``; L [n, n], B [n, m]."""
    return lax.linalg.triangular_solve(lower, right, left_side=True, lower=True, transpose_a=True)


@one_by_one
def solve_upper(upper: Any, right: Any) -> Any:
    """``U^-1 B``; U [n, n], B [n, m]."""
    return lax.linalg.triangular_solve(upper, right, left_side=True, lower=False)
