"""Names of cells for people: all settings that differ from the defaults, amounts to the last digit.

Stages that differ have different labels. What identifies a cell in the records is a hash.
"""

from __future__ import annotations

import dataclasses
import numbers
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from perturb.masks import NofM
from perturb.registry import LEAVES, known_number
from perturb.stage import Layerwise

WORDS = ("None", "True", "False", "nan", "inf")  # of values that are no text


def amounts(method: Any) -> set[str]:
    """Which of sparsity and bits a method (or its class) has: both, for a joint one."""
    if not dataclasses.is_dataclass(method):
        return set()
    return {f.name for f in dataclasses.fields(method)} & set(LEAVES)


def label(method: Any) -> str:
    """A stage's name with ALL settings that differ from its defaults, without its amount.

    Settings of a nested one, the grid's, stand beside the others: ``gptq[symmetric=False]``.
    Methods that differ have different labels. The amount of a joint method is its sparsity.
    """
    if isinstance(method, Layerwise):
        rules = zip(method.patterns, method.methods, strict=True)
        return "+".join(f"{label(m)}@{p}" for p, m in rules)
    amount = "sparsity" if "sparsity" in amounts(method) else "bits"
    known = dataclasses.is_dataclass(method)
    settings = [s for s in (_settings(method) if known else ()) if s[0] != (amount,)]
    names = Counter(path[-1] for path, _, _ in settings)
    told = [
        f"{path[-1] if names[path[-1]] == 1 else '.'.join(path)}={_setting(value, default)}"
        for path, value, default in settings
        if value != default
    ]
    return method.name + (f"[{','.join(told)}]" if told else "")


def _settings(owner: Any, usual: Any = None) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Path, value and default of every setting; nested ones by their own paths.

    usual: what holds the defaults, if not the fields of the class do.
    """
    for field in dataclasses.fields(owner):
        value = known_number(getattr(owner, field.name)) if field.name in LEAVES else None
        value = getattr(owner, field.name) if value is None else value
        if usual is not None:
            default = getattr(usual, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = field.default
        nested = dataclasses.is_dataclass(default) and not isinstance(value, NofM)
        if nested and type(value) is type(default):
            for path, inner, inner_default in _settings(value, default):
                yield (field.name, *path), inner, inner_default
        else:
            yield (field.name,), value, default


def _setting(value: Any, default: Any) -> str:
    """Different values have different texts; a plain word is its own."""
    if isinstance(value, NofM):
        return str(value)
    if dataclasses.is_dataclass(value) and hasattr(value, "name"):  # a method of another's
        return stage_name(value)
    if isinstance(value, str):
        word = re.fullmatch(r"[A-Za-z_][\w.-]*", value) and value not in WORDS
        return value if word else repr(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return repr(value)
    if isinstance(value, numbers.Integral) and not isinstance(default, float):
        return str(int(value))
    return repr(float(value))


def stage_name(method: Any) -> str:
    """``wanda-0.5``: the label and the amount; of per-layer rules each with its pattern."""
    if isinstance(method, Layerwise):
        rules = zip(method.patterns, method.methods, strict=True)
        return "+".join(f"{stage_name(m)}@{p}" for p, m in rules)
    if not amounts(method):
        return label(method)
    amount = method.sparsity if "sparsity" in amounts(method) else method.bits
    value = float(amount)
    short = f"{value:g}"
    return f"{label(method)}-{short if float(short) == value else repr(value)}"


def chain_name(stages: Iterable[Any]) -> str:
    """``wanda-0.5>gptq-4``, in the order of application; ``dense`` of none."""
    return ">".join(map(stage_name, stages)) or "dense"
