"""The trained presets under the entry points ``perturb.models`` of pyproject.toml.

``python -m perturb resnet-digits ...`` finds them there by name, so perturb scores our models as
it would anyone's, and imports nothing of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.published.images import in_batches as of_images
from experiments.published.task import in_batches, task_of
from experiments.study import Checkpoint
from experiments.train import cache_dir, load_or_train
from perturb.cli import check_folder

BATCH = 64  # examples


def preset(name: str, seed: int) -> dict[str, Any]:
    """The preset's trained model, its calibration batches ``[<= 64, ...]``, and its test examples
    in such batches: of a source and its augmented copies only one, so that they are independent.

    Trains, with a progress bar on stderr, unless there is a checkpoint. Raises ValueError for
    data that is missing.
    """
    check_cache(name, [seed])
    trained = load_or_train(name, seed)
    data = trained.dataset
    _, first = np.unique(data.test.cluster, return_index=True)
    return {
        "model": trained.model,
        "calibration": _batched(data.calibration.inputs),
        "heldout": _batched(data.test.inputs[np.sort(first)]),
    }


def folder(
    path: str, text: Path | None = None, window: int | None = None, images: Path | None = None
) -> dict[str, Any]:
    """A published checkpoint on a text or images: entry point of the group ``perturb.folders``.

    Raises ValueError for what does not fit, before any weight is read.
    """
    checkpoint = Checkpoint(path).on(text, window, images)
    task, told = task_of(checkpoint)
    print(told, file=sys.stderr)
    return {
        "model": task.model,
        "calibration": task.calibration,
        "heldout": (of_images if task.kind == "images" else in_batches)(task.test.inputs),
    }


def _batched(inputs: np.ndarray) -> list[Any]:
    return [jnp.asarray(inputs[i : i + BATCH]) for i in range(0, len(inputs), BATCH)]


def check_cache(name: str, seeds: Iterable[int]) -> None:
    """Refuse, before training, a cache that could not keep what is trained.

    A cache that holds the models already need not be writable.
    Raises :class:`perturb.cli.BadInput`.
    """
    models = cache_dir() / "models"
    if not all(any(models.glob(f"{name}-seed{seed}-*")) for seed in seeds):
        check_folder("cache folder (PERTURB_CACHE)", models)
