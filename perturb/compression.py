"""``compress(model, chain(f1, f2), calibration)``: an ``nnx.Module`` in, an ``nnx.Module`` out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from perturb import network
from perturb.composition import stages_of
from perturb.notes import check_finite, norms_note, zeros_note
from perturb.policy import Calibrate, Norms, Policy, Zeros
from perturb.shrink import shrink
from perturb.stage import Context, expand
from perturb.state import State, take
from perturb.storage import Storage, storage_of
from perturb.types import Array, Matrix, SolveReport


@dataclass(frozen=True)
class Compression:
    """A compressed model with everything that says how it came about.

    state: the matrices and vectors that stages changed, by name; reports: for each stage, what its
    solver did to each layer's Hessian (empty for methods without one); skipped: layers left alone,
    with the reason; storage: weights and bits, the source of ``ratio`` and ``sparsity``; coverage:
    which share of the model's parameters was compressed at all; notes: what a reader of these
    numbers should know (also warned of); specs: how the layers' kernels are read.
    """

    model: Any
    state: State
    reports: list[Mapping[str, SolveReport]]
    skipped: dict[str, str]
    storage: Storage
    coverage: network.Coverage
    policy: Policy
    notes: tuple[str, ...]
    specs: Mapping[str, network.LayerSpec] = field(repr=False)

    @property
    def matrices(self) -> Mapping[str, Matrix]:
        """The final matrices: weight, mask and grid, by the layer's name."""
        return self.state.matrices

    @property
    def ratio(self) -> float:
        """Dense bits over stored bits of the whole model (:mod:`perturb.storage`)."""
        return self.storage.ratio

    @property
    def sparsity(self) -> float:
        """The achieved fraction of pruned weights, of the compressed layers."""
        return self.storage.sparsity

    def smaller(self) -> Any:
        """The model without the units that were dropped and the blocks that were removed, with the
        same outputs (:func:`perturb.shrink.shrink`)."""
        return shrink(self.model, self.specs, self.state)


class Opened:
    """A model ready for stages: what every door (compress, score, study) opens with.

    Raises ValueError, before any work, for a model without compressible layers, weights that are
    not finite, and an empty calibration set.
    """

    def __init__(
        self,
        model: Any,
        calibration: Any,
        policy: Policy,
        key: Array | int = 0,
        *,
        exclude: Sequence[str] = (),
        include: Sequence[str] = (),
        forward: network.Forward = network.call,
        token_weights: network.TokenWeights | None = None,
    ) -> None:
        specs, self.skipped = network.find_layers(model, exclude=exclude, include=include)
        self.network = network.Network(model, specs, forward, token_weights)
        batches = None if calibration is None else network.batches_of(calibration)
        key = jax.random.key(key) if isinstance(key, int) else key
        self.context = Context(self.network, batches, policy, key)
        self.coverage = network.coverage(model, specs, self.skipped)
        self.context.note(network.notes(model, specs, self.skipped))
        self.context.note(zeros_note(self.network.weights, policy))
        self.context.note(norms_note(model, batches, policy))

    def storage(self, state: State) -> Storage:
        """Of a single version."""
        return storage_of(state, self.network.shapes, self.coverage.parameters)


def compress(
    model: Any,
    stages: Any,
    calibration: Any = None,
    *,
    calibrate: Calibrate = "recalibrate",
    norms: Norms = "reestimate",
    zeros: Zeros = "free",
    key: Array | int = 0,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    forward: network.Forward = network.call,
    token_weights: network.TokenWeights | None = None,
) -> Compression:
    """Compress a copy of ``model`` by a stage, or by a chain of them (its first is applied first).

    stages: methods on matrices, stages on models (:mod:`perturb.stage`), or a chain.
    calibration: a batch of model inputs, or batches (a list, a generator).
    calibrate, norms, zeros: see :class:`perturb.policy.Policy`. exclude: patterns of layers to
    leave alone; include: of embeddings to take in (:func:`perturb.network.find_layers`).
    token_weights: of a batch, the weights of its tokens, such as a padding mask [batch, length].
    Weights are solved for in float32 at least and stored in the model's own dtype.
    Raises ValueError, before any work, for weights that are not finite, groups that do not
    divide a layer, an empty calibration set, or a model without compressible layers; afterwards,
    naming the layer, for results that are not finite.
    """
    policy = Policy(calibrate, norms, zeros)
    opened = Opened(
        model,
        calibration,
        policy,
        key,
        exclude=exclude,
        include=include,
        forward=forward,
        token_weights=token_weights,
    )
    context = opened.context
    chained = stages_of(stages)
    context.check(chained)
    current = context.start()
    reports: list[Mapping[str, SolveReport]] = []
    for i, stage in enumerate(chained):
        current, told = expand(current, [stage], context, i)
        check_finite(stage.name, {n: m.weight for n, m in current.one(0).matrices.items()})
        reports.append(take(told, np.int32(0)))
    state = current.one(0)
    notes = tuple(context.notes)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Compression(
        model=opened.network.model(current.parameters(0)),
        state=state,
        reports=reports,
        skipped=opened.skipped,
        storage=opened.storage(state),
        coverage=opened.coverage,
        policy=policy,
        notes=notes,
        specs=opened.network.specs,
    )
