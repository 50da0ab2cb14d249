"""Images of one's own, or crops of the photographs in installed packages, for a published model.

A folder: the images of ``DIR`` and of its subfolders. If it has exactly as many subfolders with
images as the model has classes, these are the classes, in the order of their names (as ImageNet's
and as torchvision reads them); else there are no labels, and a model is compared with the dense
one. Parquet files in it (:mod:`experiments.data.parquet`) bring class numbers of their own, which
are labels where there are as many classes in them as the model has. ``photographs``: random crops
of the photographs that scikit-learn, matplotlib and scikit-image bring. No photograph gives crops
to both parts, and crops of one photograph are one cluster.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import parquet
from experiments.data.types import Dataset, Split, content_hash
from experiments.data.windows import spread
from perturb.extras import how_to_install

PHOTOGRAPHS = "photographs"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CALIBRATION, TEST = 32, 96  # images; so many crops calibrate, too
SMALLEST = 4  # images of either part
RULE = "at random: two fifths calibrate, at most; the rest is tested on"  # of a folder's images
POOL, CROPS = 12, 6  # of each photograph: what calibration draws are taken from, and tested on
# (package, path in it), which are independent scenes. What calibrates, then what is tested on.
SCENES: dict[str, tuple[tuple[str, str], ...]] = {
    "calibration": (
        ("sklearn", "datasets/images/china.jpg"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/coins.png"),
        ("skimage", "data/brick.png"),
        ("skimage", "data/hubble_deep_field.jpg"),
    ),
    "test": (
        ("sklearn", "datasets/images/flower.jpg"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("skimage", "data/camera.png"),
        ("skimage", "data/grass.png"),
        ("skimage", "data/retina.jpg"),
    ),
}
UNLABELLED = -1


@dataclass(frozen=True)
class Preparation:
    """How a model's images are made: the central crop of ``crop`` of the shorter side, scaled to
    ``size`` x ``size`` (bicubic), in [0, 1], then less ``mean``, over ``std`` (of each channel)."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 0.875

    @property
    def mode(self) -> str:
        return "RGB" if len(self.mean) == 3 else "L"

    def __call__(self, image: Any, box: tuple[float, float, float, float] | None = None) -> Any:
        """float32 [size, size, channels] of a Pillow image; box: (left, upper, right, lower) in
        place of the central crop."""
        if box is None:
            width, height = image.size
            side = min(width, height) * self.crop
            left, upper = (width - side) / 2, (height - side) / 2
            box = (left, upper, left + side, upper + side)
        size = (self.size, self.size)
        scaled = image.convert(self.mode).resize(size, resample=_pillow().BICUBIC, box=box)
        values = np.asarray(scaled, np.float32).reshape(*size, -1) / np.float32(255)
        return ((values - np.asarray(self.mean)) / np.asarray(self.std)).astype(np.float32)


def load(source: str | Path, how: Preparation, classes: int) -> Dataset:
    """Images [N, size, size, channels] of a folder, or of the photographs.

    Labels are -1 where there are none. Raises ValueError for a folder without images, an image
    that cannot be read, and packages that are missing, in one line.
    """
    if str(source) == PHOTOGRAPHS and not Path(source).is_dir():
        return _photographs(how)
    return _folder(Path(source), how, classes)


def is_labelled(data: Dataset) -> bool:
    """Whether its images have labels."""
    return bool((data.test.targets != UNLABELLED).all())


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValueError(
            f"images: to read them takes the package pillow: {how_to_install('pillow', 'images')}"
        ) from error
    return Image


def _opened(path: Path | BytesIO, name: str = "") -> Any:
    try:
        image = _pillow().open(path)
        image.load()
    except OSError as error:
        raise ValueError(
            f"image {name or path}: cannot be read ({error}); remove or replace it"
        ) from error
    return image


# ------------------------------------------------------------------------------------ a folder


def _folder(folder: Path, how: Preparation, classes: int) -> Dataset:
    if not folder.is_dir():
        raise ValueError(
            f"images folder {folder}: there is no such folder; give one with images, or "
            f"{PHOTOGRAPHS!r} for crops of those in installed packages"
        )
    packed = sorted(f for f in folder.rglob("*.parquet") if f.is_file())
    if packed:
        return _packed(folder, packed, how, classes)
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    parts = _parts(folder, len(files), f"images ({', '.join(SUFFIXES)})")
    inside = sorted({f.relative_to(folder).parts[0] for f in files if f.parent != folder})
    labelled = len(inside) == classes and all(f.parent != folder for f in files)
    found = {}
    for part, places in parts.items():
        chosen = [files[i] for i in places]
        labels = [
            inside.index(f.relative_to(folder).parts[0]) if labelled else UNLABELLED for f in chosen
        ]
        found[part] = _split([_opened(f) for f in chosen], labels, how)
    return _dataset(folder.resolve().name, found, {"images": len(files), "split": RULE})


def _packed(folder: Path, files: Sequence[Path], how: Preparation, classes: int) -> Dataset:
    labels = parquet.labels(files)
    # class numbers of another data set would be labels, and wrong ones, if fewer would do
    if set(labels.tolist()) != set(range(classes)):
        labels = np.full(labels.size, UNLABELLED)
    parts = _parts(folder, labels.size, "images in parquet files")
    chosen = np.sort(np.concatenate(list(parts.values())))
    encoded = dict(zip(chosen.tolist(), parquet.read(files, chosen.tolist()), strict=True))
    found = {}
    for part, places in parts.items():
        images = [_opened(BytesIO(encoded[i]), f"of {folder}") for i in places]
        found[part] = _split(images, labels[places], how)
    return _dataset(folder.resolve().name, found, {"images": labels.size, "split": RULE})


def _parts(folder: Path, number: int, what: str) -> dict[str, np.ndarray]:
    """Which of so many images calibrate, and which are tested on, in increasing order."""
    if number < 2 * SMALLEST:
        raise ValueError(
            f"images folder {folder}: has {number} {what}, too few: at least {2 * SMALLEST}"
        )
    order = np.random.default_rng(number).permutation(number)
    cut = max(SMALLEST, min(4 * CALIBRATION, number * 2 // 5))
    return {"calibration": np.sort(order[:cut]), "test": np.sort(order[cut : cut + TEST])}


def _split(images: Sequence[Any], labels: Sequence[int] | np.ndarray, how: Preparation) -> Split:
    inputs = np.stack([how(image) for image in images])
    return Split(inputs, np.array(labels, np.int32), np.arange(len(images)))


# --------------------------------------------------------------------------- the photographs


def _photographs(how: Preparation) -> Dataset:
    found = {}
    for part, scenes in SCENES.items():
        count = POOL if part == "calibration" else CROPS
        crops, cluster = [], []
        for i, (package, inside) in enumerate(scenes):
            rng = np.random.default_rng([part == "test", i])
            image = _opened(_packaged(package, inside))
            width, height = image.size
            crops += [how(image, box) for box in _boxes(width, height, count, rng)]
            cluster += [i] * count
        places = np.arange(len(crops)).reshape(len(scenes), count).T.reshape(-1)  # scene by scene
        inputs, clusters = np.stack(crops)[places], np.array(cluster, np.int32)[places]
        found[part] = Split(inputs, np.full(len(crops), UNLABELLED, np.int32), clusters)
    info = {p: [inside.rpartition("/")[2] for _, inside in s] for p, s in SCENES.items()}
    return _dataset(PHOTOGRAPHS, found, {"split": "by photograph", **info})


def _boxes(
    width: int, height: int, count: int, rng: np.random.Generator
) -> Iterable[tuple[float, float, float, float]]:
    """Squares of 40 to 100 % of the shorter side, at random places."""
    for _ in range(count):
        side = min(width, height) * rng.uniform(0.4, 1.0)
        left, upper = rng.uniform(0, width - side), rng.uniform(0, height - side)
        yield left, upper, left + side, upper + side


def _packaged(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / inside).is_file():
            return Path(place) / inside
    name = {"sklearn": "scikit-learn", "skimage": "scikit-image"}.get(package, package)
    raise ValueError(
        f"images {PHOTOGRAPHS!r}: {name} brings {inside}, and is not installed: "
        f"{how_to_install(name, 'images')}"
    )


def _dataset(name: str, found: dict[str, Split], info: dict[str, Any]) -> Dataset:
    pool, test = found["calibration"], found["test"]
    arrays: Sequence[np.ndarray] = (pool.inputs, pool.targets, test.inputs, test.targets)
    return Dataset(
        name=name,
        kind="images",
        train=pool,
        calibration=spread(pool, CALIBRATION),
        test=test,
        heldout=test,
        hash=content_hash(*arrays, test.cluster),
        info=info,
        pool=pool,
    )
