"""What a data set is, for the images and for the text alike."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Split:
    """Examples and what is independent among them.

    ``cluster`` names the source of an example. Examples of one source are not independent, so
    a bootstrap over examples resamples clusters: one each for text windows, one for an image
    and its augmented copies.
    """

    inputs: np.ndarray  # images: float32 [N, H, W, C], in [0, 1]; text: int32 [N, T]
    targets: np.ndarray  # images: int32 [N], labels; text: int32 [N, T], the next bytes
    cluster: np.ndarray  # int32 [N]

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.targets) == len(self.cluster):
            raise ValueError(
                f"a split of {len(self.inputs)} inputs, {len(self.targets)} targets and "
                f"{len(self.cluster)} clusters: there must be equally many"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: np.ndarray | slice) -> Split:
        """The examples at ``index``, their clusters unchanged."""
        return Split(self.inputs[index], self.targets[index], self.cluster[index])


@dataclass(frozen=True)
class Dataset:
    """``train`` fits, ``calibration`` feeds compressors, ``test`` compares them.

    ``heldout`` is what a model's own quality is reported on: the unaugmented test sources of
    the images, a larger sample of the test text. No example of ``calibration`` for text, and none
    of ``test`` and ``heldout`` for either kind, was trained on.
    """

    name: str
    kind: Literal["images", "text"]
    train: Split
    calibration: Split
    test: Split
    heldout: Split
    hash: str  # sha256 of everything above that matters
    info: dict[str, Any]  # plain JSON values: sources, versions, counts, how it was split
    pool: Split | None = None  # what other draws of calibration examples are taken from

    def draw(self, number: int) -> Split:
        """Calibration examples: draw 0 is ``calibration``, others as many at random of ``pool``.

        Raises ValueError for a data set without a pool.
        """
        if number == 0:
            return self.calibration
        if self.pool is None:
            raise ValueError(f"data set {self.name!r} has no calibration draw {number}, only 0")
        rng = np.random.default_rng([number, len(self.pool)])
        size = min(len(self.calibration), len(self.pool))
        return self.pool.take(np.sort(rng.choice(len(self.pool), size, replace=False)))


def content_hash(*arrays: np.ndarray | bytes) -> str:
    """sha256 over the arrays' types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, np.ndarray):
            digest.update(f"{array.dtype.str}{array.shape};".encode())
            array = np.ascontiguousarray(array).tobytes()
        digest.update(f"{len(array)}:".encode())
        digest.update(array)
    return digest.hexdigest()
