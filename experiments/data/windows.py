"""From three texts to a data set of byte windows, shared by every text source."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.data.types import Dataset, Split, content_hash

PARTS = ("train", "calibration", "test")
CALIBRATION_WINDOWS = 64
TEST_WINDOWS = 96
HELDOUT_WINDOWS = 512


def windows(text: bytes, length: int) -> Split:
    """Cut into windows of ``length + 1`` bytes; a window's targets are its next bytes.

    Windows do not overlap and their order is the text's, so concatenating them gives it back;
    an incomplete last window is dropped. ``cluster`` is the window's index.
    """
    count = len(text) // (length + 1)
    tokens = np.frombuffer(text, np.uint8)[: count * (length + 1)].astype(np.int32)
    tokens = tokens.reshape(count, length + 1)
    return Split(tokens[:, :-1], tokens[:, 1:], np.arange(count, dtype=np.int32))


def spread(split: Split, count: int) -> Split:
    """``count`` examples (or all, if fewer) at equal distances over the split."""
    count = min(count, len(split))
    return split.take(np.arange(count) * len(split) // max(count, 1))


def text_dataset(name: str, parts: dict[str, bytes], length: int, info: dict[str, Any]) -> Dataset:
    """Windows of three disjoint texts, ``parts`` by the names ``train, calibration, test``.

    What is measured on is spread evenly over the whole of its text.
    Raises ValueError when a text has too few windows to train on or to measure with.
    """
    for part, text in parts.items():
        if len(text) < 8 * (length + 1):
            raise ValueError(
                f"{name}: the {part} text has {len(text)} bytes, too few for 8 windows of "
                f"{length + 1} bytes: give a longer text"
            )
    cut = {part: windows(text, length) for part, text in parts.items()}
    return Dataset(
        name=name,
        kind="text",
        train=cut["train"],
        calibration=spread(cut["calibration"], CALIBRATION_WINDOWS),
        test=spread(cut["test"], TEST_WINDOWS),
        heldout=spread(cut["test"], HELDOUT_WINDOWS),
        hash=content_hash(*(parts[part] for part in PARTS), str(length).encode()),
        info={
            **info,
            "window": length,
            "bytes": {part: len(text) for part, text in parts.items()},
            "windows": {part: len(split) for part, split in cut.items()},
        },
        pool=cut["calibration"],
    )
