"""Attacks: a search of the unit cube for the instance where a claim is nearest to failing.

A population of points a claim, each moved in turn by projected gradient steps on the relative
margin (normalised, so that flat and steep claims are treated alike; the step shrinks over the
rounds) and by differential evolution (Storn & Price 1997), which needs no gradient and crosses
the edges between bins, ranks and signs where gradients vanish. A point only ever moves to a
smaller margin. All claims of a family go through one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from theory.statement import Array, Attack, ClaimAttack, Family
from theory.sweep import Program, evaluate, place

POPULATION = 96  # points a claim
MOVES = 300
PERIOD = 4  # one gradient step in so many moves; the others are evolution
WEIGHT, CROSSOVER = 0.6, 0.7  # of differential evolution
STEPS = (0.2, 1e-5)  # of the gradient, per coordinate, first move to last


def _objective(family: Family, u: Array, claim: Array) -> Array:
    """The margin of one claim [] at u; vacuous instances are of no interest to a search."""
    instance = family.decode(u)
    found = [c.margin(c.sides(instance)) for c in family.claims]
    values = jnp.stack([jnp.where(vacuous, jnp.inf, margin) for margin, vacuous in found])
    value = values[claim]
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _run(family: Family, key: Array) -> tuple[Array, Array]:
    """Best point [claims, size] and margin [claims].

    One loop whose body meets the objective once (and its gradient once): what this costs is
    mostly compiling.
    """
    claims, size = len(family.claims), family.size
    index = jnp.arange(claims)

    def objective(u: Array, claim: Array) -> Array:
        return _objective(family, u, claim)

    value = jax.vmap(jax.vmap(objective, (0, None)))
    slope = jax.vmap(jax.vmap(jax.grad(objective), (0, None)))

    def descend(points: Array, step: Array, key: Array) -> Array:
        g = slope(points, index)
        g = jnp.where(jnp.isfinite(g), g, 0)
        top = jnp.max(jnp.abs(g), -1, keepdims=True)
        return points - step * g / jnp.where(top > 0, top, 1)

    def evolve(points: Array, step: Array, key: Array) -> Array:
        pick, cross, wild, jump = jax.random.split(key, 4)
        a, b, c = (
            points[:, jax.random.permutation(k, POPULATION)] for k in jax.random.split(pick, 3)
        )
        trial = a + WEIGHT * (b - c)
        trial = jnp.where(jax.random.uniform(cross, points.shape) < CROSSOVER, trial, points)
        # a few coordinates anew: discrete choices are otherwise lost once the population agrees
        fresh = jax.random.uniform(wild, points.shape)
        return jnp.where(jax.random.uniform(jump, points.shape) < 1 / (2 * size), fresh, trial)

    def move(state: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[Any, None]:
        points, best = state
        i, step, key = inputs
        if family.smooth:
            trial = jax.lax.cond(i % PERIOD == 1, descend, evolve, points, step, key)
        else:
            trial = evolve(points, step, key)
        trial = jnp.where(i == 0, points, jnp.clip(trial, 0, 1))
        found = value(trial, index)
        take = found < best
        return (jnp.where(take[..., None], trial, points), jnp.where(take, found, best)), None

    start, rest = jax.random.split(key)
    points = jax.random.uniform(start, (claims, POPULATION, size), jnp.float64)
    moves = _moves(family)
    inputs = (jnp.arange(moves), jnp.geomspace(*STEPS, moves), jax.random.split(rest, moves))
    nothing = jnp.full((claims, POPULATION), jnp.inf)
    (points, found), _ = jax.lax.scan(move, (points, nothing), inputs)
    best = jnp.argmin(found, 1)
    return (
        jnp.take_along_axis(points, best[:, None, None], 1)[:, 0],
        jnp.take_along_axis(found, best[:, None], 1)[:, 0],
    )


def _moves(family: Family) -> int:
    """Fewer for families whose instances are costly."""
    return max(40, round(MOVES * family.share))


def compiled(family: Family) -> Callable[[Array], Any]:
    """The whole search of a family: key data [2] -> best point [claims, size], margin [claims]."""
    with jax.enable_x64(True):
        data = jax.ShapeDtypeStruct((2,), jnp.uint32)
        run = jax.jit(lambda data: _run(family, jax.random.wrap_key_data(data)))
        return run.lower(data).compile()


def search(
    families: Sequence[Family],
    searches: Sequence[Callable[[Array], Any]],
    programs: Sequence[Program],
    n: int,
    key: Array,
) -> Attack:
    """Attack every claim of every family.

    searches: of :func:`compiled`; programs: of :func:`theory.sweep.compiled` for n instances,
    which say what is at the points that are found.
    """
    found: list[ClaimAttack] = []
    evaluations = 0
    for i, (family, run, program) in enumerate(zip(families, searches, programs, strict=True)):
        with jax.enable_x64(True):
            stream = jax.random.key_data(jax.random.fold_in(key, i))
            points, margins = jax.device_get(run(stream))
        evaluations += POPULATION * _moves(family) * len(family.claims)
        for c, claim in enumerate(family.claims):
            where = place(evaluate(family, program, n, points[c]), c)
            tightness = None
            if claim.relation == "<=" and where.right > 0:
                tightness = where.left / where.right
            found.append(
                ClaimAttack(
                    claim.name,
                    claim.relation,
                    claim.tolerance,
                    float(margins[c]),
                    tightness,
                    where,
                )
            )
    return Attack(tuple(found), evaluations)
