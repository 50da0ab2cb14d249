"""What the user of a compressed model should know, and results that are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from perturb import network
from perturb.policy import Policy
from perturb.types import Array, Moments


@jax.jit
def _finite(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {n: jnp.all(jnp.isfinite(w)) for n, w in weights.items()}


def check_finite(what: str, weights: Mapping[str, Array]) -> None:
    """Refuse matrices that are not finite, by the layer's name."""
    for name, fine in jax.device_get(_finite(dict(weights))).items():
        if not fine:
            raise ValueError(f"layer {name}: {what} leaves weights that are not finite")


@jax.jit
def _zeros(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {n: jnp.sum(w == 0) for n, w in weights.items()}


def zeros_note(weights: Mapping[str, Array], policy: Policy) -> list[str]:
    """What is told of weights that were 0 before anything was done."""
    count = {n: int(c) for n, c in jax.device_get(_zeros(dict(weights))).items()}
    total, size = sum(count.values()), sum(w.size for w in weights.values())
    if not total:
        return []
    where = [n for n, c in count.items() if c]
    told = f"{total} of {size} weights ({total / size:.1%}) are 0 already, in {len(where)} layers"
    if policy.zeros == "keep":
        return [f"{told} (first: {where[0]}): they count as pruned and stay 0"]
    return [
        f"{told} (first: {where[0]}): they count as kept, and a method may change them; "
        "zeros='keep' takes them as pruned"
    ]


def starved_note(moments: Mapping[str, Moments]) -> list[str]:
    """What is told of layers that calibration showed nothing."""
    names = network.starved(moments)
    if not names:
        return []
    return [
        f"{len(names)} layers saw no input but zeros in calibration (first: {names[0]}): they are "
        "compressed as if their inputs were white (magnitude, round-to-nearest)"
    ]


def norms_note(model: Any, batches: Sequence[Any] | None, policy: Policy) -> list[str]:
    """What is told of running statistics that stay those of the dense model."""
    names = network.norms_of(model)
    if not names or (policy.norms == "reestimate" and batches is not None):
        return []
    why = "norms='keep'" if policy.norms == "keep" else "there is no calibration data"
    return [
        f"{len(names)} BatchNorms keep the running statistics of the dense model ({why}): "
        "part of what is lost is theirs, not the weights'"
    ]
