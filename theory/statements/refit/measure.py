"""Joint optimality in numbers: what refitting the step to the survivors is worth."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import Finding
from theory.maths.refit import fit
from theory.thresholds import ZERO

WEIGHTS, ROWS = 48, 64
PRUNED = (0.25, 0.5, 0.75)
BITS = (2, 3, 4)


def _relative(w: Array, k: Array, top: int) -> tuple[Array, Array]:
    """(E fixed - E refit, E of Q->P - E fixed) over E fixed; w [WEIGHTS]."""
    shape = jnp.arange(top + 1.0)
    gone = instances.smallest(jnp.abs(w), k)
    _, dense = fit(w, jnp.ones(w.shape, bool), shape)
    _, again = fit(w, ~gone, shape)
    # ties at random: rows are iid, an order by index is one
    last = instances.smallest(jnp.abs(dense), k)

    def error(out: Array, q: Array) -> Array:
        return jnp.sum((jnp.where(out, 0, q) - w) ** 2)

    fixed = error(gone, dense)
    return (fixed - error(gone, again)) / fixed, (error(last, dense) - fixed) / fixed


@partial(jax.jit, static_argnames="top")
def over_rows(w: Array, k: Array, top: int) -> tuple[Array, Array]:
    found: tuple[Array, Array] = jax.lax.map(lambda x: _relative(x, k, top), w)
    return found


def measure(key: Array) -> tuple[Finding, ...]:
    rows, least, saved = [], np.inf, []
    with jax.enable_x64(True):
        w = jnp.asarray(instances.generator(key).normal(size=(ROWS, WEIGHTS)))
        for bits in BITS:
            for p in PRUNED:
                k, top = round(p * WEIGHTS), 2 ** (bits - 1) - 1
                refit, order = (np.asarray(x) for x in over_rows(w, jnp.asarray(k), top))
                least = min(least, float(refit.min()), float(order.min()))
                saved.append((float(refit.mean()), float(order.mean())))
                rows.append(
                    (f"{bits} bit", f"{p:.0%}", f"{refit.mean():.2%}", f"{order.mean():.2%}")
                )
    by_refit, by_order = (f"{max(x):.0%}" for x in zip(*saved, strict=True))
    return (
        Finding(
            "no interleaving beats pruning first and refitting the grid (weight MSE)",
            "holds" if least >= -ZERO else "false",
            f"magnitude pruning with the step refitted to the survivors is jointly optimal; in "
            f"{ROWS} rows of {WEIGHTS} normal weights refitting saves up to {by_refit} of the "
            f"error over the dense weights' step, and the wrong order adds up to {by_order}",
            {"least saving": least},
            ("grid", "pruned", "refitting saves", "Q->P adds"),
            tuple(rows),
            required=True,
        ),
    )
