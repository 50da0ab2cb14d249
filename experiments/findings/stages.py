"""F-F: more than two stages. Is the order sorted by intensity the best, and does a pair's better
order stay so beside other stages?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.analysis.chains import Chain, Chains
from experiments.analysis.rows import Rows
from experiments.findings.lora import is_lora
from experiments.findings.names import parts
from experiments.findings.types import LOG, Finding, Row, chains, row

STUDY = "multistage"


def five(held: Chains) -> list[str]:
    """The stages of the longest chains, each alone among the records."""
    longest = max(map(len, held.rows))
    return sorted(next(c for c in held.rows if len(c) == longest))


def compressors(held: Chains) -> list[str]:
    """Those that perturb the model: without adapters, which are trained and mend it."""
    return [s for s in five(held) if not is_lora(s)]


def sets(held: Chains, size: int, adapted: bool = False) -> list[tuple[str, ...]]:
    """Sets of compressors, or of some with adapters (``size`` in all); every order was run."""
    mine = compressors(held)
    if not adapted:
        return list(itertools.combinations(mine, size))
    rest = [s for s in five(held) if s not in mine]
    return [(*s, *rest) for s in itertools.combinations(mine, size - 1)] if rest else []


def sorted_chains(held: Chains, stages: Sequence[str]) -> list[Chain]:
    """Of every run the order by what each stage alone costs there, the weakest first."""
    alone = np.stack([held.rows[(s,)][:, 0] for s in stages], -1)  # [runs, stages]
    return [tuple(stages[i] for i in np.argsort(-costs, kind="stable")) for costs in alone]


def orders(stages: Sequence[str]) -> list[Chain]:
    return list(itertools.permutations(stages))


def _ranked(held: Chains, stages: Sequence[str]) -> tuple[Rows, Rows]:
    """All orders ``[orders, runs, 1 + B]``, and the one that is sorted in each run."""
    every = orders(stages)
    table = np.stack([held.rows[c] for c in every])
    chosen = np.array([every.index(c) for c in sorted_chains(held, stages)])
    return table, table[chosen, np.arange(table.shape[1])]


def beaten(held: Chains, stages: Sequence[str]) -> Rows:
    """The share of the other orders that the sorted one is better than ``[runs, 1 + B]``."""
    table, own = _ranked(held, stages)
    less = (table < own).sum(0) + 0.5 * ((table == own).sum(0) - 1)
    return np.asarray(less / (len(table) - 1))


def regret(held: Chains, stages: Sequence[str]) -> Rows:
    """What the sorted order loses to the best, over what the worst does ``[runs, 1 + B]``."""
    table, own = _ranked(held, stages)
    spread = table.max(0) - table.min(0)
    return np.asarray((table.max(0) - own) / np.where(spread > 0, spread, np.nan))


def pooled(values: Iterable[Rows]) -> Rows:
    return np.asarray(np.nanmean(np.stack(list(values)), 0))


def _sorting() -> Iterable[Row]:
    for held in chains(STUDY, LOG):
        for adapted, what in ((False, "compressors"), (True, "methods, adapters among them")):
            for size in range(2, len(five(held)) + 1):
                mine = sets(held, size, adapted)
                if mine:
                    share = pooled(beaten(held, stages) for stages in mine)
                    label = f"all orders of {size} {what}"
                    tested = "share of other orders that the sorted one beats"
                    yield row(held, label, tested, held.over(share, 0, 1), above=0.5)


def halves(held: Chains) -> Iterable[Row]:
    """Pruning in two parts around a quantizer against all of it before, and after."""
    for part, q, whole in held.having(_is_halved):
        for other, told in (((whole, q), "P→Q"), ((q, whole), "Q→P")):
            more = held.rows[(part, q, whole)] - held.rows[other]
            yield row(held, f"{whole}, {q}", f"P→Q→P less {told}, nats", more)


class Level(NamedTuple):
    """What is at stake between the orders of all compressors; loss: mean over them, nats; regret:
    what sorting loses of the span from the worst order to the best."""

    model: str
    compressors: int
    loss: float
    regret: float


def levels() -> list[Level]:
    found = []
    for held in chains(STUDY, LOG):
        mine = compressors(held)
        loss = [held.rows[()][:, 0] - held.rows[c][:, 0] for c in orders(mine)]
        lost = float(np.nanmean(regret(held, mine)[:, 0]))
        found.append(Level(held.model, len(mine), float(np.nanmean(loss)), lost))
    return found


def _is_halved(chain: Chain) -> bool:
    if len(chain) != 3:
        return False
    (first, a), _, (last, b) = map(parts, chain)
    return first == last and a != b


def kept(held: Chains) -> Rows:
    """Of pairs of stages side by side within longer chains: the share of contexts in which the
    order that is better alone is better there, by run."""
    same: list[Rows] = []
    for x, y in itertools.combinations(five(held), 2):
        alone = held.advantage(x, y)
        rest = [s for s in five(held) if s not in (x, y)]
        for before, behind in _contexts(rest):
            there = held.advantage(x, y, before, behind)
            product = np.sign(alone[:, :1]) * np.sign(there)
            same.append(np.where(product == 0, 0.5, product > 0))
    return pooled(same)


def _contexts(rest: Sequence[str]) -> Iterable[tuple[Chain, Chain]]:
    """What may stand before and behind a pair; not nothing at all."""
    for size in range(1, len(rest) + 1):
        for chosen in itertools.permutations(rest, size):
            for cut in range(size + 1):
                yield chosen[:cut], chosen[cut:]


def insertion() -> Iterable[Row]:
    for held in chains(STUDY, LOG):
        tested = "contexts in which a pair's better order stays the better"
        yield row(held, "five methods", tested, held.over(kept(held), 0, 1), above=0.5)


SORTED = Finding(
    key="F-F",
    title="More than two stages",
    claim="Sorted by intensity, the weakest first, is the best order of many methods; pruning in "
    "two parts around a quantizer follows the same rule.",
    source="Kim et al., finding 6 and their theorem on n methods",
    reported="the hypothesis holds of P→Q→P and of longer chains",
    studies=(STUDY,),
    rows=lambda: [*_sorting(), *(r for held in chains(STUDY, LOG) for r in halves(held))],
    figure="multistage/orders",
)
