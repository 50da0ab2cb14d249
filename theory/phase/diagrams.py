"""Phase diagrams: which order wins over (pruned, bits), by what the stages see.

Rows w ~ N(0, I) [n], inputs with AR(1) correlation rho, H_ij = rho^|i-j|, error (x - w)^T H
(x - w); the grid of b bits is symmetric, fixed, of the step that is best for normal weights. All
2^n masks are tried where a stage chooses one.

    blind         P removes the smallest |w| it is handed; Q rounds to nearest
    aware         no compensation; P takes the mask with the least error that it can know of: when
                  first, of the pruned weights; when last, of the final ones against the dense
    compensated   P takes the mask of least OBS residual and compensates, Q is GPTQ (no damping)
    dense target  the same but Q -> P, theorem 2d's third variant: the mask is chosen on the rounded
                  row, and what is compensated and rounded under it is the dense one

Same weights in all cells and orders; A(Q->P) = E(P->Q) - E(Q->P), in units of E(w^T H w) = n.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import kendalltau

from theory.engine import instances
from theory.maths import elimination as obs
from theory.maths.densities import Normal
from theory.maths.grids import best_symmetric_step

STAGES = ("blind", "aware", "compensated", "dense target")
WEIGHTS, ROWS = 12, 96
RHO = (0.0, 0.5, 0.9)
BITS = (2, 3, 4, 5, 6)
SIGNIFICANT = 2.0  # standard errors


@dataclass(frozen=True)
class Phase:
    """One diagram: arrays [n - 1, bits], row i is the removal of i + 1 of n weights.

    advantage, error: mean of A(Q->P) over rows and its standard error; gap: mean of G(Q,P) = E_P -
    E_Q of the methods alone; never: whether every single row had A = 0 exactly.
    """

    stage: str
    rho: float
    weights: int
    bits: tuple[int, ...]
    advantage: np.ndarray
    error: np.ndarray
    gap: np.ndarray
    never: np.ndarray

    @property
    def sign(self) -> np.ndarray:
        """-1: prune first wins, +1: quantize first wins, 0: neither is significant."""
        return np.where(
            np.abs(self.advantage) > SIGNIFICANT * self.error, np.sign(self.advantage), 0
        )

    def taus(self, axis: int) -> np.ndarray:
        """Kendall's tau of A against the gap along sparsity (0) or bits (1), where A varies."""
        a, g = (np.moveaxis(x, axis, -1) for x in (self.advantage, self.gap))
        found = [kendalltau(x, y).statistic for x, y in zip(a, g, strict=True)]
        return np.array([t for t in found if np.isfinite(t)])


def _orders(w: Array, h: Array, step: Array, top: Array) -> dict[str, tuple[Array, ...]]:
    """For one row and one grid: (E of P->Q, of Q->P, of P, of Q) over k = 1..n-1, by stage."""
    n = w.shape[0]
    inverse = jnp.linalg.inv(h)
    count = jnp.arange(1, n)
    everything = jnp.ones(n, bool)

    def error(x: Array) -> Array:
        return obs.error(x, w, h)

    def nearest(x: Array) -> Array:
        return step * jnp.clip(jnp.round(x / step), -top, top)

    def by_size(x: Array) -> Array:
        return jax.vmap(lambda k: ~instances.smallest(jnp.abs(x), k))(count)  # kept [n-1, n]

    q = nearest(w)
    p_mask, q_mask = by_size(w), by_size(q)
    pq = jax.vmap(lambda m: error(jnp.where(m, q, 0)))(p_mask)
    qp = jax.vmap(lambda m: error(jnp.where(m, q, 0)))(q_mask)
    p_only = jax.vmap(lambda m: error(jnp.where(m, w, 0)))(p_mask)
    blind = (pq, qp, p_only, jnp.broadcast_to(error(q), pq.shape))

    kept, x, cost = obs.all_masks(w, inverse)
    pruned, final = (jax.vmap(lambda m, y=y: error(jnp.where(m, y, 0)))(kept) for y in (w, q))
    first, last = (obs.best_of_size(kept, c)[1:n] for c in (pruned, final))
    aware = (final[first], final[last], pruned[first], blind[3])

    def column(x: Array, kept: Array) -> Array:
        return jax.vmap(lambda a, m: obs.by_columns(a, m, inverse, step, top))(x, kept)

    chosen = obs.best_of_size(kept, cost)[1:n]
    gptq = column(w[None], everything[None])[0]
    kept_q, x_q, cost_q = obs.all_masks(gptq, inverse)
    chosen_q = obs.best_of_size(kept_q, cost_q)[1:n]
    compensated = (
        jax.vmap(error)(column(x[chosen], kept[chosen])),
        jax.vmap(error)(column(x_q[chosen_q], kept_q[chosen_q])),
        cost[chosen],
        jnp.broadcast_to(error(gptq), pq.shape),
    )
    aimed = column(jnp.broadcast_to(w, (n - 1, n)), kept_q[chosen_q])
    dense = (compensated[0], jax.vmap(error)(aimed), *compensated[2:])
    return dict(zip(STAGES, (blind, aware, compensated, dense), strict=True))


def diagrams(
    key: Array, weights: int = WEIGHTS, rows: int = ROWS, rho: tuple[float, ...] = RHO
) -> list[Phase]:
    """All diagrams, one a stage and correlation. One compiled program serves all of them."""
    with jax.enable_x64(True):
        w = jnp.asarray(instances.generator(key).normal(size=(rows, weights)))
        distance = jnp.abs(jnp.arange(weights)[:, None] - jnp.arange(weights)[None, :])
        tops = [2 ** (b - 1) - 1 for b in BITS]
        steps = [best_symmetric_step(Normal(), jnp.asarray(t)) for t in tops]

        @jax.jit
        def over_rows(w: Array, h: Array, step: Array, top: Array) -> dict[str, tuple[Array, ...]]:
            return jax.lax.map(lambda x: _orders(x, h, step, top), w)

        found = []
        for r in rho:
            h = jnp.asarray(r, jnp.float64) ** distance
            columns = [
                jax.device_get(over_rows(w, h, s, jnp.asarray(float(t))))
                for s, t in zip(steps, tops, strict=True)
            ]
            for stage in STAGES:
                pq, qp, p, q = (
                    np.stack([c[stage][i] for c in columns], -1) / weights for i in range(4)
                )  # [rows, n - 1, bits]
                a = np.where(np.abs(pq - qp) <= 1e-12 * np.maximum(pq, qp), 0, pq - qp)
                found.append(
                    Phase(
                        stage,
                        r,
                        weights,
                        BITS,
                        a.mean(0),
                        a.std(0, ddof=1) / np.sqrt(rows),
                        (p - q).mean(0),
                        np.all(a == 0, 0),
                    )
                )
    return found
