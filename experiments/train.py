"""Train a preset, or read the checkpoint of having trained it.

    trained = load_or_train("resnet-digits")
    trained.model(images)

A checkpoint's name is a hash of everything that decides it: the model's configuration, the
training's, the seed and the data. Training twice with one seed on one device gives the same bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.data.augment import random_distortions
from experiments.data.cache import cache_dir
from experiments.data.load import load
from experiments.data.trigram import trigram_bits_per_byte
from experiments.data.types import Dataset, Split
from experiments.models import checkpoint
from experiments.models.presets import Augment, Preset, Training, find

__all__ = ["Trained", "cache_dir", "load_or_train"]

Array = jax.Array
FORMAT = 1  # raise when training changes in a way that the configuration does not show
EVALUATION_BATCH = 64
REPORT_EVERY = 20  # steps between two looks at the loss: each look waits for the device


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, its data and what is known about it.

    ``metrics``: ``accuracy`` (0..1, on the held-out sources) or ``bits_per_byte`` and
    ``trigram_bits_per_byte`` (on the held-out windows), ``train_loss`` (nats, mean over the last
    twentieth of the steps) and ``parameters`` (a count).
    """

    preset: str
    seed: int
    model: nnx.Module
    dataset: Dataset
    metrics: dict[str, float]
    seconds: float  # that training took, also when the checkpoint was read
    weights_hash: str
    cached: bool


def load_or_train(
    preset: str,
    seed: int = 0,
    *,
    cache: Path | None = None,
    text: Path | None = None,
    images_dir: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """The trained model of a preset; seconds when it was trained before, else minutes.

    ``cache``: folder of checkpoints and extracted text, :func:`cache_dir` by default; ``text``:
    the file of a preset on text; ``images_dir``: the folder with Fashion-MNIST's files;
    ``progress``: bars are added to it; without it there is one of our own, on stderr.
    Raises ValueError for an unknown preset and for data that is missing or unusable.
    """
    chosen = find(preset)
    if text is not None and chosen.dataset != "text":
        raise ValueError(
            f"preset {preset!r} is trained on {chosen.dataset}, not on a file: "
            "use 'llama-text' with --text"
        )
    root = cache or cache_dir()
    with _shown(progress) as bars:
        dataset = load(
            chosen.dataset,
            length=chosen.window,
            text=text,
            images_dir=images_dir,
            cache=root,
            progress=bars,
        )
        path = root / "models" / f"{preset}-seed{seed}-{_key(chosen, seed, dataset)}.safetensors"
        try:
            stored = checkpoint.read(path, chosen)
        except checkpoint.CorruptCheckpoint as error:
            bars.console.print(f"damaged checkpoint, training again: {error}", soft_wrap=True)
            stored = None
        cached = stored is not None
        if stored is None:
            start = time.perf_counter()
            model, loss = train(chosen, dataset, seed, bars)
            seconds = time.perf_counter() - start
            metrics = {**_quality(model, dataset), "train_loss": loss, "parameters": _size(model)}
            stored = model, {"metrics": metrics, "seconds": seconds, "info": dataset.info}
            checkpoint.write(path, *stored)
    model, metadata = stored
    return Trained(
        preset=preset,
        seed=seed,
        model=model,
        dataset=dataset,
        metrics=metadata["metrics"],
        seconds=metadata["seconds"],
        weights_hash=checkpoint.weights_hash(checkpoint.tensors(model)),
        cached=cached,
    )


def train(
    preset: Preset, dataset: Dataset, seed: int, progress: Progress
) -> tuple[nnx.Module, float]:
    """Train from scratch; the model in evaluation mode and its last training loss in nats."""
    settings = preset.training
    model = nnx.jit(lambda: preset.build(nnx.Rngs(seed)))()  # one compilation, not one a layer
    model.train()
    graph = nnx.graphdef(model)
    params, rest = nnx.state(model, nnx.Param), nnx.state(model, nnx.Not(nnx.Param))
    optimizer = _optimizer(settings)
    split = _augmented(dataset.train, settings.augment, seed)
    inputs, targets = jnp.asarray(split.inputs), jnp.asarray(split.targets)
    advance = _advance(graph, optimizer, settings, len(split))

    state = (params, rest, optimizer.init(params), jax.random.key(seed))
    task = progress.add_task(f"training {preset.name}", total=settings.steps)
    losses: list[Array] = []  # one [steps_per_call] a call
    for done in range(settings.steps_per_call, settings.steps + 1, settings.steps_per_call):
        state, loss = advance(state, inputs, targets)
        losses.append(loss)
        if done % REPORT_EVERY == 0:
            text = f"training {preset.name}, loss {float(loss[-1]):.3f}"
            progress.update(task, completed=done, description=text)
    every = np.concatenate([np.asarray(loss) for loss in losses])
    progress.update(task, completed=settings.steps)
    progress.remove_task(task)
    if not np.isfinite(every).all():
        raise RuntimeError(
            f"{preset.name}: the loss is not finite from step {int(np.argmin(np.isfinite(every)))}"
            f" on; lower the learning rate {settings.learning_rate}"
        )
    model = nnx.merge(graph, state[0], state[1])
    model.eval()
    return model, float(every[-max(1, len(every) // 20) :].mean())


def _advance(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, settings: Training, examples: int
) -> Callable[..., Any]:
    """The compiled ``(state, inputs, targets) -> (state, losses [steps_per_call])``."""

    def step(state: Any, inputs: Array, targets: Array) -> tuple[Any, Array]:
        params, rest, opt_state, key = state
        key, draw = jax.random.split(key)
        chosen = jax.random.randint(draw, (settings.batch,), 0, examples)
        batch = inputs[chosen]
        if settings.flip:
            batch = mirrored(jax.random.fold_in(draw, 1), batch)

        def objective(params: Any) -> tuple[Array, Any]:
            # A copy: batch statistics are updated in place, and these belong to the outer trace.
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(batch)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets[chosen])
            return loss.mean(), nnx.state(model, nnx.Not(nnx.Param))

        (loss, rest), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        update, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, update), rest, opt_state, key), loss

    def advance(state: Any, inputs: Array, targets: Array) -> tuple[Any, Array]:
        if settings.steps_per_call == 1:  # not even a loop of one: see Training.steps_per_call
            state, loss = step(state, inputs, targets)
            return state, loss[None]
        return jax.lax.scan(
            lambda carry, _: step(carry, inputs, targets),
            state,
            None,
            length=settings.steps_per_call,
        )

    return jax.jit(advance, donate_argnums=0)


def mirrored(key: Array, images: Array) -> Array:
    """``images [B, H, W, C]``, each mirrored left to right with probability one half."""
    coin = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(coin, images[:, :, ::-1], images)


def _optimizer(settings: Training) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup, settings.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            rate,
            b1=0.9,
            b2=settings.b2,
            weight_decay=settings.weight_decay,
            # Gains, biases and tokens are few and have no scale to shrink.
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim in (2, 4), params),
        ),
    )


def _augmented(split: Split, augment: Augment | None, seed: int) -> Split:
    """The split and its distorted copies, drawn once before training: ``[(1 + copies) N]``."""
    if augment is None:
        return split
    copies = random_distortions(
        split.inputs, augment.copies, seed, spread=augment.spread, shift=augment.shift
    )
    times = 1 + augment.copies
    return Split(
        np.concatenate([split.inputs, *copies]),
        np.tile(split.targets, times),
        np.tile(split.cluster, times),
    )


def _quality(model: nnx.Module, dataset: Dataset) -> dict[str, float]:
    """The model's own quality on ``dataset.heldout``."""

    @nnx.jit
    def measure(model: Any, inputs: Any, targets: Any) -> Array:
        logits = model(inputs)
        if dataset.kind == "images":
            return logits.argmax(-1) == targets  # [B]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(-1)  # [B]

    heldout = dataset.heldout
    batches = [
        heldout.take(slice(start, start + EVALUATION_BATCH))
        for start in range(0, len(heldout), EVALUATION_BATCH)
    ]
    values = [np.asarray(measure(model, batch.inputs, batch.targets)) for batch in batches]
    mean = float(np.concatenate(values).mean(dtype=np.float64))
    if dataset.kind == "images":
        return {"accuracy": mean}
    return {
        "bits_per_byte": mean / float(np.log(2)),
        "trigram_bits_per_byte": trigram_bits_per_byte(dataset.train, heldout),
    }


def _size(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def _key(preset: Preset, seed: int, dataset: Dataset) -> str:
    decisive = {
        "format": FORMAT,
        "architecture": type(preset.config).__name__,
        "config": _told(preset.config),
        "training": _told(preset.training),
        "seed": seed,
        "data": dataset.hash,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def _told(config: Any) -> dict[str, Any]:
    """What of a config, or a training, names a checkpoint: a setting that came LATER has its part
    only where it is not the default, so that what was trained before it is found again."""
    left = (f.name for f in fields(config) if f.metadata.get("later"))
    usual = {f.name: f.default for f in fields(config)}
    drop = {name for name in left if getattr(config, name) == usual[name]}
    return {name: value for name, value in asdict(config).items() if name not in drop}


@contextlib.contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """The caller's bars, which the caller shows, or our own for as long as this lasts."""
    if progress is not None:
        yield progress
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as own:
        yield own
