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
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from perturb import grouped
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


def _codes(names: Sequence[str], groups: int = 1) -> np.ndarray:
    """A number for each matrix: of one in groups, for each of these."""
    if groups > 1:
        names = [f"{n}[{i}]" for n in names for i in range(groups)]
    return np.array([zlib.crc32(n.encode()) for n in names], np.uint32)


def _one_shape(
    family: Family, matrices: Matrix, problems: Problem, keys: Array, axes: Any
) -> Solved:
    """matrices [L, R, ...], problems as ``axes`` say, keys [L] -> results [L, R, F, ...]."""
    f = jax.vmap(
        lambda m, x, p, k: m(x, p, k), (family.axis, None, None, None), axis_size=family.size
    )
    over_versions = jax.vmap(f, (None, 0, axes, None))
    return jax.vmap(over_versions, (None, 0, 0, 0))(family.methods, matrices, problems, keys)


class Batch(NamedTuple):
    """Matrices of one form, which are solved as one array."""

    names: tuple[str, ...]
    groups: int  # of each: see perturb.grouped
    axes: Problem  # which parts of their problems have an axis [R]

    @property
    def size(self) -> int:
        return len(self.names) * self.groups


@partial(jax.jit, static_argnames=("batches",))
def _family(
    family: Family,
    batches: tuple[Batch, ...],
    matrices: dict[str, Matrix],
    problems: dict[str, Problem],
    keys: Array,
) -> dict[str, Solved]:
    done: dict[str, Solved] = {}
    at = 0
    for batch in batches:
        names, groups, axes = batch
        result = _one_shape(
            family,
            grouped.stacked([matrices[n] for n in names], groups, grouped.matrix_apart),
            grouped.stacked([problems[n] for n in names], groups, grouped.problem_apart),
            keys[at : at + batch.size],
            axes,
        )
        at += batch.size
        done |= grouped.each(result, names, groups)
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


def axes_of(problem: Problem, groups: int = 1) -> Problem:
    """Which parts of a problem have an axis of versions (0); the others (None) are shared. Where
    there are groups, of one of them."""

    def axis(rank: int) -> int | None:
        return 0 if rank == 3 else None

    moments = problem.inputs
    if moments is not None:
        own = axis(moments.scatter.ndim - (groups > 1))
        mean = None if moments.mean is None else own
        moments = moments._replace(scatter=own, count=own, mean=mean)  # type: ignore[arg-type]
    return Problem(axis(problem.reference.ndim), moments)  # type: ignore[arg-type]


def _form(matrix: Matrix, problem: Problem) -> Hashable:
    """What matrices must have in common to be one batch."""
    leaves, tree = jax.tree.flatten((matrix, problem))
    return tree, tuple((a.shape, a.dtype) for a in leaves)


def run_family(
    methods: Sequence[Any],
    matrices: Mapping[str, Matrix],
    problems: Mapping[str, Problem],
    key: Array,
    groups_of: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Solved]:
    """F methods on R versions of each matrix: results [R, F, ...].

    matrices: leaves [R, ...]; problems: the reference [out, in] and the moments [in, in] shared by
    the versions, or with an axis [R] of their own. groups_of: matrices that are several, stretches
    of rows with inputs of their own, moments [groups, in, in]: methods see each by itself, and only
    one that ranks a whole model sees the rows of all.
    """
    names = list(matrices)
    if not names:
        return {}
    family = family_of(methods)
    if isinstance(methods[0], WholeModelMethod):
        axes = tuple(axes_of(problems[n]) for n in names)
        keys = _keys(key, _codes(names))
        return _whole_model(family, tuple(names), axes, dict(matrices), dict(problems), keys)
    alike: dict[Hashable, list[str]] = {}
    for n in names:
        form = (groups_of.get(n, 1), _form(matrices[n], problems[n]))
        alike.setdefault(form, []).append(n)
    done: dict[str, Solved] = {}
    for program in _programs(list(alike.values()), matrices, len(methods)):
        every = [n for mine in program for n in mine]
        # By place, not by name: what is compiled for one part of a model serves the next.
        place = {n: f"{i:05}" for i, n in enumerate(every)}
        batches, codes = [], []
        for mine in program:
            groups = groups_of.get(mine[0], 1)
            named = tuple(place[n] for n in mine)
            batches.append(Batch(named, groups, axes_of(problems[mine[0]], groups)))
            codes.append(_codes(mine, groups))
        solve = obs_family.run if isinstance(methods[0], OBSMethod) else _family
        found = solve(
            family,
            tuple(batches),
            {place[n]: matrices[n] for n in every},
            {place[n]: problems[n] for n in every},
            _keys(key, np.concatenate(codes)),
        )
        done |= {n: found[place[n]] for n in every}
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
