"""What pruning alone costs, before and after a rotation: Kim et al.'s third finding."""

from __future__ import annotations

from matplotlib.figure import Figure

from experiments.analysis.chains import Chain, Chains
from experiments.findings.names import parts
from experiments.findings.rotation import after, turned
from figures import sheet, style


def draw(models: tuple[Chains, ...]) -> Figure:
    """One model: a panel a pruner, loss against the pruning ratio."""
    held = models[0]
    pruners = curves(held, ())
    start = turned(held)[-1]
    rotated = curves(held, start)
    moved = [
        held.contrast((stage,), (*start, stage))
        for stages in pruners.values()
        for stage in stages.values()
    ]
    worse = sum((e.low or 0.0) > 0 for e in moved)
    better = sum((e.high or 0.0) < 0 for e in moved)
    with style.look():
        figure, axes = sheet.sheet(
            len(pruners),
            f"{sheet.name(held)}: after a rotation pruning costs more in {worse} of {len(moved)} "
            f"settings, less in {better}",
            f"Loss M(dense) − M(pruned), M = −NLL in nats, mean of {sheet.runs(held)}. No "
            "quantization; the rotation alone changes nothing.",
            f"Bars are {held.level:.0%} intervals over trainings and test examples.",
            width=2.6,
            colours={"as trained": style.INK, "rotated": style.PRUNE_FIRST},
        )
        for ax, (method, stages) in zip(axes, pruners.items(), strict=True):
            for chosen, before, colour in (
                (stages, (), style.INK),
                (rotated[method], start, style.PRUNE_FIRST),
            ):
                values = [held.loss((*before, stage)) for stage in chosen.values()]
                sheet.line(ax, [*chosen], values, colour, dashed=not before)
            ax.set_title(method)
            ax.set_xlabel("pruned fraction")
            ax.set_yscale("symlog", linthresh=0.01)
            ax.set_ylim(bottom=0)
        axes[0].set_ylabel("loss, nats")
    return figure


def curves(held: Chains, start: Chain) -> dict[str, dict[float, str]]:
    """Of every pruner its stages by the pruned fraction."""
    found: dict[str, dict[float, str]] = {}
    for stage in after(held, start):
        method, amount = parts(stage)
        if 0 < amount < 1:
            found.setdefault(method, {})[amount] = stage
    return {m: dict(sorted(s.items())) for m, s in found.items()}
