"""BatchNorm's running statistics: heard anew on calibration batches, and put back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.batches import (
    Forward,
    TokenWeights,
    batches_of,
    call,
    compiled,
    weights_of,
)
from perturb.network.hear import EAR, Ear, placed, tapped
from perturb.network.layers import name_of, replicated, wide
from perturb.network.mapped import bare, running
from perturb.network.refused import explained
from perturb.network.replay import Note, check, replay, tell
from perturb.types import Array

NormMoments = dict[str, tuple[Array, Array]]  # of norms: name -> mean, variance


def norms_of(model: nnx.Module) -> list[str]:
    """Names of the nnx.BatchNorm modules (and subclasses)."""
    return [name_of(p, m) for p, m in nnx.iter_modules(model) if isinstance(m, nnx.BatchNorm)]


def norm_moments(
    graphdef: Any,
    state: Any,
    batch: Any,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> NormMoments:
    """Mean and variance [features] of each BatchNorm's inputs over one batch: pure, for jit.

    token_weights: as of :func:`perturb.network.moments`: a norm whose inputs' leading axes have
    the weights' shape weighs its tokens, of another each counts once. Every norm normalises by
    those of this batch, so that the next one sees what it will see once they are its running
    statistics; all else of the model is as it is, its mode too. Norms that the model never calls
    are left out; one in a branch not taken keeps what it has. Raises ValueError for a norm inside
    vmap (without an axis_name), or where it cannot be heard.
    """
    weights = None if token_weights is None else jnp.asarray(token_weights(batch))
    weighted, plain = _norm_moments(graphdef, state, batch, weights, forward)
    return weighted | plain


def _norm_moments(
    graphdef: Any, state: Any, batch: Any, weights: Array | None, forward: Forward
) -> tuple[NormMoments, NormMoments]:
    """Of the norms that the weights apply to, and of the others."""
    inputs, tree = jax.tree.flatten((state, batch))
    rebuild = partial(jax.tree.unflatten, tree)
    kept = {n: (m.mean[...], m.var[...]) for n, m in _norms(nnx.merge(graphdef, bare(state)))}

    once: set[str] = set()

    def trace(names: Iterable[str]) -> tuple[Any, dict[str, None]]:
        told: list[Note] = []

        def ear(name: str) -> Ear:
            def around(original: Callable[..., Any], norm: Any, given: dict[str, Any]) -> Any:
                x = jnp.asarray(given["x"])
                fit = weights is not None and x.shape[: weights.ndim] == weights.shape
                if not fit or not _in_front(norm, x, weights):
                    once.add(name)
                w = None if name in once else weights
                count, mean, var = _norm_inputs(norm, x, given.get("mask"), w)
                told.append(Note(name, batched=False))
                tell(told[-1], count, mean, var)
                now = object.__new__(type(norm))
                vars(now).update(vars(norm))
                vars(now).pop(EAR, None)
                object.__setattr__(now, "mean", nnx.BatchStat(mean))
                object.__setattr__(now, "var", nnx.BatchStat(var))
                return original(now, given["x"], use_running_average=True)

            return Ear(around)

        def run(*inputs: Any) -> None:
            state, batch = rebuild(inputs)
            with (
                running(graphdef, state) as model,
                tapped(model, {n: ear(n) for n in names}, (nnx.BatchNorm,)),
            ):
                forward(model, batch)

        closed = jax.make_jaxpr(run)(*inputs)
        check(closed, told)
        return closed, {n.name: None for n in told}

    remedy = "give it an axis_name, or run the model without that, forward=lambda model, batch: ..."
    with placed("norm", remedy, trace, list(kept)):
        closed, called = trace(kept)
        refs = {
            n: [jax.new_ref(a) for a in (jnp.zeros(()), *(jnp.zeros_like(v) for v in kept[n]))]
            for n in called
        }

        def hear(note: Note, values: Sequence[Array], _: bool) -> None:
            ref = refs[note.name]
            (n, m, v), (k, mean, var) = (r[...] for r in ref), values
            share = k / jnp.where(n + k > 0, n + k, 1)  # the law of total variance
            total = (n + k, m + share * (mean - m), _mixed(v, var, mean - m, share))
            for r, a in zip(ref, total, strict=True):
                r[...] = a.astype(r.dtype)

        replay(closed, inputs, hear)
    counted = {n: [r[...] for r in rs] for n, rs in refs.items()}
    found = {
        n: (jnp.where(count > 0, mean, kept[n][0]), jnp.where(count > 0, var, kept[n][1]))
        for n, (count, mean, var) in counted.items()
    }
    return {n: f for n, f in found.items() if n not in once}, {
        n: f for n, f in found.items() if n in once
    }


def _norms(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    for path, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            yield name_of(path, module), module


def _mixed(a: Any, b: Any, step: Any, share: Any) -> Any:
    """Variance of a mixture: ``share`` of it has variance b, and a mean that differs by step."""
    return (1 - share) * a + share * b + share * (1 - share) * step**2


def _in_front(norm: Any, x: Array, weights: Array | None) -> bool:
    """Whether none of the axes that weights [batch, seq, ...] would weigh is one of features."""
    feature = {a % x.ndim for a in np.atleast_1d(norm.axis).tolist()}
    return weights is not None and min(feature) >= weights.ndim


def _norm_inputs(
    norm: Any, x: Array, mask: Array | None, weights: Array | None
) -> tuple[Array, Array, Array]:
    """Tokens, mean and variance [features] of a norm's inputs; weights of its leading axes."""
    x = replicated(x)
    x = x.astype(wide(x.dtype))
    feature = {a % x.ndim for a in np.atleast_1d(norm.axis).tolist()}
    axes = tuple(i for i in range(x.ndim) if i not in feature)
    where = None if mask is None else jnp.broadcast_to(mask, x.shape)
    everywhere = norm.axis_name is not None

    def across(a: Array) -> Array:
        if everywhere:
            a = jax.lax.pmean(a, norm.axis_name, axis_index_groups=norm.axis_index_groups)
        return a

    size = math.prod(x.shape[a] for a in axes)
    if weights is None:
        average = lambda a: across(jnp.mean(a, axes, where=where))  # noqa: E731
        count = jnp.float32(size) if where is None else jnp.sum(where) * size / x.size
    else:
        w = weights.reshape(weights.shape + (1,) * (x.ndim - weights.ndim)).astype(x.dtype)
        w = jnp.broadcast_to(w, x.shape)
        w = w if where is None else jnp.where(where, w, 0)
        x = jnp.where(w > 0, x, 0)  # padding may hold anything
        total = across(jnp.sum(w, axes))
        count = jnp.sum(w) * size / x.size

        def average(a: Array) -> Array:
            return across(jnp.sum(w * a, axes)) / jnp.where(total > 0, total, 1)

    mean = average(x)
    var = average((x - jnp.expand_dims(mean, axes)) ** 2)
    return jnp.asarray(count, jnp.float32), mean, var


def reestimate(
    model: nnx.Module,
    batches: Any,
    *,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> NormMoments:
    """Mean and variance of each BatchNorm's inputs over all batches, see :func:`norm_moments`.

    Batches count by their examples (the length of the first array), for norms that token weights
    apply to by the sum of these. {} without a BatchNorm.
    """
    if not norms_of(model):
        return {}
    return reestimated(*nnx.split(model), batches, forward, token_weights)


def reestimated(
    graphdef: Any,
    state: Any,
    batches: Any,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> NormMoments:
    """:func:`reestimate` of a model with norms that is split."""
    run = compiled(_norm_moments, graphdef, forward)
    weighted, plain, sums, sizes = [], [], [], []
    for i, batch in enumerate(batches_of(batches)):
        weights = weights_of(token_weights, batch, i)
        sums.append(0.0 if weights is None else float(weights.sum(dtype=np.float64)))
        sizes.append(next((len(a) for a in jax.tree.leaves(batch) if getattr(a, "ndim", 0)), 1))
        with explained(batch):
            a, b = jax.device_get(run(state, batch, weights))
        weighted.append(a if sums[-1] else {})
        plain.append(b)
    return combine_norms(weighted, sums) | combine_norms(plain, sizes)


def combine_norms(parts: Sequence[NormMoments], sizes: Sequence[float]) -> NormMoments:
    """Mean and variance over batches of so many examples or tokens, from those of each batch."""
    total: dict[str, tuple[Any, Any]] = {}
    examples: Counter[str] = Counter()  # or sums of weights
    for part, size in zip(parts, sizes, strict=True):
        for name, (mean, var) in part.items():
            examples[name] += size  # type: ignore[assignment]
            m, v = total.get(name, (0.0, 0.0))
            share, step = size / examples[name], np.asarray(mean, np.float64) - m
            total[name] = (m + share * step, _mixed(v, np.asarray(var, np.float64), step, share))
    return {
        n: tuple(jnp.asarray(a, jnp.float32) for a in pair)  # type: ignore[misc]
        for n, pair in total.items()
    }


def set_norms(model: nnx.Module, stats: NormMoments) -> None:
    """Make these the running statistics, in place (works on a merged model inside jit)."""
    norms = dict(_norms(model))
    for name, (mean, var) in stats.items():
        norms[name].mean[...] = jnp.asarray(mean, norms[name].mean.dtype)
        norms[name].var[...] = jnp.asarray(var, norms[name].var.dtype)
