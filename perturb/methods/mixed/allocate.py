"""A budget shared out among layers: one choice for each, least cost in all (a knapsack)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import LinearConstraint, milp

Floats = npt.NDArray[np.float64]


def allocate(costs: npt.ArrayLike, weights: npt.ArrayLike, budget: float) -> npt.NDArray[np.int64]:
    """Of every row of ``costs [layers, choices]`` one choice: the least sum of costs whose sum of
    ``weights [layers, choices]`` is within the budget. Exact, by mixed-integer programming (HiGHS).

    Returns the choices' indices [layers]. Raises ValueError where even the lightest exceed it.
    """
    costs, weights = np.asarray(costs, np.float64), np.asarray(weights, np.float64)
    layers, choices = costs.shape
    if not np.isfinite(costs).all():
        raise ValueError("a layer's cost is not finite")
    if weights.min(1).sum() > budget * (1 + 1e-9):
        raise ValueError(
            f"a budget of {budget:g} is less than the {weights.min(1).sum():g} of the lightest"
        )
    one_each = np.kron(np.eye(layers), np.ones(choices))
    scale = costs.max() or 1.0
    size = weights.max() or 1.0
    within = LinearConstraint((weights / size).ravel()[None], -np.inf, budget / size * (1 + 1e-9))
    found = milp(
        (costs / scale).ravel(),
        integrality=np.ones(costs.size),
        bounds=(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), within],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RuntimeError(f"no allocation was found: {found.message}")
    return found.x.reshape(layers, choices).argmax(1)
