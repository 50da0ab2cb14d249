"""The parts of the README that are made from records: ``python -m experiments.readme``.

Between ``<!-- NAME -->`` and ``<!-- /NAME -->`` stands what the records say, never what somebody
typed; a test compares the two.
"""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

from experiments.analysis import summarize
from experiments.records import Record, latest, load
from experiments.report import gap_text
from experiments.summary import (
    EQUAL,
    MEASURES,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Estimate,
    Score,
    Summary,
)
from perturb.files import write_atomic
from theory import report

ROOT = Path(__file__).parents[1]
TITLES = {"natural": "accuracy / −perplexity", "log": "−NLL"}
README = ROOT / "README.md"
THEORY, MODELS = (ROOT / "figures" / "records" / f"theory{x}.json.gz" for x in ("", "-models"))
RECORDS = ROOT / "figures" / "records" / "embedded.jsonl.gz"


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
    dense = [r for r in records if r["order"] == "dense"]
    lines = []
    for r in dense:
        m = r["metrics"]
        images = "accuracy" in m
        good = f"accuracy {m['accuracy']:.1%}" if images else f"perplexity {m['perplexity']:.3f}"
        lines.append(f"{r['model']} (dense: {good} on {r['data']['test_examples']} test examples)")
    return lines


def _failures(summary: Summary) -> list[str]:
    worst: list[tuple[float, str]] = []
    for c in summary.comparisons:
        measure = MEASURES[c.measure]
        if measure.scale == "log":
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
        f"`{records[0]['policies']['calibrate']}`, on {records[0]['device']}, jax "
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


BLOCKS = {"findings": findings, "theory": theory, "models": models}


def rendered(text: str) -> str:
    """The README with its generated parts made anew."""
    for name, make in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        match = pattern.search(text)
        if match is None:
            raise ValueError(f"README.md has no block <!-- {name} -->")
        text = text[: match.end(1)] + make() + text[match.start(2) :]
    return text


if __name__ == "__main__":
    write_atomic(README, rendered(README.read_text()))
