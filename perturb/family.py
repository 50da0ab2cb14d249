"""A family of methods on versions of matrices: few programs, shared work.

``run_family(methods, matrices, problems, key)`` applies F methods that differ in sparsity or bits
only to R versions of every matrix. Matrices of one shape are one vmapped batch, and several
batches one program; F is innermost, so that everything that depends on a matrix and its Hessian
alone (factorisation, input energies) is computed once for the whole family.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb.obs import OBSMethod
from perturb.obs import family as obs_family
from perturb.trees import Family, family_of
from perturb.types import Array, Matrix, Problem, Solved, WholeModelMethod

PROGRAM = 1 << 24  # weights that one program takes at most, unless a single shape has more
BATCH = 1 << 26  # and of a single shape, over all versions and methods: solvers hold ten copies


def layer_key(key: Array, name: str) -> Array:
    """A matrix's own random key: it does not depend on which other matrices there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@jax.jit
def _keys(key: Array, codes: Array) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, codes)


def _codes(names: Sequence[str]) -> np.ndarray:
    return np.array([zlib.crc32(n.encode()) for n in names], np.uint32)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _one_shape(
    family: Family, matrices: Matrix, problems: Problem, keys: Array, axes: Any
) -> Solved:
    """matrices [L, R, ...], problems as ``axes`` say, keys [L] -> results [L, R, F, ...]."""
    f = jax.vmap(
        lambda m, x, p, k: m(x, p, k), (family.axis, None, None, None), axis_size=family.size
    )
    over_versions = jax.vmap(f, (None, 0, axes, None))
    return jax.vmap(over_versions, (None, 0, 0, 0))(family.methods, matrices, problems, keys)


@partial(jax.jit, static_argnames=("groups", "axes"))
def _family(
    family: Family,
    groups: tuple[tuple[str, ...], ...],
    axes: tuple[Problem, ...],
    matrices: dict[str, Matrix],
    problems: dict[str, Problem],
    keys: Array,
) -> dict[str, Solved]:
    done: dict[str, Solved] = {}
    at = 0
    for names, axis in zip(groups, axes, strict=True):
        result = _one_shape(
            family,
            _stack([matrices[n] for n in names]),
            _stack([problems[n] for n in names]),
            keys[at : at + len(names)],
            axis,
        )
        at += len(names)
        done |= {n: jax.tree.map(lambda a, i=i: a[i], result) for i, n in enumerate(names)}
    return done


@partial(jax.jit, static_argnames=("names", "axes"))
def _whole_model(
    family: Family,
    names: tuple[str, ...],
    axes: tuple[Problem, ...],
    matrices: dict[str, Matrix],
    problems: dict[str, Problem],
    keys: Array,
) -> dict[str, Solved]:
    of = dict(zip(names, keys, strict=True))
    f = jax.vmap(
        lambda m, x, p: m.on_model(x, p, of), (family.axis, None, None), axis_size=family.size
    )
    over_versions = jax.vmap(f, (None, 0, dict(zip(names, axes, strict=True))))
    return over_versions(family.methods, matrices, problems)


def axes_of(problem: Problem) -> Problem:
    """Which parts of a problem have an axis of versions (0); the others (None) are shared."""

    def axis(array: Array) -> int | None:
        return 0 if array.ndim == 3 else None

    moments = problem.inputs
    if moments is not None:
        own = axis(moments.scatter)
        mean = None if moments.mean is None else own
        moments = moments._replace(scatter=own, count=own, mean=mean)  # type: ignore[arg-type]
    return Problem(axis(problem.reference), moments)  # type: ignore[arg-type]


def _form(matrix: Matrix, problem: Problem) -> Hashable:
    """What matrices must have in common to be one batch."""
    leaves, tree = jax.tree.flatten((matrix, problem))
    return tree, tuple((a.shape, a.dtype) for a in leaves)


def run_family(
    methods: Sequence[Any],
    matrices: Mapping[str, Matrix],
    problems: Mapping[str, Problem],
    key: Array,
) -> dict[str, Solved]:
    """F methods on R versions of each matrix: results [R, F, ...].

    matrices: leaves [R, ...]; problems: the reference [out, in] and the moments [in, in] shared by
    the versions, or with an axis [R] of their own.
    """
    names = list(matrices)
    if not names:
        return {}
    family = family_of(methods)
    if isinstance(methods[0], WholeModelMethod):
        axes = tuple(axes_of(problems[n]) for n in names)
        keys = _keys(key, _codes(names))
        return _whole_model(family, tuple(names), axes, dict(matrices), dict(problems), keys)
    groups: dict[Hashable, list[str]] = {}
    for n in names:
        groups.setdefault(_form(matrices[n], problems[n]), []).append(n)
    done: dict[str, Solved] = {}
    for program in _programs(list(groups.values()), matrices, len(methods)):
        mine = [n for group in program for n in group]
        solve = obs_family.run if isinstance(methods[0], OBSMethod) else _family
        # By place, not by name: what is compiled for one part of a model serves the next.
        place = {n: f"{i:05}" for i, n in enumerate(mine)}
        found = solve(
            family,
            tuple(tuple(place[n] for n in group) for group in program),
            tuple(axes_of(problems[g[0]]) for g in program),
            {place[n]: matrices[n] for n in mine},
            {place[n]: problems[n] for n in mine},
            _keys(key, _codes(mine)),
        )
        done |= {n: found[place[n]] for n in mine}
    return {n: done[n] for n in names}


def _programs(
    groups: list[list[str]], matrices: Mapping[str, Matrix], variants: int
) -> list[list[list[str]]]:
    """Groups of equal shapes, in equal parts if they are large, as many to a program as it may
    take."""
    programs: list[list[list[str]]] = []
    room = 0
    for group in (part for g in groups for part in _parts(g, matrices, variants)):
        size = sum(matrices[n].weight.size for n in group)
        if not programs or size > room:
            programs.append([])
            room = PROGRAM
        programs[-1].append(group)
        room -= size
    return programs


def _parts(group: list[str], matrices: Mapping[str, Matrix], variants: int) -> list[list[str]]:
    """A group in as few parts as hold BATCH weights at most, each nearly as long as any."""
    count = -(-sum(matrices[n].weight.size for n in group) * variants // BATCH)
    length = -(-len(group) // max(1, count))
    return [group[i : i + length] for i in range(0, len(group), length)]
