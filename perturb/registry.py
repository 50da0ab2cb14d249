"""How a method becomes a value: the ``@method`` decorator, names, configurations and checks.

A new method is one file in ``perturb/methods/prune`` or ``perturb/methods/quantize`` holding one
decorated frozen dataclass; the file is found here and needs no mention anywhere else.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import numbers
import pkgutil
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from perturb.grid import GridSpec
from perturb.masks import NofM

T = TypeVar("T")

METHODS: dict[str, type] = {}
LEAVES = ("sparsity", "bits")  # traced: one compilation serves all ratios and bit widths
SHOWN = 3  # layers that a message names


@dataclass_transform(frozen_default=True)
def method(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class a compression method: frozen, a pytree, known by name.

    Its numeric settings are checked (:func:`check_solver`) before its own ``__post_init__``.
    """

    def wrap(cls: type[T]) -> type[T]:
        own = getattr(cls, "__post_init__", None)

        def check(self: Any) -> None:
            check_solver(self)
            if own is not None:
                own(self)

        cls.__post_init__ = check  # type: ignore[attr-defined]
        made = dataclasses.dataclass(frozen=True)(cls)
        made.name = property(lambda self: name)  # type: ignore[attr-defined]
        fields = [f.name for f in dataclasses.fields(made)]  # type: ignore[arg-type]
        jax.tree_util.register_dataclass(
            made,
            data_fields=[f for f in fields if f in LEAVES],
            meta_fields=[f for f in fields if f not in LEAVES],
        )
        METHODS[name] = made
        return made

    return wrap


def methods() -> Mapping[str, type]:
    """All methods, by name; imports the method packages once."""
    for package in ("perturb.methods.prune", "perturb.methods.quantize"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    return METHODS


def known_number(value: Any) -> Any:
    """An amount that can be looked at now, as Python's number (or what else it is).

    None for a traced one, a stacked family (checked when its members were made), and whatever
    stands in the place of a number while jax handles a method as a tree.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        number = np.ndim(value) == 0 and jnp.issubdtype(value.dtype, np.number)
        return value.item() if number else None
    return value if isinstance(value, (bool, int, float, str)) else None


def check_sparsity(sparsity: Any, scope: Any) -> None:
    """Refuse a sparsity outside [0, 1), or one that contradicts an N:M scope."""
    value = known_number(sparsity)
    if value is None:
        return
    if isinstance(value, (bool, str)) or not 0 <= value < 1:
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
    value = known_number(bits)
    if value is not None and (isinstance(value, bool) or value not in range(2, 17)):
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
    """Refuse layers [out, in] that the method's groups do not divide, all in one message."""
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
    """Name and every setting as plain JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, NofM):
            return str(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (np.generic, np.ndarray, jax.Array)):
            return value.item()
        return value

    if hasattr(compressor, "patterns"):  # per-layer rules: the first that matches counts
        rules = zip(compressor.patterns, compressor.methods, strict=True)
        return {"name": "per-layer", "rules": [[p, to_config(m)] for p, m in rules]}
    settings = plain(compressor) if dataclasses.is_dataclass(compressor) else {}
    return {"name": compressor.name, **settings}


def parse(text: str) -> Any:
    """A method from ``name[:amount][,setting=value...]``.

    amount is the sparsity of a pruner (or N:M) and the bits of a quantizer; settings are the
    fields of the method and, for a quantizer, of its grid: ``gptq:4,per=64,symmetric=false``.
    Raises ValueError, which says what is wrong with which part.
    """
    head, *settings = text.split(",")
    name, _, amount = head.partition(":")
    known = methods()
    if name not in known:
        raise ValueError(f"unknown method {name!r} in {text!r}; known: {', '.join(sorted(known))}")
    cls = known[name]
    own = {f.name: f for f in dataclasses.fields(cls)}
    grid = own.pop("grid", None)
    fields = own | ({f.name: f for f in dataclasses.fields(GridSpec)} if grid is not None else {})
    values: dict[str, Any] = {}
    if amount:
        key = "scope" if ":" in amount else ("bits" if "bits" in own else "sparsity")
        if key not in own:
            raise ValueError(f"{amount!r} in {text!r}: {name} has no N:M patterns")
        values[key] = _value(fields[key], amount, text)
    for setting in settings:
        key, equals, raw = setting.partition("=")
        if not equals or key not in fields:
            options = ", ".join(sorted(fields))
            raise ValueError(f"{setting!r} in {text!r} is no setting of {name}; it has: {options}")
        if key in values:
            raise ValueError(f"{text!r} gives {key} twice: leave one out")
        values[key] = _value(fields[key], raw, text)
    laid = {key: values.pop(key) for key in list(values) if key not in own}
    if laid and grid is not None:
        values["grid"] = dataclasses.replace(_default(grid), **laid)
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _default(field: Any) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


AMOUNTS = {
    "sparsity": "a sparsity is a fraction such as 0.5, or a pattern N:M such as 2:4",
    "bits": "a number of bits is a whole number such as 4",
}


def _value(field: Any, raw: str, text: str) -> Any:
    """What is written, if it is of the kind that the field's default is of."""
    value, default = _read(raw, text), _default(field)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if field.name in AMOUNTS and not number:
        percent = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *%", raw)
        if percent and field.name == "sparsity":
            raise ValueError(f"{raw!r} in {text!r}: write {float(percent[1]) / 100:g}")
        raise ValueError(f"{raw!r} in {text!r} is no amount: {AMOUNTS[field.name]}")
    if field.name == "bits" and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(default) in (int, float) and not number:
        raise ValueError(f"{field.name} must be a number, got {raw!r} in {text!r}")
    if isinstance(default, bool) != isinstance(value, bool):
        right = "true or false" if isinstance(default, bool) else f"like {default}"
        raise ValueError(f"{field.name} must be {right}, got {raw!r} in {text!r}")
    return value


def _read(raw: str, text: str) -> Any:
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    if ":" in raw:
        n, _, m = raw.partition(":")
        if not (n.isdecimal() and m.isdecimal()):
            raise ValueError(f"{raw!r} in {text!r} is no N:M pattern such as 2:4")
        return NofM(int(n), int(m))
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            continue
    return raw
