"""Images in parquet files, as data sets of images are published: a column ``image`` of encoded
files (a struct with ``bytes``, or bytes alone) and, where they are known, one of ``label``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IMAGE, LABEL, BYTES = "image", "label", "bytes"


class Encoded(NamedTuple):
    """An image as a file holds it; label: -1 where none is known."""

    content: bytes
    label: int


def count(files: Sequence[Path]) -> int:
    """How many images the files hold. Raises ValueError for one that is none of images."""
    return int(sum(_opened(file).metadata.num_rows for file in files))


def read(files: Sequence[Path], places: Sequence[int]) -> list[Encoded]:
    """The images at these places (in increasing order), counted through all files; no group of
    rows is read that has none of them."""
    found: list[Encoded] = []
    wanted, start = np.asarray(places), 0
    for file in files:
        held = _opened(file)
        columns = [c for c in (IMAGE, LABEL) if c in held.schema_arrow.names]
        for i in range(held.num_row_groups):
            rows = held.metadata.row_group(i).num_rows
            mine = wanted[(wanted >= start) & (wanted < start + rows)] - start
            start += rows
            if mine.size:
                found += map(_encoded, held.read_row_group(i, columns).take(mine).to_pylist())
    return found


def _encoded(row: dict[str, Any]) -> Encoded:
    image, label = row[IMAGE], row.get(LABEL)
    content = image[BYTES] if isinstance(image, dict) else image
    return Encoded(content or b"", -1 if label is None else int(label))


def _opened(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise ValueError(
            f"images {file}: to read parquet takes the package pyarrow: pip install pyarrow, or "
            "install this package with its extra, '.[images]'"
        ) from error
    try:
        held = parquet.ParquetFile(file)
    except (ArrowException, OSError) as error:
        raise ValueError(f"images {file}: is no parquet file ({error})") from error
    schema = held.schema_arrow
    known = dict(zip(schema.names, schema.types, strict=True))
    image = known.get(IMAGE)
    if image is not None and types.is_struct(image):
        image = next((f.type for f in image if f.name == BYTES), None)
    if image is None or not (types.is_binary(image) or types.is_large_binary(image)):
        raise ValueError(
            f"images {file}: has no column {IMAGE!r} of encoded images, but {', '.join(known)}"
        )
    if LABEL in known and not types.is_integer(known[LABEL]):
        raise ValueError(f"images {file}: its column {LABEL!r} holds no class numbers")
    return held
