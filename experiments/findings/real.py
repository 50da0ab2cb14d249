"""What a published language model says: its cells one by one, for it was trained once.

A verdict is about this model: its interval is over the test windows and the calibration draws. A
cell of one draw has none, unless neither of its methods looks at data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from experiments.analysis.chains import Chain, Chains
from experiments.analysis.rows import Rows
from experiments.findings.names import parts
from experiments.findings.types import LOG, Finding, Row, chains, row, rows_of_ranks

STUDY = "smollm2"
PRUNERS, QUANTIZERS = ("sparsegpt", "wanda", "magnitude"), ("gptq", "rtn")
BLIND = ("magnitude", "rtn", "rotate")  # methods that need no data
MOST = 8  # bits: above, nothing is won or lost

Pair = tuple[Chain, str, str]  # what stands before, the pruner, the quantizer


def pairs(held: Chains) -> list[Pair]:
    """Every pruner and quantizer that were run in both orders, each alone, too."""
    found = []
    for *before, p, q in held.having(lambda c: len(c) >= 2 and c[-2].startswith(PRUNERS)):
        start = tuple(before)
        wanted = ((*start, q, p), (*start, p), (*start, q))
        if q.startswith(QUANTIZERS) and all(c in held.rows for c in wanted):
            found.append((start, p, q))
    return found


def _told(pair: Pair) -> str:
    before, p, q = pair
    turned = " rotated," if before else ""
    return f"{turned} {p} × {q}".strip().replace("[per=64]", "")


def _row(held: Chains, pair: Pair, tested: str, values: Rows) -> Row:
    """Of a pair; where only one draw has it, its interval is no verdict's."""
    known = np.isfinite(values[:, 0])
    draws = len({run[1] for run, there in zip(held.ids, known, strict=True) if there})
    blind = all(stage.startswith(BLIND) for stage in (*pair[0], *pair[1:]))
    made = row(held, _told(pair), tested, values)
    return replace(made, draws=draws, published=blind or draws > 1)


def _cells(tested: str, sign: Callable[[Chains, Pair], float]) -> Iterable[Row]:
    """A of the order that a rule names, cell by cell, where bits are few enough to matter."""
    for held in chains(STUDY, LOG):
        for pair in pairs(held):
            before, p, q = pair
            if parts(q)[1] <= MOST and (toward := sign(held, pair)):
                yield _row(held, pair, tested, toward * held.advantage(q, p, before))


def by_gap(held: Chains, pair: Pair) -> float:
    """+1 where the pruner costs more, so that it comes last by the hypothesis."""
    before, p, q = pair
    p_cost, q_cost = (held.loss((*before, one)).value for one in (p, q))
    assert p_cost is not None
    assert q_cost is not None
    return float(np.sign(p_cost - q_cost))


def by_zeros(held: Chains, pair: Pair) -> float:
    """+1 where the quantizer alone zeroes at least what is pruned."""
    before, p, q = pair
    zeros = [r["zero_fraction"] for r in held.records[(*before, q)]]
    return 1.0 if np.mean(zeros) >= parts(p)[1] else -1.0


def by_bits() -> Iterable[Row]:
    """Kendall's tau of A with the gap along bits: more bits, a weaker quantizer, a larger gap."""
    for held in chains(STUDY, LOG):
        curves: dict[tuple[Chain, str, str], list[Pair]] = {}
        for pair in pairs(held):
            curves.setdefault((pair[0], pair[1], parts(pair[2])[0]), []).append(pair)
        for (before, p, method), cells in curves.items():
            cells.sort(key=lambda pair: parts(pair[2])[1])
            if len(cells) > 2:
                values = np.stack([held.advantage(q, p, before) for _, _, q in cells], -1)
                tested = f"tau of A with the gap along {len(cells)} widths"
                yield _row(held, (before, p, method), tested, rows_of_ranks(values))


def control() -> float | None:
    """The largest |A| at 16 bits, nats a token: it must vanish for every pair of methods."""
    found = [
        float(np.nanmax(np.abs(held.advantage(q, p, before)[:, 0])))
        for held in chains(STUDY, LOG)
        for before, p, q in pairs(held)
        if parts(q)[1] == 16
    ]
    return max(found, default=None)


def perplexities() -> list[tuple[str, str, float]]:
    """Of each model, and of each method alone on it."""
    return [
        (held.model, "".join(chain) or "dense", float(np.exp(-np.nanmean(held.rows[chain][:, 0]))))
        for held in chains(STUDY, LOG)
        for chain in held.having(lambda c: len(c) < 2)
    ]


def _finding(
    key: str, title: str, claim: str, source: str, rows: Callable[[], Iterable[Row]]
) -> Finding:
    return Finding(
        key,
        f"A published model: {title}",
        claim,
        source,
        "of LLaMA-2 and 3: see F-A and F-B",
        (STUDY,),
        lambda: list(rows()),
    )


GAP = "A of the order that the gap of costs names, nats a token"
FIRST = "A of pruning first, nats a token"
ZEROS = "A of the order that the zeros name, nats a token"
FINDINGS = (
    _finding(
        "R-1",
        "the stronger method last",
        "The method that costs more alone goes last.",
        "Kim et al., on SmolLM2-135M",
        lambda: _cells(GAP, by_gap),
    ),
    _finding(
        "R-2",
        "the trend along bits",
        "A(Q→P) grows with C*_P − C_Q.",
        "Kim et al., on SmolLM2-135M",
        by_bits,
    ),
    _finding(
        "R-3",
        "sparsify first",
        "Pruning before quantizing is better, in every case.",
        "Harma et al., ICLR 2025 (arXiv 2405.20935), on SmolLM2-135M",
        lambda: _cells(FIRST, lambda held, pair: -1.0),
    ),
    _finding(
        "R-4",
        "the zero fraction names the order",
        "Quantize first if the quantizer alone zeroes at least what is pruned, else prune first.",
        "this project's rule, on SmolLM2-135M",
        lambda: _cells(ZEROS, by_zeros),
    ),
)
