"""Values as JSON knows them: the one way from what is computed to what is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from os import PathLike, fspath
from typing import Any


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
