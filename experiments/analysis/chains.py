"""Chains of any stages compared: how well each does, and one against another.

Where :mod:`.contrasts` knows a pruner, a quantizer and their grid, this knows nothing of what
stages are: a chain is the names of its stages in the order of application. A statistic is made of
chains' performances run by run (a training under a calibration draw) and on every bootstrap draw
of the test examples, and is judged over runs as everything else is (:mod:`.replicates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.analysis.checks import refuse_mixtures, same_examples
from experiments.analysis.replication import estimate_over
from experiments.analysis.rows import Rows, measure_rows
from experiments.analysis.variants import subjects
from experiments.records import Record, draw_of, latest
from experiments.summary import Estimate

Chain = tuple[str, ...]  # names of stages, the first applied first
REPLICATES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Chains:
    """Every chain's performance on one model, in one measure.

    rows: of a chain ``[runs, 1 + B]``, higher is better, nan in a run that lacks it; ids: seed and
    draw of each run; ratio: dense bits over stored bits; records: of a chain, those of its runs.
    """

    model: str
    policy: str
    kind: str
    measure: str
    ids: tuple[tuple[int, int], ...]
    rows: Mapping[Chain, Rows]
    ratio: Mapping[Chain, float]
    records: Mapping[Chain, tuple[Record, ...]]
    level: float = LEVEL

    def over(self, values: Rows, least: float = -np.inf, most: float = np.inf) -> Estimate:
        """The mean over runs of a statistic ``[runs, 1 + B]``, with its interval."""
        return estimate_over(values, self.ids, self.level, least, most)

    def loss(self, chain: Chain) -> Estimate:
        """What the chain costs: M(dense) - M(chain)."""
        return self.contrast((), chain)

    def contrast(self, first: Chain, second: Chain) -> Estimate:
        """M(first) - M(second)."""
        return self.over(self.rows[first] - self.rows[second])

    def advantage(self, first: str, second: str, before: Chain = (), after: Chain = ()) -> Rows:
        """A(first -> second) in a context ``[runs, 1 + B]``: above 0, ``first`` goes first."""
        one = self.rows[(*before, first, second, *after)]
        return one - self.rows[(*before, second, first, *after)]

    def having(self, wanted: Callable[[Chain], bool]) -> list[Chain]:
        """The chains of this kind, in the order of the records."""
        return [chain for chain in self.rows if wanted(chain)]


def chain_of(record: Record) -> Chain:
    """The names of a record's stages; () of the dense model."""
    name = record["label"].rpartition("/")[2]
    return () if not record["stages"] else tuple(name.split(">"))


def chains_of(
    records: Iterable[Record], measure: str, replicates: int = REPLICATES, seed: int = 0
) -> list[Chains]:
    """Of every subject (a model, with its policy where the records have several) that is measured
    by this, all its chains.

    measure: the name of one of :data:`experiments.summary.MEASURES`. Failed cells are passed over.
    """
    held = [r for r in latest(records).values() if r["status"] == "ok"]
    refuse_mixtures(held)
    held = same_examples(held, [])
    rows = measure_rows(held, replicates, seed)
    policies = _policies(held)
    found = []
    for (model, policy), mine in _grouped(held, policies).items():
        mine = [r for r in mine if measure in rows[r["cell"]]]
        if not mine:
            continue
        ids = tuple(sorted({(r["seed"], draw_of(r)) for r in mine}))
        of_chain: dict[Chain, dict[tuple[int, int], Record]] = {}
        for r in mine:
            of_chain.setdefault(chain_of(r), {})[(r["seed"], draw_of(r))] = r
        width = max(len(rows[r["cell"]][measure]) for r in mine)
        nothing = np.full(width, np.nan)
        found.append(
            Chains(
                model,
                policy,
                mine[0]["kind"],
                measure,
                ids,
                {
                    chain: np.stack(
                        [rows[by[i]["cell"]][measure] if i in by else nothing for i in ids]
                    )
                    for chain, by in of_chain.items()
                },
                {
                    chain: float(np.mean([r["ratio"] for r in by.values()]))
                    for chain, by in of_chain.items()
                },
                {chain: tuple(by.values()) for chain, by in of_chain.items()},
            )
        )
    return found


def _policies(records: Sequence[Record]) -> dict[str, str]:
    """Of every cell what sets its policy apart; a preparing stage is part of the chain here."""
    bare = [{**r, "stages": []} for r in records]
    return {cell: subject.policy for cell, subject in subjects(bare).items()}


def _grouped(
    records: Iterable[Record], policies: Mapping[str, str]
) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["model"], policies[record["cell"]]), []).append(record)
    return groups
