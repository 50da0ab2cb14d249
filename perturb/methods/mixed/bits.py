"""Mixed precision: a bit width for every layer, by what its rounding costs and a budget of bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from perturb.architecture import Architecture
from perturb.measure.distance import check_outputs, distance
from perturb.methods.mixed.allocate import allocate
from perturb.methods.quantize.gptq import GPTQ
from perturb.methods.quantize.rtn import RTN
from perturb.network import weights_of
from perturb.registry import check_bits, check_choice, check_layers
from perturb.stage import Outcome, Sight, check_single, layerwise, matching
from perturb.state import Parameters, State
from perturb.types import Array, MatrixMethod, SolveReport

Floats = npt.NDArray[np.float64]
USUAL = RTN(4)
_distance = jax.jit(distance)


@dataclass(frozen=True)
class MixedPrecision:
    """Objective: bits b_l of ``choices`` for every layer that minimise ``sum_l s_l(b_l)`` while
    ``sum_l n_l b_l <= budget sum_l n_l``, n_l the kept weights: exactly (:func:`allocate`).

    budget: mean bits of a kept weight. quantizer: what rounds, at each of the widths; its own bits
    do not count. sensitivity s_l(b), on the calibration data:
    "outputs"  the mean KL of the reference's outputs from the model's in which layer l alone is
               rounded to b bits (of a single output, the squared difference);
    "hessian"  ``1/2 tr(G_l) / n_l ||dW_l||^2``, G the Gauss-Newton matrix of that KL, its trace by
               ``probes`` Hutchinson probes of random signs (seeded): no pass a layer and width.
    Layers that are rounded are those of ``where``; others stay as they are and count for nothing.
    Source: Dong et al., NeurIPS 2020 (HAWQ-V2, arXiv 1911.03852), with Gauss-Newton for the
    Hessian, which needs no labels, and every layer's own choice for its groups of layers.
    """

    budget: float = 4.0
    choices: tuple[int, ...] = (2, 3, 4, 6, 8)
    quantizer: RTN | GPTQ = USUAL
    sensitivity: Literal["outputs", "hessian"] = "outputs"
    probes: int = 16
    where: str = "*"

    name: ClassVar[str] = "mixed"
    needs_stats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.choices, tuple) or len(set(self.choices)) < 2:
            raise ValueError(f"choices must be a tuple of at least two widths, got {self.choices}")
        for bits in self.choices:
            check_bits(bits)
        low, high = min(self.choices), max(self.choices)
        if isinstance(self.budget, (bool, str)) or not low <= self.budget <= high:
            raise ValueError(f"budget must lie in [{low}, {high}] bits, got {self.budget!r}")
        check_choice("sensitivity", self.sensitivity, ("outputs", "hessian"))
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 1:
            raise ValueError(f"probes must be a whole number of at least 1, got {self.probes!r}")

    def layers(self, architecture: Architecture) -> list[str]:
        return matching(architecture, self.where, self.name)

    def check(self, architecture: Architecture) -> None:
        names = self.layers(architecture)
        check_layers(self.quantizer, {n: architecture.layers[n] for n in names})

    def on_state(self, state: State, context: Sight) -> Outcome:
        names = self.layers(context.architecture)
        check_single(state, names, context.architecture, self.name)
        rounded = [self._rounded(state, bits, context) for bits in self.choices]
        if self.sensitivity == "outputs":
            costs = _by_outputs(state, [done.state for done in rounded], names, context)
        else:
            costs = self._by_hessian(state, [done.state for done in rounded], names, context)
        kept = jax.device_get({n: jnp.sum(state.matrices[n].mask) for n in names})
        sizes = np.array([float(kept[n]) for n in names])
        chosen = allocate(costs, sizes[:, None] * np.array(self.choices), self.budget * sizes.sum())
        matrices = {n: rounded[i].state.matrices[n] for n, i in zip(names, chosen, strict=True)}
        reports = {n: rounded[i].reports.get(n) for n, i in zip(names, chosen, strict=True)}
        told: Mapping[str, SolveReport] = {n: r for n, r in reports.items() if r is not None}
        return Outcome(state.with_matrices(matrices), told)

    def _rounded(self, state: State, bits: int, context: Sight) -> Outcome:
        method = cast(MatrixMethod, replace(self.quantizer, bits=bits))
        return layerwise(method, self.where).on_state(state, context)

    def _by_hessian(
        self, state: State, rounded: Sequence[State], names: Sequence[str], context: Sight
    ) -> Floats:
        traces = hutchinson(state, context, self.probes)
        costs = np.zeros((len(names), len(rounded)))
        for i, name in enumerate(names):
            w = np.asarray(state.matrices[name].weight, np.float64)
            for j, other in enumerate(rounded):
                change = np.asarray(other.matrices[name].weight, np.float64) - w
                costs[i, j] = 0.5 * max(traces[name], 0.0) / w.size * float((change**2).sum())
        return costs


def _by_outputs(
    state: State, rounded: Sequence[State], names: Sequence[str], context: Sight
) -> Floats:
    """Mean distance of the outputs with one layer rounded [layers, choices]."""
    network, batches = context.network, context.context.batches or ()
    own = context.parameters(state)
    others = [context.parameters(s) for s in rounded]
    dense = network.state(context.reference.parameters)
    costs, tokens = np.zeros((len(names), len(rounded))), 0.0
    for k, batch in enumerate(batches):
        weights = weights_of(network.token_weights, batch, k)
        expected = network.outputs(dense, batch)
        check_outputs(expected, "mixed")
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
