"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from experiments.data import digits, docstrings, fashion, textfile
from experiments.data.types import Dataset

NAMES = ("digits", "fashion", "docstrings", "text")


def load(
    name: str,
    *,
    length: int = 128,
    text: Path | None = None,
    images_dir: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """``length``: window of the text sets; ``text``: the file of ``'text'``;
    ``images_dir``: the folder of ``'fashion'``, which by default is where Debian puts it."""
    match name:
        case "digits":
            return digits.load()
        case "fashion":
            return fashion.load(images_dir)
        case "docstrings":
            return docstrings.load(length, cache=cache, progress=progress)
        case "text":
            if text is None:
                raise ValueError("data set 'text' needs a file: say which one with --text FILE")
            return textfile.load(text, length)
    raise ValueError(f"data set {name!r} is unknown: choose one of {', '.join(NAMES)}")
