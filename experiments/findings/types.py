"""A finding: a claim, what was reported of it, and what our records say, row by row."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from experiments.analysis import summarize
from experiments.analysis.chains import Chains, chains_of
from experiments.analysis.replicates import discoveries
from experiments.analysis.rows import Rows
from experiments.records import Record, load
from experiments.summary import (
    FAILS,
    HOLDS,
    NO_VERDICT,
    Estimate,
    Summary,
    short_model,
    verdict,
)
from perturb.measure import ranks

STORED = Path(__file__).parents[2] / "figures" / "records"
PARTLY, ABSENT = "holds partly", "not run"
ON_THE_GRID = ("embedded-all", "larger", "fashion")  # summaries of studies on the grid of embedded
FALSE = 0.05  # rate of false verdicts among those that stand together
LOG = "neg_nll"  # the measure of all findings about chains


@dataclass(frozen=True)
class Row:
    """One test of a claim: it holds where the whole interval over replicates is above ``above``.

    protocol: what of the setting is not the usual; tested: what ``value`` is, in words with its
    unit; seeds, draws: how many trainings, and calibration draws, it is the mean over; published:
    a model that was trained once and for all, of which alone the verdict speaks; alone: whether
    the verdict does not stand where all are judged together (:func:`together`).
    """

    model: str
    protocol: str
    tested: str
    value: Estimate
    above: float
    seeds: int
    draws: int = 1
    published: bool = False
    alone: bool = False

    @property
    def verdict(self) -> str:
        return verdict(self.value, self.above, self._replicates)

    @property
    def stands(self) -> str:
        """The verdict that counts beside others."""
        return NO_VERDICT if self.alone else self.verdict

    @property
    def test(self) -> bool:
        """Whether there could be a verdict."""
        return self.value.low is not None and self._replicates > 1

    @property
    def p(self) -> float:
        """Of the test that the value is ``above``; nan where there can be no verdict."""
        return self.value.p(self.above) if self.test else np.nan

    @property
    def _replicates(self) -> int:
        return 2 if self.published else self.seeds


@dataclass(frozen=True)
class Finding:
    """A claim, where it stands, and its tests.

    key: as of the paper's figures (F-A and so on), or that of another's claim; studies: those that
    make the records; figure: the file in figures/drawn that shows it. rows: computed from these.
    """

    key: str
    title: str
    claim: str
    source: str
    reported: str
    studies: tuple[str, ...]
    rows: Callable[[], Sequence[Row]] = field(compare=False)
    figure: str = ""


def overall(rows: Sequence[Row]) -> str:
    """Of several tests: what all say, "holds partly" where they differ; undecided rows say
    nothing, where others do."""
    said = {row.stands for row in rows} - {NO_VERDICT}
    if not rows:
        return ABSENT
    if said == {HOLDS}:
        return HOLDS if all(row.stands == HOLDS for row in rows) else PARTLY
    return FAILS if said == {FAILS} else PARTLY if said else NO_VERDICT


def together(rows: Sequence[Row]) -> list[Row]:
    """The rows judged together: of the verdicts that stand at most 5 % are chance's (Benjamini &
    Hochberg), the others are said to be alone. ValueError where a verdict has no p-value."""
    p = np.array([row.p for row in rows])
    decided = [row.verdict != NO_VERDICT for row in rows]
    for row, lacks in zip(rows, np.isnan(p) & np.array(decided, bool), strict=True):
        if lacks:
            raise ValueError(
                f"{row.model}, {row.tested}: an interval without its standard error; make the "
                "summary anew by python -m experiments report FOLDER --json"
            )
    stand = discoveries(p, FALSE)
    return [replace(r, alone=d and not s) for r, d, s in zip(rows, decided, stand, strict=True)]


def by_model(rows: Sequence[Row]) -> dict[str, str]:
    """The overall verdict on each model."""
    models = dict.fromkeys(row.model for row in rows)
    return {m: overall([row for row in rows if row.model == m]) for m in models}


# --------------------------------------------------------------------------- stored records


@cache
def records(study: str) -> tuple[Record, ...]:
    """The condensed records of a study, empty if there are none."""
    path = STORED / f"{study}.jsonl.gz"
    return tuple(load(path)) if path.is_file() else ()


@cache
def chains(study: str, measure: str) -> tuple[Chains, ...]:
    """Of every model of a stored study its chains."""
    held = records(study)
    return tuple(chains_of(held, measure)) if held else ()


@cache
def summary(name: str) -> Summary:
    """A stored summary, or that of a study's condensed records."""
    path = STORED / f"{name}.json.gz"
    if path.is_file():
        return Summary.from_json(gzip.decompress(path.read_bytes()).decode())
    return summarize(records(name))


# ------------------------------------------------------------------------------------ rows


def row(
    chains: Chains, protocol: str, tested: str, values: Estimate | np.ndarray, above: float = 0.0
) -> Row:
    """A row of one model; values: an estimate, or a statistic ``[runs, 1 + B]``."""
    found = values if isinstance(values, Estimate) else chains.over(values)
    seeds, draws = (len({run[i] for run in chains.ids}) for i in (0, 1))
    told = ", ".join(part for part in (chains.policy, protocol) if part)
    return Row(short_model(chains.model), told, tested, found, above, seeds, draws)


def of_summary(
    found: Summary, model: str, protocol: str, tested: str, value: Estimate, above: float = 0.0
) -> Row:
    """A row of what a summary says of one of its models."""
    seeds, draws = len(found.seeds), len(found.draws)
    return Row(short_model(model), protocol, tested, value, above, seeds, draws)


def rows_of_ranks(values: Rows) -> Rows:
    """Kendall's tau-b of ``values [runs, 1 + B, n]`` with the order 0..n-1: ``[runs, 1 + B]``."""
    return ranks.kendall_tau_b(np.arange(values.shape[-1]), values)
