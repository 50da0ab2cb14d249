"""Theorem 2d: error compensation (SparseGPT, GPTQ) by enumeration; either order can win.

One row w [n] of a layer, H [n, n] the second moment of its inputs, error (x - w)^T H (x - w). With
the weights of a set E moved by e_E and the others free, the least error is (optimal brain surgeon)

    min = e_E [(H^-1)_EE]^-1 e_E^T,   the others move by  H^-1_FE [(H^-1)_EE]^-1 e_E,

and settling the weights of E one at a time, with H^-1 downdated in between, in any order, gives the
same. So *every* mask of a small row can be tried (2^n of them, by one recursion), and at 2 and 3
bits every point of the grid too. Stages, each the best there is for what it is handed:

    P   the mask of k weights with the least error to the weights handed over, survivors compensated
    Q   the grid point of least error under the mask ("lattice"), or column by column ("GPTQ")

P -> Q ends on the grid; Q -> P does after rounding the compensated survivors again (SparseGPT's
``on_grid="snap"``). What holds is only that the best sparse grid point is no worse than either
order. Which order wins depends on H, k and the grid: :func:`measure` counts.

Source: Hassibi & Stork 1993 for the residual; Frantar & Alistarh (arXiv 2301.00774, 2210.17323).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Finding, Sides, Statement
from theory.maths import elimination as obs
from theory.statements.compensation import proof
from theory.statements.compensation.measure import against_best_mask
from theory.thresholds import ZERO

WEIGHTS, TOP = 4, 3  # of the instances of claims; codes -TOP..TOP
FORMS = ("residual", "settle")  # of theory.maths.elimination


# ------------------------------------------------------------------------------ random instances


class Instance(NamedTuple):
    w: Array  # [WEIGHTS]
    h: Array  # [WEIGHTS, WEIGHTS]
    mask: Array  # [WEIGHTS], some set E
    step: Array
    k: Array
    order: Array  # [WEIGHTS], a permutation


def _instance(u: Array) -> Instance:
    take = instances.Take(u)
    n = WEIGHTS
    h = instances.positive_definite(take(n, n), 1.98 * take() - 0.99)
    w = jax.scipy.special.ndtri(jnp.clip(take(n), 1e-6, 1 - 1e-6))
    mask = take(n) < take(1)
    return Instance(
        w,
        h,
        mask,
        instances.log_uniform(take(), 0.1, 2.0),
        instances.integer(take(), 0, n),
        jnp.argsort(take(n)),
    )


def _condition(h: Array) -> Array:
    return jnp.linalg.norm(h) * jnp.linalg.norm(jnp.linalg.inv(h))


def _obs(x: Instance) -> Sides:
    """The formula against the free weights' normal equations."""
    e = jnp.where(x.mask, x.w, 0)
    free = ~x.mask
    block = jnp.where(free[:, None] & free[None, :], x.h, jnp.eye(WEIGHTS))
    others = jnp.linalg.solve(block, jnp.where(free, -x.h @ e, 0))
    move = e + jnp.where(free, others, 0)
    return Sides(
        obs.residual(x.w, x.mask, jnp.linalg.inv(x.h)),
        move @ x.h @ move,
        _condition(x.h) * (e @ e + 1e-30),
    )


def _one_at_a_time(x: Instance) -> Sides:
    row, inverse = obs.Row(x.w, jnp.linalg.inv(x.h)), jnp.linalg.inv(x.h)
    for i in range(WEIGHTS):
        j = x.order[i]
        done = obs.settle(row, j, jnp.zeros(()))
        row = jax.tree.map(lambda a, b, j=j: jnp.where(x.mask[j], a, b), done, row)
    e = jnp.where(x.mask, x.w, 0)
    return Sides(
        obs.error(row.x, x.w, x.h),
        obs.residual(x.w, x.mask, inverse),
        _condition(x.h) * (e @ e + 1e-30),
    )


def _no_worse(x: Instance) -> Sides:
    e = jnp.where(x.mask, x.w, 0)
    bound = e @ x.h @ e
    return Sides(obs.residual(x.w, x.mask, jnp.linalg.inv(x.h)), bound, bound)


def _orders(x: Instance) -> tuple[Array, Array, Array]:
    """Errors of P -> Q, Q -> P and the best sparse grid point, everything by enumeration."""
    points = x.step * jnp.asarray(obs.lattice(WEIGHTS, TOP))
    inverse = jnp.linalg.inv(x.h)

    def prune(w: Array) -> tuple[Array, Array]:
        kept, values, cost = obs.all_masks(w, inverse)
        i = obs.best_of_size(kept, cost)[x.k]
        return values[i], kept[i]

    everything = jnp.ones(WEIGHTS, bool)
    pq = obs.by_lattice(*prune(x.w), x.h, points)
    qp = obs.by_lattice(*prune(obs.by_lattice(x.w, everything, x.h, points)), x.h, points)
    sparse = jnp.sum(points == 0, 1) >= x.k
    cost = jax.vmap(lambda c: obs.error(c, x.w, x.h))(points)
    return (
        obs.error(pq, x.w, x.h),
        obs.error(qp, x.w, x.h),
        jnp.min(jnp.where(sparse, cost, jnp.inf)),
    )


def _best_point(x: Instance) -> Sides:
    pq, qp, best = _orders(x)
    return Sides(best, jnp.minimum(pq, qp), jnp.minimum(pq, qp))


FAMILIES = (
    Family(
        "rows",
        f"rows of {WEIGHTS} normal weights, AR(1) inputs of correlation -0.99 to 0.99 plus a "
        "random part, any set removed, in any order",
        WEIGHTS * WEIGHTS + 3 * WEIGHTS + 4,
        _instance,
        (
            Claim("residual", "e [(H^-1)_EE]^-1 e is the least error", "==", _obs, 0.6),
            Claim(
                "one at a time", "settling in any order gives the same", "==", _one_at_a_time, 0.6
            ),
            Claim(
                "compensation helps",
                "residual <= e^T H e",
                "<=",
                _no_worse,
                0.4,
                ATTAINED,
            ),
        ),
        smooth=False,  # attained wherever nothing is removed that others could make up for
        share=0.2,
    ),
    Family(
        "pairs",
        f"the same rows in both orders; all {2**WEIGHTS} masks and all {(2 * TOP + 1) ** WEIGHTS} "
        "grid points",
        WEIGHTS * WEIGHTS + 3 * WEIGHTS + 4,
        _instance,
        # in most rows one order ends on the best point
        (Claim("best point", "the best <= both orders", "<=", _best_point, 0.02, ATTAINED),),
        smooth=False,
        share=0.01,
    ),
)


def measure(key: Array) -> tuple[Finding, ...]:
    """Both orders with every stage optimal; SparseGPT's greedy choice against the best of all
    masks.

    Which order wins over (pruned, bits) and correlations is in :mod:`theory.phase`.
    """
    with jax.enable_x64(True):
        points = jnp.asarray(instances.generator(key).random((2000, FAMILIES[1].size)))
        pq, qp, _ = jax.jit(lambda u: jax.lax.map(lambda x: _orders(_instance(x)), u))(points)
    close = np.abs(pq - qp) <= ZERO * np.maximum(pq, qp)
    share = {
        "P first wins": float(np.mean((pq < qp) & ~close)),
        "Q first wins": float(np.mean((qp < pq) & ~close)),
        "equal": float(np.mean(close)),
    }
    return (
        Finding(
            "2d: either order can win",
            "holds" if min(share["P first wins"], share["Q first wins"]) > 0 else "false",
            f"each does, on some of {len(pq)} rows",
            share,
            required=True,
        ),
        Finding(
            "theorem 2a's sign (prune first never loses) for optimal compensated stages",
            "holds" if share["Q first wins"] == 0 else "false",
            f"over {len(pq)} rows of {WEIGHTS} weights with every mask and grid point tried, "
            f"pruning first wins {share['P first wins']:.0%}, quantizing first "
            f"{share['Q first wins']:.0%}, the rest tie: an order is preferred, none is safe",
            share,
        ),
        against_best_mask(key),
    )


STATEMENT = Statement(
    name="compensation",
    title="Theorem 2d: with error compensation either order can win",
    source="residual: Hassibi & Stork 1993; enumeration of the orders: derived here",
    assumptions=("the error is quadratic", "the other weights are free"),
    claim="settling weights costs e [(H^-1)_EE]^-1 e, in any order; the best sparse grid point "
    "is no worse than either order, and nothing stronger holds: 2a's sign fails",
    latex=r"\min_{\delta_E=e}\delta^\top H\delta=e\,[(H^{-1})_{EE}]^{-1}e^\top",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    measure=measure,
)
