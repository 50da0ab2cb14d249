"""How a method becomes a value: the ``@method`` decorator, names, configurations and checks.

A new method is one file in a room of ``perturb/methods`` holding one decorated class (a method on
matrices) or one frozen dataclass with ``on_state`` (a stage of a model); the file is found here and
needs no mention anywhere else. Names, of methods from outside too, are read by
:mod:`perturb.naming`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import numbers
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from perturb.grid import GridSpec
from perturb.masks import NofM
from perturb.outside import check_kind, is_outside, try_out
from perturb.trees import register_tree

T = TypeVar("T")

METHODS: dict[str, type] = {}
LEAVES = ("sparsity", "bits")  # traced: one compilation serves all ratios and bit widths
LATER = {"later": True}  # metadata of a setting that came later: see to_config
SHOWN = 3  # layers that a message names


@dataclass_transform(frozen_default=True)
def method(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class a compression method: frozen, a pytree, known by name.

    Its fields are its settings; those named in LEAVES are arrays to jax, others are part of the
    program. Numeric settings are checked (:func:`check_solver`) before its own ``__post_init__``.
    Raises ValueError for a name that one of this package's own methods has.
    """

    def wrap(cls: type[T]) -> type[T]:
        taken = METHODS.get(name)
        ours = taken is not None and taken.__module__.startswith("perturb.")
        if taken is not None and ours and _home(taken) != _home(cls):
            raise ValueError(f"{name!r} is the name of {_home(taken)}: choose another one")
        own = getattr(cls, "__post_init__", None)

        def check(self: Any) -> None:
            check_solver(self)
            if own is not None:
                own(self)

        cls.__post_init__ = check  # type: ignore[attr-defined]
        made = dataclasses.dataclass(frozen=True)(cls)
        made.name = property(lambda self: name)  # type: ignore[attr-defined]
        register_tree(made, LEAVES)
        METHODS[name] = made
        return made

    return wrap


def _home(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def modules(*rooms: str) -> Iterator[Any]:
    """The modules of rooms of perturb.methods, imported."""
    for room in rooms:
        package = importlib.import_module(f"perturb.methods.{room}")
        for module in pkgutil.iter_modules(package.__path__):
            yield importlib.import_module(f"{package.__name__}.{module.name}")


def methods() -> Mapping[str, type]:
    """All methods on matrices, by name; imports the method packages once."""
    for _ in modules("prune", "quantize"):
        pass
    return METHODS


def known_number(value: Any) -> Any:
    """An amount that can be looked at now, as Python's number (or what else it is).

    None for a traced one, a stacked family, and whatever stands in the place of a number while
    jax handles a method as a tree.
    """
    found = known_numbers(value)
    return found[0] if len(found) == 1 and np.ndim(value) == 0 else None


def known_numbers(value: Any) -> list[Any]:
    """All amounts that can be looked at now: several of a stacked family."""
    if isinstance(value, jax.core.Tracer):
        return []
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        readable = jnp.issubdtype(value.dtype, np.number) or value.dtype == bool
        return np.ravel(np.asarray(value)).tolist() if readable else []
    return [value] if isinstance(value, (bool, int, float, complex, str, list, tuple)) else []


def check_sparsity(sparsity: Any, scope: Any) -> None:
    """Refuse a sparsity outside [0, 1), or one that contradicts an N:M scope."""
    for value in known_numbers(sparsity):
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
            raise ValueError(f"sparsity must lie in [0, 1), got {value!r}")
        if isinstance(scope, NofM) and abs(value - scope.sparsity) > 1e-6:
            raise ValueError(
                f"a {scope} mask has sparsity {scope.sparsity:g}, got {value:g}: "
                "leave the sparsity out or give that value"
            )


def check_choice(what: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_bits(bits: Any) -> None:
    for value in known_numbers(bits):
        if isinstance(value, bool) or value not in range(2, 17):
            raise ValueError(f"bits must be a whole number from 2 to 16, got {value!r}")


def check_solver(method: Any) -> None:
    """Refuse numeric settings that no solver can use; methods without them pass."""
    damp, block = getattr(method, "damp", 0.0), getattr(method, "block", 1)
    real = isinstance(damp, numbers.Real) and not isinstance(damp, bool)
    if not real or not (math.isfinite(damp) and damp >= 0):
        raise ValueError(f"damp must be a finite number of at least 0, got {damp!r}")
    if not isinstance(block, numbers.Integral) or isinstance(block, bool) or block < 1:
        raise ValueError(f"block must be a whole number of at least 1, got {block!r}")


def check_layer(compressor: Any, layer: str, shape: tuple[int, int]) -> None:
    """:func:`check_layers` of one layer."""
    check_layers(compressor, {layer: shape})


def check_layers(compressor: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse layers [out, in] that the method's groups do not divide, all in one message; a
    method from outside is tried out on their shapes."""
    scope, spec = getattr(compressor, "scope", None), getattr(compressor, "grid", None)
    if isinstance(scope, NofM):
        groups = f"inputs do not divide into groups of {scope.m} ({scope} sparsity)"
        _check_divides(
            shapes, scope.m, f"its {{}} {groups}", f"their {groups}", "choose another pattern"
        )
    if isinstance(spec, GridSpec) and isinstance(spec.per, int):
        size = f"group size {spec.per} does not divide"
        _check_divides(
            shapes,
            spec.per,
            f"{size} its {{}} inputs",
            f"{size} their inputs",
            "choose a divisor or 'row'",
        )
    if is_outside(compressor):
        check_kind(compressor, repr(compressor))
        if not hasattr(compressor, "on_model"):
            try_out(compressor, shapes)


def _check_divides(
    shapes: Mapping[str, tuple[int, int]], size: int, one: str, many: str, right: str
) -> None:
    bad = [(name, n_in) for name, (_, n_in) in shapes.items() if n_in % size]
    if not bad:
        return
    if len(bad) == 1:
        told = f"layer {bad[0][0]}: {one.format(bad[0][1])}; exclude the layer or {right}"
    else:
        shown = ", ".join(f"{name} ({n_in})" for name, n_in in bad[:SHOWN])
        rest = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        told = f"{len(bad)} layers: {many}: {shown}{rest}; exclude them or {right}"
    raise ValueError(told)


def to_config(compressor: Any) -> dict[str, Any]:
    """Name and every setting as plain JSON values. A setting that came LATER than records of its
    class is told unless it has its default: what was recorded before it is the same."""

    def plain(value: Any) -> Any:
        if isinstance(value, NofM):
            return str(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            told = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            for f in dataclasses.fields(value):
                if f.metadata.get("later") and told[f.name] == f.default:
                    del told[f.name]
            return {name: plain(v) for name, v in told.items()}
        if isinstance(value, (np.generic, np.ndarray, jax.Array)):
            return value.item()
        return value

    if hasattr(compressor, "patterns"):  # per-layer rules: the first that matches counts
        rules = zip(compressor.patterns, compressor.methods, strict=True)
        return {"name": "per-layer", "rules": [[p, to_config(m)] for p, m in rules]}
    settings = plain(compressor) if dataclasses.is_dataclass(compressor) else {}
    return {"name": compressor.name, **settings}
