"""Models whose layers' inputs are mapped (:mod:`perturb.inputs`): as they run, and as modules.

A model's state with maps is :class:`Mapped`, a tree of its own: what runs a state
(:func:`running`) sees by its structure whether there is anything to map, so that a model without
maps runs the very program that it always ran.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from perturb.inputs import InputMap, mapped
from perturb.network.features import contracted_axes
from perturb.network.hear import Ear, tapped
from perturb.network.layers import KINDS, LayerSpec, compressible
from perturb.types import Array


class Mapped(NamedTuple):
    """A model's variables, and the maps of its modules' inputs by name."""

    state: Any
    inputs: Mapping[str, InputMap]


def with_inputs(state: Any, inputs: Mapping[str, InputMap], specs: Mapping[str, LayerSpec]) -> Any:
    """The state of a model whose layers' inputs are mapped; the state itself without any map."""
    if not inputs:
        return state
    return Mapped(state, by_module(inputs, specs))


def by_module(
    inputs: Mapping[str, InputMap], specs: Mapping[str, LayerSpec]
) -> dict[str, InputMap]:
    """Maps by the modules that hold the layers' kernels. Raises ValueError for a layer that is one
    of several matrices of its kernel or a convolution in groups, and for a turn of a convolution's
    or a lookup's inputs."""
    found: dict[str, InputMap] = {}
    for layer, one in inputs.items():
        spec = specs[layer]
        if spec.index is not None or spec.feature_groups > 1:
            count = spec.matrices * spec.feature_groups
            raise ValueError(
                f"layer {layer}: its kernel is {count} matrices, whose inputs cannot be mapped one "
                "by one; exclude it"
            )
        if one.turn is not None and spec.kind not in ("linear", "einsum"):
            raise ValueError(f"layer {layer}: a {spec.kind} layer's inputs cannot be turned")
        found |= dict.fromkeys(spec.names, one)
    return found


def bare(state: Any) -> Any:
    """The model's variables alone."""
    return state.state if isinstance(state, Mapped) else state


@contextmanager
def running(graphdef: Any, state: Any) -> Iterator[Any]:
    """The model with this state; as long as it is open, its layers' inputs are mapped.

    What is tapped inside hears the inputs as they are mapped.
    """
    model = nnx.merge(graphdef, bare(state))
    if not isinstance(state, Mapped):
        yield model
        return
    ears = {name: Ear(partial(_given, by)) for name, by in state.inputs.items()}
    with tapped(model, ears, KINDS):
        yield model


def _given(by: InputMap, original: Callable[..., Any], module: Any, given: dict[str, Any]) -> Any:
    key = "query" if isinstance(module, nnx.Embed) else "inputs"
    if key == "query" and key not in given:  # rows are looked up
        return original(**given)
    return original(**given | {key: _map(by, module, given[key], given.get("einsum_str"))})


def _map(by: InputMap, module: Any, x: Any, einsum: str | None = None) -> Array:
    x = jnp.asarray(x)
    return mapped(x, by, contracted_axes(module, x.ndim, einsum))


# ------------------------------------------------------------------- a model that maps by itself


class MapValue(nnx.Variable[Any]):
    """Of an input map: no parameter, nothing that is trained."""


def set_inputs(
    model: nnx.Module, inputs: Mapping[str, InputMap], specs: Mapping[str, LayerSpec]
) -> None:
    """Make the layers map their inputs by themselves, in place.

    A layer stays what it is, and gets ``input_turn``, ``input_bits`` and ``input_clip`` besides;
    its class becomes a subclass that maps what reaches the ``__call__`` of nnx.
    """
    modules = dict(compressible(model)) if inputs else {}
    for name, by in by_module(inputs, specs).items():
        module = modules[name]
        module.input_turn = None if by.turn is None else nnx.List([MapValue(f) for f in by.turn])
        module.input_bits = None if by.bits is None else MapValue(by.bits)
        module.input_clip = None if by.clip is None else MapValue(by.clip)
        cls: Any = type(module)
        made: Any = _mapping(cls)
        module.__class__ = made


@cache
def _mapping(cls: Any) -> Any:
    """The class with a step of its own between it and its kind: what a subclass does before comes
    first, as it does where a network maps."""
    kind: Any = next(k for k in KINDS if issubclass(cls, k))
    if cls is not kind:
        return type(cls)(f"Mapping{cls.__name__}", (cls, _mapping(kind)), {})

    def call(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        x = inputs
        if kind is not nnx.Embed:
            einsum = args[0] if args and kind is nnx.Einsum else kwargs.get("einsum_str")
            x = _map(_held(self), self, inputs, einsum)
        return kind.__call__(self, x, *args, **kwargs)

    def attend(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        return nnx.Embed.attend(self, _map(_held(self), self, query), *args, **kwargs)

    methods: dict[str, Any] = {"__call__": call}
    if kind is nnx.Embed:
        methods["attend"] = attend
    return type(kind)(f"Mapping{kind.__name__}", (kind,), methods)


def _held(module: Any) -> InputMap:
    def value(variable: Any) -> Any:
        return None if variable is None else variable[...]

    turn: Sequence[Any] | None = module.input_turn
    return InputMap(
        None if turn is None else tuple(f[...] for f in turn),
        value(module.input_bits),
        value(module.input_clip),
    )
