"""Values as JSON knows them: the one way from what is computed to what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, fields, is_dataclass
from os import PathLike, fspath
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def plain(value: object) -> Any:
    """``value`` out of None, bool, int, float, str, lists and dicts with text for keys.

    Numpy and jax scalars and arrays become numbers and nested lists, dataclasses what ``asdict``
    makes of them, paths text; mappings, sequences and sets (sorted) are entered. Not-a-number and
    infinities become None: JSON has no name for them. Raises TypeError for anything else, and
    ValueError for a mapping in which two keys have one text.
    """
    match value:
        case None | bool() | str():
            return value
        case _ if hasattr(value, "tolist"):  # before float: a numpy scalar may be one of both
            return plain(value.tolist())
        case int():
            return int(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            found = {str(k): plain(v) for k, v in value.items()}
            if len(found) < len(value):
                raise ValueError(f"two keys have one text, in {list(value)}")
            return found
        case AbstractSet():
            return sorted(plain(list(value)))
        case Sequence() if not isinstance(value, (bytes, bytearray)):
            return [plain(v) for v in value]
        case PathLike():
            return plain(fspath(value))
        case _ if is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    raise TypeError(f"JSON has no form for a {type(value).__name__}: {str(value)[:80]}")


def to_json(value: object, indent: int | None = 2) -> str:
    """One JSON text of :func:`plain`, with a newline at its end."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False) + "\n"


def from_plain(kind: type[T], value: Any) -> T:
    """The dataclass ``kind`` that :func:`plain` made ``value`` of; keys that it lacks are ignored.

    A float that JSON had no name for is nan, unless its type allows None. Raises ValueError for a
    field that is missing and has no default.
    """
    known, made = get_type_hints(kind), {}
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name in value:
            made[f.name] = _typed(known[f.name], value[f.name])
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"no {kind.__name__}: it lacks {f.name!r}")
    return kind(**made)


def _typed(kind: Any, value: Any) -> Any:
    if is_dataclass(kind):
        return from_plain(kind, value)  # type: ignore[arg-type]
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _typed(inner[0], value)
    if origin is tuple:
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_typed(k, v) for k, v in zip(each, value, strict=True))
    if origin is dict:
        return {k: _typed(inner[1], v) for k, v in value.items()}
    return math.nan if kind is float and value is None else kind(value)
