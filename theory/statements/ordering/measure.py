"""Theorem 4 put to real compressors: five methods on one layer, every order of every subset.

Two pruners (Magnitude, Wanda), two quantizers (RTN per row at two widths, scales refitted) and low
rank (truncated SVD of the current weight), blind to what came before but for the masks, on Gaussian
[16, 16] layers with correlated inputs. The loss of an order is the output error tr(dW H dW') of its
last weight; a method's intensity is its loss alone.

What becomes of formats: masks stay enforced whatever follows, so pruning before low rank gives up
the exact rank. Low rank after rounding leaves the grid (``grid`` is None then): such an order ends
in another format than its reverse, and its loss is not bought at the same price. Subsets with and
without low rank are therefore told apart. A second pruner keeps what is gone and counts it, so the
sparsity of two is the larger one's or more only if their scopes differ.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perturb import RTN, GridSpec, Magnitude, Wanda
from perturb.measure.errors import output_error
from perturb.types import Matrix, Moments
from theory.compressors import LowRank, compress, start
from theory.engine import instances
from theory.engine.statement import Finding
from theory.maths.orders import Order, contexts, orders
from theory.thresholds import AGREES, TIE

SIDE, TOKENS, INSTANCES = 16, 64, 128
NAMES = ("magnitude", "wanda", "rtn", "rtn", "low rank")
LOW_RANK = NAMES.index("low rank")
PRUNERS = (0, 1)
Method = Magnitude | Wanda | RTN | LowRank


def methods(draws: np.random.Generator) -> list[Method]:
    """Five methods with leaves [INSTANCES]: sparsities of 0.1 to 0.7, 2 to 6 bits, rank 6 to 15."""
    first = draws.integers(2, 7, INSTANCES)
    # the second width is another one, so that the two quantizers differ
    second = 2 + (first - 2 + draws.integers(1, 5, INSTANCES)) % 5
    a, b = (jnp.asarray(draws.uniform(0.1, 0.7, INSTANCES), jnp.float32) for _ in range(2))
    spec = GridSpec(per="row", convention="full")
    return [
        Magnitude(a, tie="index"),
        Wanda(b, tie="index"),
        RTN(jnp.asarray(first), spec),
        RTN(jnp.asarray(second), spec),
        LowRank(jnp.asarray(draws.integers(6, 16, INSTANCES))),
    ]


def layers(draws: np.random.Generator) -> tuple[Array, Moments]:
    """INSTANCES Gaussian layers and the moments of inputs that are mixed at random."""
    dense = draws.normal(size=(INSTANCES, SIDE, SIDE))
    mix = draws.normal(size=(INSTANCES, SIDE, SIDE)) / SIDE**0.5 + 0.5 * np.eye(SIDE)
    x = draws.normal(size=(INSTANCES, TOKENS, SIDE)) @ mix
    gram = np.swapaxes(x, 1, 2) @ x
    weight, scatter, count = (
        jnp.asarray(a, jnp.float32) for a in (dense, gram, np.full(INSTANCES, TOKENS))
    )
    return weight, Moments(scatter, count)


def losses(key: Array) -> dict[Order, np.ndarray]:
    """The loss [INSTANCES] of every order of every non-empty subset: all prefixes of all orders."""
    draws = instances.generator(key)  # by numpy: jax compiles its draws for every shape
    dense, inputs = layers(draws)
    chosen = methods(draws)

    @jax.jit
    def step(method: Method, matrix: Matrix, dense: Array, inputs: Moments) -> tuple[Matrix, Array]:
        done = jax.vmap(compress)(method, matrix, dense, inputs)
        # which grid the weights came from plays no part in what follows
        done = done._replace(grid=None, quantizer=None)
        return done, jax.vmap(output_error)(done.weight - dense, inputs)

    found: dict[Order, np.ndarray] = {}

    def grow(prefix: Order, matrix: Matrix) -> None:
        for i, method in enumerate(chosen):
            if i not in prefix:
                after, loss = step(method, matrix, dense, inputs)
                found[(*prefix, i)] = np.asarray(loss)
                grow((*prefix, i), after)

    grow((), jax.vmap(start)(dense))
    return found


def judge(loss: dict[Order, np.ndarray], subset: Order) -> dict[str, np.ndarray]:
    """How orderings of one subset fare, per instance [INSTANCES].

    For every strategy: "optimal" (ties with the best), "regret" (loss over the best's, less 1) and
    "rank" (fraction of the other orders that are strictly better); for the premise "pairs", the
    fraction of contexts where the weaker first is at least as good, and "everywhere", all of them.
    """
    n = len(subset)
    every = orders(n)
    table = np.stack([loss[tuple(subset[i] for i in order)] for order in every], 1)
    alone = np.stack([loss[(i,)] for i in subset], 1)  # [INSTANCES, n]
    weakest = np.argsort(alone, 1, kind="stable")
    pruner = np.isin(np.array(subset)[weakest], PRUNERS)
    pruned = np.take_along_axis(weakest, np.argsort(~pruner, 1, kind="stable"), 1)
    picks = {
        "sorted": _number(weakest)[:, None],
        "strongest first": _number(weakest[:, ::-1])[:, None],
        "prune first": _number(pruned)[:, None],
        "random": np.broadcast_to(np.arange(len(every)), table.shape),
    }
    best = table.min(1, keepdims=True)
    out: dict[str, Any] = {}
    for name, chosen in picks.items():
        mine = np.take_along_axis(table, chosen, 1)  # [INSTANCES, chosen]
        better = (table[:, None] < mine[..., None] * (1 - TIE)).sum(-1)
        out[f"{name}: optimal"] = np.mean(better == 0, 1)
        out[f"{name}: regret"] = np.mean(mine / best - 1, 1, dtype=np.float64)
        out[f"{name}: rank"] = np.mean(better / (len(every) - 1), 1)
    # methods by number of intensity, as the premise counts them
    named = np.take_along_axis(table, _number(weakest[:, np.array(every)]), 1).astype(np.float64)
    before, after = (
        named[:, [every.index(order) for order in pairs]]
        for pairs in zip(*contexts(every), strict=True)
    )
    agrees = after <= before + TIE * np.abs(before)
    return out | {"pairs": agrees.mean(1), "everywhere": agrees.all(1) * 1.0}


def _number(order: np.ndarray) -> np.ndarray:
    """Where permutations [..., n] stand in :func:`orders`: in lexicographic order."""
    n = order.shape[-1]
    later = np.triu(np.ones((n, n), bool), 1)
    smaller = ((order[..., None] > order[..., None, :]) & later).sum(-1)
    return smaller @ np.array([math.factorial(n - 1 - i) for i in range(n)])


STRATEGIES = ("sorted", "strongest first", "prune first", "random")
# the last, at n = 4, is two pruners and two quantizers
GROUPS = ("all", "with low rank", "without low rank")


def measure(key: Array) -> tuple[Finding, ...]:
    loss = losses(key)
    judged: dict[tuple[int, str], list[dict[str, np.ndarray]]] = {}
    for n in range(2, len(NAMES) + 1):
        for subset in itertools.combinations(range(len(NAMES)), n):
            one = judge(loss, subset)
            judged.setdefault((n, "all"), []).append(one)
            kind = "with low rank" if LOW_RANK in subset else "without low rank"
            judged.setdefault((n, kind), []).append(one)
    table = {
        where: {name: np.concatenate([one[name] for one in many]) for name in many[0]}
        for where, many in judged.items()
    }
    numbers: dict[str, float] = {}
    rows = []
    for (n, group), values in sorted(table.items(), key=lambda x: (x[0][0], GROUPS.index(x[0][1]))):
        for strategy in STRATEGIES:
            regret = values[f"{strategy}: regret"]
            rows.append(
                (
                    str(n),
                    group,
                    strategy,
                    f"{values[f'{strategy}: optimal'].mean():.1%}",
                    f"{regret.mean():.1%}",
                    f"{np.median(regret):.1%}",
                    f"{regret.max():.0%}",
                    f"{values[f'{strategy}: rank'].mean():.2f}",
                    f"{values['pairs'].mean():.1%}" if strategy == "sorted" else "",
                    f"{values['everywhere'].mean():.1%}" if strategy == "sorted" else "",
                )
            )
        if group == "all":
            numbers |= {
                f"n = {n}: sorted is optimal": float(values["sorted: optimal"].mean()),
                f"n = {n}: a random order is": float(values["random: optimal"].mean()),
                f"n = {n}: regret, sorted": float(values["sorted: regret"].mean()),
                f"n = {n}: regret, random": float(values["random: regret"].mean()),
                f"n = {n}: regret, prune first": float(values["prune first: regret"].mean()),
                f"n = {n}: pairs that agree": float(values["pairs"].mean()),
                f"n = {n}: premise holds": float(values["everywhere"].mean()),
            }
    every = {
        name: np.concatenate([table[n, "all"][name] for n in range(2, len(NAMES) + 1)])
        for name in table[2, "all"]
    }
    holds = every["everywhere"] > 0
    follows = bool((every["sorted: regret"][holds] <= 20 * TIE).all())
    more = np.concatenate([table[n, "all"]["everywhere"] for n in range(3, len(NAMES) + 1)])
    numbers["n >= 3: premise holds"] = float(more.mean())
    numbers["layers"] = float(INSTANCES)
    last = len(NAMES)
    return (
        Finding(
            "n methods: sorting by intensity is optimal",
            "false" if not follows else ("holds" if more.mean() > AGREES else "narrower"),
            f"sorted is {'' if follows else 'NOT '}optimal wherever the premise of the exchange "
            f"theorem holds, but of 3 to {last} real compressors it holds in {more.mean():.1%} of "
            f"cases (in single contexts: {numbers[f'n = {last}: pairs that agree']:.0%}). It is "
            f"optimal in {numbers['n = 2: sorted is optimal']:.0%} of pairs (random: "
            f"{numbers['n = 2: a random order is']:.0%}) and in "
            f"{numbers[f'n = {last}: sorted is optimal']:.1%} of {last} methods (random: "
            f"{numbers[f'n = {last}: a random order is']:.1%}), where it loses "
            f"{numbers[f'n = {last}: regret, sorted']:.0%} to the best order on average, a random "
            f"order {numbers[f'n = {last}: regret, random']:.0%}, pruning first "
            f"{numbers[f'n = {last}: regret, prune first']:.0%}",
            numbers,
            (
                "n",
                "methods",
                "order",
                "optimal",
                "mean regret",
                "median",
                "max",
                "better orders",
                "pairs agree",
                "premise holds",
            ),
            tuple(rows),
        ),
    )
