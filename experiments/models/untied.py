"""Presets whose head is a matrix of its own, as a rotation of the residual stream needs it.

For studies: ``Own("experiments.models.untied:llama_docs_mini")``.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.models.llama import Llama
from experiments.task import Task


def _untied(preset: str, seed: int) -> Task:
    from experiments.runner.running import load_task  # which imports all models

    task, _ = load_task(preset, seed)
    assert isinstance(task.model, Llama)
    return replace(task, model=task.model.untied())


def llama_docs_mini(seed: int = 0) -> Task:
    return _untied("llama-docs-mini", seed)


def llama_docs(seed: int = 0) -> Task:
    return _untied("llama-docs", seed)


def llama_docs_deep(seed: int = 0) -> Task:
    return _untied("llama-docs-deep", seed)


def llama_docs_10m(seed: int = 0) -> Task:
    return _untied("llama-docs-10m", seed)


def llama_docs_100m(seed: int = 0) -> Task:
    return _untied("llama-docs-100m", seed)
