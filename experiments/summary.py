"""What a study found, as typed values: the result of :func:`experiments.analysis.summarize`.

Orientation as in :mod:`perturb.measure.intensity`: A(Q->P) = M(Q then P) - M(P then Q), so A < 0
means that pruning first wins; gap = C*_P - C_Q, so gap > 0 means that pruning is the stronger
method and PIH expects A > 0. A ratio C is dense bits / stored bits of the whole model.
Numbers are in the unit of the measure; ``None`` is "could not be computed", infinities in a gap
are a censored side.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, astuple, dataclass, field
from statistics import median
from typing import Any

PRUNE_FIRST, QUANTIZE_FIRST, UNDECIDED, EQUAL = "prune first", "quantize first", "open", "equal"
NO_INTERVAL = "no interval"  # a measure without per-example sums: no winner can be told


@dataclass(frozen=True)
class Measure:
    """A performance M, higher is better. ``shown`` = value * factor, in ``unit``."""

    name: str
    kinds: tuple[str, ...]
    scale: str  # "natural", "log" or "kl": which question it answers, across kinds of model
    label: str
    unit: str
    factor: float = 1.0


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("accuracy", ("images",), "natural", "accuracy", "percentage points", 100.0),
        Measure("neg_perplexity", ("text",), "natural", "−perplexity", "perplexity"),
        Measure("neg_nll", ("images", "text"), "log", "−NLL", "nats"),
        Measure("neg_kl", ("images", "text"), "kl", "−KL to dense", "nats"),
    )
}


@dataclass(frozen=True)
class Estimate:
    """A statistic with its bootstrap interval (None where undefined)."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """Sign predictions over the significant cells whose gap has a decided sign, + or -."""

    counted: int
    pih: int
    prune_first: int
    quantize_first: int
    undecided: int  # significant, but the gap's bounds allow both signs: in no denominator
    no_gap: int = 0  # significant, but the gap is exactly 0, of which PIH says nothing: nor these

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Cell:
    """One (sparsity, bits): both orders compared, averaged over the seeds that have both."""

    sparsity: float
    bits: int
    advantage: float  # A(Q->P)
    low: float | None  # its interval; None for a measure without per-example sums
    high: float | None
    winner: str  # PRUNE_FIRST, QUANTIZE_FIRST, UNDECIDED, EQUAL (A is exactly 0) or NO_INTERVAL
    performance_gap: float | None  # G(P, Q) = M(P alone) - M(Q alone)
    pruner_ratio: float | None  # C*_P; the bound where censored
    quantizer_ratio: float | None  # C_Q; None where some seed lacks the quantizer alone
    gap: float | None  # C*_P - C_Q
    gap_low: float
    gap_high: float
    status: str  # "ok", "below", "above", "tie", "mixed" over seeds, "unknown"
    # of significant cells "right", "wrong", "undecided" or "no gap", else "not significant", or
    # NO_INTERVAL
    pih: str
    seeds: tuple[int, ...]
    advantage_by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """One pruner against one quantizer on one model, in one measure, over the whole grid."""

    model: str
    kind: str
    pruner: str
    quantizer: str
    measure: str
    cells: tuple[Cell, ...]
    tau: Estimate  # Kendall's tau-b of A against the gap, all decided pairs of cells
    tau_bits: Estimate  # only pairs of one sparsity: along the quantization axis
    tau_sparsity: Estimate  # only pairs of one bit width: along the pruning axis
    spearman: Estimate  # over the cells whose gap is not censored
    score: Score

    @property
    def wins(self) -> Counter[str]:
        """How often each order wins: counts by ``Cell.winner``."""
        return Counter(cell.winner for cell in self.cells)

    @property
    def median_advantage(self) -> float | None:
        return median(cell.advantage for cell in self.cells) if self.cells else None

    @property
    def largest(self) -> Cell | None:
        """The cell with the largest |A|."""
        return max(self.cells, key=lambda cell: abs(cell.advantage), default=None)

    @property
    def failures(self) -> tuple[Cell, ...]:
        """Where PIH fails: significant cells of the opposite sign, largest |A| first."""
        wrong = [cell for cell in self.cells if cell.pih == "wrong"]
        return tuple(sorted(wrong, key=lambda cell: -abs(cell.advantage)))


@dataclass(frozen=True)
class Total:
    """Comparisons pooled: of one model, or (``model`` None) of all models on one scale.

    Models of ``Summary.at_chance`` have no total and are in none.
    """

    model: str | None
    scale: str
    comparisons: int
    cells: int
    wins: dict[str, int]
    tau: Estimate  # mean of the comparisons' taus
    tau_bits: Estimate
    tau_sparsity: Estimate
    score: Score


@dataclass(frozen=True)
class Summary:
    """Everything a study found. ``problems`` says what is missing, failed or was left out.

    ``at_chance``: models of which a seed's dense model does no better than guessing, so that what
    an order does to them is noise; ``problems`` gives the numbers.
    """

    study: str
    records: int
    ok: int
    failed: int
    seeds: tuple[int, ...]
    replicates: int
    level: float
    comparisons: tuple[Comparison, ...]
    totals: tuple[Total, ...]
    problems: tuple[str, ...] = field(default=())
    at_chance: tuple[str, ...] = field(default=())

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(comparison.model for comparison in self.comparisons))

    def comparisons_on(self, scale: str) -> tuple[Comparison, ...]:
        """The comparisons of all models on one scale ('natural', 'log', 'kl')."""
        return tuple(c for c in self.comparisons if MEASURES[c.measure].scale == scale)

    def select(self, model: str, scale: str) -> tuple[Comparison, ...]:
        """The comparisons of one model on one scale ('natural', 'log', 'kl')."""
        return tuple(c for c in self.comparisons_on(scale) if c.model == model)

    def to_json(self) -> str:
        """Strict JSON, stable from run to run; infinite and undefined numbers are null."""
        plain = asdict(self)
        for entry, comparison in zip(plain["comparisons"], self.comparisons, strict=True):
            entry["wins"] = dict(comparison.wins)
            entry["median_advantage"] = comparison.median_advantage
        return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
