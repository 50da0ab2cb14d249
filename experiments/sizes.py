"""The same study on other models: ``small`` as declared, ``gpu`` and ``paper`` on larger ones.

A study is declared on models that two CPU cores train in minutes. The larger ones are trained here,
too; published checkpoints take their place where one has them (``--models``).
"""

from __future__ import annotations

from experiments.study import Checkpoint, Model, Own, Study

SIZES = ("small", "gpu", "paper")
UNTIED = "experiments.models.untied:"
_TEXT = ("llama-docs", "llama-docs-mini", "llama-docs-deep", "llama-docs-2m")
_IMAGES = {
    **dict.fromkeys(("resnet-digits", "resnet-fashion"), "resnet18-fashion"),
    **dict.fromkeys(("vit-digits", "vit-fashion"), "deit-base-fashion"),
}
LARGER: dict[str, dict[str, str]] = {
    "small": {},
    "gpu": {**dict.fromkeys(_TEXT, "llama-docs-10m"), **_IMAGES},
    "paper": {**dict.fromkeys(_TEXT, "llama-docs-100m"), **_IMAGES},
}
SEEDS = {"gpu": 2, "paper": 3}  # trainings at most, of models that take longer to train


def sized(study: Study, size: str) -> Study:
    """The study on the models of a size, each once. Raises ValueError for another size."""
    if size not in SIZES:
        raise ValueError(f"--size {size}: choose {', '.join(SIZES)}")
    models = tuple(dict.fromkeys(_larger(model, LARGER[size]) for model in study.models))
    return study.with_options(models=models, seeds=study.seeds[: SEEDS.get(size)])


def _larger(model: Model, larger: dict[str, str]) -> Model:
    if isinstance(model, str):
        return larger.get(model, model)
    if isinstance(model, Checkpoint):
        return model
    preset = model.source.removeprefix(UNTIED).replace("_", "-")
    if not model.source.startswith(UNTIED) or preset not in larger:
        return model
    return Own(UNTIED + larger[preset].replace("-", "_"))
