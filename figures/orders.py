"""All orders of many methods: what each costs, against how far it is from the one sorted by
intensity; and pruning in two parts around a quantizer."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.analysis.chains import Chain, Chains
from experiments.findings import stages
from figures import sheet, style


def draw(models: tuple[Chains, ...]) -> Figure:
    """One model: all orders of all methods, and the share of orders that sorting beats, by how many
    methods there are."""
    held = models[0]
    names = stages.five(held)
    with style.look():
        share = held.over(stages.beaten(held, names), 0, 1)
        figure, axes = sheet.sheet(
            2,
            f"{sheet.name(held)}: of all {len(stages.orders(names))} orders of {len(names)} "
            f"methods the one sorted by intensity beats {share.value or 0:.0%}",
            f"M = −NLL in nats, mean of {sheet.runs(held)}. Sorted: by what each method alone "
            "costs in that training, the weakest first.",
            f"Left: each grey point an order; black: the mean at a distance. Right: bars are "
            f"{held.level:.0%} intervals; sorting at random beats a half.",
            width=4.1,
            height=3.2,
        )
        _orders(axes[0], held, names)
        _sizes(axes[1], held, len(names))
    return figure


def inversions(order: Chain, best: Chain) -> int:
    """Pairs that stand the other way round."""
    place = {s: i for i, s in enumerate(best)}
    return sum(place[a] > place[b] for a, b in itertools.combinations(order, 2))


def _orders(ax: Axes, held: Chains, names: list[str]) -> None:
    every = stages.orders(names)
    dense = held.rows[()][:, 0]
    best = stages.sorted_chains(held, names)
    distance = np.array([[inversions(c, b) for b in best] for c in every])  # [orders, runs]
    loss = np.array([dense - held.rows[c][:, 0] for c in every])
    shift = np.random.default_rng(0).uniform(-0.25, 0.25, distance.shape)
    shown = loss - loss.mean(0) + loss.mean()  # trainings differ in level: not what is asked
    ax.plot((distance + shift).ravel(), shown.ravel(), ".", color=style.RULE, ms=3, alpha=0.6)
    at = np.unique(distance)
    mean = [np.mean([loss[distance[:, r] == k, r].mean() for r in range(len(best))]) for k in at]
    ax.plot(at, mean, "o-", color=style.INK, ms=4, lw=1.2)
    ax.set_xlabel("pairs that stand the other way than sorted")
    ax.set_ylabel("loss, nats (each training centred)")
    ax.set_title(f"all orders of {len(names)}")


def _sizes(ax: Axes, held: Chains, most: int) -> None:
    ax.axhline(0.5, color=style.RULE, lw=1)
    for size in range(2, most + 1):
        sets = stages.sets(held, size)
        each = [held.over(stages.beaten(held, s), 0, 1).value or 0.0 for s in sets]
        spread = np.linspace(-0.15, 0.15, len(each)) if len(each) > 1 else [0.0]
        ax.plot(size + np.array(spread), each, ".", color=style.MUTED, ms=4)
        pooled = held.over(stages.pooled(stages.beaten(held, s) for s in sets), 0, 1)
        sheet.interval(ax, size, pooled, style.QUANTIZE_FIRST, 2.5)
        ax.plot(size, pooled.value or 0.0, "o", color=style.QUANTIZE_FIRST, ms=6)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set_xticks(range(2, most + 1))
    ax.set_xlabel("methods")
    ax.set_ylabel("other orders that sorting beats")
    ax.set_title("each set of methods (grey), and all sets")
