"""From records to findings: which order wins, by how much, and does the hypothesis hold.

For every model, pruner and quantizer, over the grid of sparsity x bits and for each measure of
performance M: the order advantage A(Q->P) with its interval, the gap C*_P - C_Q, how A follows the
gap (Kendall, Spearman), and how often the gap's sign is A's.

The quantization curve, C* and the rank correlations are those of single runs (a training under a
calibration draw), recomputed in every bootstrap replicate of the test examples (:mod:`.rows`). With
several runs a cell is the mean over them, and its interval one over trainings, draws and examples
(:mod:`.replicates`); of one run it says how sure one is of THIS trained model on other test
examples. The runs are kept beside it (``advantage_by_run``); several policies are compared apart.
Cells of plans other than one pruner with one quantizer are counted in ``notes``.

A model that is at chance before it is compressed cannot tell which order is better: its cells
are shown and in no total (:func:`.checks.at_chance`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from experiments.analysis.checks import at_chance, refuse_mixtures, same_examples
from experiments.analysis.choices import choices_of
from experiments.analysis.contrasts import Compared, compare
from experiments.analysis.rows import measure_rows
from experiments.analysis.totals import totals_of
from experiments.analysis.variants import Run, names_of, order_of, runs_of
from experiments.records import Record, draw_of, latest
from experiments.summary import MEASURES, Measure, Summary, measure_of

SHOWN = 2  # cells that a note names


def summarize(
    records: Iterable[Record],
    cells: Collection[str] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    bootstrap_seed: int = 0,
) -> Summary:
    """Analyse the records of one study; the same records give the same summary, bit for bit.

    cells: ids of the cells to cover, or a mapping of them to their labels; the others count
    nowhere (default: all). Missing and failed cells are left out and named in ``problems``.
    Raises ValueError when there is no record, records of several studies, or records of one model
    that no mean may pool (:func:`.checks.refuse_mixtures`).
    """
    every = latest(records)
    held = [record for cell, record in every.items() if cells is None or cell in cells]
    studies = sorted({record["study"] for record in held})
    if len(studies) != 1:
        raise ValueError(f"need the records of exactly one study, got {studies or 'none'}")
    refuse_mixtures(held)
    problems = _absent(cells, every.keys())
    failed = [record for record in held if record["status"] == "error"]
    problems += [f"{record['label']}: failed: {_short(record.get('error'))}" for record in failed]
    usable = same_examples([r for r in held if r["status"] == "ok"], problems)
    paired = [record for record in usable if order_of(record) is not None]
    rows = measure_rows(paired, replicates, bootstrap_seed)
    runs = runs_of(paired, rows, problems)
    named = {str(name): name for name in names_of(paired).values()}
    place = {name: i for i, name in enumerate(named)}  # settings in the order of the study
    lost = at_chance(runs, level)
    problems[:0] = [f"{subject.name}, {line}" for subject, lines in lost.items() for line in lines]
    compared: list[Compared] = []
    for subject, mine in runs.items():
        keys = [key for run in mine for key in run.variants if key.order in ("PQ", "QP")]
        pairs = {(named[str(key.pruner)], named[str(key.quantizer)]) for key in keys}
        for methods in sorted(pairs, key=lambda pair: [(m.name, place[str(m)]) for m in pair]):
            for one in _measures(mine):
                result = compare(subject, methods, one, mine, level, problems)
                if result.comparison.cells:
                    compared.append(result)
    chance = tuple(subject.name for subject in lost)
    return Summary(
        study=studies[0],
        records=len(held),
        ok=len(held) - len(failed),
        failed=len(failed),
        seeds=tuple(sorted({record["seed"] for record in held})),
        draws=tuple(sorted({draw_of(record) for record in held})),
        replicates=replicates,
        level=level,
        comparisons=tuple(result.comparison for result in compared),
        totals=tuple(totals_of(compared, chance, level)),
        problems=tuple(dict.fromkeys(problems)),
        at_chance=chance,
        notes=tuple(_others(usable)),
        choices=tuple(
            choices_of([c for c in compared if c.comparison.subject not in chance], level)
        ),
    )


def _absent(cells: Collection[str] | None, held: Collection[str]) -> list[str]:
    """A line for cells that were asked for and are not there."""
    wanted = dict(cells) if isinstance(cells, Mapping) else {cell: cell for cell in cells or ()}
    absent = sorted(wanted.keys() - held)
    told = wanted[absent[0]] if absent else ""
    return [f"{len(absent)} of {len(wanted)} cells not run yet: {told}"] if absent else []


def _short(error: object) -> str:
    return (str(error or "").strip().splitlines() or ["no message"])[0][:160]


def _measures(runs: Iterable[Run]) -> list[Measure]:
    """What these runs can be compared by: the known measures, then a person's own."""
    known = {name for run in runs for v in run.variants.values() for name in v.rows}
    return [
        measure_of(name) for name in (*MEASURES, *sorted(known - MEASURES.keys())) if name in known
    ]


def _others(records: Iterable[Record]) -> list[str]:
    """A line for what is measured, and is in no comparison of a pruner and a quantizer."""
    others = [record["label"] for record in records if order_of(record) is None]
    if not others:
        return []
    told = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    return [
        f"{len(others)} cells of other plans than one pruner with one quantizer are not in this "
        f"table: {told}"
    ]
