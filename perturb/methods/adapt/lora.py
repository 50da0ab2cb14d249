"""LoRA: low-rank adapters beside the layers, trained to bring the dense model's outputs back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from perturb.architecture import Architecture
from perturb.family import layer_key
from perturb.measure.distance import check_outputs, distance
from perturb.network import weights_of
from perturb.stage import Outcome, Sight
from perturb.state import ADAPTER, Parameters, Product, State, parameters_of
from perturb.types import Array, Matrix

Named = Mapping[str, Array]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class LoRA:
    """Objective: ``min over A, B`` of the mean KL from the reference's outputs to those of the
    model whose layers are ``W + B A``, over the calibration batches.

    ``A [rank, in]`` starts as normals of variance 1/in and ``B [out, rank]`` as 0, so that
    untrained adapters change nothing. W, its mask and its grid stay as they are; rows and columns
    that were dropped from W are pruned in B and A. Adam, ``learning_rate`` falling linearly to
    0, a batch a step in turn. Outputs with a single class are compared by squared differences.
    Later stages leave adapters alone, unless a pattern says "+": ``{"*+lora.?": RTN(8)}``.
    Source: Hu et al., ICLR 2022 (arXiv 2106.09685); Kingma and Ba, ICLR 2015 (arXiv 1412.6980).
    """

    rank: int = 8
    steps: int = 100
    learning_rate: float = 1e-3
    where: str = "*"

    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        for what, least in (("rank", 1), ("steps", 0)):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{what} must be a whole number of at least {least}, got {value!r}"
                )
        if isinstance(self.learning_rate, (bool, str)) or not 0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate!r}")

    @property
    def needs_stats(self) -> bool:
        return self.steps > 0

    def layers(self, architecture: Architecture) -> list[str]:
        return [n for n in architecture.layers if fnmatchcase(n, self.where)]

    def check(self, architecture: Architecture) -> None:
        if not self.layers(architecture):
            raise ValueError(
                f"the pattern {self.where!r} of lora has no layer; layers are: "
                f"{', '.join(architecture.layers)}"
            )

    def on_state(self, state: State, context: Sight) -> Outcome:
        begun, names = self._begun(state, context)
        if not self.steps or not names:
            return Outcome(begun)
        batches, weights = _stacked(context)
        network = context.network
        check_outputs(
            jax.eval_shape(network.outputs, network.state(Parameters({}, {})), batches[0]),
            self.name,
        )
        trained = _trained(
            network.state(Parameters({}, {})),
            begun,
            context.reference.parameters,
            jax.tree.map(lambda *a: np.stack(a), *batches),
            None if weights[0] is None else np.stack(weights),
            self.learning_rate,
            outputs=network.pure,
            names=tuple(names),
            shapes=context.context.shapes,
            steps=self.steps,
        )
        return Outcome(
            begun.with_matrices(
                {n: begun.matrices[n]._replace(weight=w) for n, w in trained.items()}
            )
        )

    def _begun(self, state: State, context: Sight) -> tuple[State, list[str]]:
        """The state with untrained adapters, and their names."""
        of = {n: p for n in self.layers(context.architecture) if (p := state.products(n))}
        masks = {n: _ends(state, products) for n, products in of.items()}
        names: list[str] = []
        for layer, pair in _untrained(masks, context.key, self.rank).items():
            name = _free(f"{layer}{ADAPTER}lora", state)
            added = {f"{name}.{part}": m for part, m in zip("ba", pair, strict=True)}
            state = state.with_matrices(added).with_terms(layer, (*of[layer], tuple(added)))
            names += added
        return state, names


def _free(name: str, state: State) -> str:
    """The name, with a number if there are adapters of that name already."""
    number = 1
    while f"{name}{number if number > 1 else ''}.b" in state.matrices:
        number += 1
    return f"{name}{number if number > 1 else ''}"


def _ends(state: State, products: Sequence[Product]) -> tuple[list[Matrix], list[Matrix]]:
    """The matrices that have the layer's rows, and those that have its columns."""
    return [state.matrices[p[0]] for p in products], [state.matrices[p[-1]] for p in products]


@partial(jax.jit, static_argnames=("rank",))
def _untrained(
    ends: Mapping[str, tuple[list[Matrix], list[Matrix]]], key: Array, rank: int
) -> dict[str, tuple[Matrix, Matrix]]:
    """B and A by layer, without the rows and columns that were dropped from all of it."""
    made = {}
    for layer, (writers, readers) in ends.items():
        rows = jnp.any(jnp.stack([jnp.any(m.mask, 1) for m in writers]), 0)
        columns = jnp.any(jnp.stack([jnp.any(m.mask, 0) for m in readers]), 0)
        dtype = writers[0].weight.dtype
        b_mask = jnp.broadcast_to(rows[:, None], (rows.size, rank))
        a_mask = jnp.broadcast_to(columns, (rank, columns.size))
        start = jax.random.normal(layer_key(key, layer), a_mask.shape, dtype)
        start = jnp.where(a_mask, start / np.sqrt(columns.size), 0)
        made[layer] = (Matrix(jnp.zeros(b_mask.shape, dtype), b_mask), Matrix(start, a_mask))
    return made


def _stacked(context: Sight) -> tuple[list[Any], list[Any]]:
    """The calibration batches of the first one's shape, and their tokens' weights."""
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
                f"lora trains on the {len(alike)} of {len(every)} calibration batches that have "
                "the shape of the first"
            ]
        )
    return [b for b, _ in alike], [w for _, w in alike]


@partial(jax.jit, static_argnames=("outputs", "names", "shapes", "steps"))
def _trained(
    model: Any,
    state: State,
    reference: Parameters,
    batches: Any,
    weights: Array | None,
    learning_rate: Array,
    *,
    outputs: Any,
    names: tuple[str, ...],
    shapes: Any,
    steps: int,
) -> dict[str, Array]:
    """The adapters' weights after the steps; batches [batches, ...]."""
    count = len(jax.tree.leaves(batches)[0])

    def loss(adapters: Named, batch: Any, w: Array | None) -> Array:
        now = {
            n: state.matrices[n]._replace(weight=a * state.matrices[n].mask)
            for n, a in adapters.items()
        }
        made = parameters_of(state.with_matrices(now), dict(shapes))
        dense = outputs(model, reference, batch)
        total, tokens = distance(dense, outputs(model, made, batch), w)
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

    start = {n: state.matrices[n].weight for n in names}
    zeros = jax.tree.map(jnp.zeros_like, start)
    (found, _, _), _ = jax.lax.scan(step, (start, zeros, zeros), jnp.arange(steps))
    return dict(found)
