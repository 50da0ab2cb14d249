"""Images in parquet files, as data sets of images are published: a column ``image`` of encoded
files (a struct with ``bytes``, or bytes alone) and, where they are known, one of ``label``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturb.extras import how_to_install

IMAGE, LABEL, BYTES = "image", "label", "bytes"
UNKNOWN = -1


def labels(files: Sequence[Path]) -> np.ndarray:
    """The class number of every image of the files, UNKNOWN where there is none. No image is read.
    Raises ValueError for a file that is none of images."""
    return np.concatenate([_labels(_opened(file)) for file in files])


def _labels(held: Any) -> np.ndarray:
    if LABEL not in held.schema_arrow.names:
        return np.full(held.metadata.num_rows, UNKNOWN)
    return held.read([LABEL]).column(0).fill_null(UNKNOWN).to_numpy().astype(int)


def read(files: Sequence[Path], places: Sequence[int]) -> list[bytes]:
    """The encoded images at these places (in increasing order), counted through all files; no
    group of rows is read that has none of them."""
    found: list[bytes] = []
    wanted, start = np.asarray(places), 0
    for file in files:
        held = _opened(file)
        for i in range(held.num_row_groups):
            rows = held.metadata.row_group(i).num_rows
            mine = wanted[(wanted >= start) & (wanted < start + rows)] - start
            start += rows
            if mine.size:
                images = held.read_row_group(i, [IMAGE]).column(0).take(mine).to_pylist()
                found += [(x[BYTES] if isinstance(x, dict) else x) or b"" for x in images]
    return found


def _opened(file: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise ValueError(
            f"images {file}: to read parquet takes the package pyarrow: "
            f"{how_to_install('pyarrow', 'images')}"
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
