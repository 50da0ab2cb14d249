"""Mixed precision: widths given out from 8 to 2 bits less from 2 to 8, against the budget."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.analysis.chains import Chains
from experiments.findings.mixed import advantages
from figures import sheet, style


def draw(models: tuple[Chains, ...]) -> Figure:
    """A panel a model."""
    better = [
        (held.over(more).low or 0.0) > 0
        for held in models
        for more in advantages(held, "gptq-4").values()
    ]
    with style.look():
        figure, axes = sheet.sheet(
            len(models),
            f"Giving out widths from 8 to 2 bits is better in {sum(better)} of {len(better)} "
            "budgets",
            f"M(8→2) − M(2→8), M = −NLL in nats, mean of {sheet.runs(models[0])}; GPTQ, "
            "each width calibrated on the model that the widths before it left.",
            f"Bars are {models[0].level:.0%} intervals over trainings and test examples; crosses "
            "are the control, RTN, in which the two orders are one.",
            width=3.5,
        )
        for ax, held in zip(axes, models, strict=True):
            ax.axhline(0, color=style.INK, lw=0.8)
            found = advantages(held, "gptq-4")
            values = [held.over(more) for more in found.values()]
            sheet.line(ax, [*range(len(found))], values, style.QUANTIZE_FIRST)
            for bits, more in advantages(held, "rtn-4").items():
                if bits in found:
                    ax.plot([*found].index(bits), more[:, 0].mean(), "x", color=style.MUTED, ms=6)
            ax.set_xticks(range(len(found)), [f"{b:g}" for b in found])
            ax.set_xlabel("mean bits of a weight")
            ax.set_title(sheet.name(held))
        axes[0].set_ylabel("8→2 less 2→8, nats")
    return figure
