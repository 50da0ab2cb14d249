"""LoRA before, between and after a pruner and a quantizer: what each of the six orders costs."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.analysis.chains import Chain, Chains
from experiments.findings.lora import best, triples
from figures import sheet, style

LETTERS = ("P", "Q", "L")


def draw(models: tuple[Chains, ...]) -> Figure:
    """One model: a panel a pair, the loss of its six orders, and of the pair without LoRA."""
    held = models[0]
    sets = triples(held)
    rows = len({p for p, _, _ in sets})
    last = sum(best(held, _orders(t).values())[-1] == t[2] for t in sets)
    with style.look():
        figure, axes = sheet.sheet(
            len(sets),
            f"{sheet.name(held)}: LoRA is best behind both in {last} of {len(sets)} pairs",
            f"Loss M(dense) − M, M = −NLL in nats, mean of {sheet.runs(held)}. P prunes half, Q "
            "quantizes, L trains adapters.",
            f"Bars are {held.level:.0%} intervals over trainings and test examples. Orange: pruned "
            "before quantized, blue: after. Open: without adapters.",
            width=2.1,
            height=1.9,
            rows=rows,
        )
        for ax, (p, q, adapt) in zip(axes, sets, strict=True):
            chains = _orders((p, q, adapt)) | {"PQ": (p, q), "QP": (q, p)}
            for i, (told, chain) in enumerate(reversed(chains.items())):
                e = held.loss(chain)
                colour = (
                    style.PRUNE_FIRST
                    if told.index("P") < told.index("Q")
                    else (style.QUANTIZE_FIRST)
                )
                if e.low is not None and e.high is not None:
                    ax.plot([e.low, e.high], [i, i], color=colour, lw=1.5, alpha=0.45)
                face = colour if "L" in told else "white"
                ax.plot(e.value or 0.0, i, "o", color=colour, mfc=face, ms=5)
            ax.set_yticks(range(len(chains)), [" → ".join(t) for t in reversed(chains)])
            ax.set_title(f"{_short(p)}, {q}", size=8)
            ax.set_xlim(left=0)
            ax.tick_params(labelsize=7.5)
            if not style.first_column(ax):
                ax.set_yticklabels([])
            if style.last_row(ax):
                ax.set_xlabel("loss, nats")
    return figure


def _short(pruner: str) -> str:
    """All prune one half; a pattern says so."""
    return pruner.replace("[scope=", " ").replace("]", "").replace("-0.5", "")


def _orders(triple: tuple[str, str, str]) -> dict[str, Chain]:
    """The six orders by their letters."""
    named = dict(zip(LETTERS, triple, strict=True))
    told = ("PQL", "QPL", "PLQ", "QLP", "LPQ", "LQP")
    return {t: tuple(named[letter] for letter in t) for t in told}
