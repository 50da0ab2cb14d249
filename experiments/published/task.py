"""A checkpoint and its data as what a study runs on, and what ``python -m perturb`` scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.data import tokens
from experiments.data.types import Dataset
from experiments.data.windows import TEST_WINDOWS
from experiments.models.checkpoint import tensors, weights_hash
from experiments.models.gpt2 import GPT2, GPT2Config
from experiments.models.llama import Llama, LlamaConfig
from experiments.published import images
from experiments.published.fill import check
from experiments.published.load import load, plan_of
from experiments.study import WINDOW, Checkpoint
from experiments.task import TEXT, Task, batched
from perturb.checkpoints import open_checkpoint
from perturb.types import Array

POSITIONS = ("max_position_embeddings", "n_positions")  # keys of a config.json
BATCH = 2048  # tokens that calibrate in one pass: logits are [tokens, vocabulary]


def task_of(model: Checkpoint) -> tuple[Task, str]:
    """The task of a checkpoint, and a line that says what it is. Raises ValueError."""
    data = data_of(model)
    loaded, _, told = load(model.path)
    loaded = _untied(loaded) if model.untied else loaded
    of_images = data.kind == "images"
    task = Task(
        loaded,
        batches_of(data, data.calibration.inputs),
        data.test,
        images.measures_of(data) if of_images else dict(TEXT),
        data.kind,
        more=lambda draw: batches_of(data, data.draw(draw).inputs),
        data={
            "name": data.name,
            "hash": data.hash,
            "weights": weights_hash(tensors(loaded)),
            # scales and norms decide, too
            "config": repr(plan_of(open_checkpoint(model.path)).config),
            "window": data.test.inputs.shape[1],
        },
    )
    if of_images:
        sources = len(np.unique(data.test.cluster))
        return task, f"{told}; {len(data.test)} test images of {sources} sources ({data.name})"
    return task, f"{told}; {len(data.test)} test windows of {model.window or WINDOW} tokens"


def data_of(model: Checkpoint) -> Dataset:
    """The text in tokens, or the images. Raises ValueError, before any weight is read, for what
    does not fit."""
    folder = open_checkpoint(model.path)
    config = plan_of(folder).config
    _check_untied(model, config)
    if not isinstance(config, (LlamaConfig, GPT2Config)):
        return images.data_of(model, folder, config)
    if model.images is not None:
        raise ValueError(f"{folder.path}: is a model of text: say --text in place of --images")
    if model.text is None:
        raise ValueError(f"{folder.path}: on which text? say --text FILE")
    if folder.tokenizer is None:
        raise ValueError(f"{folder.path}: has no tokenizer.json, which --text needs")
    window = WINDOW if model.window is None else model.window
    for key in POSITIONS:
        there = folder.config.get(key)
        if isinstance(there, int) and window > there:
            raise ValueError(f"--window {window}: {folder.path} knows {there} positions ({key})")
    return tokens.load(
        Path(model.text), folder.tokenizer, window, config.vocab_size, model.tests or TEST_WINDOWS
    )


def abstract(model: Checkpoint) -> nnx.Module:
    """The model without memory; its tensors are checked against the files."""
    folder = open_checkpoint(model.path)
    plan = plan_of(folder)
    _check_untied(model, plan.config)
    check(folder, plan)
    return nnx.eval_shape(lambda: _built(plan.config, model.untied))


def _built(config: Any, untied: bool) -> nnx.Module:
    built = config.build(nnx.Rngs(0))
    return _untied(built) if untied else built


def _untied(model: nnx.Module) -> nnx.Module:
    assert isinstance(model, (Llama, GPT2))
    return model.untied()


def _check_untied(model: Checkpoint, config: Any) -> None:
    if model.untied and not isinstance(config, (LlamaConfig, GPT2Config)):
        raise ValueError(f"{model.path}: has no embeddings: only a model of text can be untied")


def batches_of(data: Dataset, inputs: np.ndarray) -> list[Array]:
    """Windows or images in batches that fit into memory."""
    return (images.in_batches if data.kind == "images" else in_batches)(inputs)


def in_batches(inputs: np.ndarray) -> list[Array]:
    """Windows, as many a batch as memory for their logits allows."""
    size = BATCH if jax.default_backend() == "cpu" else 8 * BATCH
    return batched(inputs, max(1, size // inputs.shape[1]))
