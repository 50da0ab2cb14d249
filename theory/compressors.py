"""The one place where theory calls the compressors of perturb: one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from perturb import RTN, Magnitude
from perturb.state import fresh
from perturb.trees import register_tree
from perturb.types import Matrix, Moments, Problem, Solved


def start(weight: Array, kept: Array | None = None) -> Matrix:
    """A matrix [out, in] that nothing has been done to yet, or (kept) one that has been pruned."""
    matrix = fresh(weight)
    return matrix if kept is None else matrix._replace(weight=kept * weight, mask=kept > 0)


def compress(
    method: Callable[..., Solved], matrix: Matrix, reference: Array, inputs: Moments | None = None
) -> Matrix:
    """The matrix after one method, none of which draws anything here.

    reference [out, in]: the dense weight that it stands for; inputs: moments of what it is applied
    to, where the method asks for them.
    """
    return method(matrix, Problem(reference, inputs), jax.random.key(0)).matrix


def names(bits: Sequence[int], sparsities: Sequence[float]) -> tuple[str, ...]:
    """What :func:`compressed` calls its settings, in its order."""
    return (*(f"RTN {b}" for b in bits), *(f"magnitude {100 * p:.0f} %" for p in sparsities))


def compressed(w: Array, bits: Sequence[int], sparsities: Sequence[float]) -> Array:
    """One matrix [out, in] rounded to nearest (a scale a row) and pruned by magnitude (over the
    layer), at every setting: [len(bits) + len(sparsities), out, in]."""
    done = [
        jax.vmap(lambda m: compress(m, start(w), w).weight)(methods)
        for methods in (RTN(jnp.array(bits)), Magnitude(jnp.array(sparsities)))
    ]
    return jnp.concatenate(done)


@register_tree
@dataclass(frozen=True)
class LowRank:
    """The nearest matrix of rank r to the current weight (Frobenius), then masked again.

    rank: may be traced. The result lies on no grid.
    """

    rank: int | Array

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        u, s, v = jnp.linalg.svd(matrix.weight, full_matrices=False)
        near = (u * jnp.where(jnp.arange(s.shape[0]) < self.rank, s, 0)) @ v
        return Solved(matrix._replace(weight=jnp.where(matrix.mask, near, 0), grid=None), None)
