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
from experiments.analysis.variants import order_of
from experiments.records import Record, latest, load
from experiments.report.table import gap_text
from experiments.summary import (
    CLAIMS,
    EQUAL,
    NO_VERDICT,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Estimate,
    Score,
    Summary,
    measure_of,
)
from perturb.files import write_atomic
from theory.engine import report

ROOT = Path(__file__).parents[1]
TITLES = {"natural": "accuracy / −perplexity", "log": "−NLL"}
README = ROOT / "README.md"
THEORY, MODELS = (ROOT / "figures" / "records" / f"theory{x}.json.gz" for x in ("", "-models"))
STORED = ROOT / "figures" / "records"
RECORDS = STORED / "embedded.jsonl.gz"
BEFORE = STORED / "embedded-0.1.0.json"  # wins and scores of the embedded study by version 0.1.0
# summary.json of the study of that name, and of the same with other seeds
REPLICATES = tuple(STORED / f"replicates{x}.json.gz" for x in ("", "-again"))
ENGINE = STORED / "engine.json"  # of python -m tests.benchmarks.engine
PHASES = ("train", "compile", "calibrate", "compress", "measure", "evaluate")
SOLVERS = STORED / "solvers.json"  # of python -m tests.benchmarks.solvers
SHOWN_SCALE, CONTROL = "log", 12  # bits, where the order must not matter
SHOWN_SPARSITY = 0.7  # of the table of protocols: where they differ most


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _score(score: Score) -> str:
    return " | ".join(
        _share(n, score.counted) for n in (score.pih, score.prune_first, score.quantize_first)
    )


def _estimate(e: Estimate) -> str:
    if e.value is None or e.low is None or e.high is None:
        return "–"
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"


def _wins(wins: dict[str, int]) -> str:
    return " | ".join(str(wins.get(k, 0)) for k in (PRUNE_FIRST, QUANTIZE_FIRST, UNDECIDED, EQUAL))


def _models(records: list[Record]) -> list[str]:
    dense = [r for r in records if not r["stages"]]
    lines = []
    for r in dense:
        m = r["metrics"]
        images = "accuracy" in m
        good = f"accuracy {m['accuracy']:.1%}" if images else f"perplexity {m['perplexity']:.3f}"
        stored = r["storage"]
        share = stored["weights"] / stored["parameters"]
        lines.append(
            f"{r['model']} (dense: {good} on {r['data']['test_examples']} test examples; "
            f"{share:.1%} of its parameters are compressed)"
        )
    return lines


def _failures(summary: Summary) -> list[str]:
    worst: list[tuple[float, str]] = []
    for c in summary.comparisons:
        if _is_log(c.measure):
            for cell in c.failures:
                pair = f"{c.pruner} {cell.sparsity:.0%} with {c.quantizer} {cell.bits} bit"
                a = f"{cell.advantage:+.3g} [{cell.low:+.3g}, {cell.high:+.3g}]"
                worst.append(
                    (abs(cell.advantage), f"| {c.model}: {pair} | {a} | {gap_text(cell)} |")
                )
    return [row for _, row in sorted(worst, key=lambda w: -w[0])[:6]]


def findings() -> str:
    """What the stored run of the embedded study found, as Markdown."""
    records = list(latest(load(RECORDS)).values())
    summary = summarize(records)
    lines = [
        f"{summary.ok} compressed models measured, {summary.failed} failed, seeds "
        f"{', '.join(map(str, summary.seeds))}, calibration "
        f"`{records[0]['policy']['calibrate']}`, BatchNorms "
        f"`{records[0]['policy']['norms']}`, on {records[0]['device']}, jax "
        f"{records[0]['versions']['jax']}: " + "; ".join(_models(records)) + ".",
        "",
    ]
    overall = {t.scale: t for t in summary.totals if t.model is None}
    for scale, name in TITLES.items():
        score, tau = overall[scale].score, _estimate(overall[scale].tau)
        lines += [
            f"- **{name}**: PIH's sign is right in {_share(score.pih, score.counted)} of the "
            f"{score.counted} won cells with a decided gap; *always prune first* in "
            f"{_share(score.prune_first, score.counted)}, *always quantize first* in "
            f"{_share(score.quantize_first, score.counted)}. Its trend: mean Kendall tau of A "
            f"against the gap {tau} (PIH expects +1)."
        ]
    lines += [
        "",
        "| M | model | prune first wins | quantize first wins | open | equal "
        "| tau, A against the gap | PIH sign right | always prune first | always quantize first |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|--:|",
    ]
    lines += [
        f"| {TITLES[t.scale]} | {t.model or '**all**'} | {_wins(t.wins)} | {_estimate(t.tau)} "
        f"| {_score(t.score)} |"
        for scale in TITLES
        for t in summary.totals
        if t.scale == scale
    ]
    lines.append("")
    failures = _failures(summary)
    if failures:
        lines += [
            "Where PIH's sign fails worst (M = −NLL, A in nats, significant at 95 %):",
            "",
            "| cell | A(Q→P) | gap C\\*_P − C_Q |",
            "|---|---|--:|",
            *failures,
        ]
    return "\n".join(lines)


def _study(name: str) -> list[Record]:
    return list(latest(load(STORED / f"{name}.jsonl.gz")).values())


def protocols() -> str:
    """What the choices behind a comparison do to its verdicts, as Markdown."""
    embedded, snap = summarize(_study("embedded")), summarize(_study("snap"))
    before = json.loads(BEFORE.read_text())
    lines = [*_protocol_table(), "", *_verdict_table(embedded, snap, before), ""]
    return "\n".join([*lines, *_norms_table()])


def _protocol_table() -> list[str]:
    """A of SparseGPT by protocol, at one sparsity."""
    summary = summarize(_study("protocols"))
    found: dict[tuple[str, int], dict[str, str]] = {}
    columns = [f"{q}, {rule}" for q in ("rtn", "gptq") for rule in ("refit", "snap", "release")]
    largest = dict.fromkeys(("refit", "snap", "release"), 0.0)
    for c in summary.comparisons:
        if not _is_log(c.measure):
            continue
        rule = next(r for r in largest if f"on_grid={r}" in c.pruner)
        for cell in c.cells:
            if cell.bits == 12:
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
    return lines


def _verdict_table(embedded: Summary, snap: Summary, before: dict[str, Any]) -> list[str]:
    """Wins of each order over SparseGPT's cells, by what was run."""
    sources: list[tuple[str, list[tuple[str, str, dict[str, int]]]]] = [
        (
            "version 0.1.0, another training: `snap`, old norms",
            [
                (c["model"], c["pruner"], c["wins"])
                for c in before["comparisons"]
                if c["measure"] == "neg_nll"
            ],
        )
    ]
    sources += [
        (name, [(c.model, c.pruner, dict(c.wins)) for c in s.comparisons if _is_log(c.measure)])
        for name, s in (("`snap`, norms re-estimated", snap), ("`refit` (default)", embedded))
    ]
    lines = [
        "Cells of the embedded study that SparseGPT is in (M = −NLL; RTN and GPTQ, all sparsities "
        "and bits), prune first wins / quantize first wins / open or equal:",
        "",
        "| model | " + " | ".join(name for name, _ in sources) + " |",
        "|---|" + "--:|" * len(sources),
    ]
    for model in embedded.models:
        row = []
        for _, comparisons in sources:
            mine = [w for m, pruner, w in comparisons if m == model and "sparsegpt" in pruner]
            total = [sum(w.get(k, 0) for w in mine) for k in (PRUNE_FIRST, QUANTIZE_FIRST)]
            rest = sum(sum(w.values()) for w in mine) - sum(total)
            row.append(f"{total[0]} / {total[1]} / {rest}")
        lines.append(f"| {model} | {' | '.join(row)} |")
    return lines


def _is_log(name: str) -> bool:
    return measure_of(name).scale == "log"


def _norms_table() -> list[str]:
    """Accuracy of the same cells with the dense model's norm statistics and with their own."""
    kept = {r["label"]: r for r in _study("norms")}
    again = {r["label"]: r for r in _study("embedded")}
    model = next(iter(kept.values()))["model"]
    lines = [
        f"Accuracy of {model} with BatchNorms as trained (`keep`) and re-estimated on the "
        "calibration images after each stage (`reestimate`, the default):",
        "",
        "| cell | keep | reestimate |",
        "|---|--:|--:|",
    ]
    for label, record in kept.items():
        if order_of(record) != "Q":
            name = label.split("/")[-1].replace(">", " → ")
            both = [r["metrics"]["accuracy"] for r in (record, again[label])]
            lines.append(f"| {name} | {both[0]:.1%} | {both[1]:.1%} |")
    return lines


def theory() -> str:
    """What the stored verification of the statements found, as Markdown."""
    record = json.loads(gzip.decompress(THEORY.read_bytes()))
    lines = [report.setting(record), "", *report.summary_table(record), ""]
    lines += [*report.verdict_table(record)]
    return "\n".join(lines)


def models() -> str:
    """How far the embedded models keep the assumptions, as Markdown."""
    record = json.loads(gzip.decompress(MODELS.read_bytes()))
    return "\n".join(report.models_table(record))


def _replicates() -> list[dict[str, Any]]:
    """Summaries of the study with replicates, of trainings that have nothing in common."""
    found = []
    for path in REPLICATES:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found.append(json.load(file))
    return found


def _verdict(summary: dict[str, Any], model: str, claim: str) -> dict[str, Any]:
    """Of the summary, or of nothing to go by."""
    nothing = {"value": None, "low": None, "high": None, "verdict": NO_VERDICT}
    asked = (model, claim, SHOWN_SCALE)
    every = {(v["model"], v["claim"], v["scale"]): v for v in summary["verdicts"]}
    return every.get(asked, nothing)


def _shown_totals(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [t for t in summary["totals"] if t["scale"] == SHOWN_SCALE and t["model"]]


def _headline(summaries: list[dict[str, Any]]) -> list[str]:
    """A line a claim: what all trainings say of it, by model."""
    lines = []
    for claim in CLAIMS:
        told: dict[str, list[str]] = {}
        for total in _shown_totals(summaries[0]):
            model = total["model"]
            said = dict.fromkeys(_verdict(s, model, claim)["verdict"] for s in summaries)
            told.setdefault(", then ".join(said), []).append(model)
        lines.append(f"- **{claim}**: " + "; ".join(f"{k} on {', '.join(told[k])}" for k in told))
    return lines


def _apart(summaries: list[dict[str, Any]]) -> list[str]:
    """A line where two intervals of one number do not meet: one of them at least is too short."""
    found = []
    for total in _shown_totals(summaries[0]):
        for claim in CLAIMS:
            ends = [_verdict(s, total["model"], claim) for s in summaries]
            lows, highs = ([e[k] for e in ends if e[k] is not None] for k in ("low", "high"))
            if lows and max(lows) > min(highs):
                found.append(f"{claim} of {total['model']}")
    if not found:
        return []
    told = ", ".join(found)
    return ["", f"Intervals that do not overlap (chance, or one is too short): {told}."]


def survives() -> str:
    """What the study with replicates leaves of PIH, as Markdown."""
    summaries = _replicates()
    lines = [
        *_headline(summaries),
        "",
        "| model, trainings | " + " | ".join(CLAIMS) + " | cells | prune first | quantize first "
        "| another run agrees | and contradicts |",
        "|---|" + "---|" * len(CLAIMS) + "--:|" * 5,
    ]
    spread = [
        "| what A moves by, nats (root mean square over cells) | training | calibration draw "
        "| both together | the mean, by test examples |",
        "|---|--:|--:|--:|--:|",
    ]
    for first in _shown_totals(summaries[0]):
        for summary in summaries:
            (total,) = (t for t in _shown_totals(summary) if t["model"] == first["model"])
            name = f"{total['model']}, {summary['seeds'][0]} to {summary['seeds'][-1]}"
            claims = []
            for claim in CLAIMS:
                v = _verdict(summary, total["model"], claim)
                value = _estimate(Estimate(v["value"], v["low"], v["high"]))
                claims.append(f"{value} {v['verdict']}")
            again, won = total["replication"], total["discoveries"]
            asked = again["won"] + again["open"] + again["lost"]
            counts = [total["cells"], won.get(PRUNE_FIRST, 0), won.get(QUANTIZE_FIRST, 0)]
            shares = [_share(again["won"], asked), _share(again["lost"], asked)]
            lines.append(f"| {name} | " + " | ".join(map(str, [*claims, *counts, *shares])) + " |")
            parts = [total["spread"][k] for k in ("seed", "draw", "both", "examples")]
            told = " | ".join("–" if x is None else f"{x:.2g}" for x in parts)
            spread.append(f"| {name} | {told} |")
    control = [
        abs(cell["advantage"])
        for summary in summaries
        for c in summary["comparisons"]
        if c["measure"] == "neg_nll"
        for cell in c["cells"]
        if cell["bits"] == CONTROL
    ]
    trained, drawn = (len(summaries[0][k]) for k in ("seeds", "draws"))
    return "\n".join(
        [
            *lines,
            *_apart(summaries),
            "",
            *spread,
            "",
            f"Each row: {trained} trainings × {drawn} calibration draws, M = −NLL; "
            f"{sum(s['ok'] for s in summaries)} compressed models in all. Prune first, quantize "
            f"first: cells won at a rate of false discoveries of 5 %. The control, {CONTROL} bits: "
            f"the largest mean |A| of a cell is {max(control):.2g} nats.",
        ]
    )


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
        ]
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"


def _solvers(found: dict[str, Any]) -> list[str]:
    """Time of plain PyTorch over ours, compiled, with the range of ours in milliseconds."""
    sizes = list(dict.fromkeys(row["size"] for row in found["rows"]))
    contests = list(dict.fromkeys(row["contest"] for row in found["rows"]))
    cells = {(row["contest"], row["size"]): row for row in found["rows"]}
    lines = [
        "| PyTorch / ours, one layer | " + " | ".join(f"{n} × {n}" for n in sizes) + " |",
        "|---|" + "--:|" * len(sizes),
    ]
    for contest in contests:
        rows = [cells[contest, n] for n in sizes]
        told = " | ".join(
            f"{r['ratio']['torch']:.1f} ({_milliseconds(r['seconds']['ours'])})" for r in rows
        )
        lines.append(f"| {contest} | {told} |")
    setting = found["setting"]
    return [
        *lines,
        "",
        f"(weight and Gram matrix to compressed weight, float32, {setting['cpus']} cores, torch "
        f"{setting['torch'].partition('+')[0]}, medians; above 1 ours is faster.)",
    ]


BLOCKS = {
    "survives": survives,
    "speed": speed,
    "findings": findings,
    "protocols": protocols,
    "theory": theory,
    "models": models,
}


def rendered(text: str) -> str:
    """The README with its generated parts made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        match = pattern.search(text)
        if match is None:
            raise ValueError(f"README.md has no block <!-- {name} -->")
        text = text[: match.end(1)] + make() + text[match.start(2) :]
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
