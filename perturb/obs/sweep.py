"""The one blocked sweep behind SparseGPT, GPTQ and their joint form.

Objective, for each row w of a layer with inputs X and H = (2/n) X X^T + damping:

    minimise (w - q)^T H (w - q)   over q that are 0 off the mask and on the grid elsewhere,

greedily: columns are settled from left to right; settling column j at q_j leaves the error
``e_j = (w_j - q_j) / U_jj`` and the optimal correction ``w_k -= e_j U_jk`` of the columns k > j
that are still free, where ``H^{-1} = U^T U``, U upper triangular (Frantar & Alistarh,
SparseGPT 2023, GPTQ 2023; the row of U after its diagonal is the OBS update).

How it is laid out. Columns of the layer are rows here (``[in, M]``: a settled column is
contiguous). The M rows are those of all variants of the layer, one variant after another: they
share U, and what differs between variants (how many weights go, where the lattice lies, whether
weights are rounded at all) is data. The correction is applied lazily and left-looking: before a
panel of columns is entered, the errors of everything to its left are brought in by one matmul.
Panels nest (``block`` columns > ``PANEL`` columns > one column), so nearly all arithmetic is in
matmuls and the innermost loop touches PANEL columns. Columns and rows that only pad to a shape
that is compiled already are never settled and never counted: blocks and panels without a real
column are not entered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from perturb.grid import OUTGROWN, GridSpec, excess, fit_ranges, round_to, top_code
from perturb.masks import NofM, _ordered_bits, dead_first, rank_smallest
from perturb.types import Array

PANEL = 16  # columns settled between two matmuls inside a block
HIGHEST = lax.Precision.HIGHEST


@dataclass(frozen=True)
class SweepSpec:
    """What the sweep does, as far as it is compiled in.

    block: columns between two large matmuls, and the population of an unstructured selection.
    pattern: n of m are kept in each group of m columns of a row. fit_groups: a :class:`GridSpec`
    whose group scales are fitted when the block is entered in which the group starts, from weights
    corrected by earlier blocks only (as in the reference: a group that reaches into the next block
    does not wait for it), instead of being given.
    """

    block: int = 128
    pattern: NofM | None = None
    fit_groups: GridSpec | None = None

    @property
    def reach(self) -> int:
        """Columns from a block's start that the groups starting in it may cover."""
        if self.fit_groups is None:
            return self.block
        assert isinstance(self.fit_groups.per, int)
        per = self.fit_groups.per
        return self.block if self.block % per == 0 else self.block + per - 1

    @property
    def panels(self) -> tuple[int, ...]:
        """Columns of the nested panels, the widest first; the last are single columns."""
        widths = {math.gcd(self.block, PANEL), 1}
        if self.pattern is not None:
            widths = {s for s in widths if s % self.pattern.m == 0} | {self.pattern.m, 1}
        return tuple(sorted((s for s in widths if s < self.block), reverse=True)) or (1,)


class Columns(NamedTuple):
    """Of the columns [N]; ``number`` of them are real, the first ones."""

    number: Array | int
    dead: Array  # [N] bool, removed first
    group: Array | None = None  # [N] int, row of the lattice


class Selection(NamedTuple):
    """What is removed on the way: the smallest ``w^2 / U_jj^2``, those of dead inputs first.

    Of each block and variant exactly so many, or by the sweep's N:M pattern (counts: None).
    """

    counts: Array | None  # [blocks, M], of the variant that a row belongs to
    variant: Array | None  # [M] int < M, rows of one variant are one population
    place: Array | None  # [M] int, the row's place in it: what ties otherwise goes in this order
    tie: Array | None  # [N, M] second key


class Lattice(NamedTuple):
    scale: Array  # [groups, M]
    zero: Array  # [groups, M]
    bits: Array  # [M] int; 0: the row is not rounded
    refit: Array  # [M] bool, groups are fitted only where they have outgrown the given grid

    @property
    def top(self) -> Array:  # [M], 2^bits - 1
        return top_code(self.bits).astype(self.scale.dtype)


class Swept(NamedTuple):
    weight: Array  # [N, M]
    keep: Array  # [N, M] bool
    scale: Array | None = None  # [groups, M]
    zero: Array | None = None


class _State(NamedTuple):
    """What is known of columns [b, M]: their weights, before they are settled and after, the
    errors that settling made in units of U_jj, and which are kept."""

    w: Array
    errors: Array
    keep: Array


def _slice(x: Any, start: Any, size: int) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size, 0), x)


def _put(x: Any, part: Any, start: Any) -> Any:
    return jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, start, 0), x, part)


def _score(w: Array, u: Array, keep: Array, dead: Array) -> Array:
    """|w| / U_jj: what a removal costs, up to a monotone map that cannot overflow."""
    score = jnp.abs(w) / jnp.diagonal(u)[:, None]
    return jnp.where(keep, dead_first(score, jnp.abs(w), dead[:, None]), -jnp.inf)


def _select_block(score: Array, counts: Array, given: Selection, tie: Array | None) -> Array:
    """Mark, of each variant, exactly counts [M] of the scores [b, M]: the smallest.

    What ties goes by the second key, then in the order of the variant's own [out, in]. Keys are
    searched for bit by bit as in :func:`perturb.masks.smallest_k`; a key is looked at only where
    those before it left a choice.
    """
    b, m = score.shape
    variant, place = given.variant, given.place
    assert variant is not None
    assert place is not None
    first = _ordered_bits(score)
    index = place.astype(first.dtype) * b + jnp.arange(b, dtype=first.dtype)[:, None]
    keys = [first, index] if tie is None else [first, _ordered_bits(tie).astype(first.dtype), index]
    stacked = jnp.stack(keys)
    width = first.dtype.itemsize * 8
    bits = jnp.asarray([width] * (len(keys) - 1) + [(m * b).bit_length()], jnp.int32)

    def total(chosen: Array) -> Array:  # [M], of the row's variant
        rows = jnp.sum(chosen, axis=0, dtype=jnp.int32)
        return jax.ops.segment_sum(rows, variant, num_segments=m)[variant]

    def undecided(state: tuple[Array, Array, Array, Array]) -> Array:
        number, _, candidates, left = state
        return (number < len(keys)) & jnp.any((left > 0) & (total(candidates) > left))

    def look(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        number, chosen, candidates, left = state
        key = stacked[number]

        def descend(i: Array, found: Array) -> Array:
            bit = (bits[number] - 1 - i).astype(key.dtype)
            trial = found | (jnp.asarray(1, key.dtype) << bit)
            return jnp.where(total(candidates & (key < trial)) < left, trial, found)

        kth = lax.fori_loop(0, bits[number], descend, jnp.zeros(m, key.dtype))
        below = candidates & (key < kth)
        return number + 1, chosen | below, candidates & (key == kth), left - total(below)

    start = (jnp.asarray(0), jnp.zeros(score.shape, bool), jnp.ones(score.shape, bool), counts)
    _, chosen, candidates, left = lax.while_loop(undecided, look, start)
    return chosen | (candidates & (left > 0))


def _select_group(score: Array, pattern: NofM, tie: Array | None) -> Array:
    gone = rank_smallest(score.T, pattern.m - pattern.n, () if tie is None else [tie.T])
    return gone.T


class _Panel(NamedTuple):
    """What settling columns [b] needs besides their state."""

    u: Array  # [b, b]
    dead: Array  # [b]
    group: Array | None  # [b]
    tie: Array | None  # [b, M], of an N:M selection

    def part(self, start: Any, size: int) -> _Panel:
        dead, group, tie = _slice((self.dead, self.group, self.tie), start, size)
        return _Panel(lax.dynamic_slice(self.u, (start, start), (size, size)), dead, group, tie)


def _settle(state: _State, here: _Panel, lattice: Lattice | None) -> _State:
    """One column [1, M]."""
    q = state.w
    if lattice is not None:
        assert here.group is not None
        scale, zero = (
            lax.dynamic_index_in_dim(a, here.group[0], 0) for a in (lattice.scale, lattice.zero)
        )
        q = jnp.where(lattice.bits > 0, round_to(q, scale, zero, lattice.top), q)
    q = jnp.where(state.keep, q, 0)
    return _State(q, (state.w - q) / here.u[0, 0], state.keep)


def _settle_panel(
    widths: tuple[int, ...],
    pattern: NofM | None,
    number: Array | int,
    state: _State,
    here: _Panel,
    lattice: Lattice | None,
) -> _State:
    """Settle the first ``number`` panels of ``widths[0]`` columns, each by those within it."""
    if pattern is not None and state.w.shape[0] == pattern.m:
        score = _score(state.w, here.u, state.keep, here.dead)
        state = state._replace(keep=state.keep & ~_select_group(score, pattern, here.tie))
    if not widths:
        return _settle(state, here, lattice)
    width, *inner = widths

    def step(i: Array, state: _State) -> _State:
        start = i * width
        mine = _slice(state, start, width)
        coupling = lax.dynamic_slice_in_dim(here.u, start, width, 1)  # [b, width]
        update = jnp.matmul(coupling.T, state.errors, precision=HIGHEST)
        mine = mine._replace(w=mine.w - update)
        within = width // inner[0] if inner else 1
        part = here.part(start, width)
        mine = _settle_panel(tuple(inner), pattern, within, mine, part, lattice)
        keep = state.keep if pattern is None else _put(state.keep, mine.keep, start)
        return _State(_put(state.w, mine.w, start), _put(state.errors, mine.errors, start), keep)

    return lax.fori_loop(0, number, step, state)


def _fit_groups(spec: SweepSpec, w: Array, start: Array, lattice: Lattice) -> Lattice:
    """The lattice, groups that start in the block at ``start`` fitted to w [reach, M]."""
    assert spec.fit_groups is not None
    assert isinstance(spec.fit_groups.per, int)
    per, groups = spec.fit_groups.per, lattice.scale.shape[0]
    number = -(-spec.block // per)  # that can start in one block
    first = -(-start // per)
    index = first + jnp.arange(number)
    columns = index[:, None] * per - start + jnp.arange(per)  # [number, per]
    mine = (columns[:, 0] < spec.block) & (index < groups)
    by_group = w[jnp.clip(columns, 0, w.shape[0] - 1)]  # [number, per, M]
    by_group = jnp.moveaxis(by_group, 1, -1)
    scale, zero = fit_ranges(by_group, lattice.bits[None], spec.fit_groups)
    at = jnp.clip(index, 0, groups - 1)
    held_scale, held_zero = lattice.scale[at], lattice.zero[at]
    beyond = excess(by_group, held_scale, held_zero, lattice.top[None])
    held = lattice.refit & (beyond <= OUTGROWN * held_scale)
    place = jnp.where(mine, index, groups)  # out of range: dropped
    return lattice._replace(
        scale=lattice.scale.at[place].set(jnp.where(held, held_scale, scale), mode="drop"),
        zero=lattice.zero.at[place].set(jnp.where(held, held_zero, zero), mode="drop"),
    )


def sweep(
    spec: SweepSpec,
    w: Array,
    keep: Array,
    u: Array,
    columns: Columns,
    selection: Selection | None = None,
    lattice: Lattice | None = None,
    *,
    until: Array | int | None = None,
) -> Swept:
    """Settle the real columns of w [N, M]; N a multiple of ``spec.block``.

    ``columns.number``, and every array, may differ between the sweeps of a vmap; until: one bound
    on the number for all of them.
    """
    n, m = w.shape
    block, reach = spec.block, spec.reach
    if until is None:
        until = columns.number
    beyond = reach - block  # columns of the next blocks, for the groups that reach into them
    if beyond:
        u = jnp.pad(u, ((0, 0), (0, beyond)))
    widths = spec.panels
    tie = None if selection is None else selection.tie
    by_pattern = tie if spec.pattern is not None else None

    def step(i: Array, carry: tuple[_State, Lattice | None]) -> tuple[_State, Lattice | None]:
        state, used = carry
        start = i * block

        def bring_in(j: Array, acc: Array) -> Array:  # exactly the blocks to the left: no waste
            coupling = lax.dynamic_slice(u, (j * block, start), (block, reach))
            errors = _slice(state.errors, j * block, block)
            return acc + jnp.matmul(coupling.T, errors, precision=HIGHEST)

        update = lax.fori_loop(0, i, bring_in, jnp.zeros((reach, m), w.dtype))
        mine = _slice(state, start, block)
        mine = mine._replace(w=mine.w - update[:block])
        dead, group, panel_tie = _slice((columns.dead, columns.group, by_pattern), start, block)
        here = _Panel(lax.dynamic_slice(u, (start, start), (block, block)), dead, group, panel_tie)
        if selection is not None and selection.counts is not None:
            counts = selection.counts[i]

            def select(keep: Array) -> Array:
                score = _score(mine.w, here.u, keep, dead)
                real = start + jnp.arange(block) < columns.number
                score = jnp.where(real[:, None], score, jnp.inf)
                block_tie = None if tie is None else _slice(tie, start, block)
                return keep & ~_select_block(score, counts, selection, block_tie)

            kept = lax.cond(jnp.any(counts > 0), select, lambda keep: keep, mine.keep)
            mine = mine._replace(keep=kept)
        if spec.fit_groups is not None:
            assert used is not None
            # pruned weights drift until settled at 0
            survivors = jnp.where(mine.keep, mine.w, 0)
            if beyond:
                ahead = start + block + jnp.arange(beyond)
                at = jnp.clip(ahead, 0, n - 1)
                there = jnp.where(state.keep[at], state.w[at] - update[block:], 0)
                there = jnp.where(ahead[:, None] < n, there, 0)
                survivors = jnp.concatenate([survivors, there])
            used = _fit_groups(spec, survivors, start, used)
        panels = jnp.minimum(-(-(until - start) // widths[0]), block // widths[0])
        mine = _settle_panel(widths, spec.pattern, panels, mine, here, used)
        return _put(state, mine, start), used

    begun = _State(w, jnp.zeros_like(w), keep)
    state, lattice = lax.fori_loop(0, -(-until // block), step, (begun, lattice))
    if lattice is None:
        return Swept(state.w, state.keep)
    return Swept(state.w, state.keep, lattice.scale, lattice.zero)
