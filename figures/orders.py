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
    names, every = stages.compressors(held), stages.five(held)
    with style.look():
        share = held.over(stages.beaten(held, names), 0, 1)
        adapted = held.over(stages.beaten(held, every), 0, 1)
        also = (
            f"; with adapters ({len(stages.orders(every))} orders) {adapted.value or 0:.0%}"
            if len(every) > len(names)
            else ""
        )
        figure, axes = sheet.sheet(
            2,
            f"{sheet.name(held)}: of all {len(stages.orders(names))} orders of {len(names)} "
            f"compressors the one sorted by intensity beats {share.value or 0:.0%}{also}",
            f"M = −NLL in nats, mean of {sheet.runs(held)}. Sorted: by what each method alone "
            "costs in that training, the weakest first.",
            f"Left: each grey point an order; black: the mean at a distance. Right: bars are "
            f"{held.level:.0%} intervals, small points single sets; at random: a half.",
            width=4.1,
            height=3.2,
        )
        _orders(axes[0], held, names)
        _sizes(axes[1], held, len(every))
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
    for adapted, colour in ((False, style.QUANTIZE_FIRST), (True, style.PRUNE_FIRST)):
        for size in range(2, most + 1):
            sets = stages.sets(held, size, adapted)
            if not sets:
                continue
            at = size + (0.18 if adapted else -0.18)
            each = [held.over(stages.beaten(held, s), 0, 1).value or 0.0 for s in sets]
            spread = np.linspace(-0.1, 0.1, len(each)) if len(each) > 1 else np.zeros(1)
            ax.plot(at + spread, each, ".", color=colour, ms=3.5, alpha=0.4)
            pooled = held.over(stages.pooled(stages.beaten(held, s) for s in sets), 0, 1)
            sheet.interval(ax, at, pooled, colour, 2.5)
            ax.plot(at, pooled.value or 0.0, "o", color=colour, ms=6)
    ax.set_ylim(-0.02, 1.02)
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    ax.set_xticks(range(2, most + 1))
    ax.set_xlabel("methods")
    ax.set_ylabel("other orders that sorting beats")
    ax.set_title("blue: compressors; orange: with adapters")
