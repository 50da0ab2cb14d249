"""A checkpoint and a text as what a study runs on, and as what ``python -m perturb`` scores."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from experiments.data import tokens
from experiments.data.types import Dataset
from experiments.data.windows import TEST_WINDOWS
from experiments.models.checkpoint import tensors, weights_hash
from experiments.models.gpt2 import GPT2Config
from experiments.models.llama import LlamaConfig
from experiments.published.fill import check
from experiments.published.load import load, plan_of
from experiments.study import WINDOW, Checkpoint
from experiments.task import TEXT, Task, batched
from perturb.checkpoints import open_checkpoint
from perturb.types import Array

POSITIONS = ("max_position_embeddings", "n_positions")  # keys of a config.json
BATCH = 2048  # tokens that calibrate in one pass: logits are [tokens, vocabulary]


def task_of(model: Checkpoint) -> tuple[Task, str]:
    """The task of a text checkpoint, and a line that says what it is. Raises ValueError."""
    data = data_of(model)
    loaded, _, told = load(model.path)
    task = Task(
        loaded,
        in_batches(data.calibration.inputs),
        data.test,
        dict(TEXT),
        "text",
        more=lambda draw: in_batches(data.draw(draw).inputs),
        data={
            "name": data.name,
            "hash": data.hash,
            "weights": weights_hash(tensors(loaded)),
            "config": repr(
                plan_of(open_checkpoint(model.path)).config
            ),  # scales and norms decide, too
            "window": model.window or WINDOW,
        },
    )
    return task, f"{told}; {len(data.test)} test windows of {model.window or WINDOW} tokens"


def data_of(model: Checkpoint) -> Dataset:
    """The text in tokens. Raises ValueError, before any weight is read, for what does not fit."""
    folder = open_checkpoint(model.path)
    config = plan_of(folder).config
    if not isinstance(config, (LlamaConfig, GPT2Config)):
        raise ValueError(
            f"{folder.path}: is no model of text, and images have no standard form: write a "
            "function that gives the model, experiments.published.load(FOLDER).model, and your "
            "images, and name it FILE.py:FUNCTION"
        )
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
    check(folder, plan)
    return nnx.eval_shape(lambda: plan.config.build(nnx.Rngs(0)))


def in_batches(inputs: np.ndarray) -> list[Array]:
    """Windows, as many a batch as memory for their logits allows."""
    size = BATCH if jax.default_backend() == "cpu" else 8 * BATCH
    return batched(inputs, max(1, size // inputs.shape[1]))
