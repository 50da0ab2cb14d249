"""What an OBS method asks to be solved, and the plain way to solve it.

A method is written as a coroutine: it yields a :class:`Task`, is sent its :class:`Solution`, may
yield another, and returns what is :class:`Solved`. ``settle`` runs it on a single matrix, inside
any jit or vmap; :mod:`perturb.obs.family` runs the same coroutine on all matrices, versions and
members of a family with programs that all methods share.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from perturb.grid import GridSpec
from perturb.masks import NofM, TieRule, prune_count, tie_key
from perturb.obs.factor import Factor, factorize
from perturb.obs.sweep import PANEL, Columns, Lattice, Selection, SweepSpec, Swept, sweep
from perturb.trees import STATIC, register_tree
from perturb.types import Array, Grid, Matrix, Moments, Problem, Solved, SolveReport


@dataclass(frozen=True)
class Solver:
    """How a task is solved (static).

    damp: fraction of mean(diag H) added to the diagonal. block: columns settled between two
    large matmuls and, for unstructured selection, the population over which a mask is chosen.
    act_order: settle columns by decreasing diag(H) instead of left to right (masks are then
    chosen, and groups fitted, in the original positions: groups must be static).
    """

    damp: float = 0.01
    block: int = 128
    act_order: bool = False


@register_tree
@dataclass(frozen=True)
class Task:
    """Settle a matrix ``weight [out, in]`` under ``keep`` (False = stays 0).

    sparsity: this fraction of each block of columns is removed on the way (None: nothing is);
    pattern: N of M are kept instead; tie [out, in]: second key of either; key: random bits of it
    are (:func:`perturb.masks.tie_key`), drawn where the task is solved. grid: what weights are
    rounded to (None: they are not); fit_groups: its group scales are fitted anew on the way
    (refit: where the weights have outgrown it).
    """

    weight: Array
    keep: Array
    sparsity: Array | float | None = None
    tie: Array | None = None
    key: Array | None = None
    grid: Grid | None = None
    solver: Solver = field(default=Solver(), metadata=STATIC)
    pattern: NofM | None = field(default=None, metadata=STATIC)
    fit_groups: GridSpec | None = field(default=None, metadata=STATIC)
    refit: bool = field(default=False, metadata=STATIC)
    drawn: bool = field(default=False, metadata=STATIC)  # the key was put aside

    def sweep_spec(self, width: int) -> SweepSpec:
        """Of a sweep over ``width`` columns, real or not, at the least."""
        unit = 1 if self.pattern is None else self.pattern.m
        block = max(unit, self.solver.block // unit * unit)
        step = unit if block % PANEL else math.lcm(unit, PANEL)
        return SweepSpec(min(block, -(-width // step) * step), self.pattern, self.fit_groups)


def tie_of(rule: TieRule, reference: Array, key: Array) -> tuple[Array | None, Array | None]:
    """(tie, key) of a task; see :class:`Task`."""
    return (None, key) if rule == "random" else (tie_key(rule, reference, key), None)


class Solution(NamedTuple):
    weight: Array  # [out, in]
    keep: Array  # [out, in] bool
    grid: Grid | None
    report: SolveReport


Steps: TypeAlias = Generator[Task, Solution, Solved]
Relay: TypeAlias = Generator[Task, Solution, Matrix]


@runtime_checkable
class OBSMethod(Protocol):
    """A method on matrices that says what it does as a coroutine of tasks.

    The coroutine is pure: run again with the same solutions, it yields the same tasks.
    """

    def steps(self, matrix: Matrix, problem: Problem, key: Array) -> Steps: ...


@runtime_checkable
class OBSQuantizer(Protocol):
    """A quantizer that rounds again, by tasks, what a pruner left of a matrix on its grid."""

    def relaying(self, matrix: Matrix, grid: Grid, problem: Problem) -> Relay: ...


def settle(steps: Steps, inputs: Moments | None) -> Solved:
    """Run a coroutine to its end, each task solved where it stands."""
    assert inputs is not None, "an OBS method needs the moments of the inputs"
    factors: dict[Solver, Factor] = {}
    try:
        task = next(steps)
        while True:
            how = task.solver
            if how not in factors:
                gram = inputs.gram.astype(task.weight.dtype)
                factors[how] = factorize(gram, how.damp, act_order=how.act_order)
            task = steps.send(solve(task, factors[how]))
    except StopIteration as end:
        solved: Solved = end.value
        return solved


class _Rows(NamedTuple):
    """What a sweep has of each row; rows are the last axis of every array."""

    weight: Array
    keep: Array
    selection: Selection | None
    lattice: Lattice | None


class _Shared(NamedTuple):
    """What all rows of a sweep share."""

    upper: Array
    dead: Array
    group: Array | None


def _sweep_rows(spec: SweepSpec, n: int, rows: _Rows, shared: _Shared) -> Swept:
    """A sweep, taught that a vmap over variants with one Hessian is only more rows.

    Rows are independent given U, so such a batch is one pass of larger matmuls instead of a batch
    of small ones. With Hessians of their own they are swept one after another.
    """

    @jax.custom_batching.custom_vmap
    def run(rows: _Rows, shared: _Shared) -> Swept:
        columns = Columns(n, shared.dead, shared.group)
        return sweep(
            spec, rows.weight, rows.keep, shared.upper, columns, rows.selection, rows.lattice
        )

    @run.def_vmap
    def _(size: int, batched: tuple[_Rows, _Shared], rows: _Rows, shared: _Shared) -> Any:
        def spread(x: Array, is_batched: bool) -> Array:
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        all_rows = jax.tree.map(spread, rows, batched[0])
        if any(jax.tree.leaves(batched[1])):
            each = (all_rows, jax.tree.map(spread, shared, batched[1]))
            done = lax.map(lambda one: _sweep_rows(spec, n, *one), each)
            return done, jax.tree.map(lambda _: True, done)

        width = rows.weight.shape[-1]
        selection = all_rows.selection
        if selection is not None and selection.variant is not None:  # populations of their own
            apart = selection.variant + width * jnp.arange(size)[:, None]
            all_rows = all_rows._replace(selection=selection._replace(variant=apart))

        def stack(x: Array) -> Array:  # [size, ..., M] -> [..., size M]
            return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], size * x.shape[-1])

        def split(x: Array) -> Array:
            return jnp.moveaxis(x.reshape(*x.shape[:-1], size, width), -2, 0)

        done = _sweep_rows(spec, n, jax.tree.map(stack, all_rows), shared)
        done = jax.tree.map(split, done)
        return done, jax.tree.map(lambda _: True, done)

    done: Swept = run(rows, shared)
    return done


def block_counts(out: int, n: int, block: int, sparsity: Array | float) -> Array:
    """[blocks], how many weights of a matrix [out, n] go in each block of columns."""
    ends = [prune_count(out * min(n, b * block), sparsity) for b in range(-(-n // block) + 1)]
    return jnp.diff(jnp.stack(ends))


def group_of(n: int, groups: int) -> Array:
    """[n], the group of each column."""
    return jnp.arange(n) // (n // groups)


def solve(task: Task, factor: Factor) -> Solution:
    """One task by itself, with a factor of just its inputs."""
    out, n = task.weight.shape
    spec = task.sweep_spec(n)
    pad = -n % spec.block
    order = factor.order

    def columns_first(x: Array) -> Array:  # [out, in] -> [N, out]
        x = x.T if order is None else x.T[order]
        return jnp.pad(x, ((0, pad), (0, 0)))

    selection = lattice = None
    tie = task.tie if task.key is None else tie_key("random", task.weight, task.key)
    tie = None if tie is None else columns_first(tie)
    if task.pattern is not None:
        selection = Selection(None, None, None, tie)
    elif task.sparsity is not None:
        counts = block_counts(out, n, spec.block, task.sparsity)[:, None]
        rows = jnp.arange(out)
        selection = Selection(jnp.broadcast_to(counts, (len(counts), out)), 0 * rows, rows, tie)
    group = None
    if task.grid is not None:
        group = group_of(n, task.grid.scale.shape[-1])
        group = jnp.pad(group if order is None else group[order], (0, pad))
        bits = jnp.broadcast_to(task.grid.bits, (out,))
        refit = jnp.full(out, task.refit)
        lattice = Lattice(task.grid.scale.T, task.grid.zero.T, bits, refit)
    done = _sweep_rows(
        spec,
        n,
        _Rows(columns_first(task.weight), columns_first(task.keep), selection, lattice),
        _Shared(jnp.pad(factor.upper, (0, pad)), jnp.pad(factor.dead, (0, pad)), group),
    )

    def rows_first(x: Array) -> Array:
        x = x[:n]
        return (x if order is None else jnp.zeros_like(x).at[order].set(x)).T

    grid = task.grid
    if grid is not None:
        assert done.scale is not None
        assert done.zero is not None
        grid = Grid(done.scale.T, done.zero.T, grid.bits)
    return Solution(rows_first(done.weight), rows_first(done.keep), grid, factor.report)
