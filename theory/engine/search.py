"""Attacks: a search of the unit cube for the instance where a claim is nearest to failing.

A population of points a claim, random but for the worst that sampling found and the family's known
extremes (:attr:`theory.engine.statement.Family.known`), each moved in turn by projected gradient
steps on the relative margin (normalised, so that flat and steep claims are treated alike; the step
shrinks over the moves) and by differential evolution (Storn & Price 1997), which needs no gradient
and crosses the edges between bins, ranks and signs where gradients vanish. A point only ever moves
to a smaller margin. Evaluations go through the family's program
(:func:`theory.engine.sweep.compiled`): an attack compiles nothing but the gradient, where there is
one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine.checks import Attack, Check, ClaimAttack
from theory.engine.instances import generator
from theory.engine.statement import Family
from theory.engine.sweep import Evaluated, Program, chunk_of

MOVES, FEWEST = 160, 40  # the fewest: where instances are costly, or there are identities alone
PERIOD = 8  # one gradient step in so many moves; the others are evolution
WEIGHT, CROSSOVER = 0.6, 0.7  # of differential evolution
GREED = 0.5  # this part of the differences is added to the best point of the claim, not to any
STAY, ANEW = 0.4, 2.0  # this part of the trials only draws so many coordinates anew
STEPS = (0.2, 1e-5)  # of the gradient, per coordinate, first move to last

Slope = Callable[[np.ndarray, np.ndarray], np.ndarray]


def moves_of(family: Family) -> int:
    bounds = any(c.relation == "<=" for c in family.claims)
    return max(FEWEST, round(MOVES * family.share**0.25)) if bounds else FEWEST


def slope(family: Family) -> Slope | None:
    """(points [chunk, size], claim of each [chunk]) -> gradients of its margin; or None.

    Only bounds have one: an identity's margin is rounding error, its gradient given as 0.
    """
    bounds = [c.relation == "<=" for c in family.claims]
    if not family.smooth or not any(bounds):
        return None

    def margin(u: Array, claim: Array) -> Array:
        instance = family.decode(u)
        claims = [c for c, bound in zip(family.claims, bounds, strict=True) if bound]
        found = jnp.stack([c.margin(c.sides(instance))[0] for c in claims])
        place = np.cumsum(bounds) - 1  # of a claim among the bounds
        return jnp.where(jnp.asarray(bounds)[claim], found[jnp.asarray(place)[claim]], 0)

    with jax.enable_x64(True):
        chunk = chunk_of(family)
        points = jax.ShapeDtypeStruct((chunk, family.size), jnp.float64)
        claims = jax.ShapeDtypeStruct((chunk,), jnp.int64)
        program = jax.jit(jax.vmap(jax.grad(margin))).lower(points, claims).compile()

    def run(points: np.ndarray, claims: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.nan_to_num(jax.device_get(program(jnp.asarray(points), jnp.asarray(claims))))

    return run


class _Population:
    """The points of all claims of a family in one chunk; point i belongs to claim owner[i]."""

    def __init__(
        self, family: Family, rng: np.random.Generator, start: Sequence[np.ndarray]
    ) -> None:
        """start: the first point of every claim, or nothing; known extremes follow, for each."""
        self.rng, self.count = rng, len(family.claims)
        chunk = chunk_of(family)
        self.owner = np.arange(chunk) % self.count
        self.points = rng.random((chunk, family.size))
        if start:
            self.points[: self.count] = start
        if family.known is not None:
            known = np.repeat(family.known(), self.count, 0)
            self.points[self.count : self.count + len(known)] = known
        self.margin = np.full(chunk, np.inf)

    def best(self, claim: int) -> int:
        """The point where the claim's margin is smallest."""
        return int(np.argmin(np.where(self.owner == claim, self.margin, np.inf)))

    def descend(self, gradient: np.ndarray, step: float) -> np.ndarray:
        top = np.abs(gradient).max(1, keepdims=True)
        return self.points - step * gradient / np.where(top > 0, top, 1)

    def evolve(self) -> np.ndarray:
        chunk, size = self.points.shape
        # partners of the same claim: its points are count apart
        members = -(-(chunk - self.owner) // self.count)
        a, b, c = (
            self.points[self.owner + self.count * self.rng.integers(0, members)] for _ in range(3)
        )
        best = [self.best(claim) for claim in range(self.count)]
        a = np.where(self.rng.random((chunk, 1)) < GREED, self.points[best][self.owner], a)
        trial = a + WEIGHT * (b - c)
        # some coordinates anew: discrete choices are lost once the population agrees on them
        stay = self.rng.random((chunk, 1)) < STAY
        trial = np.where(stay, self.rng.random((chunk, size)), trial)
        changed = self.rng.random((chunk, size)) < np.where(stay, ANEW / size, CROSSOVER)
        return np.where(changed, trial, self.points)

    def take(self, trial: np.ndarray, found: Evaluated) -> None:
        """Move where that is better; vacuous instances are of no interest."""
        rows = np.arange(len(trial))
        margin = found.margin[rows, self.owner]
        margin = np.where(found.vacuous[rows, self.owner], np.inf, margin)
        better = margin < self.margin
        self.points = np.where(better[:, None], trial, self.points)
        self.margin = np.where(better, margin, self.margin)


def search(
    families: Sequence[Family],
    programs: Sequence[Program],
    slopes: Sequence[Slope | None],
    key: Array,
    start: Check | None = None,
) -> Attack:
    """Attack every claim of every family.

    programs: of :func:`theory.engine.sweep.compiled`; slopes: of :func:`slope`; start: the outcome
    of sampling the same families, whose worst instances the search then begins with.
    """
    worst = iter(start.claims if start else ())
    attacked: list[ClaimAttack] = []
    evaluations = 0
    for i, (family, program, gradient) in enumerate(zip(families, programs, slopes, strict=True)):
        moves = moves_of(family)
        begin = [c.where.point for c in itertools.islice(worst, len(family.claims))]
        population = _Population(family, generator(key, i), begin)
        population.take(population.points, program(population.points))
        for move, step in enumerate(np.geomspace(*STEPS, moves)):
            if gradient is not None and move % PERIOD == 0:
                trial = population.descend(gradient(population.points, population.owner), step)
            else:
                trial = population.evolve()
            trial = np.clip(trial, 0, 1)
            population.take(trial, program(trial))
        evaluations += (moves + 1) * len(population.points)
        last = program(population.points)
        for c, claim in enumerate(family.claims):
            best = population.best(c)
            where = last.at(best, c, population.points[best])
            attacked.append(
                ClaimAttack(
                    claim.name,
                    claim.relation,
                    float(population.margin[best]),
                    where.left / where.right
                    if claim.relation == "<=" and where.right > 0
                    else None,
                    where,
                )
            )
    return Attack(tuple(attacked), evaluations)
