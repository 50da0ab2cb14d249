"""How a method becomes a value: the ``@method`` decorator, names, configurations and checks.

A new method is one file in ``perturb/prune`` or ``perturb/quantize`` holding one decorated
frozen dataclass; the file is found here and needs no mention anywhere else.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

from perturb.grid import GridSpec
from perturb.masks import NofM

T = TypeVar("T")

METHODS: dict[str, type] = {}
LEAVES = ("sparsity", "bits")  # traced: one compilation serves all ratios and bit widths


@dataclass_transform(frozen_default=True)
def method(name: str) -> Callable[[type[T]], type[T]]:
    """Make a class a compression method: frozen, a pytree, and known by name."""

    def wrap(cls: type[T]) -> type[T]:
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
    for package in ("perturb.prune", "perturb.quantize"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    return METHODS


def check_sparsity(sparsity: Any, scope: Any) -> None:
    """Refuse a sparsity outside [0, 1), or one that contradicts an N:M scope."""
    if not isinstance(sparsity, int | float | np.floating):
        return  # traced, or a stacked family: checked when its members were made
    if not 0 <= float(sparsity) < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    if isinstance(scope, NofM) and abs(float(sparsity) - scope.sparsity) > 1e-6:
        raise ValueError(
            f"a {scope} mask has sparsity {scope.sparsity:g}, got {sparsity:g}: "
            "leave the sparsity out or give that value"
        )


def check_choice(what: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_bits(bits: Any) -> None:
    if isinstance(bits, int | float | np.integer) and bits not in range(2, 17):
        raise ValueError(f"bits must be a whole number from 2 to 16, got {bits}")


def check_layer(compressor: Any, layer: str, shape: tuple[int, int]) -> None:
    """Refuse a layer [out, in] that the method's groups do not divide."""
    n_in = shape[1]
    scope = getattr(compressor, "scope", None)
    if isinstance(scope, NofM) and n_in % scope.m:
        raise ValueError(
            f"layer {layer}: its {n_in} inputs do not divide into groups of {scope.m} "
            f"({scope} sparsity); exclude the layer or choose another pattern"
        )
    spec = getattr(compressor, "grid", None)
    if isinstance(spec, GridSpec) and isinstance(spec.per, int) and n_in % spec.per:
        raise ValueError(
            f"layer {layer}: group size {spec.per} does not divide its {n_in} inputs; "
            "choose a divisor, or 'row'"
        )


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

    return {"name": compressor.name, **plain(compressor)}


def parse(text: str) -> Any:
    """A method from ``name[:amount][,setting=value...]``.

    amount is the sparsity of a pruner (or N:M) and the bits of a quantizer; settings are the
    fields of the method and, for a quantizer, of its grid: ``gptq:4,per=64,symmetric=false``.
    """
    head, *settings = text.split(",")
    name, _, amount = head.partition(":")
    known = methods()
    if name not in known:
        raise ValueError(f"unknown method {name!r} in {text!r}; known: {', '.join(sorted(known))}")
    cls = known[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}
    grid_fields = {f.name for f in dataclasses.fields(GridSpec)} if "grid" in fields else set()
    values: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    if amount:
        field = "scope" if ":" in amount else ("bits" if "bits" in fields else "sparsity")
        values[field] = _value(amount, text)
    for setting in settings:
        key, equals, raw = setting.partition("=")
        if not equals or key not in {*fields, *grid_fields} - {"grid"}:
            options = ", ".join(sorted({*fields, *grid_fields} - {"grid"}))
            raise ValueError(f"{setting!r} in {text!r} is no setting of {name}; it has: {options}")
        (grid if key in grid_fields else values)[key] = _value(raw, text)
    if grid:
        values["grid"] = GridSpec(**grid)
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _value(raw: str, text: str) -> Any:
    if raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    if ":" in raw:
        n, _, m = raw.partition(":")
        if not (n.isdigit() and m.isdigit()):
            raise ValueError(f"{raw!r} in {text!r} is no N:M pattern such as 2:4")
        return NofM(int(n), int(m))
    for kind in (int, float):
        try:
            return kind(raw)
        except ValueError:
            continue
    return raw
