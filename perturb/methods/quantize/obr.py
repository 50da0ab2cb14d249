"""OBR: prune and quantize at once, each error moved by one closed-form step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from perturb.grid import GridSpec, fit_grid, round_to_grid
from perturb.linalg import cholesky, solve_lower, solve_lower_transposed
from perturb.masks import TIE_RULES, NofM, TieRule
from perturb.methods.prune.common import resolve_sparsity
from perturb.methods.prune.wanda import Wanda
from perturb.methods.quantize.common import signed
from perturb.methods.quantize.rtn import RTN
from perturb.obs.factor import factor_of, normalized
from perturb.registry import check_bits, check_choice, method
from perturb.state import HIGHEST
from perturb.types import Array, Matrix, Problem, Solved

CHUNK = 1 << 22  # elements of the systems that are solved at once


@method("obr")
class OBR:
    """Objective: ``E||(W - W') x||^2`` over grid points under a mask, row by row, in closed form.

    The mask is Wanda's. What a set E of a row's weights loses, e, is moved to another set R by
    ``dw_R = e H_ER H_RR^-1``, which minimises the row's error over dw_R; H = E[x x^T] plus damp of
    its mean diagonal. (i) E: what the mask removes, R: what it keeps; (ii) E: the first
    ``floor(alpha |R|)`` of the kept columns, which lose what rounding takes from them, R: the
    others. Then the others are rounded as they stand, on the same grid, which is fitted to the
    weights after (i): what (ii) pushes beyond its ends is clipped.
    Each row has sets of its own, so that each costs two factorisations of about ``in^3 / 3``
    multiplications; CHUNK elements of them are solved at a time. The factorisation of all of H
    comes first, and raises the damping where it fails, as GPTQ does.
    Settings as in Joint; ``alpha`` in [0, 1], 0 and 1 leave (ii) out.
    Source: Guo, Li, Benini, ICLR 2026 (arXiv 2509.11177), on weights as they come: the paper
    rotates before, and its variant with GPTQ moves errors in (ii) column by column.
    """

    sparsity: float | Array | None = None
    bits: int | Array = 4
    scope: str | NofM = "row"
    grid: GridSpec = GridSpec()
    tie: TieRule = "random"
    alpha: float = 0.5
    damp: float = 0.01

    needs_stats = True

    def __post_init__(self) -> None:
        resolve_sparsity(self)
        check_bits(self.bits)
        check_choice("tie", self.tie, TIE_RULES)
        if not isinstance(self.scope, NofM):
            check_choice("scope", self.scope, ("row",))
        if isinstance(self.alpha, (bool, str)) or not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha!r}")

    @property
    def granularity(self) -> str:
        return f"weight, mask per {self.scope}, scale {self.grid}"

    def __call__(self, matrix: Matrix, problem: Problem, key: Array) -> Solved:
        assert problem.inputs is not None
        pruned = Wanda(self.sparsity, self.scope, self.tie)(matrix, problem, key).matrix
        keep = pruned.mask
        given = normalized(problem.inputs.gram.astype(matrix.weight.dtype))
        report = factor_of(given, self.damp).report
        h = given.hessian + report.damping * jnp.eye(keep.shape[1], dtype=matrix.weight.dtype)
        w = jnp.where(matrix.mask, matrix.weight, 0)
        w = pruned.weight + moved(h, w - pruned.weight, keep)
        grid = fit_grid(w, self.bits, self.grid)
        if 0 < self.alpha < 1:
            count = jnp.cumsum(keep, 1, dtype=jnp.int32)
            first = count <= jnp.floor(self.alpha * count[:, -1:] + 1e-4)
            lost = jnp.where(keep & first, w - round_to_grid(w, grid), 0)
            w = w - lost + moved(h, lost, keep & ~first)
        q = jnp.where(keep, round_to_grid(w, grid), 0)
        done = pruned._replace(weight=q, grid=grid)
        return Solved(signed(done, RTN(self.bits, self.grid)), report)


def moved(h: Array, lost: Array, into: Array) -> Array:
    """What makes up best for ``lost [out, in]``, 0 outside of ``into [out, in]``, by rows.

    lost is 0 in ``into``; h [in, in] is positive definite, and with it every ``H_RR``.
    """
    n = h.shape[0]
    eye: Any = jnp.eye(n, dtype=h.dtype)
    pull = jnp.where(into, jnp.matmul(lost, h, precision=HIGHEST), 0)

    def row(one: tuple[Array, Array]) -> Array:
        mine, right = one
        system = jnp.where(mine[:, None] & mine[None, :], h, eye * ~mine)
        lower = cholesky(system)
        full = solve_lower_transposed(lower, solve_lower(lower, right[:, None]))
        return jnp.where(mine, full[:, 0], 0)

    return jax.lax.map(row, (into, pull), batch_size=max(1, min(len(lost), CHUNK // n**2)))
