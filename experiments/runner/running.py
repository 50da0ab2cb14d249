"""A whole study: its models one after another, each with its seeds, draws and policies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from experiments.data.load import load as load_data
from experiments.data.types import content_hash
from experiments.entry import check_cache
from experiments.models.checkpoint import tensors, weights_hash
from experiments.models.presets import PRESETS
from experiments.published import task as published
from experiments.runner.clock import Clock
from experiments.runner.desk import Desk, StudyDesk
from experiments.runner.job import Job, Shared
from experiments.runner.walk import run_job
from experiments.study import Checkpoint, Model, Own, Study
from experiments.task import IMAGES, TEXT, Task, batched
from experiments.train import load_or_train
from experiments.watch import Lines, Watch
from perturb import network, sources
from perturb.architecture import architecture_of
from perturb.cli import BadInput
from perturb.stage import as_stage


def run_study(
    study: Study,
    out: Path,
    *,
    watch: Watch | None = None,
    clock: Clock | None = None,
    text: Path | None = None,
    window: int | None = None,
    images_dir: Path | None = None,
    images: Path | None = None,
    cache: Path | None = None,
    progress: Any = None,
) -> Path:
    """Run a study, or go on with it; the path of its records, in the folder ``out/NAME``.

    What is there already is kept and not computed again. text, images_dir: the data of models
    that take a file or a folder; images: of checkpoints; window: tokens an example of a checkpoint
    has, or the side of an image; cache: of trained models. Raises ValueError for what does not fit
    the models, :class:`experiments.records.RecordLogLocked` while another run has the records.
    """
    clock = clock or Clock()
    with StudyDesk(study, out, watch or Lines()) as desk:
        for model, seed in study.trainings:
            run_training(
                study,
                model,
                seed,
                desk,
                clock,
                text=text,
                window=window,
                images_dir=images_dir,
                images=images,
                cache=cache,
                progress=progress,
            )
    return desk.path


def run_training(
    study: Study, model: Model, seed: int, desk: Desk, clock: Clock, **options: Any
) -> None:
    """All that a study measures of one training of a model; options: of :func:`load_task`."""
    with clock.phase("train"):
        task, line = load_task(model, seed, **options)
    for draw in study.calibrations:  # refused before any work on the others
        task.draw(draw)
    desk.model(line)
    shared = Shared(study, str(model), seed, task, desk, clock)
    chains = study.chains()
    for draw in study.calibrations:
        for policy in study.policies:
            job = Job(shared, draw, policy)
            desk.opened({job.cell_id(c): job.label(c) for c in chains})
            desk.note(job.opened.coverage.describe())
            alone = [job.cell_id(c) for c in chains if len(c) <= 1]
            run_job(job, partial(desk.alone, alone))


# ------------------------------------------------------------------------------------ tasks


def load_task(
    model: Model,
    seed: int,
    *,
    text: Path | None = None,
    window: int | None = None,
    images_dir: Path | None = None,
    images: Path | None = None,
    cache: Path | None = None,
    progress: Any = None,
) -> tuple[Task, str]:
    """A model's task, trained if need be, and a line that says how good it is."""
    if isinstance(model, Own):
        return own_task(model, seed)
    if isinstance(model, Checkpoint):
        return published.task_of(model.on(text, window, images))
    takes = PRESETS[model].dataset
    trained = load_or_train(
        model,
        seed,
        cache=cache,
        text=text if takes == "text" else None,
        images_dir=images_dir if takes == "fashion" else None,
        progress=progress,
    )
    data = trained.dataset
    task = Task(
        trained.model,
        batched(data.calibration.inputs),
        data.test,
        dict(IMAGES if data.kind == "images" else TEXT),
        data.kind,
        more=lambda draw: batched(data.draw(draw).inputs),
        data={"name": data.name, "hash": data.hash, "weights": trained.weights_hash},
    )
    return task, quality(trained)


def _loader(source: str) -> Callable[[int], Any]:
    """A file is run once, as long as it stays what it is: what is compiled for a class of its
    would be compiled anew for a class of the same name."""
    path = Path(source.rpartition(":")[0])
    held = path.read_bytes() if path.suffix == ".py" and path.is_file() else None
    return _held_loader(source, held)


@lru_cache(maxsize=8)
def _held_loader(source: str, _: bytes | None) -> Callable[[int], Any]:
    return sources.loader(source)


def own_task(model: Own, seed: int) -> tuple[Task, str]:
    """Raises :class:`perturb.cli.BadInput` for a source that gives no task, in one line."""
    made = _loader(model.source)(seed)
    what = f"model {model.source}"
    if not isinstance(made, Task):
        raise BadInput(
            f"{what}: it must return an experiments.task.Task, got {type(made).__name__}"
        )
    data = {
        "name": str(model),
        "weights": weights_hash(tensors(made.model)),
        "code": _code_hash(model.source),
        **made.data,
    }
    test = made.test
    arrays = (np.asarray(a) for a in (test.inputs, test.targets, test.cluster))
    data.setdefault("hash", content_hash(*arrays))
    task = Task(**{**vars(made), "data": data})
    return task, f"{model.source}, seed {seed}: {len(task.test)} test examples"


def _code_hash(source: str) -> str:
    """Of the file that makes the task: the model's forward pass and the measures are its code."""
    where = source.rpartition(":")[0]
    file = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    return content_hash(Path(file).read_bytes()) if file and Path(file).is_file() else "unknown"


def quality(trained: Any) -> str:
    """How good a trained model is, against the peer its data has."""
    m = trained.metrics
    if "accuracy" in m:
        good = f"accuracy {m['accuracy']:.2%} on {len(trained.dataset.heldout)} held-out images"
    else:
        good = (
            f"{m['bits_per_byte']:.3f} bits per byte on held-out text "
            f"(a byte trigram: {m['trigram_bits_per_byte']:.3f})"
        )
    source = "cached" if trained.cached else f"trained in {trained.seconds:.0f} s"
    return (
        f"{trained.preset}, seed {trained.seed}: {good}, {m['parameters']:,} parameters, {source}"
    )


# ------------------------------------------------------------------------------------ checks


def check_study(study: Study, model: Any) -> None:
    """Refuse, before any work, stages that do not fit a model's layers (may be abstract).

    Layers that the conditions of a policy leave out are checked as the others.
    """
    exclude, include = (
        [p for p in patterns if network.matching(model, p)]
        for patterns in (study.exclude, study.include)
    )
    specs, _ = network.find_layers(model, exclude=exclude, include=include)
    groups = {n: s.feature_groups for n, s in specs.items() if s.feature_groups > 1}
    architecture = architecture_of(model, {n: s.shape for n, s in specs.items()}, groups)
    for plan in study.plans:
        for part in plan:
            for stage in part.stages:
                as_stage(stage).check(architecture)


def check_models(
    study: Study,
    *,
    text: Path | None = None,
    window: int | None = None,
    images_dir: Path | None = None,
    images: Path | None = None,
) -> None:
    """Everything that can be refused before any training: data, caches, layers that do not fit."""
    for model in study.models:
        if isinstance(model, Own):
            _loader(model.source)
            continue
        if isinstance(model, Checkpoint):
            _check_fits(study, model, published.abstract(model))
            published.data_of(model.on(text, window, images))
            continue
        preset = PRESETS[model]
        check_cache(model, study.seeds)
        built = nnx.eval_shape(lambda preset=preset: preset.build(nnx.Rngs(0)))
        _check_fits(study, model, built)
        if preset.dataset not in ("digits", "docstrings"):  # those are always there
            load_data(
                preset.dataset,
                length=preset.window,
                text=text if preset.dataset == "text" else None,
                images_dir=images_dir if preset.dataset == "fashion" else None,
            )


def _check_fits(study: Study, model: Model, built: Any) -> None:
    try:
        check_study(study, built)
    except ValueError as error:
        raise BadInput(f"study {study.name!r} on {model}: {error}") from error
