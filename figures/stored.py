"""Every figure of the repository, from the records in it: ``python -m figures``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure

from experiments.findings.catalogue import FINDINGS, judged
from experiments.findings.types import LOG, STORED, Row, chains, overall, records, summary
from figures import claims
from figures.manifest import CHAINS, DRAWINGS, SUMMARIES, THEORY, jobs
from theory.engine import report

SCALE = "log"
CLAIMS = "claims"  # the figure of what others claim, and the study that most of it is of
OTHERS = tuple(f for f in FINDINGS if f.key.startswith("C-"))
THEORY_FILE = STORED / "theory.json.gz"


@dataclass(frozen=True)
class Sheet:
    """One figure to draw: its kind, the study it is of, and its name in that study's folder;
    ``records``: the file it is drawn from, which may be missing."""

    kind: str
    study: str
    name: str
    records: Path
    draw: Callable[[], Figure | None]

    @property
    def missing(self) -> bool:
        return not self.records.is_file()


def sheets(kinds: Collection[str] = ()) -> Iterator[Sheet]:
    """All figures of these kinds (default: all); those whose records are missing, too."""
    for kept in SUMMARIES:
        if kinds and kept.drawing not in kinds:
            continue
        file = STORED / kept.stored
        if not file.is_file():
            yield Sheet(kept.drawing, kept.study, kept.drawing, file, lambda: None)
            continue
        found = summary(kept.stored.split(".")[0])
        for job in jobs(found, (kept.drawing,), kept.models or found.models, (SCALE,)):
            yield Sheet(
                kept.drawing,
                kept.study,
                job.filename("").rstrip("."),
                file,
                lambda job=job, found=found: job.drawing.draw(found, job.model, job.scale),  # type: ignore[misc]
            )
    for name, drawing in CHAINS.items():
        if not kinds or name in kinds:
            file = STORED / f"{drawing.study}.jsonl.gz"
            yield Sheet(
                name,
                drawing.study,
                name,
                file,
                lambda d=drawing: d.draw(chains(d.study, LOG)),  # type: ignore[misc]
            )
    if not kinds or CLAIMS in kinds:
        file = STORED / f"{CLAIMS}.jsonl.gz"
        yield Sheet(
            CLAIMS, CLAIMS, CLAIMS, file, lambda: claims.draw([(f, _rows()[f.key]) for f in OTHERS])
        )
    for name, (_, draw) in THEORY.items():
        if not kinds or name in kinds:
            yield Sheet(
                name,
                "theory",
                name,
                THEORY_FILE,
                lambda draw=draw: draw(json.loads(gzip.decompress(THEORY_FILE.read_bytes()))),  # type: ignore[misc]
            )


def manifest() -> str:
    """Of every figure of the repository what is behind it, as Markdown."""
    lines = [
        "# What is behind each figure",
        "",
        "Made by `python -m figures`, with the figures. A summary is what `python -m experiments "
        "report FOLDER --json` printed of records too large to be kept; it names no commit.",
        "",
    ]
    head = ("figure", "study", "records", "commit", "device", "statistic", "verdict")
    rows = []
    for sheet in sheets():
        study = f"`{sheet.study}`"
        if sheet.missing:
            rows.append((sheet.name, study, "none yet", "", "", "", "not run"))
            continue
        name = f"{sheet.study}/{sheet.name}"
        rows.append((name, study, sheet.records.name, *_provenance(sheet), *_judged(sheet)))
    return "\n".join([*lines, *report.table(head, rows)]) + "\n"


def _provenance(sheet: Sheet) -> tuple[str, str]:
    """Commits and devices of a study's records."""
    if not sheet.records.name.endswith(".jsonl.gz"):
        return "–", "–"
    held = records(sheet.records.name.partition(".")[0])
    commits = dict.fromkeys(r["versions"].get("commit", "unknown")[:10] for r in held)
    return ", ".join(commits), ", ".join(dict.fromkeys(r["device"] for r in held))


@cache
def _rows() -> dict[str, list[Row]]:
    """Of every finding, all judged together."""
    return {finding.key: rows for finding, rows in judged()}


def _judged(sheet: Sheet) -> tuple[str, str]:
    """What the findings that a figure shows test, and their verdicts."""
    name = f"{sheet.study}/{sheet.name}"
    mine = OTHERS if sheet.kind == CLAIMS else [f for f in FINDINGS if f.figure == name]
    found = [(f.key, _rows()[f.key]) for f in mine]
    tested = dict.fromkeys(row.tested for _, rows in found for row in rows)
    told = "; ".join(tested) or _shows(sheet.kind)
    return told, "; ".join(f"{key} {overall(rows)}" for key, rows in found) or "–"


def _shows(kind: str) -> str:
    if kind in DRAWINGS:
        return DRAWINGS[kind].shows
    return CHAINS[kind].shows if kind in CHAINS else THEORY[kind][0]
