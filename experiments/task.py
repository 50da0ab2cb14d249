"""A task: a model with the data it is calibrated and compared on, and what is measured of it.

The presets are tasks; a person's own is a function that returns one, for
:class:`experiments.study.Own`:

    def task(seed=0):
        model, train, test = ...
        return Task(model, calibration=[batch, ...], test=Split(inputs, targets, cluster))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.types import Split, content_hash
from experiments.records.schema import KINDS
from perturb import network
from perturb.measure.outputs import kl_divergence
from perturb.types import Array

CALIBRATION_BATCH = 64  # examples
# A measure: (outputs, the dense model's outputs, targets) -> sums over the predictions of each
# example [N]; the mean over all predictions is the metric of the same name.
PerExample = Callable[[Array, Array, Any], Array]


def _sum(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).sum(-1)


def nll(outputs: Array, dense: Array, targets: Array) -> Array:
    """Negative log-likelihood of the targets, nats; outputs are logits [N, ..., classes]."""
    at_target = jnp.take_along_axis(outputs, targets[..., None], -1)[..., 0]
    return _sum(jax.nn.logsumexp(outputs, -1) - at_target)


def correct(outputs: Array, dense: Array, targets: Array) -> Array:
    """Predictions that are right."""
    return _sum((jnp.argmax(outputs, -1) == targets).astype(jnp.float32))


def kl(outputs: Array, dense: Array, targets: Array) -> Array:
    """KL(dense || this model), nats."""
    return _sum(kl_divergence(dense, outputs))


def square(outputs: Array, dense: Array, targets: Array) -> Array:
    """Squared difference of the outputs, mean over their last axis."""
    return _sum(jnp.mean((outputs - dense) ** 2, -1))


TEXT: dict[str, PerExample] = {"nll": nll, "kl": kl, "square": square}
IMAGES: dict[str, PerExample] = {"nll": nll, "correct": correct, "kl": kl, "square": square}


@dataclass(frozen=True)
class Task:
    """What a study runs on.

    model: in evaluation mode. calibration: batches of model inputs; more: ``draw -> batches`` for
    other draws of them (draw 0 is ``calibration``). test: examples that nothing was fitted to;
    their clusters (sources that are independent of each other) are what intervals resample.
    measures: named sums over each example; by default those of a classifier ("nll" in nats,
    "correct", "kl" to the dense model, "square"). Higher is better for "correct" alone; any other
    measure is a loss. data: what identifies it in the records and is not found there already: of
    one's own task that is its weights, its test examples and, as "code", the file that makes it
    (give a "code" of your own to edit the file and keep what was computed).
    """

    model: Any
    calibration: Sequence[Any]
    test: Split
    measures: Mapping[str, PerExample] = field(default_factory=lambda: dict(IMAGES))
    kind: str = "own"
    forward: network.Forward = network.call
    token_weights: network.TokenWeights | None = None
    more: Callable[[int], Sequence[Any]] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)  # name, hash and the like

    def draw(self, number: int) -> list[Any]:
        """The calibration batches of a draw. Raises ValueError where there is none."""
        if number == 0:
            return list(self.calibration)
        if self.more is None:
            raise ValueError(f"this task has no calibration draw {number}: it gives no `more`")
        return list(self.more(number))

    def __post_init__(self) -> None:
        for what, wrong in (
            (f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}", self.kind not in KINDS),
            ("measures is empty: name at least one", not self.measures),
            ("test has no examples", not len(self.test)),
        ):
            if wrong:
                raise ValueError(f"task: {what}")

    @property
    def predictions(self) -> int:
        """Of one example."""
        return int(np.prod(self.test.targets.shape[1:], dtype=int))


def batched(inputs: np.ndarray, size: int = CALIBRATION_BATCH) -> list[Array]:
    """Examples in batches."""
    return [jnp.asarray(inputs[i : i + size]) for i in range(0, len(inputs), size)]


def batches_hash(batches: Sequence[Any]) -> str:
    """sha256 of all that a calibration set holds."""
    return content_hash(*(np.asarray(a) for a in jax.tree.leaves(list(batches))))


def some(batches: Sequence[Any], number: int | None) -> list[Any]:
    """So many of the examples, at equal distances over all of them, in one batch; None: all.

    Raises ValueError where there are fewer.
    """
    if number is None:
        return list(batches)
    whole = jax.tree.map(lambda *parts: np.concatenate([np.asarray(p) for p in parts]), *batches)
    there = len(jax.tree.leaves(whole)[0])
    if number > there:
        raise ValueError(f"{number} calibration examples are asked for, a draw has {there}")
    chosen = np.arange(number) * there // number
    return [jax.tree.map(lambda a: jnp.asarray(a[chosen]), whole)]
