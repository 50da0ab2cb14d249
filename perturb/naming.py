"""Methods and stages by name: what a METHOD on the command line stands for.

Ours are found by their files (:mod:`perturb.registry`), those of installed packages by entry points
of the group ``perturb.methods`` (name = "package.module:Class"), and anyone's own where it is:
``FILE.py:Class``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from perturb.grid import GridSpec
from perturb.masks import NofM
from perturb.outside import check_kind, named
from perturb.registry import methods, modules

GROUP = "perturb.methods"  # entry points: name -> class


def stages() -> Mapping[str, type]:
    """All stages of models, by name."""
    classes = (
        c
        for m in modules(
            "structure", "rotate", "scale", "adapt", "lowrank", "share", "mixed", "quantize"
        )
        for c in vars(m).values()
    )
    own = (c for c in classes if isinstance(c, type) and hasattr(c, "on_state"))
    return {c.name: c for c in own if dataclasses.is_dataclass(c)}  # type: ignore[attr-defined]


def known() -> dict[str, Any]:
    """Everything that a name alone stands for: ours by class, installed others by entry point."""
    installed = {point.name: point for point in entry_points(group=GROUP)}
    return {**installed, **stages(), **methods()}


def parse(text: str) -> Any:
    """A method or stage from ``name[:amount][,setting=value...]``.

    name: one of ours, of an entry point of the group ``perturb.methods``, or a class where it is,
    ``FILE.py:Class`` or ``PACKAGE.MODULE:Class``. amount: the sparsity of a pruner (or N:M), the
    bits of a quantizer, else the first setting that is a number; settings are the fields of the
    class and, for a quantizer, of its grid: ``gptq:4,per=64,symmetric=false``. Raises ValueError,
    which says what is wrong with which part, and :class:`perturb.cli.BadInput` for code from
    outside that does not run.
    """
    head, *settings = text.split(",")
    name, cls, amount = _class(head, text)
    fields_ = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    own = {f.name: f for f in fields_ if f.init}
    grid = own.pop("grid", None)
    fields = own | ({f.name: f for f in dataclasses.fields(GridSpec)} if grid is not None else {})
    values: dict[str, Any] = {}
    if amount:
        key = _amount_field(own, amount)
        if key is None:
            raise ValueError(f"{amount!r} in {text!r}: {name} has no amount")
        if key not in own:
            raise ValueError(f"{amount!r} in {text!r}: {name} has no N:M patterns")
        values[key] = _value(fields[key], amount, text)
    for setting in settings:
        key, equals, raw = setting.partition("=")
        if not equals or key not in fields:
            options = ", ".join(sorted(fields)) or "none"
            raise ValueError(f"{setting!r} in {text!r} is no setting of {name}; it has: {options}")
        if key in values:
            raise ValueError(f"{text!r} gives {key} twice: leave one out")
        values[key] = _value(fields[key], raw, text)
    laid = {key: values.pop(key) for key in list(values) if key not in own}
    if laid and grid is not None:
        values["grid"] = dataclasses.replace(_default(grid), **laid)
    try:
        made = cls(**values)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error
    check_kind(made, name)
    return made


def _class(head: str, text: str) -> tuple[str, Any, str]:
    """The name, the class and the amount of ``name[:amount]`` or ``source:Class[:amount]``."""
    name, _, amount = head.partition(":")
    ours = known()
    if name in ours:
        found = ours[name]
        if isinstance(found, type):
            return name, found, amount
        return name, named(f"{text!r}", *_target(found.value), "class")[0], amount
    cls, _, rest = amount.partition(":")
    if cls.isidentifier() and (name.endswith(".py") or "." in name or _importable(name)):
        return f"{name}:{cls}", named(f"{text!r}", name, cls, "class")[0], rest
    near = difflib.get_close_matches(name, ours, 1)
    raise ValueError(
        f"unknown method {name!r} in {text!r}; known: {', '.join(sorted(ours))}"
        + (f"; did you mean {near[0]}?" if near else "")
        + "; your own is FILE.py:Class or PACKAGE.MODULE:Class"
    )


def _target(value: str) -> tuple[str, str]:
    module, _, name = value.partition(":")
    return module.strip(), name.split("[")[0].strip()


def _importable(name: str) -> bool:
    try:
        return name.isidentifier() and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _amount_field(own: Mapping[str, Any], amount: str) -> str | None:
    """The setting that an amount is: N:M is a scope, any other that of the name or the first
    number."""
    if ":" in amount:
        return "scope"
    usual = {n: _default(f) for n, f in own.items()}
    numbers = (n for n, d in usual.items() if type(d) in (int, float) or d is dataclasses.MISSING)
    return next((n for n in ("bits", "sparsity") if n in own), next(numbers, None))


def _default(field: Any) -> Any:
    """MISSING of a setting that has none."""
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
    if default is dataclasses.MISSING:
        return value
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
