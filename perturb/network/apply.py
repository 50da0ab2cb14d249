"""A model as a function of what is compressed in it: its matrices and vectors are arguments.

    network = Network(model, specs)
    network.outputs(network.state(Parameters(weights)), batch)

Everything is compiled once for a model, whatever its version: parameters are put into the model's
state by one program, and the state is what outputs, moments and norms are computed from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
from flax import nnx

from perturb.network.batches import Forward, TokenWeights, call, compiled
from perturb.network.capture import captured
from perturb.network.layers import LayerSpec, exchanged, get_weights, set_weights
from perturb.network.mapped import Mapped, bare, running, set_inputs, with_inputs
from perturb.network.norms import norms_of, reestimated
from perturb.network.segments import Segments
from perturb.network.stream import influence
from perturb.network.vectors import set_vectors
from perturb.state import Parameters
from perturb.types import Array, Moments


def _placed(graphdef: Any, state: Any, parameters: Parameters, specs: Any) -> Any:
    model = nnx.merge(graphdef, state)
    set_weights(model, dict(specs), parameters.weights)
    set_vectors(model, parameters.vectors)
    return nnx.state(model)


def _outputs(graphdef: Any, state: Any, batch: Any, forward: Forward) -> Any:
    with running(graphdef, state) as model:
        return forward(model, batch)


@dataclass(frozen=True)
class Pure:
    """A network without its variables: equal for equal models, so that programs are shared."""

    graphdef: Any
    specs: tuple[tuple[str, LayerSpec], ...]
    forward: Forward

    def __call__(self, state: Any, parameters: Parameters, batch: Any) -> Any:
        state = jax.tree.map(lambda a: a, state)  # variables that belong to this very trace
        placed = _placed(self.graphdef, state, parameters, self.specs)
        placed = with_inputs(placed, parameters.inputs, dict(self.specs))
        return _outputs(self.graphdef, placed, batch, self.forward)


class Network:
    """A model with its layers, and how it is run on a batch. The model itself is never changed."""

    def __init__(
        self,
        model: nnx.Module,
        specs: Mapping[str, LayerSpec],
        forward: Forward = call,
        token_weights: TokenWeights | None = None,
    ) -> None:
        self.given = model
        self.specs = dict(specs)
        self.forward = forward
        self.token_weights = token_weights
        self.graphdef, self._state = nnx.split(model)
        self._place = compiled(_placed, self.graphdef, tuple(self.specs.items()))
        self._run = compiled(_outputs, self.graphdef, forward)

    @cached_property
    def weights(self) -> dict[str, Array]:
        """The model's own matrices. Raises ValueError for non-finite ones, by name."""
        return get_weights(self.given, self.specs)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: spec.shape for name, spec in self.specs.items()}

    @cached_property
    def feature_groups(self) -> dict[str, int]:
        """How many groups the convolutions in groups have."""
        groups = {name: spec.feature_groups for name, spec in self.specs.items()}
        return {name: n for name, n in groups.items() if n > 1}

    @cached_property
    def has_norms(self) -> bool:
        """Whether there are running statistics to re-estimate."""
        return bool(norms_of(self.given))

    def state(self, parameters: Parameters) -> Any:
        """The model's variables with these matrices and vectors in them, and what acts on its
        layers' inputs; under a jit, too."""
        placed, weights = self._state, dict(parameters.weights)
        own = self.__dict__.get("weights", {})
        if all(w is own.get(n) for n, w in weights.items()):
            weights = {}  # they are in the model: nothing to copy
        if weights or parameters.vectors:
            placed = self._place(self._state, Parameters(weights, dict(parameters.vectors)))
        return with_inputs(placed, parameters.inputs, self.specs)

    def exchanged(self, state: Any, weights: Mapping[str, Array]) -> Any:
        """A state (:meth:`state`) with these layers' matrices; what it does not change it shares
        with the one given."""
        variables = exchanged(self.graphdef, bare(state), self.specs, weights)
        return state._replace(state=variables) if isinstance(state, Mapped) else variables

    def model(self, parameters: Parameters) -> Any:
        """A copy of the model that holds them; layers whose inputs are mapped are of subclasses
        that do so (:func:`perturb.network.mapped.set_inputs`).

        Raises ValueError for a weight that the model's own dtype cannot hold.
        """
        copy = nnx.clone(self.given)
        set_weights(copy, self.specs, parameters.weights)
        set_vectors(copy, parameters.vectors)
        set_inputs(copy, parameters.inputs, self.specs)
        return copy

    def outputs(self, state: Any, batch: Any) -> Any:
        """``forward(model, batch)`` of the model with this state."""
        return self._run(state, batch)

    @cached_property
    def pure(self) -> Any:
        """``pure(state, parameters, batch)``: the outputs of the model with this state and these
        parameters in it, as a pure function, hashable, for programs that differentiate it."""
        made = Pure(self.graphdef, tuple(self.specs.items()), self.forward)
        try:
            hash(made)
        except TypeError:  # known by itself only: another network is another program
            return partial(made)
        return made

    def moments(
        self, state: Any, batches: Sequence[Any], layers: Sequence[str] | None = None
    ) -> dict[str, Moments]:
        """Moments of the layers' inputs, as they are mapped, over the batches
        (:func:`perturb.network.capture`)."""
        specs = self.specs if layers is None else {n: self.specs[n] for n in layers}
        return captured(self.graphdef, state, specs, batches, self.forward, self.token_weights)

    def segments(
        self, state: Any, batches: Sequence[Any], blocks: Sequence[Sequence[str]]
    ) -> Segments | None:
        """A pass of the batches through the model, block by block; None where that cannot be."""
        made = Segments(
            self.graphdef,
            state,
            self.specs,
            batches,
            blocks,
            self.forward,
            self.token_weights,
        )
        return made if made.possible else None

    def influence(
        self, state: Any, batches: Sequence[Any], blocks: Sequence[str]
    ) -> dict[str, float]:
        """How much each block turns the stream (:func:`perturb.network.stream.influence`)."""
        return influence(
            nnx.merge(self.graphdef, state),
            blocks,
            batches,
            forward=self.forward,
            token_weights=self.token_weights,
        )

    def norms(self, state: Any, batches: Sequence[Any]) -> dict[str, Array]:
        """Running statistics of the BatchNorms over the batches, as vectors."""
        if not self.has_norms:
            return {}
        found = reestimated(self.graphdef, state, batches, self.forward, self.token_weights)
        return {
            f"{name}.{kind}": value
            for name, pair in found.items()
            for kind, value in zip(("mean", "var"), pair, strict=True)
        }
