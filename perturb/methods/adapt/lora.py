"""LoRA: low-rank adapters beside the layers, trained to bring the dense model's outputs back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturb.architecture import Architecture
from perturb.family import layer_key
from perturb.methods.adapt.train import check_training, trained
from perturb.methods.lowrank.svd import factors_of
from perturb.registry import check_choice
from perturb.stage import Outcome, Sight, matching
from perturb.state import ADAPTER, Product, State, layer_weight
from perturb.types import Array, Matrix


@dataclass(frozen=True)
class LoRA:
    """Objective: ``min over A, B`` of the mean KL from the reference's outputs to those of the
    model whose layers are ``W + B A``, over the calibration batches.

    start "zero": ``A [rank, in]`` starts as normals of variance 1/in and ``B [out, rank]`` as 0, so
    that untrained adapters change nothing. "error": they start as what compensates best for the
    compression so far, ``B A`` the rank-r part of ``W_reference - W``, nearest in
    ``E||((W_reference - W) - B A) x||^2`` over the layer's inputs; then 0 steps are a method, too.
    W, its mask and its grid stay as they are; rows and columns
    that were dropped from W are pruned in B and A. Adam, ``learning_rate`` falling linearly to 0,
    a batch (or ``examples`` of one) a step in turn. Outputs with a single class are compared by
    squared differences.
    Later stages leave adapters alone, unless a pattern says "+": ``{"*+lora.?": RTN(8)}``.
    Source: Hu et al., ICLR 2022 (arXiv 2106.09685); Kingma and Ba, ICLR 2015 (arXiv 1412.6980);
    Zhang et al., ICML 2024 (LQER, arXiv 2402.02446) for the error's low rank.
    """

    rank: int = 8
    steps: int = 100
    learning_rate: float = 1e-3
    where: str = "*"
    examples: int | None = None
    start: Literal["zero", "error"] = "zero"

    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        check_training(self, {"rank": 1, "steps": 0})
        check_choice("start", self.start, ("zero", "error"))

    @property
    def needs_stats(self) -> bool:
        return self.steps > 0 or self.start == "error"

    def layers(self, architecture: Architecture) -> list[str]:
        return matching(architecture, self.where, self.name)

    def check(self, architecture: Architecture) -> None:
        architecture.check_groupless(self.layers(architecture), self.name)

    def on_state(self, state: State, context: Sight) -> Outcome:
        begun, names = self._begun(state, context)
        if not self.steps or not names:
            return Outcome(begun)
        done = trained(self, begun, tuple(names), context)
        return Outcome(
            begun.with_matrices({n: begun.matrices[n]._replace(weight=w) for n, w in done.items()})
        )

    def _begun(self, state: State, context: Sight) -> tuple[State, list[str]]:
        """The state with untrained adapters, and their names."""
        of = {n: p for n in self.layers(context.architecture) if (p := state.products(n))}
        masks = {n: _ends(state, products) for n, products in of.items()}
        names: list[str] = []
        pairs = _untrained(masks, context.key, self.rank)
        if self.start == "error":
            pairs = self._of_errors(state, pairs, context)
        for layer, pair in pairs.items():
            name = _free(f"{layer}{ADAPTER}lora", state)
            added = {f"{name}.{part}": m for part, m in zip("ba", pair, strict=True)}
            state = state.with_matrices(added).with_terms(layer, (*of[layer], tuple(added)))
            names += added
        return state, names

    def _of_errors(
        self, state: State, pairs: Mapping[str, tuple[Matrix, Matrix]], context: Sight
    ) -> dict[str, tuple[Matrix, Matrix]]:
        """B and A that make up for the layers' errors; on the host, in float64."""
        found = {}
        for layer, (b, a) in pairs.items():
            dense = context.reference.weights[layer]
            out, n_in = dense.shape
            error = dense - layer_weight(state, layer, (out, n_in))
            stays = b.mask[:, :1] & a.mask[:1]  # what was not dropped
            lost = Matrix(jnp.where(stays, error, 0), stays)
            found[layer] = factors_of(jax.device_get(lost), self.rank, context.moments[layer])
        return found


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
