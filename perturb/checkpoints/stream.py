"""Tensors of safetensors files, mapped into memory: nothing is read before it is asked for.

The format: eight bytes, the length n of the header (little endian); n bytes of JSON, ``name ->
{dtype, shape, data_offsets: [first, end)}``, counted from the end of the header; then the data, in
C order, little endian. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 100_000_000  # bytes of a header, the format's own limit
BF16 = "BF16"  # no type of numpy's: its bits are the upper half of a float32's
FLOATS = {"F16": "<f2", BF16: "<u2", "F32": "<f4", "F64": "<f8"}
WHOLE = {"BOOL": "?", "I8": "i1", "U8": "u1", "I16": "<i2", "U16": "<u2"}
WHOLE |= {"I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8"}
STORED = FLOATS | WHOLE


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is: ``stored`` is its type in the file, ``start`` the byte it begins at."""

    name: str
    file: Path
    stored: str
    shape: tuple[int, ...]
    start: int

    @property
    def floating(self) -> bool:
        """Whether it can be a weight."""
        return self.stored in FLOATS

    def read(self) -> np.ndarray:
        """Its values in a new array: floating point as float32, others in their own type.

        Raises ValueError for a type that numpy has no numbers for (FP8 and the like).
        """
        if self.stored not in STORED:
            raise ValueError(
                f"{self.file}: {self.name} is stored as {self.stored}: only "
                f"{', '.join(FLOATS)} weights can be read"
            )
        kind = np.dtype(STORED[self.stored])
        count = math.prod(self.shape)
        if not count:
            flat = np.empty(0, kind)
        else:
            flat = np.memmap(self.file, kind, "r", offset=self.start, shape=(count,))
        if self.stored == BF16:
            bits = flat.astype(np.uint32)
            bits <<= np.uint32(16)
            out = bits.view(np.float32)
        else:
            out = np.array(flat, np.float32 if self.stored in FLOATS else kind)
        return out.reshape(self.shape)


class Tensors(Mapping[str, Tensor]):
    """All tensors of one or several files by name; a mapping that holds no data."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        self._held = dict(held)

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def stored(self) -> str:
        """The types there are, the one with the most numbers first: ``BF16``, ``F32, BF16``."""
        sizes: dict[str, int] = {}
        for tensor in self._held.values():
            sizes[tensor.stored] = sizes.get(tensor.stored, 0) + math.prod(tensor.shape)
        return ", ".join(sorted(sizes, key=lambda name: -sizes[name]))


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises ValueError for a file that is damaged, with the
    name of the first tensor that it is too short for."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            fits = len(first) == 8 and length <= min(LONGEST, size - 8)
            text = file.read(length) if fits else b""
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not fits:
        raise ValueError(f"{path}: {size} bytes without a whole header: download it again")
    try:
        header = json.loads(text)
        entries = [
            (name, str(e["dtype"]), tuple(map(int, e["shape"])), *map(int, e["data_offsets"]))
            for name, e in header.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its header is no safetensors header ({error})") from error
    tensors, before = {}, 0
    for name, stored, shape, start, end in sorted(entries, key=lambda e: (e[3], e[4])):
        wanted = math.prod(shape) * np.dtype(STORED[stored]).itemsize if stored in STORED else None
        if start < before or end < start or min(shape, default=0) < 0:
            raise ValueError(f"{path}: {name} has a place that cannot be, bytes {start} to {end}")
        if wanted not in (None, end - start):
            raise ValueError(
                f"{path}: {name} of shape {list(shape)} in {stored} takes {wanted} bytes, the "
                f"header gives it {end - start}"
            )
        if 8 + length + end > size:
            raise ValueError(
                f"{path}: {name} is cut off: it ends at byte {8 + length + end} of a file of "
                f"{size}: download it again"
            )
        before = end
        tensors[name] = Tensor(name, path, stored, shape, 8 + length + start)
    return tensors


def as_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ValueError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold an object, got {type(value).__name__}")
    return value
