"""What published models say: their cells one by one, for they were trained once.

A verdict is about this model: its interval is over the test windows and the calibration draws. A
cell of one draw has none, unless neither of its methods looks at data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from experiments.analysis.chains import Chain, Chains
from experiments.analysis.rows import Rows
from experiments.findings import rotation
from experiments.findings.names import parts
from experiments.findings.types import LOG, Finding, Row, chains, row, rows_of_ranks
from experiments.summary import Estimate

KL = "neg_kl"
# In which measures M; what is said once only is said in the first. Without labels there is but -KL.
STUDIES = {"smollm2": (LOG, KL), "smollm2_quarot": (LOG, KL), "efficientnet": (KL,)}
OF_BLOCKS = "remove"  # SLEB: prunes no single weights
PRUNERS, QUANTIZERS = ("sparsegpt", "wanda", "magnitude", OF_BLOCKS), ("gptq", "rtn")
BLIND = ("magnitude", "rtn", "rotate")  # methods that need no data
MOST = 8  # bits: above, nothing is won or lost
WIDTHS, RATIOS = "widths", "ratios"
WORTH = 1.0  # nats: where a method alone costs more, there is no model left to compare orders on


class Pair(NamedTuple):
    """Names of stages: what stands before, the pruner (as it is last), the quantizer."""

    before: Chain
    pruner: str
    quantizer: str

    @property
    def first(self) -> str:
        """The pruner as it is first: what it does to a grid makes no difference there."""
        return re.sub(r"\[on_grid=\w+\]", "", self.pruner)

    @property
    def stages(self) -> Chain:
        return (*self.before, self.pruner, self.quantizer)

    def __str__(self) -> str:
        turned = "rotated, " if self.before else ""
        return f"{turned}{self.pruner} × {self.quantizer}".replace("[per=64]", "")

    def advantage(self, held: Chains) -> Rows:
        """A(Q -> P)."""
        one = held.rows[(*self.before, self.quantizer, self.pruner)]
        return one - held.rows[(*self.before, self.first, self.quantizer)]


def models() -> Iterable[Chains]:
    """Every published model with stored records, in its first measure."""
    for study, measures in STUDIES.items():
        yield from chains(study, measures[0])


def measured() -> Iterable[tuple[Chains, str]]:
    """Every published model in each of its measures, and the measure's name but of the first."""
    for study, measures in STUDIES.items():
        for measure in measures:
            told = "" if measure == measures[0] else "M = −KL"
            yield from ((held, told) for held in chains(study, measure))


def pairs(held: Chains) -> list[Pair]:
    """Every pruner and quantizer that were run in both orders, each alone, too, and where neither
    alone leaves nothing to compare."""
    found = []
    for *before, q, p in held.having(lambda c: len(c) >= 2 and c[-1].startswith(PRUNERS)):
        pair, start = Pair(tuple(before), p, q), tuple(before)
        wanted = ((*start, pair.first, q), (*start, pair.first), (*start, q))
        if not q.startswith(QUANTIZERS) or not all(c in held.rows for c in wanted):
            continue
        if all((held.loss(c).value or 0.0) <= WORTH for c in wanted[1:]):
            found.append(pair)
    return found


def _row(
    held: Chains,
    stages: Chain,
    told: str,
    tested: str,
    values: Rows,
    measure: str = "",
    most: float = np.inf,
) -> Row:
    """Of what these stages make; where only one draw has it, its interval is no verdict's.

    most: what the values cannot exceed, in either direction.
    """
    known = np.isfinite(values[:, 0])
    draws = len({run[1] for run, there in zip(held.ids, known, strict=True) if there})
    blind = all(stage.startswith(BLIND) for stage in stages)
    label = ", ".join(filter(None, (told, measure)))
    made = row(held, label, tested, held.over(values, -most, most))
    return replace(made, draws=draws, published=blind or draws > 1)


def _cells(
    tested: str, sign: Callable[[Chains, Pair], float], kind: str | None = None
) -> Iterable[Row]:
    """A of the order that a rule names, cell by cell, where bits are few enough to matter."""
    for held, measure in measured():
        for pair in pairs(held) if kind in (None, held.kind) else ():
            if parts(pair.quantizer)[1] <= MOST and (toward := sign(held, pair)):
                values = toward * pair.advantage(held) + 0.0  # of -0 too
                yield _row(held, pair.stages, str(pair), tested, values, measure)


def pruning_first(kind: str | None = None) -> list[Row]:
    """What pruning first is worth on published models (of text, or of images)."""
    return list(_cells(FIRST, lambda held, pair: -1.0, kind))


def by_gap(held: Chains, pair: Pair) -> float:
    """+1 where the pruner costs more, so that it comes last by the hypothesis."""
    alone = (pair.first, pair.quantizer)
    p_cost, q_cost = (held.loss((*pair.before, one)).value for one in alone)
    assert p_cost is not None
    assert q_cost is not None
    return float(np.sign(p_cost - q_cost))


def by_zeros(held: Chains, pair: Pair) -> float:
    """+1 where the quantizer alone zeroes at least what is pruned; of blocks it says nothing."""
    if pair.pruner.startswith(OF_BLOCKS):
        return 0.0
    zeros = [r["zero_fraction"] for r in held.records[(*pair.before, pair.quantizer)]]
    return 1.0 if np.mean(zeros) >= parts(pair.pruner)[1] else -1.0


class Curve(NamedTuple):
    """Cells that differ in one amount, which grows; the pair has that method's bare name."""

    along: str
    pair: Pair
    cells: list[Pair]

    @property
    def amounts(self) -> list[float]:
        return [parts(c.quantizer if self.along == WIDTHS else c.pruner)[1] for c in self.cells]

    def advantages(self, held: Chains) -> np.ndarray:
        """A(Q -> P) ``[runs, 1 + B, cells]``."""
        return np.stack([cell.advantage(held) for cell in self.cells], -1)


def curves(held: Chains) -> Iterable[Curve]:
    """Along bits, where more of them are a weaker quantizer and a larger gap, and along the ratio.

    Of a curve the cells that as many runs have as have any: others, such as the control's, would
    leave these runs without a trend. Where nothing is won or lost there is nothing to rank.
    """
    cells = [pair for pair in pairs(held) if parts(pair.quantizer)[1] <= MOST]
    for along in (WIDTHS, RATIOS):
        groups: dict[Pair, list[Pair]] = {}
        for cell in cells:
            if along == WIDTHS:
                bare = cell._replace(quantizer=parts(cell.quantizer)[0])
            else:
                bare = cell._replace(pruner=parts(cell.pruner)[0])
            groups.setdefault(bare, []).append(cell)
        for bare, mine in groups.items():
            runs = [np.isfinite(cell.advantage(held)[:, 0]).sum() for cell in mine]
            known = [cell for cell, n in zip(mine, runs, strict=True) if n == max(runs)]
            if len(known) > 2:
                found = Curve(along, bare, known)
                order = np.argsort(found.amounts)
                yield found._replace(cells=[known[i] for i in order])


def trends() -> Iterable[Row]:
    """Kendall's tau of A with the gap, along every curve."""
    for held, measure in measured():
        for curve in curves(held):
            ranks = rows_of_ranks(curve.advantages(held))
            tested = f"tau of A with the gap along {len(curve.cells)} {curve.along}"
            yield _row(held, curve.pair.stages, str(curve.pair), tested, ranks, measure, most=1.0)


def amplified() -> Iterable[Row]:
    """What rotating makes of pruning alone."""
    for held, pruner, values in rotation.turning(models()):
        yield _row(held, (pruner,), pruner, rotation.MORE, values)


def control() -> dict[str, float]:
    """Of each model the largest |A| at 16 bits in any run, nats: what is not the order's.

    It vanishes but for rounding, and for ties that are drawn at random: a method at another place
    of a chain draws anew.
    """
    found: dict[str, float] = {}
    for held in models():
        for pair in pairs(held):
            if parts(pair.quantizer)[1] == 16:
                largest = float(np.nanmax(np.abs(pair.advantage(held)[:, 0])))
                found[held.model] = max(largest, found.get(held.model, 0.0))
    return found


class Reported(NamedTuple):
    """Two chains that a paper compared, and what it says of them, in perplexity."""

    what: str
    said: str
    first: Chain
    second: Chain


_GPTQ, _RTN, _TURN = "gptq[per=64]-4", "rtn[per=64]-4", "rotate[kind=hadamard]"
_2OF4, _RTN8 = "magnitude[scope=2:4]-0.5", "rtn[per=64]-8"
_TIED = "magnitude[scope=2:4,tie=dense]-0.5"
ORDERS = "prune first, quantize first"
REPORTED = (
    Reported(
        f"SparseGPT 5 % × QuaRot with GPTQ, 4 bits: {ORDERS}",
        "A = −49.9 (LLaMA-3 8B)",
        (_TURN, "sparsegpt-0.05", _GPTQ),
        (_TURN, _GPTQ, "sparsegpt-0.05"),
    ),
    Reported(
        f"SLEB (here one block) × GPTQ, 4 bits: {ORDERS}",
        "A = −9.4 with QuaRot, 5 % (LLaMA-3 8B)",
        ("remove", _GPTQ),
        (_GPTQ, "remove"),
    ),
    Reported(
        f"SLEB (here one block) × RTN, 4 bits: {ORDERS}",
        "A = 0 exactly at 7 to 9 bits (LLaMA-3 8B)",
        ("remove", _RTN),
        (_RTN, "remove"),
    ),
    Reported(
        "SparseGPT 40 %: the model as it is, rotated",
        "8.477, 98.213 (LLaMA-3 8B)",
        ("sparsegpt-0.4",),
        (_TURN, "sparsegpt-0.4"),
    ),
    Reported(
        f"2:4 by magnitude × RTN, 8 bits: {ORDERS}",
        "9.37, 14.65 (LLaMA-2 7B, dense 5.47)",
        (_2OF4, _RTN8),
        (_RTN8, _2OF4),
    ),
    Reported(
        f"the same, equal weights going by their size before rounding: {ORDERS}",
        "not reported",
        (_TIED, _RTN8),
        (_RTN8, _TIED),
    ),
)


def beside_reported() -> Iterable[tuple[Chains, Reported, float, float, Estimate]]:
    """Of each reported cell that a model has: its perplexity both times, and the difference."""
    for held in models():
        for cell in REPORTED:
            if cell.first in held.rows and cell.second in held.rows:
                both = [np.exp(-held.rows[chain]) for chain in (cell.first, cell.second)]
                known = np.isfinite(both[0][:, 0] + both[1][:, 0])
                first, second = (float(one[known, 0].mean()) for one in both)
                yield held, cell, first, second, held.over(both[0] - both[1])


def costs() -> dict[str, dict[str, float]]:
    """Of each model what each method alone costs, nats."""
    found: dict[str, dict[str, float]] = {}
    for held in models():  # several studies may have run one
        mine = {chain[0]: held.loss(chain).value or 0.0 for chain in held.having(_alone)}
        found.setdefault(held.model, {}).update(mine)
    return found


def _alone(chain: Chain) -> bool:
    return len(chain) == 1


def _finding(
    key: str,
    title: str,
    claim: str,
    source: str,
    rows: Callable[[], Iterable[Row]],
    reported: str = "of LLaMA-2 and 3: see F-A and F-B",
    figure: str = "",
) -> Finding:
    return Finding(
        key,
        f"Published models: {title}",
        claim,
        source,
        reported,
        tuple(STUDIES),
        lambda: list(rows()),
        figure,
    )


GAP = "A of the order that the gap of costs names, nats"
FIRST = "A of pruning first, nats"
ZEROS = "A of the order that the zeros name, nats"
FINDINGS = (
    _finding(
        "R-1",
        "the stronger method last",
        "The method that costs more alone goes last.",
        "Kim et al.",
        lambda: _cells(GAP, by_gap),
    ),
    _finding(
        "R-2",
        "the trend with the gap",
        "A(Q→P) grows with C*_P − C_Q.",
        "Kim et al.",
        trends,
        figure="smollm2/published",
    ),
    _finding(
        "R-3",
        "sparsify first",
        "Pruning before quantizing is better, in every case.",
        "Harma et al., ICLR 2025 (arXiv 2405.20935)",
        pruning_first,
    ),
    _finding(
        "R-4",
        "the zero fraction names the order",
        "Quantize first if the quantizer alone zeroes at least what is pruned, else prune first.",
        "this project's rule",
        lambda: _cells(ZEROS, by_zeros),
    ),
    _finding(
        "R-5",
        "rotation amplifies pruning",
        "Pruning a rotated model costs more than pruning the model as it is.",
        "Kim et al.",
        amplified,
        "SparseGPT, 40 %, on LLaMA-3 8B: see F-C",
    ),
)
