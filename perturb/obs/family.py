"""Families of OBS methods on whole models, by programs that all methods, layers and stages share.

A coroutine of tasks is cut where it yields. What lies between two cuts is cheap and compiled for
the model at hand (one program for all its layers); what is solved at a cut is padded to one of
few shapes and handed to a program that knows nothing of methods: whether weights are removed or
rounded, how many rows, columns and variants are real, is data there. GPTQ, SparseGPT and Joint,
on the dense model or on R versions of it, are solved by the same programs.

Variants with one Hessian are rows of one sweep. Sweeps with different Hessians are the items of a
batch, as many as SIZE allows: on a CPU one after another, and only those that are there; on an
accelerator, where each step waits for the last rather than for arithmetic, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb.masks import _ordered_bits, prune_count
from perturb.obs.factor import Factor, factorize
from perturb.obs.solver import OBSMethod, Solution, Solver, Task, group_of, static
from perturb.obs.sweep import Columns, Lattice, Selection, Swept, SweepSpec, sweep
from perturb.types import Array, Grid, Matrix, Moments, Problem, Solved, SolveReport

# Shapes are padded to these at least: below, a sweep takes as long whatever its size, or nearly.
COLUMNS = 128
ROWS = 512
SIZE = 1 << 20  # elements of the Hessians in one batch
ITEMS = 16  # and no more Hessians than this


class Place(NamedTuple):
    """Matrices of one shape, as they lie in a batch: items of (matrix, Hessian), rows of variants."""

    names: tuple[str, ...]
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
    def items(self) -> int:
        return len(self.names) * self.hessians

    @property
    def rows(self) -> int:
        return self.versions // self.hessians * self.size * self.out

    def joined(self, x: Array) -> Array:
        """[L, R, F, out, ...] -> [items, rows, ...]"""
        return x.reshape(self.items, self.rows, *x.shape[4:])

    def apart(self, x: Array) -> Array:
        """[items, rows, ...] -> [L, R, F, out, ...]"""
        leading = (len(self.names), self.versions, self.size, self.out)
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
    def chunks(self) -> list[tuple[int, int]]:
        """(first item, items) of the parts that are swept by one call."""
        total = sum(p.items for p in self.places)
        return [(i, min(self.chunk, total - i)) for i in range(0, total, self.chunk)]

    @property
    def chunk(self) -> int:
        return max(1, min(ITEMS, SIZE // self.columns**2))

    def split(self, parts: Sequence[Array]) -> list[Array]:
        """Items of all places [items, ...] as arrays [chunk, ...], the last filled up."""
        whole = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        fill = len(self.chunks) * self.chunk - len(whole)
        whole = jnp.pad(whole, ((0, fill), *((0, 0),) * (whole.ndim - 1)))
        return [whole[i : i + self.chunk] for i, _ in self.chunks]


class Load(NamedTuple):
    """Tasks of one call, item by item. Rows are those of the item's variants, one after another."""

    weight: Array  # [C, N, M]
    keep: Array  # [C, N, M] bool
    tie: Array  # [C, N, M] unsigned
    sparsity: Array  # [C, M]
    scale: Array  # [C, G, M]
    zero: Array  # [C, G, M]
    bits: Array  # [C, M], 0: not rounded
    group: Array  # [C, N]
    inputs: Array  # [C]
    out: Array  # [C]
    refit: Array  # [C]


class Answer(NamedTuple):
    """What came of a load."""

    swept: Swept  # leading axis [C]
    bits: Array  # [C, M]
    report: SolveReport  # [C]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Work:
    layout: Layout = static()
    loads: Sequence[Load] = ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Answers:
    layout: Layout = static()
    parts: Sequence[Answer] = ()


# --------------------------------------------------------------------------------- padding


def ladder(x: int) -> int:
    """The least number >= x of those that leading binary digits 100, 101, 110, 111 begin."""
    step = 1 << max(0, x.bit_length() - 3)
    return -(-x // step) * step


def _pad(x: Array, *sizes: int) -> Array:
    """Trailing axes filled up with zeros."""
    kept = x.ndim - len(sizes)
    ends = [(0, s - have) for s, have in zip(sizes, x.shape[kept:], strict=True)]
    return jnp.pad(x, [(0, 0)] * kept + ends)


def _layout(task: Task, place: Place) -> Layout:
    """How tasks are padded; leading axes of the tasks are [L, R, F]."""
    spec = task.sweep_spec(max(ladder(place.inputs), COLUMNS))
    blocks = -(-max(place.inputs, COLUMNS) // spec.block)
    return Layout(
        task.solver,
        spec,
        spec.block * ladder(blocks),
        max(ROWS, ladder(place.rows)),
        ladder(max(place.groups, 1)),
        task.weight.dtype,
    )


def _load(task: Task, place: Place, to: Layout) -> Load:
    """The items of one shape, padded, [items, ...]."""
    items, variants = place.items, (len(place.names), place.versions, place.size)
    unsigned = _ordered_bits(jnp.zeros((), to.dtype)).dtype

    def columns(x: Array) -> Array:  # [L, R, F, out, in] -> [items, N, M]
        return _pad(jnp.swapaxes(place.joined(x), 1, 2), to.columns, to.rows)

    def of_rows(x: Array) -> Array:  # [L, R, F] -> [items, M]
        x = jnp.broadcast_to(x[..., None], (*variants, place.out))
        return _pad(place.joined(x), to.rows)

    def lattice(x: Array) -> Array:  # [L, R, F, out, groups] -> [items, G, M]
        return _pad(jnp.swapaxes(place.joined(x), 1, 2), to.groups, to.rows)

    def every(value: Any) -> Array:
        return jnp.full(items, value)

    grid, tie, sparsity = task.grid, task.tie, task.sparsity
    if grid is None:
        unit = jnp.ones((*variants, place.out, 1), to.dtype)
        grid = Grid(unit, unit, jnp.zeros(variants, jnp.int32))
    group = _pad(group_of(place.inputs, max(place.groups, 1)), to.columns)
    return Load(
        columns(task.weight),
        columns(task.keep),
        jnp.zeros((items, to.columns, to.rows), unsigned)
        if tie is None
        else columns(_ordered_bits(tie).astype(unsigned)),
        of_rows(jnp.zeros(variants) if sparsity is None else jnp.asarray(sparsity)),
        lattice(grid.scale),
        lattice(grid.zero),
        of_rows(jnp.asarray(grid.bits, jnp.int32)),
        jnp.broadcast_to(group, (items, to.columns)),
        every(place.inputs),
        every(place.out),
        every(task.refit),
    )


def _solutions(answers: Answers) -> dict[tuple[str, ...], Solution]:
    """Of each place the solutions [L, R, F, ...], without padding."""
    parts = answers.parts
    whole = jax.tree.map(lambda *x: x[0] if len(x) == 1 else jnp.concatenate(x), *parts)
    found, at = {}, 0
    for place in answers.layout.places:
        swept, bits, report = jax.tree.map(lambda a, i=at, p=place: a[i : i + p.items], whole)
        at += place.items

        def rows_first(x: Array, width: int, p: Place = place) -> Array:
            return p.apart(jnp.swapaxes(x[:, :width], 1, 2))

        def of_versions(x: Array, p: Place = place) -> Array:  # [items] -> [L, R, F]
            shape = (len(p.names), p.versions, p.size)
            return jnp.broadcast_to(x.reshape(len(p.names), p.hessians, 1), shape)

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


def _each(f: Callable[..., Any], together: bool, number: Array, *xs: Any) -> Any:
    """f of the first ``number`` items of a batch; zeros for what only fills it up."""
    size = len(jax.tree.leaves(xs)[0])
    if together:
        return jax.vmap(f)(*xs)

    def item(i: Any) -> Any:
        return f(*jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 0, keepdims=False), xs))

    def step(i: Array, done: Any) -> Any:
        return jax.tree.map(
            lambda a, b: lax.dynamic_update_index_in_dim(a, b, i, 0), done, item(i)
        )

    shapes = jax.eval_shape(item, 0)
    start = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)
    return lax.fori_loop(0, number, step, start)


@partial(jax.jit, static_argnames=("act_order", "together"))
def _factors(
    grams: Array, inputs: Array, damp: Array, number: Array, act_order: bool, together: bool
) -> Factor:
    def one(gram: Array, n: Array) -> Factor:
        return factorize(gram, damp, act_order=act_order, inputs=n)

    done: Factor = _each(one, together, number, grams, inputs)
    return done


@partial(jax.jit, static_argnames=("spec", "together"))
def _sweeps(spec: SweepSpec, load: Load, factor: Factor, number: Array, together: bool) -> Swept:
    until = jnp.max(load.inputs)

    def one(load: Load, upper: Array, dead: Array, order: Array | None) -> Swept:
        n, m = load.weight.shape
        rows = jnp.arange(m)
        variant, place = rows // load.out, rows % load.out
        settled = load.inputs * load.out  # of a variant, never more than this
        ends = [
            prune_count(jnp.minimum(settled, b * spec.block * load.out), load.sparsity)
            for b in range(n // spec.block + 1)
        ]
        weight, keep, tie, group = load.weight, load.keep, load.tie, load.group
        if order is not None:
            weight, keep, tie, group = (a[order] for a in (weight, keep, tie, group))
        counts = None if spec.pattern is not None else jnp.diff(jnp.stack(ends), axis=0)
        done = sweep(
            spec,
            weight,
            keep,
            upper,
            Columns(load.inputs, dead, group),
            Selection(counts, variant, place, tie),
            Lattice(load.scale, load.zero, load.bits, jnp.broadcast_to(load.refit, (m,))),
            until=until if together else load.inputs,
        )
        if order is not None:
            done = done._replace(
                weight=jnp.zeros_like(weight).at[order].set(done.weight),
                keep=jnp.zeros_like(keep).at[order].set(done.keep),
            )
        return done

    done: Swept = _each(one, together, number, load, factor.upper, factor.dead, factor.order)
    return done


# ------------------------------------------------------------------------ the model's own


@partial(jax.jit, static_argnames=("layouts",))
def _grams(inputs: Mapping[str, Moments], layouts: tuple[Layout, ...]) -> list[list[Array]]:
    """Of each layout the Hessians of its items, in its chunks."""

    def of(place: Place, to: Layout) -> Array:
        each = jnp.stack([inputs[n].gram.astype(to.dtype) for n in place.names])
        each = each.reshape(place.items, place.inputs, place.inputs)
        return _pad(each, to.columns, to.columns)

    return [to.split([of(p, to) for p in to.places]) for to in layouts]


class _Pending(NamedTuple):
    """Matrices of one shape on their way through the coroutine."""

    names: tuple[str, ...]
    axes: Problem


@partial(jax.jit, static_argnames=("size", "groups", "order"))
def _advance(
    family: Any,
    size: int,
    groups: tuple[_Pending, ...],
    matrices: Mapping[str, Matrix],
    problems: Mapping[str, Problem],
    order: tuple[str, ...],
    keys: Array,
    past: Sequence[Sequence[Answers]],
) -> tuple[dict[str, Solved], list[Work]]:
    """Run the coroutines to their next task, or to their end. keys: in that order."""
    known: list[dict[tuple[str, ...], Solution]] = []
    for answers in past:
        known.append({k: s for a in answers for k, s in _solutions(a).items()})
    done: dict[str, Solved] = {}
    batches: dict[Hashable, tuple[Layout, list[Place], list[Load]]] = {}
    for names, axes in groups:
        found = _replay(
            family,
            size,
            _stack([matrices[n] for n in names]),
            _stack([problems[n] for n in names]),
            keys[np.array([order.index(n) for n in names])],
            axes,
            [solutions[names] for solutions in known],
        )
        if isinstance(found, Solved):
            done |= {n: jax.tree.map(lambda a, i=i: a[i], found) for i, n in enumerate(names)}
            continue
        own = axes.inputs is not None and axes.inputs.scatter is not None
        groups_of_grid = 0 if found.grid is None else found.grid.scale.shape[-1]
        _, versions, _, out, n_in = found.weight.shape
        place = Place(names, versions, own, size, out, n_in, groups_of_grid)
        to = _layout(found, place)
        batch = batches.setdefault(to, (to, [], []))
        batch[1].append(place)
        batch[2].append(_load(found, place, to))
    work = []
    for to, places, loads in batches.values():
        to = to._replace(places=tuple(places))
        split = Load(*(to.split(parts) for parts in zip(*loads, strict=True)))  # type: ignore[arg-type]
        work.append(Work(to, [Load(*parts) for parts in zip(*split, strict=True)]))
    return done, work


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _replay(
    family: Any,
    size: int,
    matrices: Matrix,
    problems: Problem,
    keys: Array,
    axes: Problem,
    past: list[Solution],
) -> Task | Solved:
    """The coroutines of [L, R, F], from their beginnings, with the solutions they have had.

    What was computed for an earlier task and is not needed again, the compiler drops."""

    def one(method: OBSMethod, x: Matrix, p: Problem, key: Array, past: list[Solution]) -> Any:
        steps = method.steps(x, p, key)
        try:
            task = next(steps)
            for solution in past:
                task = steps.send(solution)
        except StopIteration as end:
            return end.value
        return task

    over = 0 if jax.tree.leaves(family) else None
    f = jax.vmap(one, (over, None, None, None, 0), axis_size=size)
    f = jax.vmap(f, (None, 0, axes, None, 0))
    found: Task | Solved = jax.vmap(f, (None, 0, 0, 0, 0))(family, matrices, problems, keys, past)
    return found


def run(
    family: Any,
    size: int,
    groups: tuple[tuple[str, ...], ...],
    axes: tuple[Problem, ...],
    matrices: Mapping[str, Matrix],
    problems: Mapping[str, Problem],
    keys: Array,
) -> dict[str, Solved]:
    """F methods [F] on R versions of matrices [R, ...]; see :func:`perturb.family.run_family`.

    groups: names of matrices of one form; axes: which parts of their problems have an axis [R].
    """
    names = tuple(n for g in groups for n in g)
    pending = tuple(_Pending(*g) for g in zip(groups, axes, strict=True))
    done: dict[str, Solved] = {}
    past: list[list[Answers]] = []
    factors: dict[Hashable, list[Factor]] = {}
    while True:
        finished, work = _advance(
            family,
            size,
            pending,
            {n: matrices[n] for g in pending for n in g.names},
            {n: problems[n] for g in pending for n in g.names},
            names,
            keys,
            past,
        )
        done |= finished
        if not work:
            return done
        left = {p.names for w in work for p in w.layout.places}
        pending = tuple(g for g in pending if g.names in left)
        past.append(_solve(work, problems, factors))


def _solve(
    work: Sequence[Work],
    problems: Mapping[str, Problem],
    factors: dict[Hashable, list[Factor]],
) -> list[Answers]:
    """Every load of the work by the shared programs. factors: those that are known already."""
    together = jax.default_backend() != "cpu"
    new = [w for w in work if _hessians(w.layout) not in factors]
    if new:
        names = {n for w in new for p in w.layout.places for n in p.names}
        inputs = {n: problems[n].inputs for n in names}
        for w, grams in zip(new, _grams(inputs, tuple(w.layout for w in new)), strict=True):
            how = w.layout.solver
            damp = np.asarray(how.damp, w.layout.dtype)
            factors[_hessians(w.layout)] = [
                _factors(g, load.inputs, damp, np.int32(number), how.act_order, together)
                for g, load, (_, number) in zip(grams, w.loads, w.layout.chunks, strict=True)
            ]
    solved = []
    for w in work:
        parts = []
        mine = factors[_hessians(w.layout)]
        for load, factor, (_, number) in zip(w.loads, mine, w.layout.chunks, strict=True):
            swept = _sweeps(w.layout.spec, load, factor, np.int32(number), together)
            parts.append(Answer(swept, load.bits, factor.report))
        solved.append(Answers(w.layout, parts))
    return solved


def _hessians(layout: Layout) -> Hashable:
    """What factors depend on."""
    solver = (layout.solver.damp, layout.solver.act_order)
    return solver, layout.columns, layout.dtype, tuple((p.names, p.own) for p in layout.places)
