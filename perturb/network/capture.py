"""Moments of the layers' inputs: over one batch, and over all calibration data."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from perturb.network.batches import Forward, TokenWeights, batches_of, call, compiled
from perturb.network.features import features
from perturb.network.hear import check_called, ears_of, placed, tapped
from perturb.network.layers import KINDS, LayerSpec, replicated, wide
from perturb.network.refused import Refused, explained, some
from perturb.network.replay import Note, check, nested, replay, tell
from perturb.types import Array, Moments


def moments(
    graphdef: Any,
    state: Any,
    batch: Any,
    specs: Sequence[LayerSpec],
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> dict[str, Moments]:
    """Moments of the layers' inputs over one batch: pure, to be jitted by the caller.

    token_weights: the batch's weights >= 0 [batch, seq, ...] of its tokens, such as an attention
    mask. A layer whose vectors' leading axes start with that shape weighs them; of another each
    vector counts once. Layers that the model never calls are left out; one in a branch that was
    not taken has moments of 0. Raises ValueError for a layer that cannot be heard, by name.
    """
    weights = None if token_weights is None else jnp.asarray(token_weights(batch))
    weighted, plain = _moments(graphdef, state, batch, weights, tuple(specs), forward)
    both = weighted | plain
    return {s.name: both[s.name] for s in specs if s.name in both}


def _moments(
    graphdef: Any,
    state: Any,
    batch: Any,
    weights: Array | None,
    specs: tuple[LayerSpec, ...],
    forward: Forward,
) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Moments of the layers that the weights apply to, and those of the others."""
    inputs, tree = jax.tree.flatten((state, batch))
    rebuild = partial(jax.tree.unflatten, tree)

    def trace(chosen: Sequence[LayerSpec]) -> tuple[Any, dict[str, Any]]:
        told: list[Note] = []
        dtypes: dict[str, Any] = {}

        def listen(spec: LayerSpec, module: Any, x: Array) -> None:
            x = features(module, spec, replicated(x))
            dtype = wide(x.dtype)
            dtypes[spec.name] = jnp.promote_types(dtypes.get(spec.name, dtype), dtype)
            told.append(Note(spec.name))
            tell(told[-1], x)

        def run(*inputs: Any) -> None:
            state, batch = rebuild(inputs)
            model = nnx.merge(graphdef, state)
            with tapped(model, ears_of(chosen, listen), KINDS):
                forward(model, batch)

        closed = jax.make_jaxpr(run)(*inputs)
        check(closed, told)
        return closed, dtypes

    remedy = "run the model without that, forward=lambda model, batch: ..., or exclude the layer"
    with placed("layer", remedy, trace, specs):
        closed, dtypes = trace(specs)
        sizes = {s.name: s.shape[1] for s in specs}
        looped = {n: _no_tokens(sizes[n], dtypes[n]) for n in nested(closed)}
        refs = {n: [jax.new_ref(a) for a in start] for n, start in looped.items()}
        done: dict[str, Moments] = {}
        once: set[str] = set()

        def hear(note: Note, values: Sequence[Array], inside: bool) -> None:
            name, w = note.name, weights
            x = values[0].astype(dtypes[name])
            if w is not None and x.shape[:-1][: w.ndim] != w.shape:
                w = None
                once.add(name)
            part = _moments_of(x, w)
            if not inside:
                done[name] = done[name] + part if name in done else part
                return
            total = Moments(*(r[...] for r in refs[name])) + part
            for ref, a in zip(refs[name], total, strict=True):
                ref[...] = jnp.asarray(a, ref.dtype)

        replay(closed, inputs, hear)
    for n, ref in refs.items():
        part = Moments(*(r[...] for r in ref))
        done[n] = done[n] + part if n in done else part
    if weights is None:
        return {}, done
    return {n: s for n, s in done.items() if n not in once}, {n: done[n] for n in once}


def _no_tokens(size: int, dtype: Any) -> Moments:
    return Moments(
        jnp.zeros((size, size), dtype), jnp.zeros((), jnp.float32), jnp.zeros(size, dtype)
    )


def _moments_of(x: Array, weights: Array | None) -> Moments:
    """Moments of vectors x [*tokens, in]; weights of as many of the leading axes, or None."""
    lead, size = x.shape[:-1], x.shape[-1]
    x = x.reshape(-1, size)
    if not len(x):
        return _no_tokens(size, x.dtype)
    if weights is None:
        count = jnp.asarray(len(x), jnp.float32)
        mean = jnp.mean(x, 0)
        left = right = x - mean
    else:
        w = weights.reshape(weights.shape + (1,) * (len(lead) - weights.ndim))
        w = jnp.broadcast_to(w, lead).reshape(-1, 1).astype(x.dtype)
        x = jnp.where(w > 0, x, 0)  # padding may hold anything
        count = jnp.sum(w).astype(jnp.float32)
        mean = jnp.sum(w * x, 0) / jnp.where(count > 0, count, 1)
        right = jnp.where(w > 0, x - mean, 0)
        left = w * right
    scatter = jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)
    # libraries may round differently across the diagonal
    return Moments((scatter + scatter.T) / 2, count, mean)


_jitted = jax.jit(_moments, static_argnames=("graphdef", "specs", "forward"))


@jax.jit
def _merge(a: Moments, b: Moments) -> Moments:
    return a + b


def _weights_of(token_weights: TokenWeights, batch: Any, index: int) -> np.ndarray:
    weights = np.asarray(token_weights(batch))
    weights = weights.astype(np.float64 if weights.dtype == np.float64 else np.float32)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise Refused(f"the token weights of batch {index} are not all finite and >= 0")
    return weights


def capture(
    model: nnx.Module,
    specs: Mapping[str, LayerSpec],
    calibration: Any,
    *,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> dict[str, Moments]:
    """Moments of every layer's inputs over the calibration batches.

    The model is run as it is (call ``model.eval()`` first where that matters) and not changed.
    token_weights: see :func:`moments`; a warning names the layers that they do not apply to. A
    layer that only a branch not taken calls has moments of 0: see :func:`starved`. Raises
    ValueError naming a layer whose inputs are not finite, that is never called, or that is called
    where it cannot be heard; and for weights that apply to no layer.
    """
    graphdef, state = nnx.split(model)
    run = compiled(_jitted, _moments, graphdef, tuple(specs.values()), forward)
    total: dict[str, Moments] = {}
    tokens: Counter[str] = Counter()  # float32 would stop counting at 2^24
    once: set[str] = set()
    shape: tuple[int, ...] = ()
    for i, batch in enumerate(batches_of(calibration)):
        weights = None if token_weights is None else _weights_of(token_weights, batch, i)
        with explained(batch):
            weighted, plain = run(state, batch, weights)
        if weights is not None:
            shape = weights.shape
            once |= plain.keys()
            if plain and not weighted:
                raise Refused(
                    f"token_weights gives weights of shape {shape}, but the inputs of no layer "
                    f"have these leading axes (the first of them is {min(plain)}): return one "
                    "weight per token, [batch, seq] as the tokens are"
                )
        for name, part in (weighted | plain).items():
            before = total.get(name)
            count = float(part.count)
            if before is not None:
                part = _merge(before._replace(count=jnp.float32(tokens[name])), part)
            tokens[name] += count  # type: ignore[assignment]
            total[name] = part
    check_called(model, specs, total)
    if once:
        warnings.warn(
            f"token weights of shape {shape} do not apply to the inputs of "
            f"{some(n for n in specs if n in once)}: their leading axes are others, and each "
            "vector counts once",
            stacklevel=2,
        )
    for name, stats in total.items():
        total[name] = stats._replace(count=jnp.float32(tokens[name]))
        if not all(bool(jnp.all(jnp.isfinite(a))) for a in stats if a is not None):
            raise Refused(f"layer {name}: its inputs on the calibration data are not finite")
    if token_weights is not None and not any(tokens.values()):
        raise Refused("the calibration set is empty: all its token weights are 0")
    return {n: total[n] for n in specs}


def starved(stats: Mapping[str, Moments]) -> list[str]:
    """Layers whose second moment is exactly 0: no token ever reached them, or only zeros."""
    return [n for n, s in stats.items() if not np.any(np.asarray(s.energy))]
