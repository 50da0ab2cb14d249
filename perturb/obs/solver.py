"""The one blocked optimal-brain-surgeon solver behind SparseGPT, GPTQ and their joint form.

Objective, for each row w of a layer with inputs X and H = (2/n) X X^T + damping:

    minimise (w - q)^T H (w - q)   over q that are 0 off the mask and on the grid elsewhere,

greedily: columns are settled from left to right; settling column j at q_j leaves the error
``e_j = (w_j - q_j) / U_jj`` and the optimal correction ``w_k -= e_j U_jk`` of the columns k > j
that are still free, where ``H^{-1} = U^T U``, U upper triangular (Frantar & Alistarh,
SparseGPT 2023, GPTQ 2023; the row of U after its diagonal is the OBS update).

How it is laid out. Columns of the layer are rows here (``[in, V, out]``: a settled column is
contiguous; V variants of one layer share U and are just more rows). The correction is applied
lazily and left-looking: before a panel of columns is entered, the errors of everything to its
left are brought in by one matmul. Panels nest (``block`` columns > ``PANEL`` columns > one
column), so nearly all arithmetic is in matmuls and the innermost loop touches PANEL columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from perturb.grid import OUTGROWN, GridSpec, excess, fit_ranges, round_to, top_code
from perturb.masks import NofM, prune_count, rank_smallest, smallest_k
from perturb.types import Array, Grid, Moments, SolveReport

PANEL = 16  # columns settled between two matmuls inside a block
MAX_RETRIES = 10  # times the damping is raised, tenfold each
HIGHEST = lax.Precision.HIGHEST


class Factor(NamedTuple):
    """``H^{-1} = U^T U`` of a damped Hessian, with what had to be done to get it."""

    upper: Array  # [in, in]
    dead: Array  # [in] bool, inputs that were always 0, unless all of them were
    report: SolveReport


def factorize(gram: Array, damp: Array | float) -> Factor:
    """Factor the inverse of ``H = gram / m + damp I``, m the mean of diag(gram) over live inputs.

    A solution does not depend on the scale of H, so nothing here depends on the scale of the
    inputs or on whether tokens or sequences were counted. A dead input has no correlations: any
    positive H_dd leaves the others alone (1 here). Inputs that are dead altogether say nothing:
    H is then the identity. If the factor is not finite, the damping is raised tenfold (from at
    least 1e-4), up to MAX_RETRIES times, and the report says so.

    With J the reversal, ``J H J = L L^T`` gives ``H = R R^T`` with R = J L J upper triangular,
    so U = R^{-1}: one Cholesky and one triangular solve instead of the textbook's Cholesky,
    inverse, Cholesky.
    """
    energy = jnp.diagonal(gram)
    dead = energy == 0
    largest = jnp.max(energy)  # twice, so that neither sum nor quotient leaves the floats' range
    scaled = gram / jnp.where(largest > 0, largest, 1)
    mean = jnp.sum(jnp.diagonal(scaled)) / jnp.maximum(jnp.sum(~dead), 1)
    eye = jnp.eye(gram.shape[0], dtype=gram.dtype)
    h = jnp.where(dead[:, None] & (eye > 0), eye, scaled / jnp.where(mean > 0, mean, 1))

    def attempt(fraction: Array) -> Array:
        damped = h + fraction * eye
        upper = lax.linalg.cholesky(damped[::-1, ::-1], symmetrize_input=False)[::-1, ::-1]
        return lax.linalg.triangular_solve(upper, eye, left_side=True, lower=False)

    def failed(state: tuple[Array, Array, Array]) -> Array:
        upper, _, retries = state
        return ~jnp.all(jnp.isfinite(upper)) & (retries < MAX_RETRIES)

    def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        _, fraction, retries = state
        fraction = jnp.maximum(10 * fraction, 1e-4)
        return attempt(fraction), fraction, retries + 1

    first = jnp.asarray(damp, h.dtype)
    start = (attempt(first), first, jnp.asarray(0, jnp.int32))
    upper, fraction, retries = lax.while_loop(failed, again, start)
    report = SolveReport(fraction, retries, jnp.sum(dead, dtype=jnp.int32))
    return Factor(upper, dead & ~jnp.all(dead), report)


@dataclass(frozen=True)
class SweepSpec:
    """What the sweep does, as far as it is compiled in.

    select: None keeps the given mask, "block" removes the smallest ``w^2 / U_jj^2`` of each
    block (exact counts), :class:`NofM` keeps n of m in each group of m columns of a row; columns
    of dead inputs cost nothing and go first. on_grid: whether kept weights are rounded.
    fit_groups: a :class:`GridSpec` whose group scales are fitted when the block is entered in
    which the group starts, from weights corrected by earlier blocks only (as in the reference:
    a group that reaches into the next block does not wait for it), instead of being given;
    ``refit``: only where those weights have outgrown the given grid.
    """

    block: int = 128
    select: str | NofM | None = None
    on_grid: bool = False
    fit_groups: GridSpec | None = None
    refit: bool = False

    @property
    def reach(self) -> int:
        """Columns from a block's start that the groups starting in it may cover."""
        if self.fit_groups is None:
            return self.block
        assert isinstance(self.fit_groups.per, int)
        per = self.fit_groups.per
        return self.block if self.block % per == 0 else self.block + per - 1


class Columns(NamedTuple):
    """Per-column data of a sweep; leading axis = columns. Fields a sweep does not use are None."""

    keep: Array  # [in, V, out] bool
    real: Array  # [in] bool, False on padding
    dead: Array  # [in] bool
    group: Array | None  # [in] int, row of scale/zero
    tie: Array | None  # [in, V, out] second key of the block selection


class Lattice(NamedTuple):
    scale: Array  # [groups, V, out]
    zero: Array  # [groups, V, out]
    bits: Array  # [V, 1]
    top: Array  # [V, 1], 2^bits - 1


def _slice(x, start, size: int):
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size, 0), x)


def _corrected(w: Array, u: Array, errors: Array, start, size: int) -> Array:
    """Columns [start, start+size) of w after the errors already made in this panel."""
    coupling = lax.dynamic_slice_in_dim(u, start, size, 1)  # [b, size]
    here = lax.dynamic_slice_in_dim(w, start, size, 0)
    flat = errors.reshape(errors.shape[0], -1)
    update = jnp.matmul(coupling.T, flat, precision=HIGHEST)
    return here - update.reshape(here.shape)


def _score(w: Array, u: Array, cols: Columns) -> Array:
    """|w| / U_jj: what a removal costs, up to a monotone map that cannot overflow."""
    score = jnp.abs(w) / jnp.diagonal(u)[:, None, None]
    return jnp.where(cols.keep, jnp.where(cols.dead[:, None, None], 0, score), -jnp.inf)


def _select_block(w: Array, u: Array, cols: Columns, k: Array) -> Columns:
    """Remove exactly k [V] of the block's [b, V, out] weights: smallest w^2 / U_jj^2 first."""
    b, v, out = w.shape
    score = jnp.where(cols.real[:, None, None], _score(w, u, cols), jnp.inf)

    def by_variant(x: Array) -> Array:  # row-major over the layer's own [out, in] order
        return x.transpose(1, 2, 0).reshape(v, out * b)

    tie = None if cols.tie is None else by_variant(cols.tie)
    gone = smallest_k(by_variant(score), k, tie)
    gone = gone.reshape(v, out, b).transpose(2, 0, 1)
    return cols._replace(keep=cols.keep & ~gone)


def _select_group(w: Array, u: Array, cols: Columns, pattern: NofM) -> Columns:
    score = _score(w, u, cols)
    tie = None if cols.tie is None else jnp.moveaxis(cols.tie, 0, -1)
    gone = rank_smallest(jnp.moveaxis(score, 0, -1), pattern.m - pattern.n, tie)
    return cols._replace(keep=cols.keep & ~jnp.moveaxis(gone, -1, 0))


def _settle(
    w: Array, u: Array, cols: Columns, lattice: Lattice | None
) -> tuple[Array, Array, Columns]:
    """One column [1, V, out]: its final value and its error in units of U_jj."""
    q = w
    if lattice is not None:
        assert cols.group is not None
        scale, zero = (
            lax.dynamic_index_in_dim(a, cols.group[0], 0, keepdims=True)
            for a in (lattice.scale, lattice.zero)
        )
        q = round_to(w, scale, zero, lattice.top)
    q = jnp.where(cols.keep, q, 0)
    return q, (w - q) / u[0, 0], cols


def _panel(
    sizes: tuple[int, ...],
    spec: SweepSpec,
    w: Array,
    u: Array,
    cols: Columns,
    lattice: Lattice | None,
) -> tuple[Array, Array, Columns]:
    """Settle a panel w [b, V, out] by sub-panels of ``sizes[0]`` columns, recursively."""
    if isinstance(spec.select, NofM) and w.shape[0] == spec.select.m:
        cols = _select_group(w, u, cols, spec.select)
    if not sizes:
        return _settle(w, u, cols, lattice)
    size = sizes[0]

    def step(errors: Array, start: Array):
        here = _corrected(w, u, errors, start, size)
        u_here = lax.dynamic_slice(u, (start, start), (size, size))
        q, e, c = _panel(sizes[1:], spec, here, u_here, _slice(cols, start, size), lattice)
        return lax.dynamic_update_slice_in_dim(errors, e, start, 0), (q, c)

    starts = jnp.arange(0, w.shape[0], size)
    errors, settled = lax.scan(step, jnp.zeros_like(w), starts)
    q, cols = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), settled)
    return q, errors, cols


def _sweep(
    spec: SweepSpec,
    w: Array,
    u: Array,
    cols: Columns,
    counts: Array,
    lattice: Lattice | None,
) -> tuple[Array, Array, Lattice | None]:
    """Settle all columns of w [in, V, out]; ``in`` a multiple of ``spec.block``.

    counts: [blocks, V] weights to remove in each block (select="block"). Returns the settled
    weights, the keep mask, and the lattice (with fitted groups if ``spec.fit_groups``).
    """
    n, v, out = w.shape
    block = spec.block
    blocks = n // block
    levels = {math.gcd(block, PANEL), 1}
    if isinstance(spec.select, NofM):
        levels = {s for s in levels if s % spec.select.m == 0} | {spec.select.m, 1}
    panel_sizes = tuple(sorted((s for s in levels if s < block), reverse=True)) or (1,)
    beyond = spec.reach - block  # columns of the next blocks, for the groups that reach into them
    u_rows = jnp.pad(u, ((0, 0), (0, beyond))).reshape(blocks, block, n + beyond)
    w_wide = jnp.pad(w, ((0, beyond), (0, 0), (0, 0)))
    keep_wide = jnp.pad(cols.keep, ((0, beyond), (0, 0), (0, 0)))

    def step(carry: tuple[Array, Lattice | None], i: Array):
        errors, used = carry
        start = i * block

        def bring_in(j: Array, acc: Array) -> Array:  # exactly the blocks to the left: no waste
            coupling = lax.dynamic_slice_in_dim(u_rows[j], start, spec.reach, 1)
            return acc + jnp.matmul(coupling.T, errors[j], precision=HIGHEST)

        update = lax.fori_loop(0, i, bring_in, jnp.zeros((spec.reach, v * out), w.dtype))
        wide = _slice(w_wide, start, spec.reach) - update.reshape(spec.reach, v, out)
        here = wide[:block]
        u_here = lax.dynamic_slice(u, (start, start), (block, block))
        c = _slice(cols, start, block)
        if spec.select == "block":
            c = _select_block(here, u_here, c, counts[i])
        if spec.fit_groups is not None:
            assert used is not None
            kept = jnp.concatenate([c.keep, _slice(keep_wide, start + block, beyond)])
            survivors = jnp.where(kept, wide, 0)  # pruned weights drift until settled at 0
            used = _fit_groups(spec, survivors, start, used)
        q, e, c = _panel(panel_sizes, spec, here, u_here, c, used if spec.on_grid else None)
        return (errors.at[i].set(e.reshape(block, v * out)), used), (q, c.keep)

    start_errors = jnp.zeros((blocks, block, v * out), w.dtype)
    (_, lattice), (q, keep) = lax.scan(step, (start_errors, lattice), jnp.arange(blocks))
    return q.reshape(n, v, out), keep.reshape(n, v, out), lattice


def _fit_groups(spec: SweepSpec, w: Array, start: Array, lattice: Lattice) -> Lattice:
    """The lattice, groups that start in the block at ``start`` fitted to w [reach, V, out]."""
    assert spec.fit_groups is not None
    assert isinstance(spec.fit_groups.per, int)
    per, groups = spec.fit_groups.per, lattice.scale.shape[0]
    number = -(-spec.block // per)  # that can start in one block
    first = -(-start // per)
    index = first + jnp.arange(number)
    columns = index[:, None] * per - start + jnp.arange(per)  # [number, per]
    mine = (columns[:, 0] < spec.block) & (index < groups)
    by_group = w[jnp.clip(columns, 0, w.shape[0] - 1)]  # [number, per, V, out]
    by_group = jnp.moveaxis(by_group, 1, -1)
    scale, zero = fit_ranges(by_group, lattice.bits[None], spec.fit_groups)
    if spec.refit:
        at = jnp.clip(index, 0, groups - 1)
        held_scale, held_zero = lattice.scale[at], lattice.zero[at]
        beyond = excess(by_group, held_scale, held_zero, lattice.top[None])
        outgrown = beyond > OUTGROWN * held_scale
        scale = jnp.where(outgrown, scale, held_scale)
        zero = jnp.where(outgrown, zero, held_zero)
    place = jnp.where(mine, index, groups)  # out of range: dropped
    return lattice._replace(
        scale=lattice.scale.at[place].set(scale, mode="drop"),
        zero=lattice.zero.at[place].set(zero, mode="drop"),
    )


def sweep(
    spec: SweepSpec,
    w: Array,
    u: Array,
    cols: Columns,
    counts: Array,
    lattice: Lattice | None,
) -> tuple[Array, Array, Lattice | None]:
    """:func:`_sweep`, taught that a vmap over variants with one Hessian is only more rows.

    Rows are independent given U, so such a batch is stacked into the V axis: one pass of larger
    matmuls, instead of a batch of small ones.
    """

    @jax.custom_batching.custom_vmap
    def run(w, u, cols, counts, lattice):
        return _sweep(spec, w, u, cols, counts, lattice)

    @run.def_vmap
    def _(size, batched, w, u, cols, counts, lattice):
        args = (w, u, cols, counts, lattice)
        _, u_b, cols_b, _, _ = batched
        # another Hessian: a batch like any other
        if u_b or cols_b.real or cols_b.dead or cols_b.group:
            axes = jax.tree.map(lambda b: 0 if b else None, batched)
            out = jax.vmap(lambda *a: _sweep(spec, *a), axes)(*args)
            return out, jax.tree.map(lambda _: True, out)

        def stack(x: Array, is_batched: bool, axis: int) -> Array:
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            x = jnp.moveaxis(x, 0, axis)
            return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

        shared = cols_b._replace(real=None, dead=None, group=None)
        stacked = jax.tree.map(
            lambda x, b: stack(x, b, 1), cols._replace(real=None, dead=None, group=None), shared
        )
        q, keep, used = sweep(
            spec,
            stack(w, batched[0], 1),
            u,
            stacked._replace(real=cols.real, dead=cols.dead, group=cols.group),
            stack(counts, batched[3], 1),
            None
            if lattice is None
            else Lattice(
                *(stack(x, b, a) for x, b, a in zip(lattice, batched[4], (1, 1, 0, 0), strict=True))
            ),
        )

        def split(x: Array, axis: int) -> Array:
            x = x.reshape(*x.shape[:axis], size, -1, *x.shape[axis + 1 :])
            return jnp.moveaxis(x, axis, 0)

        if used is not None:
            used = Lattice(*(split(x, a) for x, a in zip(used, (1, 1, 0, 0), strict=True)))
        out = (split(q, 1), split(keep, 1), used)
        return out, jax.tree.map(lambda _: True, out)

    return run(w, u, cols, counts, lattice)


class Solution(NamedTuple):
    weight: Array  # [out, in]
    keep: Array  # [out, in] bool
    grid: Grid | None
    report: SolveReport


@dataclass(frozen=True)
class Solver:
    """Static options of one solve.

    damp: fraction of mean(diag H) added to the diagonal. block: columns settled between two
    large matmuls and, for unstructured selection, the population over which a mask is chosen.
    act_order: settle columns by decreasing diag(H) instead of left to right (masks are then
    chosen, and groups fitted, in the original positions: groups must be static).
    """

    damp: float = 0.01
    block: int = 128
    act_order: bool = False

    def blocks(self, n_in: int, unit: int, population: bool) -> tuple[int, int]:
        """(block, number of blocks). A block is a multiple of ``unit``; where it is no
        population of anything, it shrinks so that padding is least."""
        block = max(unit, self.block // unit * unit)
        number = -(-n_in // block)
        if number == 1 or not population:
            even = -(-n_in // number)
            step = unit if number == 1 else math.lcm(unit, PANEL)
            block = min(block, -(-even // step) * step)
            number = -(-n_in // block)
        return block, number

    def __call__(
        self,
        weight: Array,
        keep: Array,
        stats: Moments,
        *,
        select: str | NofM | None = None,
        sparsity: Array | float = 0.0,
        tie: Array | None = None,
        grid: Grid | None = None,
        fit_groups: GridSpec | None = None,
        refit: bool = False,
    ) -> Solution:
        """Settle a layer ``weight [out, in]`` under ``keep`` (False = stays 0).

        Rounds onto ``grid`` if there is one. ``fit_groups``: the grid's group scales are fitted
        anew on the way (``refit``: where the weights have outgrown it). ``select`` also removes
        weights, see :class:`SweepSpec`.
        """
        out, n_in = weight.shape
        gram = stats.gram.astype(weight.dtype)
        order = None
        if self.act_order:
            order = jnp.argsort(-jnp.diagonal(gram), stable=True)
            gram = gram[order][:, order]
        factor = factorize(gram, self.damp)
        groups = 1 if grid is None else grid.scale.shape[-1]

        unit = select.m if isinstance(select, NofM) else 1
        population = select == "block" or fit_groups is not None
        block, number = self.blocks(n_in, unit, population)
        pad = number * block - n_in

        def columns_first(x: Array, fill: float | bool = 0) -> Array:  # [out, in] -> [in, 1, out]
            x = x if order is None else x[:, order]
            return jnp.pad(x.T, ((0, pad), (0, 0)), constant_values=fill)[:, None, :]

        upper = jnp.pad(factor.upper, (0, pad))
        upper = upper + jnp.diag(
            jnp.pad(jnp.zeros(n_in, weight.dtype), (0, pad), constant_values=1)
        )
        group = jnp.arange(n_in) // (n_in // groups)
        group = group if order is None else group[order]
        cols = Columns(
            keep=columns_first(keep, True),
            real=jnp.arange(n_in + pad) < n_in,
            dead=jnp.pad(factor.dead, (0, pad)),
            group=None if grid is None else jnp.pad(group, (0, pad)),
            tie=None if tie is None else columns_first(tie),
        )
        ends = [prune_count(out * min(n_in, b * block), sparsity) for b in range(number + 1)]
        counts = jnp.diff(jnp.stack(ends))[:, None]
        lattice = None
        if grid is not None:
            width = grid.bits.reshape(1, 1)
            top = top_code(width).astype(weight.dtype)
            lattice = Lattice(grid.scale.T[:, None], grid.zero.T[:, None], width, top)
        spec = SweepSpec(block, select, grid is not None, fit_groups, refit)
        q, kept, lattice = sweep(spec, columns_first(weight), upper, cols, counts, lattice)

        def rows_first(x: Array) -> Array:
            x = x[:n_in, 0].T
            return x if order is None else jnp.zeros_like(x).at[:, order].set(x)

        if lattice is not None and grid is not None:
            grid = Grid(lattice.scale[:groups, 0].T, lattice.zero[:groups, 0].T, grid.bits)
        return Solution(rows_first(q), rows_first(kept), grid, factor.report)
