"""Arrays in a record: base64 of their little-endian bytes, with the type said beside them.

Needs numpy only, as all of this package: figures and analysis read records without jax.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

DTYPES = ("int32", "float32")
COUNT = "count"  # the sum that every record has: predictions in each cluster
INTEGERS = (COUNT, "correct")  # sums that are counts, and exact; the others are float32


def dtype_of(measure: str) -> str:
    """How the sums of a measure are stored."""
    return "int32" if measure in INTEGERS else "float32"


def encode(values: Any, dtype: str) -> str:
    """Base64 of a one-dimensional array's little-endian bytes; ``dtype`` 'int32' or 'float32'.

    Raises ValueError where the values do not survive the conversion as integers.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"encode takes a one-dimensional array, got shape {array.shape}")
    stored = array.astype(np.dtype(dtype).newbyteorder("<"))
    if stored.dtype.kind == "i" and not np.array_equal(stored, array):
        raise ValueError(f"values do not fit {dtype} exactly (first: {array[:3].tolist()})")
    return base64.b64encode(stored.tobytes()).decode("ascii")


def decode(text: str, dtype: str) -> np.ndarray:
    """The array ``encode`` was given, in the machine's own byte order."""
    raw = base64.b64decode(text, validate=True)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype)


def encode_sums(sums: Mapping[str, Any]) -> dict[str, str]:
    """A record's ``sums``: of every measure, one number a cluster of examples."""
    return {name: encode(values, dtype_of(name)) for name, values in sums.items()}


def decode_sums(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays [clusters] of a record's ``sums``."""
    return {name: decode(text, dtype_of(name)) for name, text in record["sums"].items()}
