"""Theorem 2c in numbers: what blindness costs and awareness gains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine.statement import Finding, verdict
from theory.maths.closed_forms import aware_advantage, noise_advantage, noise_gap
from theory.statements.aware import worth


@jax.jit
def _advantage(p: Array, v: Array) -> Array:
    return aware_advantage(p, jnp.ones(()), v)


def advantage(p: Array, v: Array) -> np.ndarray:
    """A(Q->P)/(kappa n s^2) of an aware pruner over arrays p and v [...]: one program of scalars,
    whatever the shape, as compiling takes longer than they do."""
    pairs = np.broadcast(np.asarray(p), np.asarray(v))
    return np.reshape([float(_advantage(a, b)) for a, b in pairs], pairs.shape)


def measure(key: Array) -> tuple[Finding, ...]:
    with jax.enable_x64(True):
        p = jnp.asarray([0.1, 0.25, 0.5, 0.75, 0.9])
        v = jnp.asarray([0.001, 0.01, 0.1, 0.3])
        aware = advantage(p[:, None], v)
        blind = np.asarray(noise_advantage(p[:, None], v))
        gap = np.asarray(noise_gap(p[:, None], jnp.asarray(1.0), v))
    rows = tuple(
        (
            f"{float(p[i]):.0%}",
            *(f"{blind[i, j]:+.2e} .. {aware[i, j]:+.2e}" for j in range(v.size)),
        )
        for i in range(p.size)
    )
    ratio = aware / -blind
    right, stronger = (aware > 0) == (gap > 0), gap > 0
    return (
        Finding(
            "2b and 2c: A blind <= 0 <= A aware",
            "holds" if blind.max() <= 0 <= aware.min() else "false",
            f"in all {aware.size} cells, the aware gain {ratio.min():.2f} to {ratio.max():.2f} of "
            "the blind loss: what the last stage sees is worth as much as the order",
            {"least A aware": float(aware.min()), "largest A blind": float(blind.max())},
            required=True,
        ),
        Finding(
            "PIH, sign, with a last stage that knows the dense model",
            verdict(bool(right.all()), bool(right[stronger].all())),
            f"the gap's sign is right in {int(right.sum())} of {right.size} cells, in "
            f"{int(right[stronger].sum())} of the {int(stronger.sum())} where pruning is the "
            f"stronger and in {int(right[~stronger].sum())} of the others: A(Q->P) > 0 in "
            f"{int((aware > 0).sum())}",
            {"least A": float(aware.min()), "sign right": float(right.mean())},
            ("pruned", *(f"v = {float(x):g} s^2" for x in v)),
            rows,
        ),
        *worth.findings(key),
    )
