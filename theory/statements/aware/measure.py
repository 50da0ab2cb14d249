"""Theorem 2c in numbers: what blindness costs and awareness gains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine.statement import Finding
from theory.maths.closed_forms import aware_advantage, noise_advantage, noise_gap


def measure(key: Array) -> tuple[Finding, ...]:
    with jax.enable_x64(True):
        p = jnp.asarray([0.1, 0.25, 0.5, 0.75, 0.9])
        v = jnp.asarray([0.001, 0.01, 0.1, 0.3])
        grid = jax.jit(jax.vmap(jax.vmap(aware_advantage, (None, None, 0)), (0, None, None)))
        aware = np.asarray(grid(p, jnp.asarray(1.0), v))
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
    return (
        Finding(
            "PIH, sign, with a last stage that knows the dense model",
            "narrower" if aware.min() >= 0 and (gap < 0).any() else "false",
            "A(Q->P) > 0 in every cell, also where the gap is negative: awareness decides the "
            f"sign, not the gap; the aware gain is {ratio.min():.2f} to {ratio.max():.2f} of the "
            "blind loss",
            {"least A": float(aware.min()), "largest ratio": float(ratio.max())},
            ("pruned", *(f"v = {float(x):g} s^2" for x in v)),
            rows,
        ),
    )
