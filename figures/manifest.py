"""What can be drawn, from which records: the only place that lists the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from experiments.analysis.chains import Chains
from experiments.summary import Summary, short_model
from figures import (
    advantage,
    affine,
    granularity,
    heatmap,
    laws,
    lora,
    margins,
    mixed,
    orders,
    phase,
    published,
    rotation,
    rules,
    sharing,
    zeros,
)

SCALES = ("natural", "log", "kl")


@dataclass(frozen=True)
class Drawing:
    """A kind of figure: one file a model and measure of performance, or one a measure, of all
    models (``whole``)."""

    name: str
    shows: str
    needs: str
    draw: Callable[[Summary, str, str], Figure]
    whole: bool = False


DRAWINGS = {
    drawing.name: drawing
    for drawing in (
        Drawing(
            "advantage",
            "A(Q→P) against C*_P − C_Q: does the advantage of an order follow the gap?",
            "orders PQ and QP, each method alone over the same grid, and the dense model",
            advantage.draw,
        ),
        Drawing(
            "heatmap",
            "A(Q→P) over pruning ratio × bits: which order wins where, and by how much?",
            "orders PQ and QP",
            heatmap.draw,
        ),
        Drawing(
            "zeros",
            "A(Q→P) against what the quantizer alone sends to 0, less the ratio: who wins where?",
            "orders PQ and QP, and each quantizer alone",
            zeros.draw,
        ),
        Drawing(
            "rules",
            "which rule names the order that wins, and A in one training against another",
            "orders PQ and QP, each method alone, several training seeds",
            lambda summary, model, scale: rules.draw(summary, scale),
            whole=True,
        ),
    )
}


# Of the record that ``python -m theory verify`` writes, one file each; None: nothing to draw in it.
THEORY: dict[str, tuple[str, Callable[[dict[str, Any]], Figure | None]]] = {
    "laws": ("which order wins as a function of what, a panel a law", laws.draw),
    "phase": ("which order wins over (pruned, bits), for stages that see less or more", phase.draw),
    "affine": ("the affine law of A against Monte Carlo and against real grids", affine.draw),
    "margins": ("how far every bound is from failing, sampled and attacked", margins.draw),
}


@dataclass(frozen=True)
class OfChains:
    """A figure of one study's chains of stages, whatever they are; M = -NLL."""

    name: str
    shows: str
    study: str
    draw: Callable[[tuple[Chains, ...]], Figure]


CHAINS = {
    drawing.name: drawing
    for drawing in (
        OfChains(
            "rotation",
            "what pruning alone costs, before and after a rotation",
            "quarot",
            rotation.draw,
        ),
        OfChains(
            "granularity",
            "A against bits, from pruning single weights to removing blocks",
            "granularity",
            granularity.draw,
        ),
        OfChains(
            "orders", "all orders of five methods against the sorted one", "multistage", orders.draw
        ),
        OfChains("lora", "LoRA before, between and after two stages", "lora", lora.draw),
        OfChains(
            "sharing", "A of a quantizer and a low rank or shared basis", "sharing", sharing.draw
        ),
        OfChains(
            "published",
            "A of a published model along the ratio and along the bits",
            "smollm2",
            published.draw,
        ),
        OfChains("mixed", "mixed precision from 8 to 2 bits and from 2 to 8", "mixed", mixed.draw),
    )
}


@dataclass(frozen=True)
class Kept:
    """A figure of a study that is drawn from a summary (or records) in the repository.

    study: makes the records; stored: their file in figures/records; models: those that are drawn,
    on M = -NLL; () of a study of few.
    """

    drawing: str
    study: str
    stored: str
    models: tuple[str, ...] = ()


SUMMARIES = (
    Kept("rules", "embedded", "embedded-all.json.gz"),
    Kept(
        "advantage",
        "embedded",
        "embedded-all.json.gz",
        ("llama-docs", "resnet-digits", "vit-digits"),
    ),
    Kept("heatmap", "embedded", "embedded-all.json.gz", ("llama-docs",)),
    Kept("zeros", "zeros", "zeros.json.gz", ("llama-docs",)),
    Kept("advantage", "larger", "larger.json.gz"),
    Kept("advantage", "fashion", "fashion.json.gz"),
    Kept("advantage", "quarot", "quarot.jsonl.gz"),
)


@dataclass(frozen=True)
class Job:
    """One file to write."""

    drawing: Drawing
    model: str
    scale: str

    def filename(self, format: str) -> str:
        if self.drawing.whole:
            return f"{self.drawing.name}-{self.scale}.{format}"
        model, scale = (
            "".join(c if c.isalnum() or c in "-_." else "-" for c in text)
            for text in (short_model(self.model), self.scale)
        )
        return f"{self.drawing.name}-{model}-{scale}.{format}"


def jobs(
    summary: Summary,
    names: tuple[str, ...],
    models: tuple[str, ...],
    scales: tuple[str, ...] | None = None,
) -> Iterator[Job]:
    """Every file that these names, models and scales give with what the study measured.

    scales: by default the one that a model is usually judged on.
    """
    for name in names:
        if DRAWINGS[name].whole:
            judged = [t for t in summary.totals if t.model in models and t.rules]
            wanted = scales or tuple(dict.fromkeys(map(summary.usual_scale, models)))
            for scale in wanted:
                if len(summary.seeds) > 1 and any(t.scale == scale for t in judged):
                    yield Job(DRAWINGS[name], "", scale)
            continue
        for model in models:
            for scale in scales or (summary.usual_scale(model),):
                if summary.select(model, scale):
                    yield Job(DRAWINGS[name], model, scale)
