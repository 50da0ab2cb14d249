"""What changing one layer alone costs: measured at the outputs, or by the Gauss-Newton trace."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from perturb.measure.distance import check_outputs, distance
from perturb.network import weights_of
from perturb.stage import Sight
from perturb.state import Parameters, State
from perturb.types import Array

Floats = npt.NDArray[np.float64]
Sensitivity = Literal["outputs", "hessian"]
_distance = jax.jit(distance)


def costs_of(
    stage: Any, state: State, changed: Sequence[State], names: Sequence[str], context: Sight
) -> Floats:
    """``s_l`` of every layer and change [layers, changes], by ``stage.sensitivity``; changed: all
    layers changed at once.

    "outputs"  the mean KL of the reference's outputs from the model's in which layer l alone is
               changed (of a single output, the squared difference);
    "hessian"  ``1/2 tr(G_l) / n_l ||dW_l||^2``, G the Gauss-Newton matrix of that KL, its trace by
               ``stage.probes`` Hutchinson probes of random signs (seeded), no pass a layer and
               change.
    """
    if stage.sensitivity == "outputs":
        return by_outputs(stage.name, state, changed, names, context)
    traces = hutchinson(state, context, stage.probes)
    costs = np.zeros((len(names), len(changed)))
    for i, name in enumerate(names):
        w = np.asarray(state.matrices[name].weight, np.float64)
        for j, other in enumerate(changed):
            change = np.asarray(other.matrices[name].weight, np.float64) - w
            costs[i, j] = 0.5 * max(traces[name], 0.0) / w.size * float((change**2).sum())
    return costs


def by_outputs(
    stage: str, state: State, changed: Sequence[State], names: Sequence[str], context: Sight
) -> Floats:
    """Mean distance of the outputs with one layer changed [layers, choices]."""
    network, batches = context.network, context.context.batches or ()
    own = context.parameters(state)
    others = [context.parameters(s) for s in changed]
    dense = network.state(context.reference.parameters)
    costs, tokens = np.zeros((len(names), len(changed))), 0.0
    for k, batch in enumerate(batches):
        weights = weights_of(network.token_weights, batch, k)
        expected = network.outputs(dense, batch)
        check_outputs(expected, stage)
        count = 0.0
        for i, name in enumerate(names):
            for j, other in enumerate(others):
                one = own._replace(weights=dict(own.weights) | {name: other.weights[name]})
                found = network.outputs(network.state(one), batch)
                total, number = jax.device_get(_distance(expected, found, weights))
                costs[i, j] += float(total)
                count = float(number)
        tokens += count
    return costs / max(tokens, 1.0)


def hutchinson(state: State, context: Sight, probes: int) -> dict[str, float]:
    """``tr(G_l)`` of every layer, G the Gauss-Newton matrix of the mean KL of the model's outputs
    from its own: the mean of ``v_l . (G v)_l`` over probes v of random signs in all layers.

    Unbiased. All layers share a probe, which costs a layer of small curvature precision: its
    variance is ``(2 sum_(i != j in l) G_ij^2 + sum_(i in l, j not) G_ij^2) / probes``.
    """
    network, batches = context.network, context.context.batches or ()
    parameters = context.parameters(state)
    model, outputs = network.state(Parameters({}, {})), network.pure
    totals = dict.fromkeys(parameters.weights, 0.0)
    tokens = 0.0
    for k, batch in enumerate(batches):
        weights = weights_of(network.token_weights, batch, k)
        key = jax.random.fold_in(context.key, k)
        found, count = jax.device_get(
            _quadratic_forms(model, parameters, batch, weights, key, outputs=outputs, probes=probes)
        )
        tokens += float(count)
        for name, value in found.items():
            totals[name] += float(value)
    return {name: value / max(tokens, 1.0) for name, value in totals.items()}


@partial(jax.jit, static_argnames=("outputs", "probes"))
def _quadratic_forms(
    model: Any,
    parameters: Parameters,
    batch: Any,
    weights: Array | None,
    key: Array,
    *,
    outputs: Any,
    probes: int,
) -> tuple[dict[str, Array], Array]:
    """Sums over predictions of ``v_l . (G v)_l``, mean over probes, and the number of them."""
    matrices = dict(parameters.weights)

    def logits(w: dict[str, Array]) -> Array:
        out = outputs(model, parameters._replace(weights=w), batch)
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    z, back = jax.vjp(logits, matrices)
    counted = jnp.ones(z.shape[:-1], z.dtype)
    if weights is not None and z.shape[: weights.ndim] == weights.shape:
        counted = counted * weights.reshape(weights.shape + (1,) * (counted.ndim - weights.ndim))

    def curved(dz: Array) -> Array:
        """The Hessian of the KL in the logits, times dz; of a single output, of its square."""
        if z.shape[-1] == 1:
            return 2 * dz
        p = jax.nn.softmax(z, -1)
        return p * dz - p * jnp.sum(p * dz, -1, keepdims=True)

    def one(_: int, total: dict[str, Array]) -> dict[str, Array]:
        keys = jax.random.split(jax.random.fold_in(key, _), len(matrices))
        v = {
            n: jax.random.rademacher(k, w.shape, w.dtype)
            for k, (n, w) in zip(keys, matrices.items(), strict=True)
        }
        _, dz = jax.jvp(logits, (matrices,), (v,))
        (product,) = back((curved(dz) * counted[..., None]).astype(z.dtype))
        return {n: total[n] + jnp.sum(v[n] * product[n]) / probes for n in matrices}

    zero = {n: jnp.zeros((), jnp.float32) for n in matrices}
    return jax.lax.fori_loop(0, probes, one, zero), jnp.sum(counted)
