"""Rotate the residual stream: the same function of the inputs, other weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from perturb.architecture import COLUMNS, ENTRIES, Architecture, Folded, Space, columns
from perturb.family import layer_key
from perturb.inputs import InputMap, rounded_layers, turned, turned_layers
from perturb.network import LayerSpec, Network, find_layers
from perturb.registry import LATER, check_choice
from perturb.stage import Outcome, Sight, check_undestroyed
from perturb.state import Parameters, State, fresh, layer_weight
from perturb.types import Array, Matrix

Floats = npt.NDArray[np.float64]
Kind = Literal["random", "hadamard"]


@dataclass(frozen=True)
class Rotate:
    """Objective: weights and activations without outliers, at no change of the outputs.

    The stream x becomes ``Q x``, Q orthogonal: what writes it is multiplied by Q, what reads it
    by Q^T, once the scales (and biases) of its norms are folded into their readers. Where the
    norms subtract the mean (LayerNorm), Q maps the vector of ones to itself.
    kind "random": Haar; "hadamard": a Hadamard matrix with random signs of the columns, on widths
    2^k m the Kronecker product of that of 2^k with a random rotation of m.
    The reference is rotated as well. Rows and columns that were dropped from the other axis stay
    dropped; a mask or a grid that the rotation would destroy is refused, unless ``release=True``.
    online: rotate as well, as the model runs, what no writer can absorb, by a Hadamard matrix H on
    the inputs of the layers that read the hidden units of MLPs and the outputs of attention, all
    heads at once; their weights become ``W H^T``. On widths 2^k m, H is a Kronecker product with a
    random rotation of m, held and applied in factors. Layers that are left alone keep their inputs.
    Storage counts no online rotation. It costs about ``2 in^1.5`` products a token and layer.
    Source: Ashkboos et al., NeurIPS 2024 (QuaRot, arXiv 2404.00456), who rotate each head's values
    offline, and the queries and keys for their cache, too, which is left as it is here.
    Errors: ValueError for inputs that are rounded, which it would change, or turned already.
    """

    seed: int = 0
    kind: Kind = "random"
    release: bool = False
    online: bool = field(default=False, metadata=LATER)

    name: ClassVar[str] = "rotate"
    needs_stats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("random", "hadamard"))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be a whole number, got {self.seed!r}")

    def check(self, architecture: Architecture) -> None:
        check_untied(architecture)
        if self.online and not _inner(architecture):
            raise ValueError(
                f"{architecture.model} has no linear layer that reads an MLP's units or attention "
                "heads, among those that are compressed: leave online=True out"
            )

    def on_state(self, state: State, context: Sight) -> Outcome:
        inner = _inner(context.architecture) if self.online else ()
        key = jax.random.fold_in(context.key, self.seed)
        turns = {s.name: rotation(self.kind, s, key) for s in rotated_spaces(context)}
        state, reference = both_turned(self, state, context, turns, inner)
        if inner:
            online = {n: online_turn(context.architecture.layers[n][1], n, key) for n in inner}
            layers = tuple(context.architecture.layers)
            pair = [_read_turned(one, online, layers) for one in (state, reference)]
            if not self.release:
                _check_kept(state, pair[0], self)
            state, reference = pair
        return outcome(state, reference)


# ------------------------------------------------------------------- what rotations share


def check_untied(architecture: Architecture) -> None:
    """Refuse a model whose stream no rotation can pass through."""
    for space in architecture.matching("*", "rotate"):
        for norm in space.norms:
            for tied in {a.parameter for a in space.writes} & set(norm.readers):
                raise ValueError(
                    f"{tied} is the head and the embeddings at once and cannot absorb "
                    f"{norm.scale}: untie them first (model.untied() of a Llama)"
                )


def rotated_spaces(context: Sight) -> tuple[Space, ...]:
    return tuple(context.architecture.matching("*", "rotate"))


def both_turned(
    stage: Any,
    state: State,
    context: Sight,
    turns: Mapping[str, Floats],
    inner: Sequence[str] = (),
) -> tuple[State, State]:
    """The state and its reference with each space turned; ``stage.release`` says whether a mask or
    a grid may be destroyed. inner: layers whose inputs are to be turned, too."""
    known = context.reference.parameters
    reference = State(_dense(dict(known.weights)), known.vectors, inputs=known.inputs)
    spaces = rotated_spaces(context)
    _check_inputs(state, {a.parameter for s in spaces for a in s.reads}, inner)
    for space in spaces:
        outside, layers = beside(context, space)
        pair = []
        for one in (state, reference):
            full = one.with_vectors(context.vectors(one.vectors, _vectors(space, outside)))
            _check_biases(full, space)
            pair.append(turned_space(full, turns[space.name], space, outside, layers))
        if not stage.release:
            _check_kept(state, pair[0], stage)
        state, reference = pair
    return state, reference


def beside(context: Sight, space: Space) -> tuple[tuple[LayerSpec, ...], tuple[str, ...]]:
    """Layers of the space that are left alone, and the names of all that a rotation turns."""
    outside = _outside(context.network, space)
    return outside, (*context.architecture.layers, *(s.name for s in outside))


def outcome(state: State, reference: State) -> Outcome:
    weights = {n: m.weight for n, m in reference.matrices.items()}
    return Outcome(state, reference=Parameters(weights, reference.vectors, reference.inputs))


# ------------------------------------------------------------------------- rotations


def rotation(kind: Kind, space: Space, key: Array) -> Floats:
    """An orthogonal matrix [size, size] in float64 that the space allows."""
    seed = np.asarray(jax.random.key_data(layer_key(key, space.name)))
    draws = np.random.default_rng(seed.ravel().tolist())
    make = haar if kind == "random" else hadamard
    if space.fixes is None:
        return make(space.size, draws)
    inner = np.eye(space.size)  # in a basis whose first vector is the one to keep
    inner[1:, 1:] = make(space.size - 1, draws)
    normal = -np.full(space.size, space.size**-0.5)
    normal[0] += 1
    length = normal @ normal
    reflection = np.eye(space.size) - 2 * np.outer(normal, normal) / (length if length else 1)
    return reflection @ inner @ reflection


def haar(size: int, draws: np.random.Generator) -> Floats:
    """Uniform over the orthogonal matrices (Mezzadri 2007)."""
    q, r = np.linalg.qr(draws.normal(size=(size, size)))
    return q * np.sign(np.diagonal(r))


def hadamard(size: int, draws: np.random.Generator) -> Floats:
    """Entries +-1/sqrt(size) for powers of 2; else that of the largest 2^k in it, times a Haar."""
    power = size & -size
    rest = haar(size // power, draws) if size > power else np.ones((1, 1))
    return np.kron(sylvester(power), rest) * draws.choice([-1.0, 1.0], size)


def online_turn(size: int, layer: str, key: Array) -> tuple[Floats, ...]:
    """Two Kronecker factors of an orthogonal matrix [size, size], of sizes as near as can be: of
    that Hadamard matrix of 2^k in size = 2^k m, times a Haar of m, drawn for the layer."""
    seed = np.asarray(jax.random.key_data(layer_key(key, f"{layer} online")))
    power = size & -size
    rest = size // power
    low = min((1 << i for i in range(power.bit_length())), key=lambda n: n * rest + power // n)
    draws = np.random.default_rng(seed.ravel().tolist())
    inner = haar(rest, draws) if rest > 1 else np.ones((1, 1))
    return sylvester(power // low), np.asarray(np.kron(sylvester(low), inner), np.float64)


def sylvester(size: int) -> Floats:
    """The Hadamard matrix of a power of 2, divided by sqrt(size)."""
    had: Floats = np.ones((1, 1))
    while len(had) < size:
        had = np.asarray(np.kron(had, [[1, 1], [1, -1]]), np.float64)
    return had / np.sqrt(size)


# --------------------------------------------------------------------- states


def _inner(architecture: Architecture) -> tuple[str, ...]:
    """The linear layers that read spaces other than the stream: MLPs' units, attention heads."""
    spaces = [s for s in architecture.spaces.values() if "rotate" not in s.allows]
    read = (a for s in spaces for a in s.reads if a.dim == COLUMNS and a.repeats == 1)
    return tuple(dict.fromkeys(a.parameter for a in read if a.parameter in architecture.layers))


def _check_inputs(state: State, read: set[str], inner: Sequence[str]) -> None:
    """Refuse inputs that are rounded, or turned already."""
    changed = [n for n in rounded_layers(state.inputs) if n in read or n in inner]
    if changed:
        raise ValueError(
            f"rotate would change what the inputs of {changed[0]} are rounded to "
            f"({len(changed)} such): put it before activations"
        )
    again = [n for n in turned_layers(state.inputs) if n in inner]
    if again:
        raise ValueError(f"rotate: the inputs of {again[0]} are turned already: leave online out")


@partial(jax.jit, static_argnames=("layers",))
def _read_turned(
    state: State, turns: dict[str, tuple[Array, ...]], layers: tuple[str, ...]
) -> State:
    """The state whose layers read their inputs turned: W T^T, and T on the inputs."""
    matrices, inputs = dict(state.matrices), {}
    for layer, turn in turns.items():
        alone = Space(layer, math.prod(len(f) for f in turn), (), (columns(layer),))
        held = [name for name, _ in alone.held(state, layers)]
        dtype = jnp.result_type(jnp.float32, *(matrices[name].weight for name in held))
        inputs[layer] = InputMap(tuple(f.astype(dtype) for f in turn))
        for name in held:
            weight = turned(matrices[name].weight, turn)
            stays = jnp.any(matrices[name].mask, 1, keepdims=True)
            mask = jnp.broadcast_to(stays, weight.shape)
            matrices[name] = Matrix(jnp.where(mask, weight, 0), mask)
    return replace(state, matrices=matrices).with_inputs(inputs)


@jax.jit
def _dense(weights: dict[str, Array]) -> dict[str, Matrix]:
    return {n: fresh(w) for n, w in weights.items()}


def _outside(network: Network, space: Space) -> tuple[LayerSpec, ...]:
    """Layers of the space that are left alone: their kernels are turned as vectors are."""
    alone = [n for n in space.layers if n not in network.specs]
    known = find_layers(network.given)[0] if alone else {}
    for n in alone:
        if n not in known:
            raise ValueError(f"{n} reads or writes {space.name}, but its kernel is no matrix")
    return tuple(known[n] for n in alone)


def _vectors(space: Space, outside: Sequence[LayerSpec]) -> list[str]:
    names = [*space.vectors, *(f"{s.name}.kernel" for s in outside)]
    for norm in space.norms:
        if norm.bias is not None:
            names += [norm.bias, *(f"{r}.bias" for r in norm.readers)]
        names.append(norm.scale)
    return list(dict.fromkeys(names))


def _check_biases(state: State, space: Space) -> None:
    for norm in space.norms:
        for reader in norm.readers if norm.bias in state.vectors else ():
            if f"{reader}.bias" not in state.vectors:
                raise ValueError(f"{reader} needs a bias, to absorb {norm.bias}")


@partial(jax.jit, static_argnames=("space", "outside", "layers"))
def turned_space(
    state: State,
    turn: Array,
    space: Space,
    outside: tuple[LayerSpec, ...],
    layers: tuple[str, ...],
) -> State:
    """The state whose units of the space are ``turn`` [size, size] times what they were."""
    kernels = {s.name: s.to_matrix(state.vectors[f"{s.name}.kernel"]) for s in outside}
    state = state.with_matrices({n: fresh(k) for n, k in kernels.items()})
    for norm in space.norms:
        state = _folded(state, space, norm)
    matrices, vectors = dict(state.matrices), dict(state.vectors)
    for name, one in space.held(state, layers):
        weight = one.times(turn.astype(matrices[name].weight.dtype), matrices[name].weight)
        stays = jnp.any(matrices[name].mask, one.dim, keepdims=True)  # of the other axis
        mask = jnp.broadcast_to(stays, weight.shape)
        matrices[name] = Matrix(jnp.where(mask, weight, 0), mask)
    for one in space.axes:
        if one.dim == ENTRIES and one.parameter in vectors:
            vector = vectors[one.parameter]
            vectors[one.parameter] = one.times(turn.astype(vector.dtype), vector)
    for s in outside:
        vectors[f"{s.name}.kernel"] = s.to_kernel(matrices.pop(s.name).weight)
    return replace(state, matrices=matrices, vectors=vectors)


def _folded(state: State, space: Space, norm: Folded) -> State:
    """The norm's scale and bias absorbed by its readers: scale 1, bias 0."""
    matrices, vectors = dict(state.matrices), dict(state.vectors)
    reads = {a.parameter: a for a in space.reads}
    scaled: set[str] = set()
    for reader in norm.readers:
        ends = {p[-1] for p in state.products(reader)}
        scale = reads[reader].spread(vectors[norm.scale])
        if norm.bias in vectors:
            own = vectors[f"{reader}.bias"]
            shift = reads[reader].spread(vectors[norm.bias])
            weight = layer_weight(state, reader, (len(own), len(shift)))
            vectors[f"{reader}.bias"] = own + jnp.matmul(weight, shift, precision="highest")
        for n in ends - scaled:
            matrices[n] = matrices[n]._replace(weight=matrices[n].weight * scale)
        scaled |= ends
    there = state.kept.get(norm.scale, True)  # the norm of a removed block stays 0
    vectors[norm.scale] = jnp.where(there, jnp.ones_like(vectors[norm.scale]), 0)
    if norm.bias in vectors:
        vectors[norm.bias] = jnp.zeros_like(vectors[norm.bias])
    return replace(state, matrices=matrices, vectors=vectors)


@jax.jit
def _same(before: dict[str, Array], after: dict[str, Array]) -> dict[str, Array]:
    return {n: jnp.all(before[n] == after[n]) for n in before}


def _check_kept(before: State, after: State, stage: Any) -> None:
    """Refuse a rotation that destroyed a mask or a grid."""
    laid = [
        n
        for n, m in before.matrices.items()
        if m.grid is not None and after.matrices[n].grid is None
    ]
    old, new = ({n: m.mask for n, m in s.matrices.items()} for s in (before, after))
    cut = [n for n, same in jax.device_get(_same(old, new)).items() if not same]
    check_undestroyed(stage.name, "grid", laid)
    check_undestroyed(stage.name, "mask", cut)
