"""FINDINGS.md: every finding with its verdicts.

``--check`` compares and writes nothing: exit code 1 where the file says something else than the
records do. ``--store FOLDER ...`` first takes in the records of these studies' folders, condensed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.analysis.chains import LEVEL
from experiments.findings import granularity, mixed, real, rotation, stages
from experiments.findings.catalogue import judged
from experiments.findings.granularity import splits
from experiments.findings.sharing import formats
from experiments.findings.types import (
    ABSENT,
    FALSE,
    LOG,
    STORED,
    Finding,
    Row,
    by_model,
    chains,
    overall,
    summary,
)
from experiments.records import load
from experiments.records.condense import store
from experiments.report.markdown import estimate, table
from experiments.summary import CLAIMS, FAILS, HOLDS, LOSS, Choice
from perturb.files import write_atomic

ALONE = "°"  # a verdict that is not among those that stand together
FILE = STORED.parents[1] / "FINDINGS.md"
HEAD = """\
# What holds, of the paper and of what others claim

Each finding is tested on models that anyone can train here in minutes, over several trainings. A
row holds where the whole 95 % interval over trainings (and calibration draws) is above the value
in brackets, fails where it is below, and is undecided else; a finding "holds partly" on a model
where its rows differ. These models are small and the paper's are not: what fails here may hold
there, and the mechanism is the same code. A(Q→P) = M(Q then P) − M(P then Q). A published model
was trained once: verdicts on it (R-1 to R-5) speak of it alone, over test examples and calibration
draws, of which there must be two, unless the methods look at no data.

This file is made from the stored records by `python -m experiments.findings`.
"""

OTHER_THAN_REPORTED = """\
What differs from theirs: a model far smaller, whose weights were rounded to 4 bits once before;
short windows of another text than WikiText-2; groups of weights to a scale, and no activations
rounded."""


def number(row: Row) -> str:
    """The value with its interval, and what it must be above."""
    known = row.above and row.value.value is not None
    return estimate(row.value, "+.3g") + (f" ({row.above:g})" if known else "")


def section(finding: Finding, rows: Sequence[Row]) -> list[str]:
    told = "; ".join(f"{model}: {said}" for model, said in by_model(rows).items()) or ABSENT
    lines = [
        f"## {finding.key} · {finding.title}",
        "",
        f"**Claim** ({finding.source}): {finding.claim}  ",
        f"**Reported**: {finding.reported}.  ",
        f"**Here**: {told}.",
        "",
    ]
    if not rows:
        studies = ", ".join(f"`{s}`" for s in finding.studies)
        return [*lines, f"No records yet: run {studies}.", ""]
    body = [
        (
            r.model,
            r.protocol or "–",
            r.tested,
            number(r),
            f"{r.seeds} × {r.draws}",
            r.verdict + (f" {ALONE}" if r.alone else ""),
        )
        for r in rows
    ]
    head = ("model", "protocol", "tested", "value", "trainings × draws", "verdict")
    if finding.figure:
        lines += [f"![{finding.title}](figures/drawn/{finding.figure}.png)", ""]
    return [*lines, *table(head, body, len(head)), ""]


def protocols() -> list[str]:
    """What becomes of the first finding's verdicts under other protocols, each changed alone."""
    found: list[Choice] = [
        c for name in ("choices", "conditions") for c in summary(name).choices if c.scale == "log"
    ]
    body = [
        (
            c.model,
            f"{c.setting} = {c.value} (usually {c.usual})",
            *(_change(*c.verdicts[claim]) if claim in c.verdicts else "–" for claim in CLAIMS),
        )
        for c in found
    ]
    return [
        "Under other protocols, each changed alone (what the usual one says → what this says, "
        "where they differ; 5 trainings, M = −NLL):",
        "",
        *table(("model", "changed", *CLAIMS), body, 2 + len(CLAIMS)),
        "",
    ]


def _change(usual: str, other: str) -> str:
    return other if usual == other else f"{usual} → **{other}**"


def parts() -> list[str]:
    """A of pruning single weights, split."""
    every = [s for held in chains(granularity.STUDY, LOG) for s in splits(held)]
    if not every:
        return []
    body = [
        (s.pruner, s.grid, *(f"{v:.2g}" for v in (s.measured, s.ownership, s.interference, s.rest)))
        for s in every
    ]
    head = ("pruned", "grid", "A", "ownership", "interference", "rest")
    return [
        "What A is made of where single weights are pruned, means of absolute values over widths "
        "and trainings in nats: each weight's owner's error alone (Theorem 1), what the layers' "
        "measured errors add (interference), and what the outputs add to the layers' errors:",
        "",
        *table(head, body, 2),
        "",
    ]


def two_formats() -> list[str]:
    """What a comparison of different formats would say."""
    found = formats()
    if not found:
        return []
    body = [
        (told, q, f"{bare:+.3f}", f"{one:.2f}× and {two:.2f}×", f"{same:+.3f}")
        for told, q, bare, one, two, same in found
    ]
    return [
        "Factors of a rounded matrix lie on no grid. Left so, quantizing first is compared with a "
        "model that is stored in more bits; quantized again, in the same:",
        "",
        *table(("method", "quantizer", "A, left so", "stored", "A, in one format"), body, 2),
        "",
    ]


def same_blocks() -> list[str]:
    """A rotation's control."""
    found = rotation.control()
    if found is None:
        return []
    told = f"{found:.1g} nats"
    return [f"Control: what removing a block costs is the same after rotating to {told}.", ""]


def at_stake() -> list[str]:
    lines = []
    for found in stages.levels():
        told = f" (a usable model loses {LOSS:g} at most)" if found.loss > LOSS else ""
        lines += [
            f"All {found.compressors} compressors together cost {found.loss:.2g} nats on "
            f"{found.model}{told}; sorting them loses {found.regret:.0%} of what lies between the "
            "worst order and the best.",
            "",
        ]
    return lines


def one_order() -> list[str]:
    """The control of orders of allocation."""
    found = list(mixed.controls())
    if not found:
        return []
    told = ", ".join(f"{value:.2g} nats on {model}" for model, value in found)
    return [
        f"Control: with RTN, which updates no weights, the two orders differ by {told}.",
        "",
    ]


def of_published_models() -> list[str]:
    """Their cells beside reported ones, what each method alone costs them, and the control."""
    lines = []
    beside = [
        (held.model, cell.what, cell.said, f"{one:.2f}, {two:.2f}", estimate(less, "+.3g"))
        for held, cell, one, two, less in real.beside_reported()
    ]
    if beside:
        head = ("model", "chains", "reported, perplexity", "here, perplexity", "difference")
        lines += ["**Beside reported numbers** (of orders the difference is A(Q→P)):", ""]
        lines += [*table(head, beside, 5), "", OTHER_THAN_REPORTED, ""]
    for model, alone in real.costs().items():
        told = "; ".join(f"{name} {cost:.2g}" for name, cost in alone.items())
        lines += [f"What each method alone costs {model}, nats: {told}.", ""]
    for model, zero in real.control().items():
        lines += [
            f"Control: at 16 bits |A| on {model} is at most {zero:.1g} nats: a smaller A is no "
            "order's.",
            "",
        ]
    return lines


BESIDE: dict[str, Callable[[], list[str]]] = {  # what stands below a finding's table, by its key
    "F-A": protocols,
    "T-D": parts,
    "F-C": same_blocks,
    "F-F": at_stake,
    "F-H": two_formats,
    "F-I": one_order,
    "R-1": of_published_models,
}


def by_chance(every: Sequence[Row]) -> list[str]:
    """What is left of the verdicts, each judged by itself, where all are judged together."""
    rows = [row for row in every if row.test]
    made = (1 - LEVEL) / 2 * len(rows)
    told = []
    for said in (HOLDS, FAILS):
        one = sum(row.verdict == said for row in rows)
        two = sum(row.stands == said for row in rows)
        told.append(f"{one} {_verb(said, one)}, of which {two} stand together")
    return [
        f"Each of the {len(rows)} rows that can have a verdict is judged by itself: were every "
        f"claim exactly on its line, {made:.0f} would hold and {made:.0f} fail by chance. Judged "
        f"together (Benjamini-Hochberg: at most {FALSE:.0%} of what is left is false) fewer stand: "
        f"{'; '.join(told)}. The others are marked {ALONE}, and no finding rests on them.",
        "",
    ]


def _verb(said: str, count: int) -> str:
    return said if count == 1 else said.removesuffix("s")


def document() -> str:
    """All of FINDINGS.md."""
    every = judged()
    models = list(dict.fromkeys(row.model for _, rows in every for row in rows))
    said = {f.key: by_model(rows) for f, rows in every}
    lines = [HEAD]
    body = [
        (
            f"[{f.key}](#{_anchor(f)})",
            f.title,
            *(said[f.key].get(model, "") for model in models),
            f"**{overall(rows)}**",
        )
        for f, rows in every
    ]
    lines += [*table(("", "finding", *models, "all"), body, 3 + len(models)), ""]
    lines += by_chance([row for _, rows in every for row in rows])
    for finding, rows in every:
        lines += section(finding, rows)
        if finding.key in BESIDE:
            lines += BESIDE[finding.key]()
    return "\n".join(lines).rstrip() + "\n"


def _anchor(finding: Finding) -> str:
    """As GitHub makes it of the heading."""
    text = f"{finding.key} · {finding.title}".lower()
    return "".join(c for c in text.replace(" ", "-") if c.isalnum() or c in "-_")


def main(argv: Sequence[str]) -> int:
    """Write the file anew; with ``--check`` only say whether it is what the records say."""
    check = [*argv] == ["--check"]
    folders = [Path(text) for text in argv[1:]] if argv[:1] == ["--store"] else []
    if argv and not check and not folders:
        print(
            f"error: unknown option {' '.join(argv)}; there are --check and --store FOLDER ...",
            file=sys.stderr,
        )
        return 2
    for folder in folders:
        file = folder / "records.jsonl"
        if not file.is_file():
            print(f"error: no records at {file}: run the study first", file=sys.stderr)
            return 2
        store(load(file), STORED / f"{folder.name}.jsonl.gz")
    made = document()
    same = FILE.is_file() and FILE.read_text(encoding="utf-8") == made
    if check and not same:
        print("FINDINGS.md is not what the records say: run python -m experiments.findings")
    elif not check:
        write_atomic(FILE, made)
    return int(check and not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
