"""What a practitioner should do, in a few lines: an answer for each question, chosen by the
verdicts of stored findings, with the numbers it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from experiments.analysis.rules import GAP, PRUNE, ZEROS
from experiments.findings import lora, others, real, rotation, stages
from experiments.findings.mixed import MIXED
from experiments.findings.types import Row, of_summary, summary, together
from experiments.summary import FAILS, HOLDS, NO_VERDICT, Total

SCALE = "log"


@dataclass(frozen=True)
class Question:
    """rows: what the answer rests on, judged together; answers: where some hold and none fail,
    where some fail and none hold, and where some do either."""

    asked: str
    rows: Callable[[], Sequence[Row]]
    holds: str
    fails: str
    both: str


def _count(verdicts: Sequence[str]) -> str:
    said = Counter(verdicts)
    told = [f"{v} in {said[v]}" for v in (HOLDS, FAILS, NO_VERDICT) if said[v]]
    return f"{', '.join(told)} of {len(verdicts)} tests"


def _answer(question: Question, verdicts: Sequence[str]) -> str:
    said = set(verdicts) & {HOLDS, FAILS}
    if not said:
        return "Not known: no test is decided; compare both."
    if said == {HOLDS}:
        return question.holds
    return question.fails if said == {FAILS} else question.both


def _only(rows: Iterable[Row], start: str) -> list[Row]:
    return [row for row in rows if row.tested.startswith(start)]


QUESTIONS = (
    Question(
        "Pruning and quantizing a published language model (SmolLM2-135M)?",
        lambda: [row for row in real.pruning_first("text") if row.published],  # one draw is no test
        "Prune first.",
        "Quantize first.",
        "It depends on the ratio and the width (R-3 in FINDINGS.md): compare both orders.",
    ),
    Question(
        "Pruning a model that will be rotated (QuaRot)?",
        lambda: [*rotation.amplified(), *(row for row in real.amplified() if row.published)],
        "Expect to pay for it: pruning costs more once the stream is rotated.",
        "Here pruning costs no more after it. Large models, which have outliers, may differ (Kim "
        "et al. report a perplexity of 98 for 8): compare both.",
        "Mind the ratio: whether rotating makes pruning dearer differs by pruner and ratio.",
    ),
    Question(
        "More than two methods?",
        lambda: _only(stages.SORTED.rows(), "share"),
        "Sort them by what each alone costs, the weakest first.",
        "Do not rely on sorting by intensity: orders at random do as well or better.",
        "Sorting by intensity helps in some sets and not in others: try the orders that you can.",
    ),
    Question(
        "Adapters (LoRA)?",
        lambda: _only(lora.ADAPTERS.rows(), "LoRA last"),
        "Train them last.",
        "Train them before the last stage.",
        "Train them last where the losses are large; elsewhere their place is within the noise.",
    ),
    Question(
        "Distilling between pruning and quantizing?",
        lambda: list(others.between()),
        "Prune, distill, quantize.",
        "Not between: distill at the end, straight through the rounding.",
        "It depends on the pair: compare it with distilling at the end, through the rounding.",
    ),
    Question(
        "Mixed precision with weight updates?",
        lambda: _only(MIXED.rows(), "8→2"),
        "Round the layers of many bits first.",
        "Round the layers of few bits first.",
        "It depends on the budget: try both.",
    ),
    Question(
        "A joint method instead of an order?",
        lambda: list(others.joint()),
        "Take it: it beats either order.",
        "Keep to the better order: no joint method here beats it.",
        "Try it beside the better order: it wins for some methods and widths.",
    ),
)


def _share(total: Total, rule: str) -> float:
    found = next((r.right.value for r in total.rules if r.name == rule), None)
    return found or 0.0


def pairs() -> list[str]:
    """A row for the models on which the zero fraction beats always pruning first, and one for
    those on which nothing does."""
    found = summary("embedded-all")
    totals = [t for t in found.totals if t.scale == SCALE and t.model]
    margins = together([of_summary(found, str(t.model), "", "margin", t.margin) for t in totals])
    better = [t for t, row in zip(totals, margins, strict=True) if row.stands == HOLDS]
    rest = [t for t in totals if t not in better]
    lines = []
    for mine, answer in (
        (better, "Quantize first if the quantizer alone rounds at least the pruning ratio of the "
                 "weights to 0; else prune first."),
        (rest, "Prune first, or try both (`report --at`): no rule is surely better."),
    ):  # fmt: skip
        if mine:
            models = ", ".join(str(t.model) for t in mine)
            shares = " / ".join(f"{_share(t, ZEROS):.0%}" for t in mine)
            first = " / ".join(f"{_share(t, PRUNE):.0%}" for t in mine)
            gap = " / ".join(f"{_share(t, GAP):.0%}" for t in mine)
            lines.append(
                f"| Pruning and quantizing ({models})? | {answer} | of the winners, the zeros name "
                f"{shares}, pruning first {first}, the stronger last (PIH) {gap} |"
            )
    return lines


def advice() -> str:
    """The table, as Markdown."""
    lines = ["| question | answer | on our models |", "|---|---|---|", *pairs()]
    for question in QUESTIONS:
        verdicts = [row.stands for row in together(list(question.rows()))]
        if verdicts:
            answer = _answer(question, verdicts)
            lines.append(f"| {question.asked} | {answer} | {_count(verdicts)} |")
    return "\n".join(lines)
