"""Convolutions in groups as the matrices that they are: apart for a method, together afterwards.

A layer [out, in] of g groups is g matrices [out / g, in], stretches of its rows, each acting on
inputs of its own. Whatever is made of leaves [..., out, in] has, apart, an axis [g] in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from perturb.types import Array, Grid, Matrix, Moments, Problem, Solved, SolveReport


def _rows_apart(x: Array, groups: int) -> Array:
    """[..., out, n] -> [groups, ..., out / groups, n]"""
    out, n = x.shape[-2:]
    return jnp.moveaxis(x.reshape(*x.shape[:-2], groups, out // groups, n), -3, 0)


def _rows_together(x: Array) -> Array:
    """[groups, ..., rows, n] -> [..., groups rows, n]"""
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _same(tree: Any, groups: int) -> Any:
    """What all groups have alike."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (groups, *jnp.shape(a))), tree)


def matrix_apart(matrix: Matrix, groups: int) -> Matrix:
    """Leaves with an axis [groups] in front."""
    grid = matrix.grid
    if grid is not None:
        scale, zero = (_rows_apart(a, groups) for a in (grid.scale, grid.zero))
        grid = Grid(scale, zero, _same(grid.bits, groups))
    weight, mask = (_rows_apart(a, groups) for a in (matrix.weight, matrix.mask))
    return Matrix(weight, mask, grid, _same(matrix.quantizer, groups))


def moments_apart(moments: Moments) -> Moments:
    """From [versions, groups, ...] or [groups, ...]: the groups in front."""
    mean = moments.mean
    return Moments(
        jnp.moveaxis(moments.scatter, -3, 0),
        jnp.moveaxis(moments.count, -1, 0),
        None if mean is None else jnp.moveaxis(mean, -2, 0),
    )


def problem_apart(problem: Problem, groups: int) -> Problem:
    """Leaves with an axis [groups] in front."""
    inputs = problem.inputs
    reference = _rows_apart(problem.reference, groups)
    return Problem(reference, None if inputs is None else moments_apart(inputs))


def solved_together(solved: Solved) -> Solved:
    """Leaves [groups, ...] as those of one layer: its report has the most damping and retries of
    any group, and the dead columns of all."""
    matrix, report = solved
    grid = matrix.grid
    if grid is not None:
        scale, zero = (_rows_together(a) for a in (grid.scale, grid.zero))
        grid = Grid(scale, zero, grid.bits[0])
    weight, mask = (_rows_together(a) for a in (matrix.weight, matrix.mask))
    quantizer = jax.tree.map(lambda a: a[0], matrix.quantizer)
    if report is not None:
        damping, retries, dead = report
        report = SolveReport(jnp.max(damping, 0), jnp.max(retries, 0), jnp.sum(dead, 0))
    return Solved(Matrix(weight, mask, grid, quantizer), report)


def stacked(trees: Sequence[Any], groups: int, apart: Any) -> Any:
    """Trees of leaves [...] as one of [L, ...], L = len(trees) groups; apart: what has the axis
    [groups] of one in front."""
    if groups == 1:
        return jax.tree.map(lambda *x: jnp.stack(x), *trees)
    parts = [apart(tree, groups) for tree in trees]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def each(result: Solved, names: Sequence[str], groups: int) -> dict[str, Solved]:
    """Results [L, ...], L = len(names) groups, by name."""
    if groups == 1:
        return {n: jax.tree.map(lambda a, i=i: a[i], result) for i, n in enumerate(names)}
    found = {}
    for i, name in enumerate(names):
        mine = slice(i * groups, (i + 1) * groups)
        found[name] = solved_together(jax.tree.map(lambda a, mine=mine: a[mine], result))
    return found
