"""The grammar of studies: axes of stages, plans made of them, and the tree that plans form.

    axis(Wanda, sparsity=(0.3, 0.5))                 two stages that differ in an amount
    axis(partial(GPTQ, act_order=True), bits=(4, 3))
    permutations(axis_a, axis_b, axis_c)             all orders of three axes
    pairs((axis_p,), (axis_q, axis_r))               both orders of every pair

A plan is a tuple of axes; its cells are all choices of one stage from each, and those of all its
prefixes: the axes alone come for nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from experiments.labels import stage_name
from perturb import composition
from perturb.registry import LEAVES
from perturb.stage import Stage, as_stage, is_family
from perturb.types import MatrixMethod

Plan = tuple["Axis", ...]


@dataclass(frozen=True)
class Axis:
    """Stages that stand at one place of a chain, one after another; made by :func:`axis`."""

    stages: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"axis({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(stage_name, self.stages))

    def __hash__(self) -> int:
        return hash(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.names == other.names


def in_families(plan: Plan) -> list[Plan]:
    """The plan, with an axis of its own for each stage that no family holds: what such stages leave
    may differ in structure (ranks, removed blocks, rotations)."""
    choices = [
        [one] if is_family(one.stages) else [Axis((stage,)) for stage in one.stages] for one in plan
    ]
    return [*itertools.product(*choices)]


def axis(template: Callable[..., Any], **settings: Any) -> Axis:
    """Stages ``template(**settings)`` for every choice of the settings that are tuples.

    Lists, ranges and rows of numbers (numpy, jax) are as good as tuples.

    Raises ValueError, saying which, for values that the template refuses, for none at all, for
    two that give the same stage, and for what is no stage.
    """
    shown = _shown(template)
    made = not isinstance(template, type) and isinstance(template, (Stage, MatrixMethod))
    if made or not callable(template):
        raise ValueError(
            f"axis of {shown}: give a class and what to call it with, as in axis(RTN, bits=(4, 3))"
        )
    twice = settings.keys() & (template.keywords if isinstance(template, partial) else {})
    if twice:
        raise ValueError(f"axis of {shown}: {min(twice)} is given twice: leave one out")
    varied: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    for name, value in settings.items():
        values = _several(value)
        if values is None:
            fixed[name] = _one(value, name, f"axis of {shown}")
        elif not values:
            raise ValueError(f"axis of {shown}: {name} is empty; give at least one value")
        else:
            varied[name] = [_one(v, name, f"axis of {shown}") for v in values]
    stages: list[Any] = []
    for choice in itertools.product(*varied.values()):
        chosen = dict(zip(varied, choice, strict=True))
        told = ", ".join(f"{k} {v}" for k, v in chosen.items())
        where = f"axis of {shown}" + (f" with {told}" if told else "")
        try:
            stage = template(**chosen, **fixed)
            if isinstance(stage, composition.Chain):
                raise ValueError("a chain is no stage; make its stages axes of a plan")
            as_stage(stage)
        except Exception as error:
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            raise ValueError(f"{where}: {kind}{error}") from error
        names = [stage_name(s) for s in stages]
        if stage_name(stage) in names:
            raise ValueError(f"{where} is a stage that is there already: leave one out")
        stages.append(stage)
    return Axis(tuple(stages))


def _several(value: Any) -> list[Any] | None:
    """The values of a tuple and of what is as good as one; None for a single value."""
    if isinstance(value, (tuple, list, range)):
        return list(value)
    return list(value) if hasattr(value, "__array__") and np.ndim(value) == 1 else None


def _one(value: Any, name: str, where: str) -> Any:
    """A single value. An amount that is none would not be seen by its method's own checks, which
    pass what they cannot look at: arrays of several amounts, as families have them."""
    if hasattr(value, "__array__") and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if name in LEAVES and isinstance(value, (int, float)) and not isinstance(value, bool):
        # equal amounts are one cell, whose id is a hash of how they are written
        whole = name == "bits" and float(value).is_integer()
        return int(value) if whole else float(value)
    if name in LEAVES and not isinstance(value, (bool, str)):
        raise ValueError(
            f"{where}: {name} is {_shown(value)}; it must be a number, or a tuple of them"
        )
    return value


def _shown(value: Any) -> str:
    if isinstance(value, partial):
        settings = [*map(repr, value.args), *(f"{k}={v!r}" for k, v in value.keywords.items())]
        return f"partial({', '.join([_shown(value.func), *settings])})"
    return value.__name__ if hasattr(value, "__name__") else " ".join(repr(value).split())[:100]


def permutations(*axes: Axis) -> tuple[Plan, ...]:
    """The plans of all orders of these axes."""
    return tuple(itertools.permutations(axes))


def pairs(first: Sequence[Axis], second: Sequence[Axis]) -> tuple[Plan, ...]:
    """Both orders of every axis of one group with every axis of the other."""
    return tuple(plan for a, b in itertools.product(first, second) for plan in ((a, b), (b, a)))


@dataclass
class Node:
    """A place in the tree of plans: the axis applied here, and what follows it."""

    axis: Axis
    children: list[Node] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return 1 + max((c.depth for c in self.children), default=0)


def tree(plans: Iterable[Plan]) -> list[Node]:
    """Plans with their common prefixes joined, in the order in which they are given.

    Where axes at one place share but some of their stages, these have a node of their own, so that
    every chain is there once.
    """
    plans = [plan for plan in plans if plan]
    stages: dict[str, Any] = {}
    within: dict[str, list[int]] = {}  # which plans have a stage here
    for i, plan in enumerate(plans):
        for name, stage in zip(plan[0].names, plan[0].stages, strict=True):
            stages.setdefault(name, stage)
            within.setdefault(name, []).append(i)
    alike: dict[tuple[int, ...], list[Any]] = {}
    for name, which in within.items():
        alike.setdefault(tuple(which), []).append(stages[name])
    return [
        Node(Axis(tuple(same)), tree(plans[i][1:] for i in which)) for which, same in alike.items()
    ]


Chain = tuple[Any, ...]  # stages, the first applied first


def chains(nodes: Sequence[Node], before: Sequence[Chain] = ((),)) -> Iterator[Chain]:
    """The chains of stages of all cells below, depth first; of a node, version r F + f."""
    for node in nodes:
        mine = extended(before, node.axis)
        yield from mine
        yield from chains(node.children, mine)


def extended(before: Sequence[Chain], part: Axis) -> list[Chain]:
    """Chains [R] followed by the stages [F] of an axis: [R F], as :func:`perturb.stage.expand`."""
    return [(*chain, stage) for chain in before for stage in part.stages]
