"""Fashion-MNIST from its IDX files, plain or gzipped (Xiao et al. 2017, arXiv:1708.07747)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from experiments.data.types import Dataset, Split, content_hash
from experiments.data.windows import spread

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where dataset-fashion-mnist puts them
CALIBRATION = 128
TEST = 2000  # images that models are compared on; all 10 000 say how good a model is
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load(folder: Path | None = None) -> Dataset:
    """Images ``[N, 28, 28, 1]`` in [0, 1]: 60 000 train, 128 of them calibrate; 10 000 heldout,
    2 000 of them test.

    ``folder`` holds the four IDX files, with or without ``.gz``; without it, Debian's place.
    Raises ValueError when a file is missing or is not what its name says.
    """
    folder = DEBIAN if folder is None else Path(folder)
    train, heldout = _read_split(folder, FILES), _read_split(folder, TEST_FILES)
    calibration, test = spread(train, CALIBRATION), spread(heldout, TEST)
    return Dataset(
        name="fashion",
        kind="images",
        train=train,
        calibration=calibration,
        test=test,
        heldout=heldout,
        hash=content_hash(
            train.inputs,
            train.targets,
            heldout.inputs,
            heldout.targets,
            test.cluster,
            calibration.cluster,
        ),
        info={
            "source": "Fashion-MNIST",
            "split": "as published; calibration is in train",
            "images": {"train": len(train), "test": len(test), "test_sources": len(heldout)},
        },
        pool=train,
    )


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, ``uint8`` of the shape in its header.

    The header is two zero bytes, the type (8 = unsigned byte), the number of axes, and each
    axis' length as a big-endian 32-bit integer. Raises ValueError naming the file.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); download it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(
            f"{path}: starts with {content[:4].hex() or 'nothing'}, not with 000008 and the "
            "number of axes: give an IDX file of unsigned bytes"
        )
    axes = content[3]
    header = 4 + 4 * axes
    whole = content[4:header] if len(content) >= header else b""
    shape = tuple(int(n) for n in np.frombuffer(whole, ">u4"))
    if not shape or len(content) - header != math.prod(shape):
        raise ValueError(
            f"{path}: {len(content)} bytes, header included, for shape {shape}: "
            "the file is cut off or damaged; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def is_there() -> bool:
    """Whether Debian's package is installed."""
    return all(_path(DEBIAN, name) for name in (*FILES, *TEST_FILES))


def _path(folder: Path, name: str) -> Path | None:
    either = (folder / name, folder / f"{name}.gz")
    return next((path for path in either if path.is_file()), None)


def _find(folder: Path, name: str) -> Path:
    if path := _path(folder, name):
        return path
    raise ValueError(
        f"Fashion-MNIST: no {name} or {name}.gz in {folder}: install Debian's package "
        "dataset-fashion-mnist, or give the folder that has the four IDX files"
    )


def _read_split(folder: Path, names: tuple[str, str]) -> Split:
    image_path, label_path = (_find(folder, name) for name in names)
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"{image_path}: shape {images.shape} with labels of shape {labels.shape} in "
            f"{label_path.name}: expected [N, height, width] and [N]"
        )
    if labels.max() > 9:
        raise ValueError(f"{label_path}: label {labels.max()}: expected classes 0 to 9")
    inputs = (images.astype(np.float32) / np.float32(255))[..., None]
    return Split(inputs, labels.astype(np.int32), np.arange(len(labels), dtype=np.int32))
