"""What training stages share: Adam on some matrices, towards the dense model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb.grid import round_to_grid
from perturb.measure.distance import check_outputs, distance
from perturb.network import weights_of
from perturb.stage import Sight
from perturb.state import Parameters, State, parameters_of
from perturb.types import Array, Matrix

Named = Mapping[str, Array]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def check_training(stage: Any, counts: Mapping[str, int]) -> None:
    """Raise ValueError for settings that are no training: ``counts`` are whole numbers with their
    least values, the learning rate is above 0."""
    for what, least in counts.items():
        value = getattr(stage, what)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{what} must be a whole number of at least {least}, got {value!r}")
    if stage.examples is not None and (
        isinstance(stage.examples, bool)
        or not isinstance(stage.examples, int)
        or stage.examples < 1
    ):
        raise ValueError(
            f"examples must be a whole number of at least 1, or None, got {stage.examples!r}"
        )
    rate = stage.learning_rate
    if isinstance(rate, (bool, str)) or not 0 < rate < np.inf:
        raise ValueError(f"learning_rate must be above 0, got {rate!r}")


def trained(stage: Any, state: State, names: tuple[str, ...], context: Sight) -> dict[str, Array]:
    """Of these matrices the weights :func:`descended` to. What is pruned stays 0, and what lies on
    a grid stays on it: the outputs are those of the rounded weights, their gradients pass straight
    through the rounding (Bengio et al. 2013, arXiv 1308.3432).
    """
    start = {n: state.matrices[n].weight for n in names}
    found = descended(stage, context, start, state, _rounded, context.context.shapes)
    return _laid({n: state.matrices[n] for n in names}, found)


def _rounded(chosen: Named, state: State, shapes: Any) -> Parameters:
    now = {
        n: (m := state.matrices[n])._replace(weight=straight_through(laid(m, a), a))
        for n, a in chosen.items()
    }
    return parameters_of(state.with_matrices(now), dict(shapes))


@jax.jit
def _laid(matrices: dict[str, Matrix], weights: Named) -> dict[str, Array]:
    return {n: laid(m, weights[n]) for n, m in matrices.items()}


def straight_through(rounded: Array, w: Array) -> Array:
    """The rounded weights, whose gradients pass to w as if nothing were rounded."""
    return w + jax.lax.stop_gradient(rounded - w)


def descended(
    stage: Any,
    context: Sight,
    start: Named,
    given: Any,
    made: Callable[[Named, Any, Any], Parameters],
    how: Hashable,
) -> dict[str, Array]:
    """From ``start``, ``stage.steps`` steps of Adam, the rate falling linearly to 0, a calibration
    batch (or ``stage.examples`` of one) a step in turn: the mean distance from the reference's
    outputs to those of ``made(x, given, how)`` (:mod:`perturb.measure.distance`) is made small.

    given: a pytree; made: a function of a module, how: what it is told besides, both compiled in.
    """
    parts = _stacked(stage.name, context)
    network = context.network
    check_outputs(
        jax.eval_shape(network.outputs, network.state(Parameters({}, {})), parts[0][0]), stage.name
    )
    if stage.examples is not None:
        parts = [small for part in parts for small in _split(part, stage.examples, stage.name)]
    batches, weights = zip(*parts, strict=True)
    return _descended(
        network.state(Parameters({}, {})),
        dict(start),
        given,
        context.reference.parameters,
        jax.tree.map(lambda *a: np.stack(a), *batches),
        None if weights[0] is None else np.stack(weights),
        stage.learning_rate,
        outputs=network.pure,
        made=made,
        how=how,
        steps=stage.steps,
    )


def _split(part: Any, size: int, name: str) -> list[Any]:
    """A batch and its weights as several of ``size`` examples; those that are over are left out."""
    counts = {np.shape(a)[:1] for a in jax.tree.leaves(part)}
    if len(counts) > 1 or () in counts:
        raise ValueError(
            f"{name}: examples={size} needs batches whose arrays all have the examples first; "
            "leave it out to train on whole batches"
        )
    (count,) = counts.pop()
    size = min(size, count)
    starts = range(0, count - size + 1, size)
    return [jax.tree.map(lambda a, i=i: a[i : i + size], part) for i in starts]


def _stacked(name: str, context: Sight) -> list[tuple[Any, Any]]:
    """The calibration batches of the first one's shape, with their tokens' weights."""
    batches = context.context.batches or ()
    weigh = context.network.token_weights
    every = [(batch, weights_of(weigh, batch, i)) for i, batch in enumerate(batches)]

    def form(pair: Any) -> Any:
        leaves, tree = jax.tree.flatten(pair)
        return tree, [(np.shape(a), np.asarray(a).dtype) for a in leaves]

    alike = [pair for pair in every if form(pair) == form(every[0])]
    if len(alike) < len(every):
        context.context.note(
            [
                f"{name} trains on the {len(alike)} of {len(every)} calibration batches that have "
                "the shape of the first"
            ]
        )
    return alike


@partial(jax.jit, static_argnames=("outputs", "made", "how", "steps"))
def _descended(
    model: Any,
    start: Named,
    given: Any,
    reference: Parameters,
    batches: Any,
    weights: Array | None,
    learning_rate: Array,
    *,
    outputs: Any,
    made: Callable[[Named, Any, Any], Parameters],
    how: Hashable,
    steps: int,
) -> dict[str, Array]:
    """batches [batches, ...]."""
    count = len(jax.tree.leaves(batches)[0])

    def loss(x: Named, batch: Any, w: Array | None) -> Array:
        dense = outputs(model, reference, batch)
        total, tokens = distance(dense, outputs(model, made(x, given, how), batch), w)
        return total / jnp.maximum(tokens, 1)

    def step(carry: tuple[Named, Named, Named], i: Array) -> tuple[Any, None]:
        x, m, v = carry
        batch, w = jax.tree.map(lambda a: a[i % count], (batches, weights))
        g = jax.grad(loss)(x, batch, w)
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g**2, v, g)
        rate = learning_rate * (1 - i / steps)
        first, second = 1 - BETA1 ** (i + 1.0), 1 - BETA2 ** (i + 1.0)
        move = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + EPSILON), m, v)
        x = jax.tree.map(lambda x, d: x - (rate * d).astype(x.dtype), x, move)
        return (x, m, v), None

    zeros = jax.tree.map(jnp.zeros_like, start)
    (found, _, _), _ = jax.lax.scan(step, (start, zeros, zeros), jnp.arange(steps))
    return dict(found)


def laid(matrix: Matrix, w: Array) -> Array:
    """Weights [out, in] under the matrix's mask, on its grid if it lies on one."""
    if matrix.grid is not None:
        w = round_to_grid(w, matrix.grid)
    return jnp.where(matrix.mask, w, 0)
