"""Any file as text: its bytes, split into contiguous parts."""

from __future__ import annotations

from pathlib import Path

from experiments.data.types import Dataset
from experiments.data.windows import text_dataset

SPLIT_RULE = "contiguous: the first 90 % train, the next 4 % calibration, the last 6 % test"


def load(path: Path, length: int = 128) -> Dataset:
    """Windows of ``length`` bytes of one file. Raises ValueError if missing or too short."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"text file {path}: {error.strerror or error}; give a readable file"
        ) from error
    first, second = len(text) * 90 // 100, len(text) * 94 // 100
    smallest = 8 * (length + 1) * 25  # the calibration part, 1/25, needs 8 windows
    if len(text) < smallest:
        raise ValueError(
            f"text file {path}: {len(text)} bytes are too few to train and measure on; "
            f"give at least {smallest}, better some megabytes"
        )
    info = {"source": path.name, "split": SPLIT_RULE}
    parts = {"train": text[:first], "calibration": text[first:second], "test": text[second:]}
    return text_dataset("text", parts, length, info)
