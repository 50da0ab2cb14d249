"""Optimal-brain-surgeon methods: what they ask to be solved, and how it is solved."""

from perturb.obs.factor import Factor, factorize
from perturb.obs.solver import (
    OBSMethod,
    OBSQuantizer,
    Relay,
    Solution,
    Solver,
    Steps,
    Task,
    settle,
    solve,
    tie_of,
)

__all__ = [
    "Factor",
    "OBSMethod",
    "OBSQuantizer",
    "Relay",
    "Solution",
    "Solver",
    "Steps",
    "Task",
    "factorize",
    "settle",
    "solve",
    "tie_of",
]
