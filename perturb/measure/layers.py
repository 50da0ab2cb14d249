"""Measures of all layers and versions of a model by one compiled program.

Norms, output errors and cosines of a matrix do not change when rows and columns of zeros are added
to it. So layers are brought to few shapes, and versions to parts of one size: a model has one
program for whatever is measured of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb.measure import errors
from perturb.state import State, layer_weight
from perturb.storage import BITS_DENSE, width
from perturb.types import Array, Moments

PART = 8  # versions that one call measures
WEIGHTS = 1 << 29  # that it measures at most, of several versions
STEP, EXACT = 64, 1024  # sides are rounded up to multiples of STEP, up to EXACT

Shapes = tuple[tuple[str, tuple[int, int]], ...]


def _side(n: int) -> int:
    return n if n > EXACT else -(-n // STEP) * STEP


def _padded(x: Array, *sides: int) -> Array:
    """The last axes filled up with zeros."""
    lead = [(0, 0)] * (x.ndim - len(sides))
    ends = zip(sides, x.shape[x.ndim - len(sides) :], strict=True)
    return jnp.pad(x, [*lead, *((0, side - n) for side, n in ends)])


@partial(jax.jit, static_argnames=("shapes",))
def measured(
    weights: dict[str, Array],
    dense: dict[str, Array],
    moments: dict[str, Moments],
    shapes: Shapes,
) -> dict[str, errors.Raw]:
    """:func:`perturb.measure.errors.raw_measures` of every layer, weights [versions, out, in]."""
    groups: dict[tuple[int, int], list[str]] = {}
    blocks: dict[tuple[int, int], list[str]] = {}  # of convolutions in groups, by a group's shape
    found: dict[str, errors.Raw] = {}
    for name, (out, n_in) in shapes:
        if moments[name].scatter.ndim == 3:
            blocks.setdefault((out // len(moments[name].scatter), n_in), []).append(name)
        else:
            groups.setdefault((_side(out), _side(n_in)), []).append(name)
    for names in blocks.values():
        each = ([by[n] for n in names] for by in (dense, weights, moments))
        found |= dict(zip(names, _of_groups(*each), strict=True))  # type: ignore[arg-type]
    for sides, names in groups.items():
        raw = jax.lax.map(
            lambda x: errors.raw_measures(*x),
            (
                jnp.stack([_padded(dense[n], *sides) for n in names]),
                jnp.stack([_padded(weights[n], *sides) for n in names]),
                _stacked([moments[n] for n in names], sides[1]),
            ),
        )
        found |= {n: jax.tree.map(lambda a, i=i: a[i], raw) for i, n in enumerate(names)}
    return found


def _of_groups(
    dense: list[Array], weights: list[Array], moments: list[Moments]
) -> list[errors.Raw]:
    """Of convolutions in groups of one shape, each as one block-diagonal matrix; weights
    [versions, out, in]."""
    sizes = [len(m.scatter) for m in moments]

    def parts(w: Array, groups: int) -> Array:  # [..., out, in] -> [groups, ..., rows, in]
        return jnp.moveaxis(w.reshape(*w.shape[:-2], groups, -1, w.shape[-1]), -3, 0)

    own, new = (
        jnp.concatenate([parts(w, g) for w, g in zip(each, sizes, strict=True)])
        for each in (dense, weights)
    )
    raw = jax.vmap(errors.raw_measures)(
        own, new, jax.tree.map(lambda *a: jnp.concatenate(a), *moments)
    )
    ends = np.cumsum([0, *sizes])
    each = pairwise(ends)
    return [errors.block_diagonal(jax.tree.map(lambda x: x[a:b], raw)) for a, b in each]  # noqa: B023


def _stacked(moments: list[Moments], n_in: int) -> Moments:
    mean = [m.mean for m in moments]
    if any(m is None for m in mean):
        assert all(m is None for m in mean), "moments with and without a mean"
        means = None
    else:
        means = jnp.stack([_padded(m, n_in) for m in mean if m is not None])
    return Moments(
        jnp.stack([_padded(m.scatter, n_in, n_in) for m in moments]),
        jnp.stack([jnp.asarray(m.count) for m in moments]),
        means,
    )


@partial(jax.jit, static_argnames=("shapes",))
def part_of(state: State, index: Array, shapes: Shapes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Versions ``index`` [n] of the layers' weights, and counts of what is stored of them."""
    chosen = jax.tree.map(lambda a: a[index], state)
    weights = {n: layer_weight(chosen, n, shape) for n, shape in shapes}
    weights = {n: jnp.broadcast_to(w, (len(index), *w.shape[-2:])) for n, w in weights.items()}
    counts = {}
    for name, w in weights.items():
        size = w.shape[-2] * w.shape[-1]
        own = chosen.matrices.get(name)
        gone = jnp.sum(w == 0, (-2, -1))
        pruned = gone if own is None else jnp.sum(~own.mask, (-2, -1))
        counts[name] = {"pruned": pruned / size, "zero": gone / size}
    return weights, counts


def layer_measures(
    state: State,
    size: int,
    shapes: Mapping[str, tuple[int, int]],
    dense: Mapping[str, Array],
    moments: Mapping[str, Moments],
) -> dict[str, dict[str, np.ndarray]]:
    """Of every layer the measures [size] of all versions, float64 (:mod:`perturb.measure.errors`).

    Besides: pruned, the fraction of weights that the mask has taken; zero, that is exactly 0;
    bits of a kept weight. dense, moments: what is compared with, by layer.
    """
    fixed, bare = tuple(shapes.items()), state.bare
    bits = jax.device_get({n: width(m) for n, m in state.matrices.items()})
    parts = []
    part = max(1, WEIGHTS // sum(out * n_in for out, n_in in shapes.values()))
    part = PART if part >= PART else min(part, size)  # of small models one program for any size
    for start in range(0, size, part):
        index = np.minimum(np.arange(start, start + part), size - 1)
        weights, counts = part_of(bare, index, fixed)
        raw = measured(weights, dict(dense), dict(moments), fixed)
        parts.append(jax.device_get((raw, counts)))
    done: dict[str, dict[str, np.ndarray]] = {}
    for name in shapes:
        rows = [errors.finish(raw[name]) | counts[name] for raw, counts in parts]
        done[name] = {k: np.concatenate([r[k] for r in rows])[:size] for k in rows[0]}
        done[name]["bits"] = np.broadcast_to(bits.get(name, BITS_DENSE), (size,))
    return done
