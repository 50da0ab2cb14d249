"""SmoothQuant: share the outliers of the activations out between them and the weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from perturb.architecture import Architecture, Axis
from perturb.methods.scale.common import Reader, groups, rescaled, size_of_inputs
from perturb.stage import Outcome, Sight
from perturb.state import State
from perturb.types import Array

SMALLEST = 1e-5  # of a column's largest weight, and of a factor


@dataclass(frozen=True)
class SmoothQuant:
    """Objective: activations that are as easy to round as the weights that read them.

    Unit u's value is divided by ``s_u = max|x_u|^alpha / max|W_u|^(1 - alpha)`` where it is written
    and multiplied where it is read, max|W_u| over the columns of all its readers; both are held
    above 1e-5. alpha = 0.5 gives either side the same range, 1 all of the difficulty to the
    weights. For max|x_u| stands ``sqrt(E x_u^2)``, a proxy: the moments of the inputs hold no
    maxima. A common factor of it makes no difference to the weights' columns among one another, a
    heavier tail of one channel does.
    Groups, space, masks, grids and the reference: as AWQ's; ``space="residual"`` is what the paper
    scales, the readers of norms alone. The outputs do not change.
    Source: Xiao et al., ICML 2023 (arXiv 2211.10438).
    Raises ValueError where the model has no such spaces, or is one of several versions.
    """

    alpha: float = 0.5
    space: str = "*"
    release: bool = False

    name: ClassVar[str] = "smoothquant"
    needs_stats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.alpha, (bool, str)) or not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha!r}")

    def check(self, architecture: Architecture) -> None:
        groups(architecture, self.space, self.name)

    def on_state(self, state: State, context: Sight) -> Outcome:
        def factors(axes: tuple[Axis, ...], size: int, readers: tuple[Reader, ...]) -> Array:
            return smoothing(self.alpha, axes, size, readers)

        return rescaled(self, state, context, factors)


@partial(jax.jit, static_argnames=("axes", "size"))
def smoothing(
    alpha: float, axes: tuple[Axis, ...], size: int, readers: tuple[Reader, ...]
) -> Array:
    """The factors [size] of one group."""
    inputs = size_of_inputs(axes, size, readers)
    weights = jnp.zeros_like(inputs)
    for one, reader in zip(axes, readers, strict=True):
        column = jnp.max(jnp.abs(reader.weight), 0).astype(inputs.dtype)
        weights = jnp.maximum(weights, one.largest(column, size))
    s = inputs**alpha / jnp.maximum(weights, SMALLEST) ** (1 - alpha)
    return jnp.maximum(s, SMALLEST)
