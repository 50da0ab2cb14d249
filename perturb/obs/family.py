"""Families of OBS methods on whole models, by programs that all methods, layers and stages share.

A coroutine of tasks is cut where it yields. What lies between two cuts is cheap and compiled for
the model at hand (one program for all its layers); what is solved at a cut is padded to one of
few shapes and handed to a program that knows nothing of methods: whether weights are removed or
rounded, how many rows, columns and variants are real, is data there. GPTQ, SparseGPT and Joint,
on the dense model or on R versions of it, are solved by the same programs.

Variants with one Hessian are rows of one sweep. Sweeps with different Hessians come one after
another on a CPU, so that only what is real is swept; on an accelerator, where each step waits for
the last rather than for arithmetic, as many at once as SIZE allows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb import grouped
from perturb.masks import _ordered_bits, prune_count, tie_key
from perturb.obs.factor import Factor, Normalized, factor_of, normalized
from perturb.obs.solver import OBSMethod, Solution, Solver, Task
from perturb.obs.sweep import Columns, Lattice, Selection, SweepSpec, Swept, sweep
from perturb.trees import STATIC, Family, register_tree
from perturb.types import Array, Grid, Matrix, Moments, Problem, Solved, SolveReport

# Shapes are padded to these at least: below, a sweep takes as long whatever its size, or nearly.
COLUMNS = 128
ROWS = 512
FEW = 8  # rows, likewise, of a group of a convolution
SIZE = 1 << 28  # elements of the Hessians in one batch
DRAWN = 1 << 16  # random bits for a matrix, at least


class Place(NamedTuple):
    """Matrices of one shape in a batch: items of (matrix, Hessian), with rows of variants."""

    names: tuple[str, ...]
    parts: int  # of each: groups of a convolution
    versions: int
    own: bool  # whether each version has a Hessian of its own
    size: int  # members of the family
    out: int
    inputs: int
    groups: int  # of the grid; 0: there is none

    @property
    def hessians(self) -> int:
        return self.versions if self.own else 1

    @property
    def matrices(self) -> int:
        return len(self.names) * self.parts

    @property
    def items(self) -> int:
        return self.matrices * self.hessians

    @property
    def rows(self) -> int:
        return self.versions // self.hessians * self.size * self.out

    def joined(self, x: Array) -> Array:
        """[L, R, F, out, ...] -> [items, rows, ...]"""
        return x.reshape(self.items, self.rows, *x.shape[4:])

    def apart(self, x: Array) -> Array:
        """[items, rows, ...] -> [L, R, F, out, ...]"""
        leading = (self.matrices, self.versions, self.size, self.out)
        return x[: self.items, : self.rows].reshape(*leading, *x.shape[2:])


class Layout(NamedTuple):
    """A batch of sweeps: what is compiled, and where its items come from."""

    solver: Solver
    spec: SweepSpec
    columns: int
    rows: int
    groups: int
    dtype: Any
    places: tuple[Place, ...] = ()

    @property
    def chunk(self) -> int:
        """Items that are swept by one call."""
        if jax.default_backend() == "cpu":  # one, or as many as are no larger than the least one
            return max(1, COLUMNS * ROWS // (self.columns * self.rows))
        total = sum(p.items for p in self.places)
        return max(1, min(total, SIZE // self.columns**2))

    def split(self, parts: Sequence[Any], xp: Any) -> list[Any]:
        """Items of all places [items, ...] as arrays [chunk, ...], the last filled up."""
        fill = -sum(len(x) for x in parts) % self.chunk
        rest = xp.zeros((fill, *parts[0].shape[1:]), parts[0].dtype)
        whole = xp.concatenate([*parts, rest]) if fill or len(parts) > 1 else parts[0]
        return [whole[i : i + self.chunk] for i in range(0, len(whole), self.chunk)]


class Load(NamedTuple):
    """Tasks of one call, item by item. Rows are those of the item's variants, one after another."""

    weight: Any  # [C, N, M]
    keep: Any  # [C, N, M] bool
    tie: Any  # [C, N, M] unsigned
    sparsity: Any  # [C, M]
    scale: Any  # [C, G, M]
    zero: Any  # [C, G, M]
    bits: Any  # [C, M], 0: not rounded
    group: Any  # [C, N]
    inputs: Any  # [C]
    out: Any  # [C]
    refit: Any  # [C]


class Answer(NamedTuple):
    """What came of a load."""

    swept: Swept  # leading axis [C]
    bits: Array  # [C, M]
    report: SolveReport  # [C]


@register_tree
@dataclass(frozen=True)
class Work:
    layout: Layout = field(metadata=STATIC)
    loads: Sequence[Load]


@register_tree
@dataclass(frozen=True)
class Answers:
    layout: Layout = field(metadata=STATIC)
    parts: Sequence[Answer]


# --------------------------------------------------------------------------------- padding


def ladder(x: int) -> int:
    """The least number >= x of those that leading binary digits 100, 101, 110, 111 begin."""
    step = 1 << max(0, x.bit_length() - 3)
    return -(-x // step) * step


def _pad(x: Any, xp: Any, *sizes: int) -> Any:
    """Trailing axes filled up with zeros."""
    kept = x.ndim - len(sizes)
    ends = [(0, s - have) for s, have in zip(sizes, x.shape[kept:], strict=True)]
    return xp.pad(x, [(0, 0)] * kept + ends) if any(e for _, e in ends) else x


def _layout(task: Task, place: Place) -> Layout:
    """How tasks are padded; leading axes of the tasks are [L, R, F]."""
    small = place.parts > 1  # hundreds of them: one by one, each would be nearly all padding
    least, rows = (1, FEW) if small else (COLUMNS, ROWS)
    spec = task.sweep_spec(max(ladder(place.inputs), least))
    blocks = -(-max(place.inputs, least) // spec.block)
    return Layout(
        task.solver,
        spec,
        spec.block * ladder(blocks),
        max(rows, ladder(place.rows)),
        ladder(max(place.groups, 1)),
        task.weight.dtype,
    )


def _load(task: Task, place: Place, to: Layout, xp: Any) -> Load:
    """The items of one shape, padded, [items, ...]."""
    items, variants = place.items, (place.matrices, place.versions, place.size)
    unsigned = np.uint64 if np.dtype(to.dtype).itemsize == 8 else np.uint32

    def columns(x: Any) -> Any:  # [L, R, F, out, in] -> [items, N, M]
        return _pad(xp.swapaxes(place.joined(x), 1, 2), xp, to.columns, to.rows)

    def of_rows(x: Any) -> Any:  # [L, R, F] -> [items, M]
        x = xp.broadcast_to(x[..., None], (*variants, place.out))
        return _pad(place.joined(x), xp, to.rows)

    def lattice(x: Any) -> Any:  # [L, R, F, out, groups] -> [items, G, M]
        return _pad(xp.swapaxes(place.joined(x), 1, 2), xp, to.groups, to.rows)

    grid, tie, sparsity = task.grid, task.tie, task.sparsity
    no_grid = xp.ones((items, to.groups, to.rows), to.dtype)
    group = np.arange(place.inputs) // (place.inputs // max(place.groups, 1))
    group = np.pad(group, (0, to.columns - place.inputs)).astype(np.int32)
    return Load(
        columns(task.weight),
        columns(task.keep),
        xp.zeros((items, to.columns, to.rows), unsigned)
        if tie is None
        else columns(tie.astype(unsigned)),
        xp.zeros((items, to.rows), np.float32) if sparsity is None else of_rows(sparsity),
        no_grid if grid is None else lattice(grid.scale),
        no_grid if grid is None else lattice(grid.zero),
        xp.zeros((items, to.rows), np.int32)
        if grid is None
        else of_rows(grid.bits.astype(np.int32)),
        xp.broadcast_to(group, (items, to.columns)),
        xp.full(items, place.inputs, np.int32),
        xp.full(items, place.out, np.int32),
        xp.full(items, task.refit),
    )


def _solutions(answers: Answers, xp: Any) -> dict[tuple[str, ...], Solution]:
    """Of each place the solutions [L, R, F, ...], without padding."""
    parts = answers.parts
    whole = jax.tree.map(lambda *x: x[0] if len(x) == 1 else xp.concatenate(x), *parts)
    found, at = {}, 0
    for place in answers.layout.places:
        swept, bits, report = jax.tree.map(lambda a, i=at, p=place: a[i : i + p.items], whole)
        at += place.items

        def rows_first(x: Any, width: int, p: Place = place) -> Any:
            return p.apart(xp.swapaxes(x[:, :width], 1, 2))

        def of_versions(x: Any, p: Place = place) -> Any:  # [items] -> [L, R, F]
            shape = (p.matrices, p.versions, p.size)
            return xp.broadcast_to(x.reshape(p.matrices, p.hessians, 1), shape)

        grid = None
        if place.groups:
            scale, zero = (rows_first(a, place.groups) for a in (swept.scale, swept.zero))
            grid = Grid(scale, zero, place.apart(bits)[..., 0])
        found[place.names] = Solution(
            rows_first(swept.weight, place.inputs),
            rows_first(swept.keep, place.inputs),
            grid,
            jax.tree.map(of_versions, report),
        )
    return found


# ------------------------------------------------------------------------- shared programs


def _each(f: Callable[..., Any], *xs: Any) -> Any:
    """f of every item of a batch."""
    if len(jax.tree.leaves(xs)[0]) > 1:
        return jax.vmap(f)(*xs)
    one = f(*jax.tree.map(lambda a: a[0], xs))
    return jax.tree.map(lambda a: a[None], one)


@jax.jit
def _factors(given: Normalized, inputs: Array, damp: Array) -> Factor:
    def one(given: Normalized, n: Array) -> Factor:
        return factor_of(given, damp, n)

    done: Factor = _each(one, given, inputs)
    return done


@partial(jax.jit, static_argnames=("length",))
def _draw(keys: Array, index: Array, length: int) -> Array:
    return jax.random.bits(keys[index], (length,), jnp.uint32)


@partial(jax.jit, static_argnames=("length",))
def _draw_each(keys: Array, length: int) -> Array:
    return jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys)


def _random_tie(keys: Array, index: int | np.integer, out: int, n: int) -> Array | np.ndarray:
    """:func:`perturb.masks.tie_key` by one program for many shapes: bits are drawn by position."""
    bits = _draw(keys, np.int32(index), max(DRAWN, ladder(out * n)))
    return np.asarray(bits)[: out * n].reshape(out, n)


@partial(jax.jit, static_argnames=("spec",))
def _sweeps(spec: SweepSpec, load: Load, factor: Factor) -> Swept:
    until = jnp.max(load.inputs)

    def one(load: Load, upper: Array, dead: Array, order: Array | None) -> Swept:
        n, m = load.weight.shape
        rows = jnp.arange(m)
        variant, place = rows // load.out, rows % load.out
        settled = load.inputs * load.out  # of a variant, never more than this
        bounds = jnp.minimum(settled, jnp.arange(n // spec.block + 1) * spec.block * load.out)
        ends = prune_count(bounds[:, None], load.sparsity)
        weight, keep, tie, group = load.weight, load.keep, load.tie, load.group
        if order is not None:
            weight, keep, tie, group = (a[order] for a in (weight, keep, tie, group))
        counts = None if spec.pattern is not None else jnp.diff(ends, axis=0)
        done = sweep(
            spec,
            weight,
            keep,
            upper,
            Columns(load.inputs, dead, group),
            Selection(counts, variant, place, tie),
            Lattice(load.scale, load.zero, load.bits, jnp.broadcast_to(load.refit, (m,))),
            until=until,
        )
        if order is not None:
            done = done._replace(
                weight=jnp.zeros_like(weight).at[order].set(done.weight),
                keep=jnp.zeros_like(keep).at[order].set(done.keep),
            )
        return done

    done: Swept = _each(one, load, factor.upper, factor.dead, factor.order)
    return done


# ------------------------------------------------------------------------ the model's own


def _hessians(inputs: Mapping[str, Moments], layout: Layout, xp: Any) -> list[Normalized]:
    """The Hessians of a layout's items, in its chunks."""

    def of(place: Place) -> Any:
        grams = [inputs[n].gram.astype(layout.dtype) for n in place.names]
        if place.parts > 1:  # [R, groups, in, in], or without versions
            each = xp.concatenate([xp.moveaxis(g, -3, 0) for g in grams])
        else:
            each = xp.stack(grams)
        each = each.reshape(place.items, place.inputs, place.inputs)
        return _pad(each, xp, layout.columns, layout.columns)

    act_order = layout.solver.act_order
    chunks = layout.split([of(p) for p in layout.places], xp)
    return [normalized(gram, act_order=act_order, xp=xp) for gram in chunks]


class _Pending(NamedTuple):
    """Matrices of one shape on their way through the coroutine."""

    names: tuple[str, ...]
    parts: int  # of each: groups of a convolution
    axes: Problem
    start: int  # of their keys

    @property
    def keys(self) -> np.ndarray:
        return np.arange(self.start, self.start + len(self.names) * self.parts)


@partial(jax.jit, static_argnames=("groups", "on_host"))
def _advance(
    family: Family,
    groups: tuple[_Pending, ...],
    matrices: Mapping[str, Matrix],
    problems: Mapping[str, Problem],
    keys: Array,
    past: Sequence[Sequence[Solution]],
    on_host: bool,
) -> tuple[dict[str, Solved], list[Task | None]]:
    """Run the coroutines of [L, R, F] to their next task, or to their end.

    past: of each group the solutions it has had: a coroutine runs from its beginning again, and
    what was computed for an earlier task and is not needed any more, the compiler drops.
    """

    def one(method: OBSMethod, x: Matrix, p: Problem, key: Array, past: list[Solution]) -> Any:
        steps = method.steps(x, p, key)
        try:
            task = next(steps)
            for solution in past:
                task = steps.send(solution)
        except StopIteration as end:
            return end.value
        if task.key is not None and on_host:
            return replace(task, key=None, drawn=True)
        tie = task.tie if task.key is None else tie_key("random", x.weight, task.key)
        return replace(task, tie=None if tie is None else _ordered_bits(tie), key=None)

    done: dict[str, Solved] = {}
    tasks: list[Task | None] = []
    for group, known in zip(groups, past, strict=True):
        names, parts, axes, _ = group
        f = jax.vmap(one, (family.axis, None, None, None, 0), axis_size=family.size)
        f = jax.vmap(f, (None, 0, axes, None, 0))
        found = jax.vmap(f, (None, 0, 0, 0, 0))(
            family.methods,
            grouped.stacked([matrices[n] for n in names], parts, grouped.matrix_apart),
            grouped.stacked([problems[n] for n in names], parts, grouped.problem_apart),
            keys[group.keys],
            list(known),
        )
        if isinstance(found, Solved):
            done |= grouped.each(found, names, parts)
        tasks.append(None if isinstance(found, Solved) else found)
    return done, tasks


def _ties(keys: Array, task: Task, group: _Pending) -> np.ndarray:
    """Random bits [L, R, F, out, in], the same for all versions and variants of a matrix."""
    out, n = task.weight.shape[-2:]
    if group.parts > 1:
        bits = _draw_each(keys[group.keys], ladder(out * n))
        each = np.asarray(bits)[:, : out * n].reshape(-1, out, n)
    else:
        each = np.stack([_random_tie(keys, i, out, n) for i in group.keys])
    return np.broadcast_to(each[:, None, None], task.weight.shape)


def _batches(tasks: Sequence[Task], groups: Sequence[_Pending], xp: Any) -> list[Work]:
    """Tasks [L, R, F] of groups as batches of one layout each."""
    found: dict[Layout, list[tuple[Place, Load]]] = {}
    for task, (names, parts, axes, _) in zip(tasks, groups, strict=True):
        own = axes.inputs is not None and axes.inputs.scatter is not None
        of_grid = 0 if task.grid is None else task.grid.scale.shape[-1]
        _, versions, size, out, n_in = task.weight.shape
        place = Place(names, parts, versions, own, size, out, n_in, of_grid)
        to = _layout(task, place)
        found.setdefault(to, []).append((place, _load(task, place, to, xp)))
    work = []
    for to, pairs in found.items():
        to = to._replace(places=tuple(place for place, _ in pairs))
        each = zip(*(load for _, load in pairs), strict=True)
        split = [to.split(parts, xp) for parts in each]
        work.append(Work(to, [Load(*parts) for parts in zip(*split, strict=True)]))
    return work


def run(
    family: Family,
    batches: Sequence[tuple[tuple[str, ...], int, Problem]],
    matrices: Mapping[str, Matrix],
    problems: Mapping[str, Problem],
    keys: Array,
) -> dict[str, Solved]:
    """F methods [F] on R versions of matrices [R, ...]; see :func:`perturb.family.run_family`.

    batches: names of matrices of one form, groups of each, and which parts of their problems have
    an axis [R]; keys: of the matrices, or groups, of all of them.
    """
    on_host = jax.default_backend() == "cpu"
    pending: tuple[_Pending, ...] = ()
    for names, parts, axes in batches:
        start = sum(len(p.keys) for p in pending)
        pending = (*pending, _Pending(names, parts, axes, start))
    done: dict[str, Solved] = {}
    past: list[list[Solution]] = [[] for _ in pending]
    factors: dict[Hashable, list[Factor]] = {}
    while True:
        left_names = [n for g in pending for n in g.names]
        finished, tasks = _advance(
            family,
            pending,
            {n: matrices[n] for n in left_names},
            {n: problems[n] for n in left_names},
            keys,
            past,
            on_host,
        )
        done |= finished
        left = [i for i, task in enumerate(tasks) if task is not None]
        if not left:
            return done
        pending = tuple(pending[i] for i in left)
        waiting: list[Any] = [tasks[i] for i in left]
        if on_host:
            waiting = [
                replace(task, tie=_ties(keys, task, g)) if task.drawn else task
                for task, g in zip(jax.device_get(waiting), pending, strict=True)
            ]
        solved = _solve(waiting, pending, problems, factors, on_host)
        past = [[*past[i], solved[pending[j].names]] for j, i in enumerate(left)]


def _solve(
    tasks: Sequence[Any],
    groups: Sequence[_Pending],
    problems: Mapping[str, Problem],
    factors: dict[Hashable, list[Factor]],
    on_host: bool,
) -> dict[tuple[str, ...], Solution]:
    """Tasks [L, R, F] by the shared programs. factors: those that are known already.

    Padding and stacking is numpy's where arrays are the host's anyway: nothing to compile.
    """
    work = _batches(tasks, groups, np) if on_host else _padded(tasks, groups=groups)
    found: dict[tuple[str, ...], Solution] = {}
    for w in work:
        layout, known = w.layout, _of_hessians(w.layout)
        if known not in factors:
            inputs = {n: problems[n].inputs for p in layout.places for n in p.names}
            hessians = (
                _hessians(jax.device_get(inputs), layout, np)
                if on_host
                else _padded_hessians(inputs, layout)
            )
            damp = np.asarray(layout.solver.damp, layout.dtype)
            factors[known] = [
                _factors(h, load.inputs, damp) for h, load in zip(hessians, w.loads, strict=True)
            ]
        parts = []
        for load, factor in zip(w.loads, factors[known], strict=True):
            swept = _sweeps(layout.spec, load, factor)
            parts.append(Answer(swept, load.bits, factor.report))
        answers = Answers(layout, parts)
        found |= _solutions(jax.device_get(answers), np) if on_host else _unpadded(answers)
    return found


_padded = partial(jax.jit, static_argnames=("groups",))(partial(_batches, xp=jnp))
_padded_hessians = partial(jax.jit, static_argnames=("layout",))(partial(_hessians, xp=jnp))


@jax.jit
def _unpadded(answers: Answers) -> dict[tuple[str, ...], Solution]:
    return _solutions(answers, jnp)


def _of_hessians(layout: Layout) -> Hashable:
    """What factors depend on."""
    solver = (layout.solver.damp, layout.solver.act_order)
    return solver, layout.columns, layout.dtype, tuple((p.names, p.own) for p in layout.places)
