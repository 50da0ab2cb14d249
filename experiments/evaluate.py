"""How well a model does on the test examples, and how far it has moved from the dense one.

Of every measure of a task the sums over each cluster of examples: what the bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.records import COUNT
from experiments.task import Task
from perturb.backend import for_many_runs
from perturb.network import Network
from perturb.state import Parameters, stack
from perturb.types import Array

# Predictions per forward pass. On a CPU activations should stay in the cache.
CPU_BATCH = {"images": 256, "text": 2048, "own": 256}
DEVICE_BATCH = {"images": 4096, "text": 65536, "own": 4096}
# Bytes of one version's outputs in a pass, of which its measures take several times as much.
CPU_OUTPUTS, DEVICE_OUTPUTS = 1 << 27, 1 << 30
KEPT = 1 << 30  # bytes of the dense model's outputs that are kept; beyond, they are computed again
NAMES = {"correct": "accuracy", "square": "logit_mse"}  # metrics that are not named as their sums


@dataclass(frozen=True)
class Evaluation:
    """A model's performance: what a record stores. Sums [clusters] by measure."""

    metrics: dict[str, float]
    sums: dict[str, np.ndarray]


class Evaluator:
    """A task's test examples, for whatever version of its model.

    Compiled once: the model's state is an argument. ``lanes`` versions go through one vmapped
    pass (1 on a CPU, where a batch of models is only a longer loop; more on an accelerator).
    """

    def __init__(
        self, task: Task, network: Network, *, lanes: int = 1, batch_size: int | None = None
    ) -> None:
        self.task, self.network, self.lanes = task, network, lanes
        test = task.test
        self._own = network.state(Parameters({}, {}))
        # The state is an argument here, too: what a program closes over is compiled into it.
        self._outputs = jax.jit(lambda state, x: network.outputs(state, x).astype(jnp.float32))
        first = jax.eval_shape(self._outputs, self._own, jnp.asarray(test.inputs[:1]))
        if not hasattr(first, "shape") or not first.shape:
            raise ValueError(
                f"the model returns {type(first).__name__}, not one array of outputs: say how to "
                "get it, Task(forward=lambda model, batch: ...)"
            )
        self.classes = int(first.shape[-1])
        bytes_each = 4 * int(np.prod(first.shape))
        size = batch_size or _batch_size(task, bytes_each)
        self.batches = [
            (jnp.asarray(test.inputs[i : i + size]), jnp.asarray(test.targets[i : i + size]))
            for i in range(0, len(test), size)
        ]
        self._keeps = bytes_each * len(test) <= KEPT
        measures = dict(task.measures)

        @partial(jax.jit, compiler_options=for_many_runs())
        def sums(states: Any, inputs: Any, targets: Any, dense: Array) -> dict[str, Array]:
            def one(state: Any) -> dict[str, Array]:
                outputs = network.outputs(state, inputs).astype(jnp.float32)
                return {name: f(outputs, dense, targets) for name, f in measures.items()}

            if lanes == 1:  # a vmap of one would make of every convolution a grouped one
                done = one(jax.tree.map(lambda a: a[0], states))
                return jax.tree.map(lambda a: a[None], done)
            return jax.vmap(one)(states)

        self._sums = sums
        self.clusters, self._cluster = np.unique(test.cluster, return_inverse=True)
        self._count = np.bincount(self._cluster) * task.predictions

    @cached_property
    def _kept(self) -> list[Array] | None:
        """The dense model's outputs; not before there is something to compare with them."""
        return [self._outputs(self._own, x) for x, _ in self.batches] if self._keeps else None

    def __call__(self, versions: Sequence[Parameters]) -> list[Evaluation]:
        """Evaluate up to ``lanes`` versions in one pass (fewer are padded with the first).

        Raises FloatingPointError where outputs are not finite.
        """
        padded = [*versions, *[versions[0]] * (self.lanes - len(versions))]
        states = stack(tuple(self.network.state(p) for p in padded))
        parts = []
        for i, (inputs, targets) in enumerate(self.batches):
            dense = self._outputs(self._own, inputs) if self._kept is None else self._kept[i]
            parts.append(self._sums(states, inputs, targets, dense))
        host = jax.device_get(parts)
        joined = {name: np.concatenate([p[name] for p in host], -1) for name in host[0]}
        return [self._summary({n: v[k] for n, v in joined.items()}) for k in range(len(versions))]

    def _summary(self, values: dict[str, np.ndarray]) -> Evaluation:
        sums = {n: np.bincount(self._cluster, v.astype(np.float64)) for n, v in values.items()}
        total = self._count.sum()
        mean = {name: float(v.sum() / total) for name, v in sums.items()}
        wrong = [name for name, v in mean.items() if not np.isfinite(v)]
        if wrong:
            raise FloatingPointError(
                f"the compressed model's outputs are not finite ({', '.join(wrong)})"
            )
        metrics = {NAMES.get(name, name): v for name, v in mean.items()}
        if self.task.kind == "text":
            with np.errstate(over="ignore"):
                metrics["perplexity"] = float(np.exp(mean["nll"]))
        return Evaluation(metrics, {COUNT: self._count} | sums)


def _batch_size(task: Task, bytes_each: int) -> int:
    """Test examples in a pass, whose outputs take so many bytes an example; in all passes as many
    where that makes none much smaller, as another size is another program."""
    cpu = jax.default_backend() == "cpu"
    predictions = (CPU_BATCH if cpu else DEVICE_BATCH)[task.kind]
    outputs = CPU_OUTPUTS if cpu else DEVICE_OUTPUTS
    most = max(1, min(predictions // task.predictions, outputs // bytes_each))
    alike = (n for n in range(most, most // 2, -1) if len(task.test) % n == 0)
    return next(alike, most)
