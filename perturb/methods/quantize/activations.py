"""Activations in few bits: each layer's inputs are rounded as the model runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from perturb.architecture import Architecture
from perturb.inputs import InputMap, rounded_layers
from perturb.stage import Outcome, Sight, matching
from perturb.state import State


@dataclass(frozen=True)
class Activations:
    """Objective: matrix products in integers, simulated: inputs on a grid of ``width`` bits.

    From this stage on every input vector x of the layers of ``where`` is rounded as the model
    runs, on a symmetric grid of its own (per token, dynamic): ``s clamp(round(x / s))``,
    ``s = clip max|x| / (2^(width-1) - 1)``. Of a convolution a vector is the channels of one
    position, of an embedding what its rows are multiplied with; what is only looked up is not
    rounded. Later stages see rounded inputs, and gradients pass straight through. No weight
    changes: storage and the errors of layers' weights, which are those on the reference's inputs,
    say nothing of it; the outputs do.
    Source: Ashkboos et al., NeurIPS 2024 (QuaRot, arXiv 2404.00456), with clip = 0.9.
    Errors: ValueError for a layer that is one of several matrices of a kernel or a convolution in
    groups, and for layers whose inputs are rounded already.
    """

    width: int = 8  # not ``bits``: of a weight these are what is stored
    clip: float = 1.0
    where: str = "*"

    name: ClassVar[str] = "activations"
    needs_stats: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or self.width not in range(2, 17):
            raise ValueError(f"width must be a whole number from 2 to 16, got {self.width!r}")
        if not _real(self.clip) or not 0 < self.clip <= 1:
            raise ValueError(f"clip must lie in (0, 1], got {self.clip!r}")

    def check(self, architecture: Architecture) -> None:
        names = matching(architecture, self.where, self.name)
        several = [n for n in names if n.endswith("]")]
        if several:
            raise ValueError(
                f"{self.name}: {several[0]} is one of several matrices of a kernel, whose inputs "
                f"cannot be rounded one by one ({len(several)} such): exclude them"
            )
        architecture.check_groupless(names, self.name)

    def on_state(self, state: State, context: Sight) -> Outcome:
        names = matching(context.architecture, self.where, self.name)
        for name in rounded_layers(state.inputs):
            if name in names:
                raise ValueError(f"{self.name}: the inputs of {name} are rounded already")
        bits, clip = jnp.asarray(self.width, jnp.int32), jnp.asarray(self.clip, float)
        known = state.inputs
        maps = {n: known.get(n, InputMap())._replace(bits=bits, clip=clip) for n in names}
        return Outcome(state.with_inputs(maps))


def _real(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)
