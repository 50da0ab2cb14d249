"""F-G: LoRA before, between and after a pruner and a quantizer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from experiments.analysis.chains import Chain, Chains
from experiments.analysis.rows import Rows
from experiments.findings.names import parts
from experiments.findings.types import LOG, Finding, Row, chains, row

STUDY = "lora"


def is_lora(stage: str) -> bool:
    return stage.startswith("lora")


def triples(held: Chains) -> list[tuple[str, str, str]]:
    """Pruner, quantizer and LoRA of which all orders were run."""
    found = held.having(lambda c: len(c) == 3 and is_lora(c[2]) and not _quantizes(c[0]))
    return [(p, q, adapt) for p, q, adapt in found]


def _quantizes(stage: str) -> bool:
    return parts(stage)[1] > 1


def _last() -> Iterable[Row]:
    """Adapters after both against the best of the other places, which is chosen on the mean."""
    for held in chains(STUDY, LOG):
        for p, q, adapt in triples(held):
            last = [(p, q, adapt), (q, p, adapt)]
            earlier = [
                c for one, two in ((p, q), (q, p)) for c in ((adapt, one, two), (one, adapt, two))
            ]
            more = held.rows[best(held, last)] - held.rows[best(held, earlier)]
            yield row(held, f"{p}, {q}", "LoRA last less LoRA anywhere earlier, nats", more)


def best(held: Chains, of: Iterable[Chain]) -> Chain:
    return max(of, key=lambda c: float(np.nanmean(held.rows[c][:, 0])))


def _kept() -> Iterable[Row]:
    """Does the order that is better without LoRA stay the better one with it behind?"""
    for held in chains(STUDY, LOG):
        values: list[Rows] = []
        for p, q, adapt in triples(held):
            without, behind = held.advantage(q, p), held.advantage(q, p, after=(adapt,))
            product = np.sign(without[:, :1]) * np.sign(behind)
            values.append(np.where(product == 0, 0.5, product > 0))
        tested = "pairs whose better order stays so with LoRA behind"
        yield row(held, "all pairs", tested, held.over(np.mean(values, 0), 0, 1), above=0.5)


def smaller() -> Iterable[Row]:
    """What of A is left once adapters have been trained behind both orders."""
    for held in chains(STUDY, LOG):
        less: list[Rows] = []
        for p, q, adapt in triples(held):
            a, b = held.advantage(q, p), held.advantage(q, p, after=(adapt,))
            less.append(a * np.sign(a[:, :1]) - b * np.sign(b[:, :1]))
        tested = "mean |A| without LoRA less that with LoRA behind, nats"
        yield row(held, "all pairs", tested, np.mean(less, 0))


ADAPTERS = Finding(
    key="F-G",
    title="LoRA around compression",
    claim="The better order of pruning and quantizing stays the better one with LoRA, and LoRA "
    "compensates best after both.",
    source="Kim et al., finding 7",
    reported="LoRA after quantizing compensates well; the hypothesis holds with it",
    studies=(STUDY,),
    rows=lambda: [*_kept(), *_last(), *smaller()],
    figure="lora/lora",
)
