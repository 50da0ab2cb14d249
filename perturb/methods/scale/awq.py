"""AWQ: scale up the channels whose inputs are large, as far as rounding gains from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from perturb.architecture import Architecture, Axis
from perturb.methods.quantize.rtn import RTN
from perturb.methods.scale.common import Reader, groups, rescaled, size_of_inputs
from perturb.registry import check_layers
from perturb.stage import Outcome, Sight
from perturb.state import HIGHEST, State
from perturb.types import Array, Matrix, Problem

STEPS = 20  # exponents that are tried, 0, 1/20, ..., 19/20
SMALLEST = 1e-4  # of a factor, before the factors are normalised
USUAL = RTN(4)


@dataclass(frozen=True)
class AWQ:
    """Objective: factors s of the units that minimise, summed over the matrices W that read them,
    ``E||(Q(W diag s) diag(1/s) - W) x||^2 = tr(D H D^T)``, Q the ``quantizer`` and H = E[x x^T].

    s is searched on a line: ``s_u = max(a_u^alpha, 1e-4)``, divided by ``sqrt(max s min s)``, with
    alpha one of {0, 1/20, ..., 19/20}, the first of the best; alpha = 0 is s = 1. a_u measures the
    inputs: here ``sqrt(E x_u^2)``, which the second moments hold, where the paper has ``E|x_u|``.
    Groups of readers, each with factors of its own (``space``: a pattern of the spaces' names): a
    norm's readers (q, k, v; gate, up), down of a SwiGLU, whose up is divided, and o, whose v is;
    the query heads that share a value head share its factors. The outputs do not change, the
    reference is scaled as well, masks are kept, and grids are refused unless ``release=True``.
    It looks at columns alone: on grids of rows or of groups in them, factors of the rows change
    nothing; on a grid per tensor they do, and are not seen.
    Source: Lin et al., MLSys 2024 (arXiv 2306.00978), without its clipping of weights (a grid's
    ``clip="mse"``); it measures the outputs of a whole block where this measures its layers'.
    Raises ValueError where the model has no such spaces, or is one of several versions.
    """

    quantizer: RTN = USUAL
    space: str = "*"
    release: bool = False

    name: ClassVar[str] = "awq"
    needs_stats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.quantizer, RTN):
            raise ValueError(f"quantizer must be an RTN, got {self.quantizer!r}")

    def check(self, architecture: Architecture) -> None:
        mine = groups(architecture, self.space, self.name)
        names = [a.parameter for g in mine for a in g.reads]
        check_layers(self.quantizer, {n: architecture.layers[n] for n in names})

    def on_state(self, state: State, context: Sight) -> Outcome:
        def factors(axes: tuple[Axis, ...], size: int, readers: tuple[Reader, ...]) -> Array:
            return best(self.quantizer, axes, size, readers)[0]

        return rescaled(self, state, context, factors)


@partial(jax.jit, static_argnames=("axes", "size"))
def best(
    quantizer: RTN, axes: tuple[Axis, ...], size: int, readers: tuple[Reader, ...]
) -> tuple[Array, Array]:
    """The factors [size] of one group, and the error [STEPS] of every exponent."""
    inputs = size_of_inputs(axes, size, readers)
    key: Any = jax.random.key(0)  # rounding draws nothing

    def factors(alpha: Array) -> Array:
        s = jnp.maximum(inputs**alpha, SMALLEST)
        return s / jnp.sqrt(jnp.max(s) * jnp.min(s))

    def error(alpha: Array) -> Array:
        s, total = factors(alpha), jnp.zeros((), inputs.dtype)
        for one, reader in zip(axes, readers, strict=True):
            by = one.spread(s).astype(reader.weight.dtype)
            scaled = Matrix(reader.weight * by, reader.mask)
            q = quantizer(scaled, Problem(reader.reference * by), key).matrix.weight
            d = q / by - reader.weight
            count = jnp.where(reader.inputs.count > 0, reader.inputs.count, 1)
            h = (reader.inputs.gram / count).astype(d.dtype)
            total += jnp.sum(jnp.matmul(d, h, precision=HIGHEST) * d).astype(inputs.dtype)
        return total

    alphas = jnp.arange(STEPS, dtype=inputs.dtype) / STEPS
    errors = jax.vmap(error)(alphas)
    return factors(alphas[jnp.argmin(errors)]), errors
