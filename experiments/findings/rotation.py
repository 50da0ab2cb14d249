"""F-B, F-C: quantizers with and without a rotation and weight updates; what rotating does to
pruning."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from experiments.analysis.chains import Chain, Chains
from experiments.analysis.rows import Rows
from experiments.findings.names import parts
from experiments.findings.types import (
    LOG,
    Finding,
    Row,
    chains,
    of_summary,
    records,
    row,
    rows_of_ranks,
    summary,
)
from experiments.summary import Comparison

STUDIES = ("quarot", "rotation")
FIVE = "0.05"
MORE = "loss after rotating less the loss before, nats"
RESOLUTION = 1e-6  # nats: below it two evaluations differ by rounding


def _models() -> list[Chains]:
    return [held for study in STUDIES for held in chains(study, LOG)]


def is_turn(stage: str) -> bool:
    return stage.startswith("rotate")


def turned(held: Chains) -> list[Chain]:
    """What stands before every pair: nothing, and the rotation."""
    return [(), *held.having(lambda c: len(c) == 1 and is_turn(c[0]))]


def after(held: Chains, start: Chain) -> list[str]:
    """The single stages that follow."""
    n = len(start)
    mine = held.having(lambda c: len(c) == n + 1 and c[:n] == start and not is_turn(c[-1]))
    return [c[-1] for c in mine]


def told(start: Chain, *methods: str) -> str:
    return " × ".join(methods) + (", rotated" if start else "")


def _trends() -> list[Row]:
    """Of every pruner and quantizer, rotated or not: tau along bits, as in the paper's figure."""
    rows: list[Row] = []
    stored = [summary(study) for study in STUDIES if records(study)]
    for found in stored:
        for c in (c for c in found.comparisons if c.measure == LOG):
            label = f"{_methods(c)}{', rotated' if 'rotate' in c.policy else ''}"
            rows.append(
                of_summary(found, c.model, label, "tau of A with the gap, along bits", c.tau_bits)
            )
    return rows


def _methods(c: Comparison) -> str:
    return f"{c.pruner} × {c.quantizer}"


def _blocks() -> Iterable[Row]:
    """SLEB has one amount, so its gap is ordered as the bits are: A should grow with them."""
    for held in _models():
        for start in turned(held):
            stages = after(held, start)
            for pruner in (s for s in stages if s.startswith("remove")):
                for quantizer in dict.fromkeys(parts(s)[0] for s in stages):
                    widths = sorted(
                        (s for s in stages if parts(s)[0] == quantizer and parts(s)[1] > 1),
                        key=lambda s: parts(s)[1],
                    )
                    if len(widths) > 1:
                        a = np.stack([held.advantage(q, pruner, start) for q in widths], -1)
                        tau = rows_of_ranks(np.where(np.abs(a) < RESOLUTION, 0, a))
                        if not np.isfinite(tau[:, 0]).all():
                            continue  # A is 0 at all widths of a training: nothing to rank
                        label = told(start, "SLEB", quantizer)
                        yield row(held, label, "tau of A with the bits", held.over(tau, -1, 1))


def _reported() -> Iterable[Row]:
    """The paper's own cell: 5 % (or one block) with QuaRot at 4 bits, where pruning first wins."""
    for held in _models():
        for start in turned(held):
            if not start:
                continue
            for pruner in after(held, start):
                _, amount = parts(pruner)
                if pruner.startswith("remove") or str(amount) == FIVE:
                    value = -held.advantage("gptq-4", pruner, start)
                    label = told(start, pruner, "gptq-4")
                    yield row(held, label, "−A(Q→P), nats: pruning first wins", value)


def turning(models: Iterable[Chains]) -> Iterable[tuple[Chains, str, Rows]]:
    """What pruning alone costs more of the rotated model; the dense models are one function.

    Whole blocks are no part of it: to remove one is the same function before and after a rotation.
    """
    for held in models:
        for start in turned(held)[1:]:
            for pruner in after(held, start):
                _, amount = parts(pruner)
                if 0 < amount < 1 and (pruner,) in held.rows:
                    yield held, pruner, held.rows[(pruner,)] - held.rows[(*start, pruner)]


def amplified() -> Iterable[Row]:
    """Of every model and pruner what rotating adds to the loss."""
    return (row(held, pruner, MORE, values) for held, pruner, values in turning(_models()))


def control() -> float | None:
    """The largest difference that a rotation makes to removing blocks, which must be rounding."""
    found = [
        float(np.nanmax(np.abs(held.rows[(*start, p)] - held.rows[(p,)])[:, 0]))
        for held in _models()
        for start in turned(held)[1:]
        for p in after(held, start)
        if p.startswith("remove")
    ]
    return max(found, default=None)


FOUR = Finding(
    key="F-B",
    title="Three pruners and four quantizers ({rotation} × {weight update})",
    claim="A(Q→P) grows with C*_P − C_Q for every pair; at 5 % and 4 bits pruning goes first.",
    source="Kim et al., second figure: LLaMA-3 8B, RTN, OPTQ, QuaRot with RTN and with GPTQ",
    reported="5 % with QuaRot at 4 bits: A = −49.9 (SparseGPT) and −9.4 (SLEB) perplexity",
    studies=STUDIES,
    rows=lambda: [*_trends(), *_blocks(), *_reported()],
    figure="quarot/advantage-llama-docs-deep--prepared-rotate--log",
)
AMPLIFIED = Finding(
    key="F-C",
    title="Rotation amplifies pruning",
    claim="Pruning a rotated model costs more than pruning the model as it is.",
    source="Kim et al., finding 3: LLaMA-3 8B, perplexity against the pruning ratio",
    reported="SparseGPT, 40 %: perplexity 8.477, after the rotation 98.213",
    studies=STUDIES,
    rows=lambda: list(amplified()),
    figure="quarot/rotation",
)
