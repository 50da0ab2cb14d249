from perturb.obs.solver import PANEL, Factor, Solution, Solver, factorize

__all__ = ["PANEL", "Factor", "Solution", "Solver", "factorize"]
