"""How well a model does on the test examples, and how far it has moved from the dense one.

Per example (an image, or a window of text): the sum of the negative log-likelihood in nats, the
number of correct answers, the KL divergence from the dense model and the squared logit
difference. Sums per cluster of examples are what the bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.types import Split
from experiments.records import encode_examples
from perturb import network
from perturb.types import Array, Moments

# Examples and predictions per forward pass. On a CPU activations should stay in the cache.
CPU_BATCH = {"images": 256, "text": 2048}
DEVICE_BATCH = {"images": 4096, "text": 65536}


class PerExample(NamedTuple):
    """Sums over the predictions of each example, [N]."""

    nll: Array  # nats
    correct: Array
    kl: Array  # nats, KL(dense || this model)
    square: Array  # mean over classes of the squared logit difference


@dataclass(frozen=True)
class Evaluation:
    """A model's performance: what a record stores."""

    metrics: dict[str, float]
    examples: dict[str, str | None]


class Parameters(NamedTuple):
    """What of a model differs between its compressed versions."""

    weights: Mapping[str, Array]  # matrices [out, in], by layer
    norms: dict[str, Any]  # running mean and variance by BatchNorm; none: the dense model's


def _merged(graphdef: Any, state: Any, parameters: Parameters, specs: Any) -> Any:
    model = nnx.merge(graphdef, state)
    network.set_weights(model, dict(specs), parameters.weights)
    network.set_norms(model, parameters.norms)
    return model


@partial(jax.jit, static_argnames=("graphdef", "specs"))
def _logits(graphdef: Any, state: Any, parameters: Any, inputs: Array, specs: Any) -> Array:
    return _merged(graphdef, state, parameters, specs)(inputs).astype(jnp.float32)


class Batch(NamedTuple):
    """Test examples with what the dense model says of them, computed once."""

    inputs: Array
    targets: Array
    logits: Array  # [..., classes], of the dense model
    probabilities: Array  # the same after the softmax
    log_normalizer: Array  # [...], logsumexp of the logits


@partial(jax.jit, static_argnames=("graphdef", "specs", "classify"))
def _per_example(
    graphdef: Any,
    state: Any,
    parameters: Any,  # fields [V, ...]
    batch: Batch,
    specs: Any,
    classify: bool,
) -> PerExample:
    def one(p: Any) -> PerExample:
        logits = _logits(graphdef, state, p, batch.inputs, specs)
        normalizer = jax.nn.logsumexp(logits, -1)
        moved = batch.logits - logits
        at_target = jnp.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
        correct = jnp.argmax(logits, -1) == batch.targets if classify else jnp.zeros_like(at_target)
        values = PerExample(
            normalizer - at_target,
            correct.astype(jnp.float32),
            # sum p (log p - log q), with both logarithms written as logit - normalizer
            jnp.sum(batch.probabilities * moved, -1) + normalizer - batch.log_normalizer,
            jnp.mean(moved**2, -1),
        )
        return jax.tree.map(lambda a: a.reshape(a.shape[0], -1).sum(-1), values)

    return jax.vmap(one)(parameters)


@partial(jax.jit, static_argnames=("graphdef", "specs"))
def _stats(
    graphdef: Any, state: Any, parameters: Any, batch: Any, specs: Any
) -> dict[str, Moments]:
    graphdef, state = nnx.split(_merged(graphdef, state, parameters, specs))
    return network.moments(graphdef, state, batch, tuple(s for _, s in specs))


@jax.jit
def _merged_stats(a: dict[str, Moments], b: dict[str, Moments]) -> dict[str, Moments]:
    return {n: a[n] + b[n] for n in a}


@partial(jax.jit, static_argnames=("graphdef", "specs"))
def _norms(graphdef: Any, state: Any, weights: Any, batch: Any, specs: Any) -> Any:
    graphdef, state = nnx.split(_merged(graphdef, state, Parameters(weights, {}), specs))
    return network.norm_moments(graphdef, state, batch)


class Evaluator:
    """A trained model whose matrices can be exchanged cheaply, with its test examples.

    Compiled once: the matrices are arguments. ``lanes`` variants go through one vmapped pass
    (1 on a CPU, where a batch of models is only a longer loop; more on an accelerator).
    """

    def __init__(
        self,
        model: nnx.Module,
        specs: Mapping[str, network.LayerSpec],
        test: Split,
        kind: str,
        *,
        lanes: int = 1,
        batch_size: int | None = None,
    ) -> None:
        self.kind = kind
        self.lanes = lanes
        self.specs = tuple(specs.items())
        self.graphdef, self.state = nnx.split(model)
        per_example = int(np.prod(test.targets.shape[1:], dtype=int))
        limits = CPU_BATCH if jax.default_backend() == "cpu" else DEVICE_BATCH
        size = batch_size or max(1, limits[kind] // per_example)
        dense = Parameters(network.get_weights(model, specs), {})
        self.has_norms = bool(network.norms_of(model))
        self.batches = []
        for i in range(0, len(test.inputs), size):
            inputs, targets = (jnp.asarray(a[i : i + size]) for a in (test.inputs, test.targets))
            logits = _logits(self.graphdef, self.state, dense, inputs, self.specs)
            normalizer = jax.nn.logsumexp(logits, -1)
            self.batches.append(Batch(inputs, targets, logits, jax.nn.softmax(logits), normalizer))
        self.classes = int(logits.shape[-1])
        _, self.cluster = np.unique(test.cluster, return_inverse=True)
        self.predictions = per_example

    def stats(self, parameters: Parameters, calibration: Sequence[Any]) -> Any:
        """Moments of the layers' inputs in the model with these parameters."""
        parts = [
            _stats(self.graphdef, self.state, parameters, batch, self.specs)
            for batch in calibration
        ]
        return reduce(_merged_stats, parts)

    def norms(self, weights: Mapping[str, Array], calibration: Sequence[Any]) -> dict[str, Any]:
        """Running statistics of the BatchNorms in the model with these matrices, re-estimated."""
        if not self.has_norms:
            return {}
        parts = [
            _norms(self.graphdef, self.state, dict(weights), batch, self.specs)
            for batch in calibration
        ]
        return network.combine_norms(parts, [len(batch) for batch in calibration])

    def __call__(self, variants: Sequence[Parameters]) -> list[Evaluation]:
        """Evaluate up to ``lanes`` variants in one pass (fewer are padded with the first)."""
        padded = [*variants, *[variants[0]] * (self.lanes - len(variants))]
        parameters = jax.tree.map(lambda *a: jnp.stack(a), *padded)
        classify = self.kind == "images"
        parts = [
            _per_example(self.graphdef, self.state, parameters, batch, self.specs, classify)
            for batch in self.batches
        ]
        joined = [
            np.concatenate([np.asarray(part) for part in field], -1)
            for field in zip(*parts, strict=True)
        ]
        return [self._summary(PerExample(*(f[v] for f in joined))) for v in range(len(variants))]

    def _summary(self, values: PerExample) -> Evaluation:
        sums = {
            name: np.bincount(self.cluster, np.asarray(v, np.float64))
            for name, v in values._asdict().items()
        }
        count = np.bincount(self.cluster) * self.predictions
        total = count.sum()
        mean = {name: float(v.sum() / total) for name, v in sums.items()}
        if not np.isfinite([*mean.values()]).all():
            raise FloatingPointError("the compressed model's outputs are not finite")
        with np.errstate(over="ignore"):
            text = {"perplexity": float(np.exp(mean["nll"]))}
        metrics = {
            "nll": mean["nll"],
            **({"accuracy": mean["correct"]} if self.kind == "images" else text),
            "kl": mean["kl"],
            "logit_mse": mean["square"],
        }
        correct = sums["correct"] if self.kind == "images" else None
        return Evaluation(metrics, encode_examples(count, sums["nll"], correct))
