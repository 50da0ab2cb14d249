"""The 1797 handwritten digits, 8x8 pixels, that scikit-learn carries.

Alpaydin and Kaynak 1998 (UCI, optical recognition of handwritten digits). The split is by
index: the file is ordered by writer, so most test digits come from hands never trained on.
The test set has four versions of every source, the original and three small warps, and says in
``cluster`` which belong together: copies sharpen an average over sources, they are no sources.

Writers would be better clusters. The file has 13 in order and does not say where one ends, so the
test set is of a few only, too few to resample. So intervals of one training over test examples are
too short for other writers; in intervals over trainings the examples are a small part.
"""

from __future__ import annotations

import numpy as np

from experiments.data.augment import random_rotations
from experiments.data.types import Dataset, Split, content_hash

TEST_SOURCES = 600
TEST_COPIES = 3
CALIBRATION = 128
SPLIT_RULE = "by index: the last 600 sources test, the others train; calibration is in train"
WARP = {"degrees": 8.0, "shift": 0.6}  # at most; pixels of an 8x8 image are large
WARP_SEED = 20_240_601


def load() -> Dataset:
    """Images ``[N, 8, 8, 1]`` in [0, 1]; 1197 train, 128 calibration, 600 x 4 test."""
    import sklearn
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = (raw.images / 16.0).astype(np.float32)[..., None]
    labels = raw.target.astype(np.int32)
    source = np.arange(len(images), dtype=np.int32)
    every = Split(images, labels, source)
    train, heldout = every.take(slice(None, -TEST_SOURCES)), every.take(slice(-TEST_SOURCES, None))

    copies = random_rotations(heldout.inputs, TEST_COPIES, WARP_SEED, **WARP)
    test = Split(  # version by version: the originals first
        np.concatenate([heldout.inputs, *copies]),
        np.tile(heldout.targets, 1 + TEST_COPIES),
        np.tile(heldout.cluster, 1 + TEST_COPIES),
    )
    spread = np.arange(CALIBRATION) * len(train) // CALIBRATION
    return Dataset(
        name="digits",
        kind="images",
        train=train,
        calibration=train.take(spread),
        test=test,
        heldout=heldout,
        hash=content_hash(train.inputs, train.targets, test.inputs, test.targets, spread),
        info={
            "source": "sklearn.datasets.load_digits",
            "versions": {"scikit-learn": sklearn.__version__},
            "split": SPLIT_RULE,
            "test_warp": {**WARP, "copies": TEST_COPIES, "seed": WARP_SEED},
            "images": {"train": len(train), "test": len(test), "test_sources": len(heldout)},
        },
        pool=train,
    )
