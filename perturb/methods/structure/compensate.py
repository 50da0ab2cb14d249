"""What the loss of units costs the layers that read them, once their other columns make up for it.

On the host in float64: a space has few units, and each removal changes the scores of all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from perturb.architecture import COLUMNS, Axis, Space
from perturb.obs.factor import normalized
from perturb.registry import SHOWN
from perturb.state import State, inputs_of, uses
from perturb.types import Matrix, Moments

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
DAMP = 0.01  # of the mean of diag H, as the solvers of perturb.obs have it


class Reader(NamedTuple):
    """A matrix that reads a space, and the second moment of its inputs."""

    weight: Floats  # [out, in]
    hessian: Floats  # [in, in], damped, on a scale of its own
    scale: float  # of H: with it costs are E||dW x||^2, comparable between readers
    dead: Bools  # [in], inputs that were always 0, unless all of them were
    columns: npt.NDArray[np.int64]  # [units, columns of each]


def reader(weight: Any, moments: Moments, axis: Axis, size: int) -> Reader:
    """A matrix [out, in] with the moments of its inputs, ``size`` units along its columns."""
    held = jax.device_get(moments)
    count = float(held.count)
    gram = np.asarray(held.scatter, np.float64)
    if held.mean is not None:
        mean = np.asarray(held.mean, np.float64)
        gram = gram + count * np.outer(mean, mean)
    own = normalized(gram, xp=np)
    live = np.diagonal(gram)[~own.dead]
    scale = float(live.mean()) / count if len(live) else 1.0
    damped = own.hessian + DAMP * np.eye(len(gram))
    places = np.arange(len(gram)).reshape(axis.repeats, size, axis.per)
    columns = places.transpose(1, 0, 2).reshape(size, -1)
    return Reader(
        np.asarray(jax.device_get(weight), np.float64),
        damped,
        scale,
        own.dead & bool(len(live)),
        columns,
    )


def cheapest(readers: Sequence[Reader], gone: Bools, count: int) -> Bools:
    """``count`` units [size] to remove, with those that are gone, one after another.

    Each time the one that costs least, ties by index: the sum over the readers of
    ``tr(W_u (H^-1_uu)^-1 W_u^T)``, W as the removals so far left it and H^-1 the inverse of H on
    what is left: its Schur complement is taken with each removal. Weights of dead inputs cost
    nothing. A mask within the readers is not looked at here.
    """
    gone = gone.copy()
    weights: list[Floats] = [np.where(r.dead, 0, r.weight) for r in readers]
    inverses: list[Floats] = [np.asarray(np.linalg.inv(r.hessian), np.float64) for r in readers]
    new = np.flatnonzero(gone)
    while True:
        if len(new):
            for r, w, inverse in zip(readers, weights, inverses, strict=True):
                _remove(w, inverse, r.columns[new].reshape(-1))
        if gone.sum() >= count:
            return gone
        cost = np.where(gone, np.inf, _costs(readers, weights, inverses, gone))
        new = np.array([int(np.argmin(cost))])
        gone[new] = True


def _remove(w: Floats, inverse: Floats, s: npt.NDArray[np.int64]) -> None:
    """Without the columns s, in place: ``W -= W_s (H^-1_ss)^-1 H^-1_s:``, and H^-1 likewise."""
    step = np.linalg.solve(inverse[np.ix_(s, s)], inverse[s])
    w -= w[:, s] @ step
    inverse -= inverse[:, s] @ step
    w[:, s] = inverse[s] = inverse[:, s] = 0


def _costs(
    readers: Sequence[Reader], weights: list[Floats], inverses: list[Floats], gone: Bools
) -> Floats:
    total = np.zeros(len(gone))
    for r, w, inverse in zip(readers, weights, inverses, strict=True):
        blocks = inverse[r.columns[:, :, None], r.columns[:, None, :]]  # [size, b, b]
        blocks[gone] = np.eye(blocks.shape[1])
        mine = w[:, r.columns].transpose(1, 2, 0)  # [size, b, out]
        total += r.scale * np.einsum("ubo,ubo->u", mine, np.linalg.solve(blocks, mine))
    return total


def refitted(r: Reader, allowed: Bools) -> Floats:
    """The weight W' [out, in], 0 where not allowed, of the least ``tr((W' - W) H (W' - W)^T)``.

    Row by row ``W'_K = W_K + W_S H_SK (H_KK)^-1``, K what is allowed and S what is not; rows that
    allow the same are solved as one.
    """
    lost = np.where(allowed, 0, r.weight)
    new = np.where(allowed, r.weight, 0)
    patterns, of = np.unique(allowed, axis=0, return_inverse=True)
    for i, kept in enumerate(patterns):
        rows = np.flatnonzero(of.reshape(-1) == i)
        k = np.flatnonzero(kept)
        if len(k) and lost[rows].any():
            pull = (lost[rows] @ r.hessian)[:, k]
            new[np.ix_(rows, k)] += np.linalg.solve(r.hessian[np.ix_(k, k)], pull.T).T
    return new


def refit(
    state: State,
    space: Space,
    gone: Bools,
    moments: Mapping[str, Moments],
    layers: Iterable[str],
) -> dict[str, Matrix]:
    """The matrices that read the space, their kept columns fitted to what all of them did.

    Of a product ``U V`` it is V: the best V is the same whatever U.
    """
    layers = tuple(layers)
    places, found = uses(state, layers), {}
    for name, one in space.held(state, layers):
        if one.dim == COLUMNS:
            matrix = state.matrices[name]
            inputs = inputs_of(state, places[name], moments)
            mask = np.asarray(matrix.mask) & ~np.asarray(one.spread(jnp.asarray(gone)))
            new = refitted(reader(matrix.weight, inputs, one, space.size), mask)
            found[name] = Matrix(jnp.asarray(new, matrix.weight.dtype), matrix.mask)
    return found


def check_off_grid(state: State, spaces: Iterable[Space], layers: Iterable[str]) -> None:
    """Refuse spaces whose readers lie on a grid, which compensation leaves."""
    layers = tuple(layers)
    held = [pair for s in spaces for pair in s.held(state, layers)]
    reading = dict.fromkeys(name for name, one in held if one.dim == COLUMNS)
    laid = [n for n in reading if state.matrices[n].grid is not None]
    if laid:
        raise ValueError(
            f"drop would destroy the grid of {len(laid)} matrices ({', '.join(laid[:SHOWN])}) by "
            "its compensation: put it first, or allow that with release=True"
        )
