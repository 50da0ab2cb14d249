"""A of a quantizer and a low rank, or a basis that blocks share, against the bits."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.analysis.chains import Chains
from experiments.findings.names import parts
from experiments.findings.sharing import METHODS, advantage, others, thinned
from figures import sheet, style


def draw(models: tuple[Chains, ...]) -> Figure:
    """One model: a panel a method and quantizer, a line a ratio."""
    held = models[0]
    quantizers = {m: s for m, s in others(held).items() if parts(s[0])[1] > 1}
    panels = [(m, q) for m in METHODS for q in quantizers if thinned(held, m)]
    signs = [
        float((advantage(held, q, t)[:, 0] > 0).mean())
        for m, name in panels
        for q in quantizers[name]
        for t in thinned(held, m).values()
    ]
    first = sum(s > 0.5 for s in signs)
    ratios = thinned(held, next(iter(METHODS)))
    colours = dict(zip(ratios, style.ramp(len(ratios)), strict=True))
    with style.look():
        figure, axes = sheet.sheet(
            len(panels),
            f"{sheet.name(held)}: quantizing first does better in {first} of {len(signs)} cells",
            f"A(Q→S) = M(Q, S, Q) − M(S, Q), M = −NLL in nats, mean of {sheet.runs(held)}. S: low "
            "rank, or a basis that two neighbouring blocks share.",
            f"Bars are {held.level:.0%} intervals over trainings and test examples. Factors of a "
            "quantized matrix lie on no grid: they are quantized again, so that both orders end in "
            "one format.",
            width=2.6,
            colours={f"{ratio:.0%} gone": colour for ratio, colour in colours.items()},
        )
        for ax, (method, name) in zip(axes, panels, strict=True):
            stages = quantizers[name]
            ax.axhline(0, color=style.INK, lw=0.8)
            for ratio, thin in thinned(held, method).items():
                values = [held.over(advantage(held, q, thin)) for q in stages]
                sheet.line(ax, [*range(len(stages))], values, colours[ratio])
            ax.set_xticks(range(len(stages)), [f"{parts(q)[1]:g}" for q in stages])
            ax.set_xlabel("bits")
            ax.set_title(f"{METHODS[method]} × {name}")
        axes[0].set_ylabel("A(Q→S), nats")
    return figure
