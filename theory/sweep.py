"""Random instances by the million: chunked, compiled once a family, memory constant in n.

Of every claim only what a report needs leaves the device: counts, a histogram of margins, the
smallest margin and the point of the cube where it occurred.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from theory.statement import Array, Check, ClaimCheck, Family, Where

CHUNK = 5_000
# Margins by size, from the left: below -1e-12, to -1e-15, about 0, then half decades.
EDGES = np.concatenate([[-np.inf, -1e-12, -1e-15, 1e-15], 10.0 ** np.arange(-14.5, 2.01, 0.5)])
BINS = len(EDGES)


Program = Callable[[Array, Array], Any]


def _size(family: Family, n: int) -> tuple[int, int]:
    """Instances of a family when n are asked for, and how many of them a chunk holds."""
    count = max(1, round(n * family.share))
    return count, min(count, max(1, round(CHUNK * family.share)))


def compiled(family: Family, n: int) -> Program:
    """The program of a chunk: (points [chunk, size], how many of them count) -> what it found.

    For each claim: failures, vacuous, histogram, and the smallest margin with its point, the
    decoded instance and both sides. Evaluating instances elsewhere would compile them again.
    """
    tolerance = np.array([c.tolerance for c in family.claims])
    _, chunk = _size(family, n)

    def one(u: Array) -> tuple[Any, ...]:
        instance = family.decode(u)
        sides = [c.sides(instance) for c in family.claims]
        found = [c.margin(s) for c, s in zip(family.claims, sides, strict=True)]
        each = ([m for m, _ in found], [v for _, v in found], *zip(*sides, strict=True))
        return instance, *(jnp.stack([jnp.asarray(x) for x in values]) for values in each)

    def step(points: Array, real: Array) -> Any:
        instance, *values = jax.vmap(one)(points)
        margin, vacuous, left, right, _ = (a.T for a in values)  # [claims, chunk]
        counted = jnp.arange(chunk) < real
        # Not-a-number is a failure, and the worst one.
        margin = jnp.where(counted, jnp.where(jnp.isnan(margin), -jnp.inf, margin), jnp.inf)
        worst = jnp.argmin(margin, 1)
        bins = jnp.searchsorted(jnp.asarray(EDGES[1:]), margin, side="right")
        count = jax.vmap(lambda b: jnp.bincount(b, counted.astype(jnp.int64), length=BINS))(bins)

        def at_worst(a: Array) -> Array:
            return jnp.take_along_axis(a, worst[:, None], 1)[:, 0]

        return {
            "failures": jnp.sum((margin < -tolerance[:, None]) & counted, 1),
            "vacuous": jnp.sum(vacuous & counted, 1),
            "histogram": count,
            "worst": {
                "margin": at_worst(margin),
                "left": at_worst(left),
                "right": at_worst(right),
                "point": points[worst],
                "instance": jax.tree.map(lambda a: a[worst], instance._asdict()),
            },
        }

    with jax.enable_x64(True):
        points = jax.ShapeDtypeStruct((chunk, family.size), jnp.float64)
        return jax.jit(step).lower(points, jax.ShapeDtypeStruct((), jnp.int64)).compile()


def place(worst: Any, claim: int) -> Where:
    """Where the smallest margin of one claim was found."""
    return Where(
        worst["point"][claim],
        {k: np.asarray(v[claim]).tolist() for k, v in worst["instance"].items()},
        float(worst["left"][claim]),
        float(worst["right"][claim]),
    )


def evaluate(family: Family, program: Program, n: int, point: np.ndarray) -> Any:
    """What ``worst`` says of one point: a chunk of which only the first counts."""
    points = np.zeros((_size(family, n)[1], family.size))
    points[0] = point
    with jax.enable_x64(True):
        return jax.device_get(program(jnp.asarray(points), jnp.asarray(1)))["worst"]


def sweep(
    families: Sequence[Family],
    programs: Sequence[Program],
    n: int,
    key: Array,
    progress: Callable[[int], None] = lambda done: None,
) -> Check:
    """n random instances (times its share) of every family, put to all of its claims.

    programs: of :func:`compiled`, for the same n. progress: called with the number of instances
    just done. Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"the number of instances must be at least 1, got {n}")
    found: list[ClaimCheck] = []
    total, start = 0, time.perf_counter()
    for index, (family, program) in enumerate(zip(families, programs, strict=True)):
        count, chunk = _size(family, n)
        sums: Any = None
        with jax.enable_x64(True):
            stream = jax.random.fold_in(key, index)
            for i in range(-(-count // chunk)):
                real = min(chunk, count - i * chunk)
                points = jax.random.uniform(
                    jax.random.fold_in(stream, i), (chunk, family.size), jnp.float64
                )
                part = jax.device_get(program(points, jnp.asarray(real)))
                sums = part if sums is None else _merge(sums, part)
                progress(round(real / family.share))
        total += count
        for c, claim in enumerate(family.claims):
            found.append(
                ClaimCheck(
                    claim.name,
                    claim.relation,
                    count,
                    int(sums["failures"][c]),
                    int(sums["vacuous"][c]),
                    float(sums["worst"]["margin"][c]),
                    place(sums["worst"], c),
                    sums["histogram"][c],
                )
            )
    return Check(tuple(found), total, time.perf_counter() - start)


def _merge(a: Any, b: Any) -> Any:
    better = b["worst"]["margin"] < a["worst"]["margin"]  # [claims]

    def choose(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(better.reshape(-1, *[1] * (x.ndim - 1)), y, x)

    return {k: a[k] + b[k] for k in ("failures", "vacuous", "histogram")} | {
        "worst": jax.tree.map(choose, a["worst"], b["worst"])
    }
