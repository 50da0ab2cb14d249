"""Composition. ``chain(f1, f2)`` applies f1 first: it is written f1 -> f2 and equals f2 o f1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from perturb.trees import register_tree
from perturb.types import Array, Matrix, Problem, Solved


@register_tree
@dataclass(frozen=True)
class Chain:
    """Several stages as one. Of methods on matrices alone, it is itself such a method.

    On a bare matrix all stages see the same inputs; on a model (:func:`perturb.compress`) those
    that the policy says.
    """

    stages: tuple[Any, ...]  # methods on matrices and stages on models

    @property
    def name(self) -> str:
        return ">".join(s.name for s in self.stages)

    @property
    def granularity(self) -> str:
        return "; ".join(s.granularity for s in self.stages)

    @property
    def needs_stats(self) -> bool:
        return any(s.needs_stats for s in self.stages)

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        """The report is the last stage's that has one."""
        report = None
        for i, stage in enumerate(self.stages):
            matrix, new = stage(matrix, problem, jax.random.fold_in(key, i))
            report = new if new is not None else report
        return Solved(matrix, report)


def chain(*stages: Any) -> Chain:
    """``chain(f1, f2, ...)`` applies f1 first; chains inside are flattened."""
    if not stages:
        raise ValueError("chain needs at least one method")
    flat: list[Any] = []
    for stage in stages:
        flat.extend(stages_of(stage))
    return Chain(tuple(flat))


def stages_of(stage: Any) -> tuple[Any, ...]:
    """The stages of a chain in the order of application; anything else is one stage."""
    return stage.stages if isinstance(stage, Chain) else (stage,)
