"""How far variants' outputs are from the dense model's, and how sure one is of which is nearer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb import network
from perturb.measure.bootstrap import (
    cluster_bootstrap_weights,
    percentile_interval,
    replicate_means,
)
from perturb.measure.intensity import significant_sign
from perturb.measure.outputs import distances
from perturb.scoring.types import RESOLUTION, Advantage, Outputs, arrow
from perturb.state import Parameters
from perturb.types import Array

KEPT = 1 << 28  # bytes of the dense model's outputs that are kept; beyond, they are computed again
REPLICATES = 2000
CLUSTERS = 2000  # at most; more examples are resampled in groups of neighbours

_distances = jax.jit(distances)


def check_outputs(outputs: Any) -> None:
    """Refuse outputs that are no logits."""
    if not (hasattr(outputs, "shape") and jnp.issubdtype(outputs.dtype, jnp.floating)):
        raise ValueError(
            f"the model returns {type(outputs).__name__} instead of one array of logits "
            "[..., classes]: say how to get it, forward=lambda model, batch: model(batch)[0]"
        )
    if not outputs.shape:
        raise ValueError("the model returns a scalar instead of logits [..., classes]")


def _prediction_weights(
    token_weights: network.TokenWeights | None, batch: Any, shape: tuple[int, ...]
) -> np.ndarray:
    """Weights [...] of the predictions of logits [..., classes]: their tokens', or 1 each where
    the predictions are no tokens (as :func:`perturb.network.capture` counts a layer's inputs)."""
    if token_weights is not None:
        weights = np.asarray(token_weights(batch), np.float32)
        if shape[: weights.ndim] == weights.shape:
            extra = (1,) * (len(shape) - weights.ndim)
            return np.broadcast_to(weights.reshape(weights.shape + extra), shape)
    return np.ones(shape, np.float32)


class Comparison:
    """The dense model's outputs on batches of inputs, and what others' differ from them by.

    An example is a row of a batch's leading axis. ``sums``: of each variant added, the squared
    differences and the KL [2, examples]; ``count``: predictions of each example.
    """

    def __init__(self, net: network.Network, batches: Sequence[Any]) -> None:
        self.net, self.batches = net, batches
        self._own = net.state(Parameters({}, {}))
        self._shapes = [self._outputs_shape(i, b) for i, b in enumerate(batches)]
        whole = sum(4 * math.prod(s) for s in self._shapes)
        self._kept: dict[int, Array] | None = {} if whole <= KEPT else None
        self.classes = self._shapes[0][-1]
        self._weights = [
            _prediction_weights(net.token_weights, b, s[:-1]).reshape(s[:-1] or (1,))
            for b, s in zip(batches, self._shapes, strict=True)
        ]
        self.count = np.concatenate(
            [w.reshape(len(w), -1).sum(-1, dtype=np.float64) for w in self._weights]
        )
        if not self.count.any():
            raise ValueError("the held-out inputs have no predictions: all token weights are 0")
        self.sums: dict[str, np.ndarray] = {}

    def _outputs_shape(self, index: int, batch: Any) -> tuple[int, ...]:
        try:
            outputs = jax.eval_shape(self.net.outputs, self._own, batch)
        except Exception as error:
            shapes = ", ".join(str(np.shape(a)) for a in jax.tree.leaves(batch))
            told = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(
                f"the model cannot be run on held-out batch {index} of shape {shapes}: "
                f"{type(error).__name__}: {told}"
            ) from error
        check_outputs(outputs)
        shape: tuple[int, ...] = outputs.shape
        return shape

    def _dense(self, i: int) -> Array:
        if self._kept is None:
            return self.net.outputs(self._own, self.batches[i])
        if i not in self._kept:
            self._kept[i] = self.net.outputs(self._own, self.batches[i])
        return self._kept[i]

    def add(self, variant: str, parameters: Parameters) -> None:
        """Raises ValueError where outputs are not finite."""
        state = self.net.state(parameters)
        parts = []
        for i, batch in enumerate(self.batches):
            shape = self._shapes[i] if len(self._shapes[i]) > 1 else (1, *self._shapes[i])
            dense, other = self._dense(i), self.net.outputs(state, batch)
            parts.append(_distances(dense.reshape(shape), other.reshape(shape), self._weights[i]))
        square, kl = (
            np.concatenate(x).astype(np.float64) for x in zip(*jax.device_get(parts), strict=True)
        )
        if self.classes == 1:
            kl = np.full_like(square, np.nan)
        if not np.isfinite(square if self.classes == 1 else (square, kl)).all():
            raise ValueError(
                f"the outputs of {arrow(variant)}, or of the dense model, are not finite on the "
                "held-out inputs: look at these inputs, or choose milder settings"
            )
        self.sums[variant] = np.stack([square, kl])

    def outputs(self) -> dict[str, Outputs]:
        total = self.count.sum()
        return {
            v: Outputs(float(square.sum() / total / self.classes), float(kl.sum() / total))
            for v, (square, kl) in self.sums.items()
        }

    @property
    def distance(self) -> str:
        """Which of the two distances decides."""
        return "kl" if self.classes > 1 else "logit_mse"

    def advantages(self, orders: Sequence[str], pair: bool) -> tuple[Advantage, ...]:
        """Of two stages A(Q->P); of more the nearest order's over each other."""
        if len(orders) < 2:
            return ()
        row = 1 if self.distance == "kl" else 0
        sums = {v: self.sums[v][row] for v in orders}
        sums = sums if row else {v: x / self.classes for v, x in sums.items()}
        if pair:
            compared = [(orders[1], orders[0])]
        else:
            best, *rest = sorted(orders, key=lambda v: float(sums[v].sum()))
            compared = [(best, other) for other in rest]
        return intervals(sums, self.count, compared)


def intervals(
    sums: Mapping[str, np.ndarray], count: np.ndarray, compared: Sequence[tuple[str, str]]
) -> tuple[Advantage, ...]:
    """Paired bootstrap of d(over) - d(order), d = sum over mean: the same resampled examples for
    both. sums, count: [examples]; compared: (order, over)."""
    group = np.arange(len(count)) * min(CLUSTERS, len(count)) // len(count)
    clusters = int(group[-1]) + 1
    count = np.bincount(group, count)
    gains = np.stack([np.bincount(group, sums[b] - sums[a]) for a, b in compared], -1)
    most = [max(sums[a].sum(), sums[b].sum()) / count.sum() for a, b in compared]
    value = gains.sum(0) / count.sum()
    low = high = np.full(len(compared), np.nan)
    if clusters > 1:
        drawn = cluster_bootstrap_weights(clusters, REPLICATES, np.random.default_rng(0))
        drawn = drawn[drawn @ count > 0]  # what has weight 0 everywhere is no sample
        low, high = percentile_interval(replicate_means(drawn, gains, count))
    return tuple(
        Advantage(
            *pair,
            float(value[i]),
            float(low[i]),
            float(high[i]),
            int(significant_sign(value[i], low[i], high[i], RESOLUTION * most[i])),
        )
        for i, pair in enumerate(compared)
    )
