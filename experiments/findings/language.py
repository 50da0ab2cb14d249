"""F-A, F-E: does A follow the gap, on language and on vision models, and where is it larger?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.analysis.replication import estimate_over
from experiments.findings.types import ON_THE_GRID, Finding, Row, of_summary, summary
from experiments.summary import ALONG_BITS, ALONG_RATIO, SIGN

TESTED = {
    ALONG_BITS: "tau of A with the gap, along bits",
    ALONG_RATIO: "tau of A with the gap, along the ratio",
    SIGN: "won cells whose winner is the gap's",
}


def _kind(name: str, model: str) -> str:
    return next(c.kind for c in summary(name).comparisons if c.subject == model)


def _claims(kind: str) -> list[Row]:
    """The claims of the hypothesis on the models of a kind, in two measures."""
    rows = []
    for name in ON_THE_GRID:
        found = summary(name)
        for v in found.verdicts:
            if v.scale in ("natural", "log") and _kind(name, v.model) == kind:
                measure = "M = −NLL" if v.scale == "log" else _natural(kind)
                tested = TESTED[v.claim]
                rows.append(of_summary(found, v.model, measure, tested, v.estimate, v.above))
    return rows


def _natural(kind: str) -> str:
    return "M = −perplexity" if kind == "text" else "M = accuracy"


def _size(model: str) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """Mean |A| in nats of KL over the cells of a model, by run."""
    mine = summary("embedded-all").select(model, "kl")
    runs = mine[0].cells[0].runs
    values = [cell.advantage_by_run for c in mine for cell in c.cells if cell.runs == runs]
    return np.abs(np.array(values)).mean(0), runs


def _larger() -> list[Row]:
    """Mean |A| on a vision model less that on a Llama: training seed by training seed, which pairs
    nothing, as the trainings are independent, and is judged over seeds all the same."""
    rows = []
    found = summary("embedded-all")
    vision = [m for m in found.models if _kind("embedded-all", m) == "images"]
    for model in vision:
        for other in (m for m in found.models if m not in vision):
            (one, runs), (two, _) = _size(model), _size(other)
            value = estimate_over((one - two)[:, None], runs, found.level, -np.inf, np.inf)
            tested = "mean |A| less that of the Llama, M = −KL, nats"
            rows.append(of_summary(found, model, f"against {other}", tested, value))
    return rows


def _vision() -> Sequence[Row]:
    return [*_claims("images"), *_larger()]


LANGUAGE = Finding(
    key="F-A",
    title="Pruning and quantizing language models",
    claim="A(Q→P) grows with C*_P − C_Q, and its sign is the gap's: the stronger method last.",
    source="Kim et al., first figure: LLaMA-2 7B and 13B, LLaMA-3 8B, bits 9 to 4",
    reported="A grows with the gap on every curve (one a pruning ratio)",
    studies=("embedded", "larger"),
    rows=lambda: _claims("text"),
    figure="embedded/advantage-llama-docs-log",
)
VISION = Finding(
    key="F-E",
    title="Vision models",
    claim="The same holds of a CNN and a ViT, and the advantage of an order is larger there.",
    source="Kim et al., finding 5: ResNet-18 and DeiT-Base on ImageNet",
    reported="the trend holds, with larger advantages than in language models",
    studies=("embedded", "fashion"),
    rows=_vision,
    figure="embedded/advantage-resnet-digits-log",
)
