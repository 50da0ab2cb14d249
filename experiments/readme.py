"""The parts of the README that are made from records: ``python -m experiments.readme``.

``--check`` compares and writes nothing: exit code 1 where the README says something else.

Between ``<!-- NAME -->`` and ``<!-- /NAME -->`` stands what the records say, never what somebody
typed; a test compares the two.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.analysis import summarize
from experiments.findings.types import ON_THE_GRID
from experiments.records import load
from experiments.report import markdown
from experiments.report.advice import advice
from experiments.summary import PRUNE_FIRST, QUANTIZE_FIRST, Summary, measure_of
from perturb.files import write_atomic
from theory.engine import report

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
THEORY, MODELS = (ROOT / "figures" / "records" / f"theory{x}.json.gz" for x in ("", "-models"))
STORED = ROOT / "figures" / "records"
ENGINE = STORED / "engine.json"  # of python -m tests.benchmarks.engine
PHASES = ("train", "compile", "calibrate", "compress", "measure", "evaluate")
SOLVERS = STORED / "solvers.json"  # of python -m tests.benchmarks.solvers
CHECKPOINTS = STORED / "checkpoints.json"  # of python -m tests.benchmarks.checkpoints
SHOWN_SPARSITY = 0.7  # of the table of protocols: where they differ most


def protocols() -> str:
    """A of SparseGPT by protocol, at one sparsity, as Markdown."""
    summary = summarize(load(STORED / "protocols.jsonl.gz"))
    found: dict[tuple[str, int], dict[str, str]] = {}
    columns = [f"{q}, {rule}" for q in ("rtn", "gptq") for rule in ("refit", "snap", "release")]
    largest = dict.fromkeys(("refit", "snap", "release"), 0.0)
    for c in summary.comparisons:
        if not _is_log(c.measure):
            continue
        rule = next(r for r in largest if f"on_grid={r}" in c.pruner)
        for cell in c.cells:
            if cell.bits == markdown.CONTROL:
                largest[rule] = max(largest[rule], abs(cell.advantage))
            if cell.sparsity == SHOWN_SPARSITY:
                significant = cell.winner in (PRUNE_FIRST, QUANTIZE_FIRST)
                text = f"{cell.advantage:+.3f}"
                row = found.setdefault((c.model, cell.bits), {})
                row[f"{c.quantizer}, {rule}"] = f"**{text}**" if significant else text
    lines = [
        f"A(Q→P) in nats of SparseGPT at {SHOWN_SPARSITY:.0%} by protocol (bold: its interval "
        "excludes 0). 12 bits are the control: there rounding changes next to nothing, and so must "
        "the order. The largest |A| of any model, sparsity and quantizer at 12 bits is "
        + ", ".join(f"{largest[r]:.3f} under `{r}`" for r in largest)
        + ".",
        "",
        f"| model | bits | {' | '.join(columns)} |",
        f"|---|--:|{'--:|' * len(columns)}",
    ]
    for (model, bits), row in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1])):
        lines.append(f"| {model} | {bits} | {' | '.join(row[c] for c in columns)} |")
    return "\n".join(lines)


def _is_log(name: str) -> bool:
    return measure_of(name).scale == "log"


def theory() -> str:
    """What the stored verification of the statements found, as Markdown."""
    record = json.loads(gzip.decompress(THEORY.read_bytes()))
    lines = [report.setting(record), "", *report.summary_table(record), ""]
    lines += [*report.verdict_table(record)]
    return "\n".join(lines)


def laws() -> str:
    """The laws that decide an order, as Markdown."""
    return "\n".join(report.laws_table(json.loads(gzip.decompress(THEORY.read_bytes()))))


def models() -> str:
    """How far the embedded models keep the assumptions, as Markdown."""
    record = json.loads(gzip.decompress(MODELS.read_bytes()))
    return "\n".join(report.models_table(record))


def _summaries(*names: str) -> list[Summary]:
    """Stored: what ``python -m experiments report FOLDER --json`` prints, gzipped."""
    raw = (gzip.decompress((STORED / f"{name}.json.gz").read_bytes()) for name in names)
    return [Summary.from_json(text.decode()) for text in raw]


def survives() -> str:
    """What the study with replicates leaves of PIH: twice, on other trainings, and together."""
    halves, (whole, *others) = _summaries("embedded", "embedded-again"), _summaries(*ON_THE_GRID)
    told = markdown.survives(halves, whole, others)
    return "\n".join([*told, "", *markdown.rules([whole, *others])])


def choices() -> str:
    """What the choices do that are usually left unsaid."""
    return "\n".join(markdown.choices(_summaries("choices", "conditions")))


def zeros() -> str:
    """The causal test of the zero fraction."""
    return "\n".join(markdown.zeros(_summaries("zeros", "zeros_vision")))


def speed() -> str:
    """How long the study of the first command takes, and where its time goes, as Markdown."""
    found = json.loads(ENGINE.read_text())
    lines = [
        f"| `{found['study']}` | first finding | end | " + " | ".join(PHASES) + " | peak memory |",
        "|---|" + "--:|" * (3 + len(PHASES)),
    ]
    for name, run in found["runs"].items():
        spent = " | ".join(f"{run['phases'].get(phase, 0):.0f} s" for phase in PHASES)
        ends = f"{run['first finding']:.0f} s | {run['whole run']:.0f} s"
        lines.append(f"| {name} | {ends} | {spent} | {run['peak GB']:.1f} GB |")
    first = next(iter(found["runs"].values()))
    ratios = ", ".join(f"{model} {ratio:.2f}" for model, ratio in found["evaluate"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"({found['machine']}, jax {first['jax']}; {first['programs']} programs. Evaluating a "
            f"cell over the bare forward passes of its test set: {ratios}.)",
            "",
            *_solvers(json.loads(SOLVERS.read_text())),
            "",
            *_checkpoint(json.loads(CHECKPOINTS.read_text())),
        ]
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _sides(size: int | str) -> str:
    """Of a square matrix its side is told, of another "OUTxIN"."""
    out, _, n = str(size).partition("x")
    return f"{out} × {n or out}"


def _solvers(found: dict[str, Any]) -> list[str]:
    """Time of plain PyTorch over ours, compiled, with the range of ours in milliseconds."""
    sizes = list(dict.fromkeys(row["size"] for row in found["rows"]))
    contests = list(dict.fromkeys(row["contest"] for row in found["rows"]))
    cells = {(row["contest"], row["size"]): row for row in found["rows"]}
    lines = [
        "| PyTorch / ours, one layer | " + " | ".join(map(_sides, sizes)) + " |",
        "|---|" + "--:|" * len(sizes),
    ]
    for contest in contests:
        rows = [cells.get((contest, n)) for n in sizes]
        told = " | ".join(
            f"{r['ratio']['torch']:.1f} ({_milliseconds(r['seconds']['ours'])})" if r else "–"
            for r in rows
        )
        lines.append(f"| {contest} | {told} |")
    setting = found["setting"]
    return [
        *lines,
        "",
        f"(weight and Gram matrix to compressed weight, float32, {setting['cpus']} cores, torch "
        f"{setting['torch'].partition('+')[0]}, medians; above 1 ours is faster.)",
    ]


def _checkpoint(found: dict[str, Any]) -> list[str]:
    """Memory and time that a published model takes."""
    load, evaluate = found["load"], found["evaluate"]
    side = evaluate["product side"]
    tasks = {
        "reading it": load,
        "SparseGPT 50 %, all layers at once": found["compress"],
        "SparseGPT 50 %, block by block (`sequential`)": found["sequential"],
    }
    name = f"{found['name']} ({load['bytes'] / 1e9:.2f} GB in float32)"
    return [
        f"| {name} | peak memory / its size | time |",
        "|---|--:|--:|",
        *(
            f"| {task} | {row['peak over size']:.1f} | {row['seconds']:.0f} s |"
            for task, row in tasks.items()
        ),
        "",
        f"({found['machine']}, jax {evaluate['jax']}; memory beyond what was held before, of "
        f"compressing on {found['compress']['tokens']} calibration tokens beyond the model itself. "
        f"Evaluated at {evaluate['tokens a second']:.0f} tokens a second, whose products alone are "
        f"{evaluate['ratio']:.2f} of the rate of a bare {side} × {side} product.)",
    ]


BLOCKS = {
    "advice": advice,
    "speed": speed,
    "survives": survives,
    "zeros": zeros,
    "choices": choices,
    "protocols": protocols,
    "laws": laws,
    "theory": theory,
    "models": models,
}


def rendered(text: str) -> str:
    """The README with its generated parts made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n)(?:.*?\n)?(<!-- /{name} -->)", re.DOTALL)
        match = pattern.search(text)
        if match is None:
            raise ValueError(f"README.md has no block <!-- {name} -->")
        text = text[: match.end(1)] + make() + "\n" + text[match.start(2) :]
    return text


def main(argv: Sequence[str]) -> int:
    """Write the README anew; with ``--check`` only say whether it is what the records say."""
    if [*argv] not in ([], ["--check"]):
        print(f"error: unknown option {' '.join(argv)}; there is --check", file=sys.stderr)
        return 2
    text = README.read_text(encoding="utf-8")
    made = rendered(text)
    if argv and made != text:
        print("README.md is not what the records say: run python -m experiments.readme")
    elif not argv:
        write_atomic(README, made)
    return int(bool(argv) and made != text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
