"""Composition. ``chain(f1, f2)`` applies f1 first: it is written f1 -> f2 and equals f2 o f1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from perturb.types import Array, Matrix, MatrixMethod, Moments, Solved


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """Several methods as one, which is itself a method.

    On a bare layer all stages see the same input statistics; :func:`perturb.compress` can
    recalibrate between them.
    """

    stages: tuple[MatrixMethod, ...]

    @property
    def name(self) -> str:
        return ">".join(s.name for s in self.stages)

    @property
    def granularity(self) -> str:
        return "; ".join(s.granularity for s in self.stages)

    @property
    def needs_stats(self) -> bool:
        return any(s.needs_stats for s in self.stages)

    def __call__(self, layer: Matrix, stats: Moments | None, key: Array) -> Solved:
        """The report is the last stage's that has one."""
        report = None
        for i, stage in enumerate(self.stages):
            layer, new = stage(layer, stats, jax.random.fold_in(key, i))
            report = new if new is not None else report
        return Solved(layer, report)


def chain(*stages: Any) -> Chain:
    """``chain(f1, f2, ...)`` applies f1 first; chains inside are flattened."""
    if not stages:
        raise ValueError("chain needs at least one method")
    flat: list[MatrixMethod] = []
    for stage in stages:
        flat.extend(stage.stages if isinstance(stage, Chain) else [stage])
    return Chain(tuple(flat))


def stages_of(compressor: Any) -> tuple[MatrixMethod, ...]:
    return compressor.stages if isinstance(compressor, Chain) else (compressor,)
