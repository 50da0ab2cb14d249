"""Moments of the layers' inputs: over one batch, and over all calibration data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

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
from perturb.network.features import features
from perturb.network.hear import ears_of, lane_of, placed, tapped
from perturb.network.layers import KINDS, LayerSpec, by_kernel, one_of, replicated, wide
from perturb.network.mapped import bare, running
from perturb.network.order import check_called
from perturb.network.refused import Refused, explained, some
from perturb.network.replay import Hear, Note, check, nested, replay, tell
from perturb.types import Array, Moments


class Heard(NamedTuple):
    """What one batch tells, by the modules' names: moments [matrices, ...], or, of a convolution in
    groups, [matrices groups, ...]."""

    weighted: dict[str, Moments]  # that the token weights apply to
    plain: dict[str, Moments]  # the others
    looked_up: dict[str, Moments]  # embeddings that are nothing but looked up: white

    @property
    def all(self) -> dict[str, Moments]:
        return self.weighted | self.plain | self.looked_up


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
    heard = _moments(graphdef, state, batch, weights, tuple(specs), forward).all
    return {s.name: _of_spec(heard[s.module], s) for s in specs if s.module in heard}


def _moments(
    graphdef: Any,
    state: Any,
    batch: Any,
    weights: Array | None,
    specs: tuple[LayerSpec, ...],
    forward: Forward,
) -> Heard:
    inputs, tree = jax.tree.flatten((state, batch))
    heard = listened(graphdef, tree, inputs, specs, forward)
    return heard.sums(lambda hear: replay(heard.closed, inputs, hear), weights)


class Listened(NamedTuple):
    """A model's program on a batch, with a mark at every call of a layer (traced, not run)."""

    closed: Any  # of the leaves of (state, batch)
    kernels: dict[str, LayerSpec]  # that are called, by module
    dtypes: dict[str, Any]  # that their moments are summed in
    looked_up: tuple[str, ...]  # embeddings that are, at least once

    def sums(
        self,
        play: Callable[[Hear], Any],
        weights: Array | None,
        only: Collection[str] | None = None,
    ) -> Heard:
        """Moments of what ``play(hear)`` hears: the layers of this program, or ``only`` some."""
        inside = nested(self.closed)
        heard = {n: d for n, d in self.dtypes.items() if only is None or n in only}
        sums = {n: _Sum(self.kernels[n], d, n in inside) for n, d in heard.items()}
        once: set[str] = set()

        def hear(note: Note, values: Sequence[Array], _: bool) -> None:
            x, lanes = _by_copy(values[0].astype(self.dtypes[note.name]), values[1])
            w = weights
            if w is not None and x.shape[2:-1][: w.ndim] != w.shape:
                w = None
                once.add(note.name)
            sums[note.name].add(jax.vmap(jax.vmap(partial(_moments_of, weights=w)))(x), lanes)

        with placed("layer", REMEDY, lambda _: None, []):
            play(hear)
        done = {n: s.total() for n, s in sums.items()}
        looked_up = {n: _white(self.kernels[n]) for n in self.looked_up if n not in self.dtypes}
        if weights is None:
            return Heard({}, done, looked_up)
        weighted = {n: s for n, s in done.items() if n not in once}
        return Heard(weighted, {n: done[n] for n in once}, looked_up)


REMEDY = "run the model without that, forward=lambda model, batch: ..., or exclude the layer"


def listened(
    graphdef: Any, tree: Any, inputs: Sequence[Any], specs: Sequence[LayerSpec], forward: Forward
) -> Listened:
    """The program of a model whose state and batch are the leaves ``inputs`` of ``tree``.

    Raises ValueError, naming the layer, where one cannot be heard.
    """
    rebuild = partial(jax.tree.unflatten, tree)
    kernels = {n: group[0].whole for n, group in by_kernel(specs).items()}
    found: dict[str, None] = {}  # embeddings that are looked up

    def trace(chosen: Sequence[LayerSpec]) -> tuple[Any, dict[str, Any]]:
        told: list[Note] = []
        dtypes: dict[str, Any] = {}

        def listen(spec: LayerSpec, module: Any, x: Array | None) -> None:
            if x is None:
                found.setdefault(spec.name)
                return
            lane = lane_of(module, spec)
            x = features(module, spec, replicated(x))
            dtype = wide(x.dtype)
            dtypes[spec.name] = jnp.promote_types(dtypes.get(spec.name, dtype), dtype)
            told.append(Note(spec.name))
            tell(told[-1], x, lane)

        def run(*inputs: Any) -> None:
            state, batch = rebuild(inputs)
            with (
                running(graphdef, state) as model,
                tapped(model, ears_of(chosen, listen), KINDS),
            ):
                forward(model, batch)

        closed = jax.make_jaxpr(run)(*inputs)
        check(closed, told)
        return closed, dtypes

    wholes = list(kernels.values())
    with placed("layer", REMEDY, trace, wholes):
        closed, dtypes = trace(wholes)
    return Listened(closed, kernels, dtypes, tuple(found))


def _white(spec: LayerSpec) -> Moments:
    """Moments for what acts on no inputs of its own: of the identity, as of a single token.

    A lookup multiplies one-hot vectors from the other side: an error dW of the rows costs
    ``|dW|^2`` whatever the columns, as if they were applied to white inputs.
    """
    n, size = spec.matrices, spec.shape[1]
    identity = jnp.broadcast_to(jnp.eye(size), (n, size, size))
    return Moments(identity, jnp.ones(n), jnp.zeros((n, size)))


def _by_copy(x: Array, lane: Array) -> tuple[Array, Array]:
    """Vectors x [copies, own, *tokens, in] of a call, and which copies of the kernel they are for.

    x is [*lanes, own, *tokens, in] and lane [*lanes]: where vmap gave lanes copies of their own
    they number these, and else they are tokens like others.
    """
    rank = lane.ndim
    copies = [a for a in range(rank) if lane.shape[a] > 1]
    x = jnp.broadcast_to(x, (*np.maximum(lane.shape, x.shape[:rank]).tolist(), *x.shape[rank:]))
    x = jnp.moveaxis(x, [*copies, rank], range(len(copies) + 1))
    return x.reshape(lane.size, *x.shape[len(copies) :]), lane.reshape(-1).astype(jnp.int32)


class _Sum:
    """The moments of all matrices, and groups, of a kernel, added up call by call.

    Where it is called inside of loops or branches, or by copies, they are in a ``jax.Ref``.
    """

    def __init__(self, spec: LayerSpec, dtype: Any, inside: bool) -> None:
        self.copies = spec.copies
        self.own = spec.matrices // spec.copies * spec.feature_groups
        self.sum: Moments | None = None
        self.refs: list[Any] = []
        if inside or self.copies > 1:
            start = _no_tokens((self.copies, self.own), spec.shape[1], dtype)
            self.refs = [jax.new_ref(a) for a in start]

    def add(self, parts: Moments, lanes: Array) -> None:
        """parts: [copies called, own, ...]"""
        if not self.refs:
            self.sum = parts if self.sum is None else self.sum + parts
            return

        def one(i: Any, _: Any) -> None:
            place = lanes[i] if self.copies > 1 else 0
            total = Moments(*(r[place] for r in self.refs)) + one_of(parts, i)
            for ref, a in zip(self.refs, total, strict=True):
                ref[place] = jnp.asarray(a, ref.dtype)

        if len(lanes) == 1:
            one(0, None)
        else:
            jax.lax.fori_loop(0, len(lanes), one, None)

    def total(self) -> Moments:
        total = Moments(*(r[...] for r in self.refs)) if self.refs else self.sum
        assert total is not None
        return Moments(*(a.reshape(-1, *a.shape[2:]) for a in total))  # type: ignore[union-attr]


def _no_tokens(lead: tuple[int, ...], size: int, dtype: Any) -> Moments:
    return Moments(
        jnp.zeros((*lead, size, size), dtype),
        jnp.zeros(lead, jnp.float32),
        jnp.zeros((*lead, size), dtype),
    )


def _moments_of(x: Array, weights: Array | None) -> Moments:
    """Moments of vectors x [*tokens, in]; weights of as many of the leading axes, or None."""
    lead, size = x.shape[:-1], x.shape[-1]
    x = x.reshape(-1, size)
    if not len(x):
        return _no_tokens((), size, x.dtype)
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


_finite = jax.jit(lambda m: jnp.isfinite(m.scatter).all((1, 2)) & jnp.isfinite(m.mean).all(1))


@jax.jit
def _merge(a: Moments, b: Moments) -> Moments:
    return a + b


def capture(
    model: nnx.Module,
    specs: Mapping[str, LayerSpec],
    calibration: Any,
    *,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
) -> dict[str, Moments]:
    """Moments of every layer's inputs over the calibration batches.

    Of one of several matrices it is the inputs that this one acts on: of its copy under nnx.vmap
    and nnx.scan, its index of a batched einsum. Those of a convolution in groups have an axis
    [groups] in front. An embedding is heard
    where it is applied (``attend``); one that is only looked up has the moments of white inputs,
    the identity with a count of 1. The model is run as it is (call ``model.eval()`` first where
    that matters) and not changed. token_weights: see :func:`moments`; a warning names the layers
    that they do not apply to. A layer that only a branch not taken calls has moments of 0: see
    :func:`starved`. Raises ValueError naming a layer whose inputs are not finite, that is never
    called, or that is called where it cannot be heard; and for weights that apply to no layer.
    """
    graphdef, state = nnx.split(model)
    return captured(graphdef, state, specs, calibration, forward, token_weights, model)


def captured(
    graphdef: Any,
    state: Any,
    specs: Mapping[str, LayerSpec],
    calibration: Any,
    forward: Forward = call,
    token_weights: TokenWeights | None = None,
    model: nnx.Module | None = None,
) -> dict[str, Moments]:
    """:func:`capture` of a model that is split; of a state with input maps the mapped inputs'.

    model: the one that was split, which messages are about.
    """
    run = compiled(_moments, graphdef, tuple(specs.values()), forward)

    def heard() -> Iterator[tuple[Heard, Any]]:
        for i, batch in enumerate(batches_of(calibration)):
            weights = weights_of(token_weights, batch, i)
            with explained(batch):
                told = run(state, batch, weights)
            yield told, weights
            del told  # before the next batch's are computed

    return gathered(model or nnx.merge(graphdef, bare(state)), specs, heard())


def gathered(
    model: nnx.Module, specs: Mapping[str, LayerSpec], parts: Iterable[tuple[Heard, Any]]
) -> dict[str, Moments]:
    """The moments of these layers over all batches: what each told, with its token weights.

    Raises as :func:`capture` does.
    """
    total: dict[str, Moments] = {}
    tokens: dict[str, np.ndarray] = {}  # float32 would stop counting at 2^24
    once: set[str] = set()
    shape: tuple[int, ...] = ()
    weighed = False
    looked_up: dict[str, Moments] = {}
    for heard, weights in parts:
        if weights is not None:
            weighed, shape = True, weights.shape
            once |= heard.plain.keys()
            if heard.plain and not heard.weighted:
                raise Refused(
                    f"token_weights gives weights of shape {shape}, but the inputs of no layer "
                    f"have these leading axes (the first of them is {min(heard.plain)}): return "
                    "one weight per token, [batch, seq] as the tokens are"
                )
        looked_up |= heard.looked_up
        _add(total, tokens, heard.weighted | heard.plain)
        del heard  # before the next batch's are computed
    everything = looked_up | total
    del total
    check_called(model, specs, [n for n, s in specs.items() if s.module in everything])
    if once:
        warnings.warn(
            f"token weights of shape {shape} do not apply to the inputs of "
            f"{some(n for n in by_kernel(specs.values()) if n in once)}: their leading axes are "
            "others, and each vector counts once",
            stacklevel=3,
        )
    if weighed and not any(n.any() for n in tokens.values()):
        raise Refused("the calibration set is empty: all its token weights are 0")
    for name, count in tokens.items():
        everything[name] = everything[name]._replace(count=jnp.float32(count))
    finite = jax.device_get({n: _finite(m) for n, m in everything.items()})
    for name, spec in specs.items():
        if not _of_spec(finite[spec.module], spec).all():
            raise Refused(f"layer {name}: its inputs on the calibration data are not finite")
    found: dict[str, Moments] = {}
    for module, group in by_kernel(specs.values()).items():
        whole = everything.pop(module)
        found |= {s.name: _of_spec(whole, s) for s in group}
    return {n: found[n] for n in specs}


def _add(
    total: dict[str, Moments], tokens: dict[str, np.ndarray], heard: Mapping[str, Moments]
) -> None:
    for name, part in heard.items():
        count = np.asarray(part.count, np.float64)
        if name in total:
            before = total[name]._replace(count=jnp.float32(tokens[name]))
            total[name] = _merge(before, part)
        else:
            total[name] = part
        tokens[name] = tokens.get(name, 0) + count


@partial(jax.jit, static_argnames=("size",))
def _stretch(stacked: Any, index: Any, size: int) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, index * size, size), stacked)


def _of_spec(found: Any, spec: LayerSpec) -> Any:
    """Of what there is of a whole kernel [matrices groups, ...] this matrix' own: [...], or
    [groups, ...] of a convolution in groups."""
    index = np.int32(spec.index or 0)
    groups = spec.feature_groups
    return one_of(found, index) if groups == 1 else _stretch(found, index, groups)


def starved(stats: Mapping[str, Moments]) -> list[str]:
    """Layers whose second moment is exactly 0: no token ever reached them, or only zeros."""
    return [
        n
        for n, (_, dead) in inputs_report(stats).items()
        if dead == math.prod(stats[n].scatter.shape[:-1])
    ]


def inputs_report(stats: Mapping[str, Moments]) -> dict[str, tuple[float, int]]:
    """Of each layer the tokens that it saw (or the sum of their weights), and its dead inputs:
    those that were 0 in all of them (of a convolution in groups, all of its groups')."""
    told = jax.device_get(_seen(dict(stats)))
    return {name: (float(np.max(count)), int(dead)) for name, (count, dead) in told.items()}


@jax.jit
def _seen(stats: dict[str, Moments]) -> dict[str, tuple[Array, Array]]:
    return {n: (m.count, jnp.sum(m.energy == 0)) for n, m in stats.items()}
