"""The stream of vectors through a model's blocks: how much each block turns them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.batches import Forward, TokenWeights, batches_of, call, compiled, weights_of
from perturb.network.hear import Ear, placed, tapped
from perturb.network.layers import name_of, wide
from perturb.network.refused import Refused, explained
from perturb.network.replay import Note, check, replay, tell
from perturb.types import Array


def influence(
    model: nnx.Module,
    blocks: Sequence[str],
    batches: Any,
    *,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> dict[str, float]:
    """Of each block ``1 - E[cos(x, y)]``, x its input and y its output at a token (last axis).

    blocks: names of modules that are called with one array and return one of its shape. The mean
    is over all tokens of all calls in all batches, with their weights where these fit the leading
    axes. A token of 0 that stays 0 has cosine 1, one that becomes 0 or was it cosine 0.
    Raises ValueError, naming the block, for one that is no such module or is never called.
    """
    holders = {name_of(path, m) for path, m in nnx.iter_modules(model)}
    for name in blocks:
        if name not in holders:
            raise Refused(f"block {name}: the model has no module of that name to hear")
    graphdef, state = nnx.split(model)
    run = compiled(_cosines, graphdef, tuple(blocks), forward)
    total = np.zeros((2, len(blocks)))
    for i, batch in enumerate(batches_of(batches)):
        weights = weights_of(token_weights, batch, i)
        with explained(batch):
            total += np.asarray(jax.device_get(run(state, batch, weights)), np.float64)
    for name, count in zip(blocks, total[1], strict=True):
        if not count:
            raise Refused(f"block {name}: no token of the calibration data goes through it")
    return dict(zip(blocks, (1 - total[0] / total[1]).tolist(), strict=True))


def _cosines(
    graphdef: Any,
    state: Any,
    batch: Any,
    weights: Array | None,
    blocks: tuple[str, ...],
    forward: Forward,
) -> Array:
    """Of each block the sum of cosines, and of the tokens: [2, blocks]."""
    inputs, tree = jax.tree.flatten((state, batch))

    def trace(names: Sequence[str]) -> Any:
        told: list[Note] = []

        def run(*inputs: Any) -> None:
            state, batch = jax.tree.unflatten(tree, inputs)
            model = nnx.merge(graphdef, state)
            found = {name_of(path, m): m for path, m in nnx.iter_modules(model)}
            kinds = tuple(dict.fromkeys(_home(type(found[n])) for n in names))
            ears = {n: _ear(n, weights, told) for n in names}
            with tapped(model, ears, kinds):
                forward(model, batch)

        closed = jax.make_jaxpr(run)(*inputs)
        check(closed, told)
        return closed

    remedy = "remove blocks by the score 'loss' or 'last'"
    with placed("block", remedy, trace, list(blocks)):
        closed = trace(blocks)
        sums = jax.new_ref(jnp.zeros((2, len(blocks))))

        def hear(note: Note, values: Sequence[Array], _: bool) -> None:
            place = blocks.index(note.name)
            sums[:, place] = sums[:, place] + jnp.stack(values).astype(sums.dtype)

        replay(closed, inputs, hear)
    return sums[...]


def _home(kind: type) -> type:
    """The class whose ``__call__`` runs a module of this one."""
    return next(k for k in kind.__mro__ if "__call__" in k.__dict__)


def _ear(name: str, weights: Array | None, told: list[Note]) -> Ear:
    inside: list[None] = []  # a __call__ may call that of a class it derives from

    def around(original: Callable[..., Any], module: Any, given: dict[str, Any]) -> Any:
        bound = inspect.BoundArguments(inspect.signature(original), given)
        run = partial(original, *bound.args, **bound.kwargs)
        if inside or getattr(original, "__name__", "__call__") != "__call__":
            return run()
        inside.append(None)
        y = run()
        inside.pop()
        arguments = [v for v in given.values() if v is not module]
        arrays = [a for a in jax.tree.leaves(arguments) if isinstance(a, (jax.Array, np.ndarray))]
        if len(arrays) != 1 or getattr(y, "shape", None) != arrays[0].shape:
            shapes = ", ".join(str(a.shape) for a in arrays) or "none"
            raise Refused(
                f"block {name}: its influence is that of one array in and one of the same shape "
                f"out; in: {shapes}, out: {getattr(y, 'shape', type(y).__name__)}"
            )
        told.append(Note(name, batched=False))
        tell(told[-1], *_sums(jnp.asarray(arrays[0]), y, weights))
        return y

    return Ear(around)


def _sums(x: Array, y: Array, weights: Array | None) -> tuple[Array, Array]:
    """The sum of the tokens' cosines, and of their weights."""
    dtype = wide(jnp.promote_types(x.dtype, y.dtype))
    x, y = (jnp.asarray(a, dtype) for a in (x, y))
    w = jnp.ones(x.shape[:-1], dtype)
    if weights is not None and w.shape[: weights.ndim] == weights.shape:
        w = w * weights.reshape(weights.shape + (1,) * (w.ndim - weights.ndim))
    shown = (w > 0)[..., None]  # padding may hold anything
    x, y = (_unit(jnp.where(shown, a, 0)) for a in (x, y))
    still = ~jnp.any(x, -1) & ~jnp.any(y, -1)
    return jnp.sum(w * jnp.where(still, 1, jnp.sum(x * y, -1))), jnp.sum(w)


def _unit(x: Array) -> Array:
    """Vectors of length 1, or 0; scaled twice, so that no square leaves the floats' range."""
    largest = jnp.max(jnp.abs(x), -1, keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    size = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(size > 0, size, 1)
