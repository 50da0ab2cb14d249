"""A rotation of the residual stream that is learned for a quantizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from perturb.architecture import Architecture, Space
from perturb.grid import GridSpec, fit_grid, round_to_grid
from perturb.methods.adapt.train import check_training, descended, straight_through
from perturb.methods.rotate.residual import (
    Kind,
    beside,
    both_turned,
    check_untied,
    outcome,
    rotated_spaces,
    rotation,
    turned_space,
)
from perturb.registry import check_bits, check_choice
from perturb.stage import Outcome, Sight
from perturb.state import Parameters, State, parameters_of
from perturb.types import Array


@dataclass(frozen=True)
class LearnedRotation:
    """Objective: ``min over R orthogonal`` of the mean KL from the reference's outputs to those of
    the rotated model with its weights rounded, over the calibration batches.

    ``R = (I - A)^-1 (I + A) R_0``: R_0 as :class:`Rotate` draws it (``kind``), the Cayley transform
    of a skew-symmetric A, which is orthogonal whatever A is. Adam on ``A = X - X^T`` from 0,
    ``learning_rate`` falling linearly to 0, a batch (or ``examples`` of one) a step in turn. While
    it learns, every compressed layer's weights are rounded to ``bits`` on a ``grid`` fitted to
    them, gradients passing straight through; what it leaves is rotated only, exactly, and not
    rounded. The rest is as of :class:`Rotate`, without ``online``.
    Source: Liu et al., ICLR 2025 (SpinQuant, arXiv 2405.16406), who descend on the manifold
    instead, and turn the heads' values as well.
    """

    bits: int = 4
    grid: GridSpec = field(default=GridSpec())
    steps: int = 100
    learning_rate: float = 1e-3
    examples: int | None = None
    seed: int = 0
    kind: Kind = "hadamard"
    release: bool = False

    name: ClassVar[str] = "learned-rotation"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("random", "hadamard"))
        check_bits(self.bits)
        check_training(self, {"steps": 0, "seed": 0})

    @property
    def needs_stats(self) -> bool:
        return self.steps > 0

    def check(self, architecture: Architecture) -> None:
        check_untied(architecture)

    def on_state(self, state: State, context: Sight) -> Outcome:
        spaces = rotated_spaces(context)
        key = jax.random.fold_in(context.key, self.seed)
        turns = {s.name: rotation(self.kind, s, key) for s in spaces}
        drawn = both_turned(self, state, context, turns)  # refused, if it is, before any training
        if not self.steps or not spaces:
            return outcome(*drawn)
        start = {s.name: jnp.zeros((s.size, s.size)) for s in spaces}
        around = tuple((space, *beside(context, space)) for space in spaces)
        plan = (around, self.bits, self.grid, context.context.shapes)
        found = descended(self, context, start, drawn[0], _rounded, plan)
        turns = {s.name: cayley(s, found[s.name], np) @ turns[s.name] for s in spaces}
        return outcome(*both_turned(self, state, context, turns))


def cayley(space: Space, x: Any, xp: Any = jnp) -> Any:
    """``(I - A)^-1 (I + A)`` of ``A = X - X^T``, orthogonal; by numpy (``xp``) in float64. Where
    the space fixes the mean, A is brought to map the vector of ones to 0."""
    a = xp.asarray(x, np.float64 if xp is np else x.dtype)
    if space.fixes is not None:
        a = a - xp.mean(a, 0, keepdims=True)
        a = a - xp.mean(a, 1, keepdims=True)
    a = a - a.T
    eye = xp.eye(space.size, dtype=a.dtype)
    return xp.linalg.solve(eye - a, eye + a)


def _rounded(x: Mapping[str, Array], state: State, plan: Any) -> Parameters:
    """The rotated state, rotated on by what is learned and rounded."""
    around, bits, spec, shapes = plan
    for space, outside, layers in around:
        state = turned_space(state, cayley(space, x[space.name]), space, outside, layers)
    laid = {}
    for name, m in state.matrices.items():
        on_grid = round_to_grid(m.weight, fit_grid(m.weight, bits, spec))
        weight = jnp.where(m.mask, straight_through(on_grid, m.weight), 0)
        laid[name] = m._replace(weight=weight)
    return parameters_of(state.with_matrices(laid), dict(shapes))
