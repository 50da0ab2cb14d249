"""What mixed precision and mixed sparsity share: every layer's own amount, within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturb.methods.mixed.allocate import allocate
from perturb.methods.mixed.sensitivity import costs_of
from perturb.registry import check_choice
from perturb.stage import Outcome, Sight, Versions, check_single, layerwise, matching
from perturb.state import State
from perturb.types import SolveReport

Order = Literal["at-once", "strong-last", "strong-first"]
ORDERS: tuple[Order, ...] = ("at-once", "strong-last", "strong-first")


def check_mixed(stage: Any, unit: str) -> None:
    """Raise ValueError for choices, a budget or settings that no allocation can have."""
    if not isinstance(stage.choices, tuple) or len(set(stage.choices)) < 2:
        raise ValueError(f"choices must be a tuple of at least two {unit}, got {stage.choices}")
    low, high = min(stage.choices), max(stage.choices)
    if isinstance(stage.budget, (bool, str)) or not low <= stage.budget <= high:
        raise ValueError(f"budget must lie in [{low}, {high}], got {stage.budget!r}")
    check_choice("sensitivity", stage.sensitivity, ("outputs", "hessian"))
    check_choice("order", stage.order, ORDERS)
    if isinstance(stage.probes, bool) or not isinstance(stage.probes, int) or stage.probes < 1:
        raise ValueError(f"probes must be a whole number of at least 1, got {stage.probes!r}")


def share_out(
    stage: Any,
    state: State,
    context: Sight,
    methods: Sequence[Any],
    loads: Sequence[float],
    budget: float,
) -> Outcome:
    """Of ``methods`` (the weakest first) one for every layer of ``stage.where``, the least cost in
    all by ``stage.sensitivity``.

    loads: what a kept weight takes under each method; their mean over all kept weights is at most
    ``budget``. ``stage.order``: see :class:`perturb.methods.mixed.bits.MixedPrecision`.
    """
    names = matching(context.architecture, stage.where, stage.name)
    check_single(state, names, context.architecture, stage.name)
    changed = [layerwise(m, stage.where).on_state(state, context) for m in methods]
    costs = costs_of(stage, state, [c.state for c in changed], names, context)
    kept = jax.device_get({n: jnp.sum(state.matrices[n].mask) for n in names})
    sizes = np.array([float(kept[n]) for n in names])
    chosen = allocate(costs, sizes[:, None] * np.array(loads), budget * sizes.sum())
    if stage.order == "at-once":
        matrices = {n: changed[i].state.matrices[n] for n, i in zip(names, chosen, strict=True)}
        found = {n: changed[i].reports.get(n) for n, i in zip(names, chosen, strict=True)}
        return Outcome(state.with_matrices(matrices), _told(found))
    reports: dict[str, SolveReport | None] = {}
    turns = range(len(methods)) if stage.order == "strong-last" else reversed(range(len(methods)))
    for i in turns:
        mine = [n for n, c in zip(names, chosen, strict=True) if c == i]
        if not mine:
            continue
        here = Versions.alone(context.context, state, context.reference)
        done = layerwise(methods[i], stage.where).on_state(
            state, replace(context, versions=here, index=0)
        )
        state = state.with_matrices({n: done.state.matrices[n] for n in mine})
        reports |= {n: done.reports.get(n) for n in mine}
    return Outcome(state, _told(reports))


def _told(reports: Mapping[str, SolveReport | None]) -> dict[str, SolveReport]:
    return {n: r for n, r in reports.items() if r is not None}
