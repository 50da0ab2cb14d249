"""Random instances by the million: in chunks, by one compiled program a family.

The program evaluates a chunk of points of the cube; the same serves the random instances here and
the attack (:mod:`theory.engine.search`). What is kept of them are sums, a histogram of margins, and
the smallest margin with its instance: memory does not grow with their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine.checks import Check, ClaimCheck, Where
from theory.engine.instances import generator
from theory.engine.statement import TOLERANCE, Drawn, Family, Statement

CHUNK = 1_000
LEAST = 100  # points a chunk of the most costly families
# Margins by size, from the left: below -1e-12, to -1e-15, about 0, then half decades.
EDGES = np.concatenate([[-np.inf, -1e-12, -1e-15, 1e-15], 10.0 ** np.arange(-14.5, 2.01, 0.5)])


class Evaluated(NamedTuple):
    """Instances and what their claims say there: arrays of a chunk, [chunk, claims] each.

    margin: relative, -inf where it is not a number, which is the worst failure there is;
    instance: the decoded fields, [chunk, ...].
    """

    margin: np.ndarray
    vacuous: np.ndarray
    tells: np.ndarray
    left: np.ndarray
    right: np.ndarray
    instance: dict[str, np.ndarray]

    def at(self, i: int, claim: int, point: np.ndarray) -> Where:
        """One instance as plain values."""
        fields = {k: np.asarray(v[i]).tolist() for k, v in self.instance.items()}
        return Where(point, fields, float(self.left[i, claim]), float(self.right[i, claim]))


Program = Callable[[np.ndarray], Evaluated]


def chunk_of(family: Family) -> int:
    """Points a call of the family's program."""
    return max(LEAST, round(CHUNK * family.share**0.5))


def compiled(family: Family[Drawn]) -> Program:
    """The family's program: points [chunk, size] -> :class:`Evaluated`.

    Instances are made by one program and judged by another, so that they are rounded once. In one
    program a product could be fused into a sum (FMA, unrounded) for one side of a claim and not for
    the other, which is another instance: seen to break a bound by 2 % where W + dW cancels.
    """

    def judge(instance: Drawn) -> tuple[Array, ...]:
        sides = [c.sides(instance) for c in family.claims]
        found = [c.margin(s) for c, s in zip(family.claims, sides, strict=True)]
        margin = jnp.stack([m for m, _ in found])
        return (
            jnp.where(jnp.isnan(margin), -jnp.inf, margin),
            jnp.stack([v for _, v in found]),
            jnp.stack([c.tells(s) for c, s in zip(family.claims, sides, strict=True)]),
            jnp.stack([jnp.asarray(s.left) for s in sides]),
            jnp.stack([jnp.asarray(s.right) for s in sides]),
        )

    with jax.enable_x64(True):
        points = jax.ShapeDtypeStruct((chunk_of(family), family.size), jnp.float64)
        made = jax.jit(jax.vmap(family.decode)).lower(points)
        decode = made.compile()
        program = jax.jit(jax.vmap(judge)).lower(made.out_info).compile()

    def run(points: np.ndarray) -> Evaluated:
        with jax.enable_x64(True):
            instance = decode(jnp.asarray(points))
            return Evaluated(*jax.device_get((*program(instance), instance._asdict())))

    return run


class _Tally:
    """What is remembered of the instances of one claim."""

    def __init__(self, family: Family, claim: int) -> None:
        self.claim, self.index = family.claims[claim], claim
        self.instances = self.failures = self.vacuous = self.telling = 0
        self.margin = np.inf
        self.where: Where | None = None
        self.histogram = np.zeros(len(EDGES), np.int64)

    def add(self, found: Evaluated, points: np.ndarray, real: int) -> None:
        margin = found.margin[:real, self.index]
        self.instances += real
        vacuous = found.vacuous[:real, self.index]
        self.failures += int(np.sum(~(margin >= -TOLERANCE)))
        self.vacuous += int(vacuous.sum())
        self.telling += int(found.tells[:real, self.index].sum())
        self.histogram += np.bincount(
            np.searchsorted(EDGES[1:], margin, side="right"), minlength=len(EDGES)
        )
        telling = np.where(vacuous, np.inf, margin)
        worst = int(np.argmin(telling))
        if self.where is None or telling[worst] < self.margin:
            self.margin = float(telling[worst])
            self.where = found.at(worst, self.index, points[worst])

    def done(self) -> ClaimCheck:
        assert self.where is not None
        return ClaimCheck(
            self.claim.name,
            self.claim.relation,
            self.instances,
            self.failures,
            self.vacuous,
            self.margin,
            self.where,
            self.histogram,
            self.telling,
            self.claim.enough(self.telling, self.instances),
        )


def sweep(
    families: Sequence[Family],
    programs: Sequence[Program],
    n: int,
    key: Array,
    progress: Callable[[int], None] = lambda done: None,
) -> Check:
    """n random instances (times its share) of every family, put to all of its claims.

    programs: of :func:`compiled`. progress: called with the number of instances just done. Raises
    ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"the number of instances must be at least 1, got {n}")
    start, total, tallies = time.perf_counter(), 0, []
    for index, (family, program) in enumerate(zip(families, programs, strict=True)):
        here = [_Tally(family, c) for c in range(len(family.claims))]
        rng = generator(key, index)
        count, chunk = max(1, round(n * family.share)), chunk_of(family)
        for done in range(0, count, chunk):
            real = min(chunk, count - done)
            points = rng.random((chunk, family.size))
            found = program(points)
            for tally in here:
                tally.add(found, points, real)
            progress(round(real / family.share))
        total += count
        tallies += here
    return Check(tuple(t.done() for t in tallies), total, time.perf_counter() - start)


def check(statement: Statement, n: int, key: Array) -> Check:
    """Put n random instances of every family of a statement to its claims."""
    families = statement.families
    return sweep(families, [compiled(f) for f in families], n, key)
