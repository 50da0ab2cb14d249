"""What a checkpoint of images is run on: images as its preprocessor_config.json says."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments.data import images
from experiments.data.images import Preparation
from experiments.data.types import Dataset
from experiments.models.vit import ViTConfig
from experiments.published.keys import Keys
from experiments.study import Checkpoint
from experiments.task import IMAGES, PerExample, batched
from perturb.checkpoints import Folder
from perturb.checkpoints.stream import as_object
from perturb.types import Array

FILE = "preprocessor_config.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, where the file says none
SIZE = 224
BATCH = 8  # images that calibrate in one pass: windows of a convolution are copied


def preparation(folder: Folder, config: Any, size: int | None = None) -> Preparation:
    """How the model's images are made; size: their side, where it is not as published.

    Raises ValueError for a file that asks for what is not done, and a size the model cannot have.
    """
    path = folder.path / FILE
    keys = Keys(str(path), as_object(path) if path.is_file() else {})
    for key, only in (("do_rescale", True), ("do_normalize", True)):
        keys.one_of(key, (only,), only)
    factor = keys.number("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-3:
        keys.refuse("rescale_factor", "only 1/255 is supported")
    own = _side(keys, "crop_size") or _side(keys, "size") or folder.config.get("image_size") or SIZE
    side = size or (config.image_size if isinstance(config, ViTConfig) else own)
    if isinstance(config, ViTConfig) and side != config.image_size:
        raise ValueError(
            f"--window {side}: {folder.path} knows images of {config.image_size} x "
            f"{config.image_size} alone"
        )
    least = 32
    if side < least and not isinstance(config, ViTConfig):
        raise ValueError(
            f"--window {side}: {folder.path} takes images of {least} x {least} at least"
        )
    mean, std = (
        _each(keys, k, d, config.channels) for k, d in (("image_mean", MEAN), ("image_std", STD))
    )
    return Preparation(side, mean, std, float(keys.number("crop_pct", 0.875)))


def _side(keys: Keys, key: str) -> int | None:
    """A size is a number, or an object with one."""
    value = keys.get(key)
    if isinstance(value, dict):
        value = next((value[k] for k in ("height", "shortest_edge") if k in value), None)
    if value is not None and (type(value) is not int or value < 1):
        keys.refuse(key, "it must be a whole number above 0, or an object with one")
    return value


def _each(keys: Keys, key: str, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    value = keys.get(key, list(default[:channels]))
    if not isinstance(value, list) or len(value) != channels:
        keys.refuse(key, f"it must be a list of {channels} numbers, one a channel")
    return tuple(map(float, value))


def data_of(model: Checkpoint, folder: Folder, config: Any) -> Dataset:
    """The images. Raises ValueError for what does not fit, before any weight is read."""
    if model.text is not None:
        raise ValueError(f"{folder.path}: is a model of images: say --images in place of --text")
    if model.images is None:
        raise ValueError(
            f"{folder.path}: on which images? say --images DIR, or --images "
            f"{images.PHOTOGRAPHS} for crops of those in installed packages"
        )
    return images.load(model.images, preparation(folder, config, model.window), config.num_classes)


def measures_of(data: Dataset) -> dict[str, PerExample]:
    """All of a classifier's, or those that need no labels: the distance from the dense model."""
    return {n: f for n, f in IMAGES.items() if images.is_labelled(data) or n in ("kl", "square")}


def in_batches(inputs: np.ndarray) -> list[Array]:
    """Images, as many a batch as memory for the windows of convolutions allows."""
    return batched(inputs, BATCH if jax.default_backend() == "cpu" else 16 * BATCH)
