"""Global magnitude pruning: one ranking over the weights of all layers."""

from __future__ import annotations

import jax.numpy as jnp

from perturb.masks import TIE_RULES, TieRule, prune_count, smallest_k, tie_key
from perturb.methods.prune.common import resolve_sparsity
from perturb.registry import check_choice, method
from perturb.types import Array, Matrix, Problem, Solved


@method("global-magnitude")
class GlobalMagnitude:
    """Objective: minimise ``sum_l ||W_l - W_l'||_F^2`` over masks of the given total size.

    Exactly ``floor(s n)`` of the n weights of all layers go, smallest ``|w|`` first; ties by
    ``tie``, then by the order of the layers and the position in them.
    """

    sparsity: float | Array | None = None
    tie: TieRule = "random"

    needs_stats = False
    scope = "model"

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        check_choice("tie", self.tie, TIE_RULES)

    @property
    def granularity(self) -> str:
        return "weight, mask per model"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        """On a single matrix: it is the whole model."""
        return self.on_model({"": matrix}, {"": problem}, {"": key})[""]

    def on_model(
        self, matrices: dict[str, Matrix], problems: dict[str, Problem], keys: dict[str, Array]
    ) -> dict[str, Solved]:
        score = jnp.concatenate(
            [jnp.where(x.mask, jnp.abs(x.weight), -jnp.inf).reshape(-1) for x in matrices.values()]
        )
        tie = [tie_key(self.tie, problems[n].reference, keys[n]) for n in matrices]
        ties = [t.reshape(-1) for t in tie if t is not None]  # all, or by index: none
        assert self.sparsity is not None
        number = prune_count(score.size, self.sparsity)
        gone = smallest_k(score, number, [jnp.concatenate(ties)] if ties else ())
        done: dict[str, Solved] = {}
        at = 0
        for name, matrix in matrices.items():
            mask = matrix.mask & ~gone[at : at + matrix.mask.size].reshape(matrix.mask.shape)
            at += matrix.mask.size
            weight = jnp.where(mask, matrix.weight, 0)
            done[name] = Solved(matrix._replace(weight=weight, mask=mask), None)
        return done
