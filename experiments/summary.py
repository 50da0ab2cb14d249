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
from dataclasses import astuple, dataclass, field, replace
from statistics import median

from scipy.special import ndtr, stdtr

from perturb.plain import from_plain, plain, to_json

RATIO_TOLERANCE = 1e-9  # of a ratio, which is no exact binary fraction
USUAL_GRID = {"per": "row", "clip": "absmax", "convention": "half"}  # perturb.grid.GridSpec's
PRUNE_FIRST, QUANTIZE_FIRST, UNDECIDED, EQUAL = "prune first", "quantize first", "open", "equal"
NO_INTERVAL = "no interval"  # a measure without per-example sums: no winner can be told


@dataclass(frozen=True)
class Measure:
    """A performance M, higher is better. ``shown`` = value * factor, in ``unit``.

    scale: which question it answers, across kinds of model ("natural", "log", "kl"); that of a
    person's own measure is its name.
    """

    name: str
    sums: str  # what of a record it is the mean of
    scale: str
    label: str
    unit: str
    factor: float = 1.0


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("accuracy", "correct", "natural", "accuracy", "percentage points", 100.0),
        Measure("neg_perplexity", "nll", "natural", "−perplexity", "perplexity"),
        Measure("neg_nll", "nll", "log", "−NLL", "nats"),
        Measure("neg_kl", "kl", "kl", "−KL to dense", "nats"),
    )
}
OWN = "own:"  # begins the name of a measure of a person's own task, a loss
TEXT_ONLY = "neg_perplexity"


def measure_of(name: str) -> Measure:
    """The measure of that name: one of MEASURES, or a person's own."""
    if name in MEASURES:
        return MEASURES[name]
    sums = name.removeprefix(OWN)
    return Measure(name, sums, name, f"−{sums}", sums)


def short_model(model: str) -> str:
    """A model, or a subject with its policy, as figures and tables call it: of one's own task its
    function's name, with hyphens."""
    name, bracket, policy = model.partition(" [")
    if ":" in name:
        name = name.rpartition(":")[2].replace("_", "-")
    return name + bracket + policy


def compared_by(kind: str, sums: str) -> list[Measure]:
    """What a kind of model is compared by, of these sums of its records."""
    known = [m for m in MEASURES.values() if m.sums == sums]
    if known:
        return [m for m in known if m.name != TEXT_ONLY or kind == "text"]
    return [measure_of(OWN + sums)]


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval (None where undefined).

    error: over replicates, or over the bootstrap's examples where there is one; df: of Student's t,
    None where the normal law stands for it.
    """

    value: float | None
    low: float | None
    high: float | None
    error: float | None = None
    df: float | None = None

    def p(self, than: float) -> float:
        """Of the two-sided test that the statistic is ``than``; nan where one cannot say."""
        if self.value is None or self.error is None:
            return math.nan
        if self.error == 0:
            return float(self.value == than)
        t = -abs(self.value - than) / self.error
        return 2 * float(ndtr(t) if self.df is None else stdtr(self.df, t))


NOTHING = Estimate(None, None, None)


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
class Replication:
    """Of the cells that one run gives to an order: what another run, judged alike, says of them."""

    won: int  # the same order
    open: int
    lost: int  # the other one

    @property
    def asked(self) -> int:
        return self.won + self.open + self.lost

    def __add__(self, other: Replication) -> Replication:
        return Replication(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Spread:
    """Root mean square over the cells of what moves A, in the measure's unit; None where one
    cannot tell. size: of the mean A itself, less what its own error adds: the order effect that
    trainings have in common."""

    seed: float | None  # from training to training
    draw: float | None  # from calibration draw to calibration draw
    both: float | None  # what a draw does to one training and not to another
    examples: float | None  # of the mean over the runs, on other test examples
    size: float | None = None


# How much the better order of a cell leaves of the model (experiments.analysis.rules.states)
USABLE, DAMAGED, BROKEN, UNJUDGED = "usable", "damaged", "broken", "not judged"
LOSS = 0.1  # nats that a usable model loses at most (a perplexity exp(0.1) times the dense one's)
POINTS = 0.05  # of accuracy that it loses at most


@dataclass(frozen=True)
class Rule:
    """A rule that names the better order beforehand (:mod:`experiments.analysis.rules`).

    right: the share of a run's won cells whose winner it names, of those that it and PIH's gap
    both say something of; regret: what following it loses to the better order, mean over a run's
    usable cells, in the measure's unit. Both over runs.
    """

    name: str
    right: Estimate
    regret: Estimate


HOLDS, FAILS, NO_VERDICT = "holds", "fails", "undecided"
ALONG_BITS, ALONG_RATIO, SIGN = "trend along bits", "trend along the ratio", "sign"
CLAIMS = {ALONG_BITS: 0.0, ALONG_RATIO: 0.0, SIGN: 0.5}  # of PIH, and what each has to be above


@dataclass(frozen=True)
class Verdict:
    """A claim of PIH's on one model: it holds where the whole interval over replicates is above
    ``above``, fails where it is below, and is undecided else, or where there is one training.

    trend along bits (the paper's axis: points of one sparsity) and along the ratio (points of one
    width): mean Kendall tau of A against the gap; sign: share of a run's won cells with a decided
    gap whose winner is the gap's.
    """

    claim: str
    model: str
    scale: str
    value: float | None
    low: float | None
    high: float | None
    above: float
    seeds: int
    draws: int
    error: float | None = None
    df: float | None = None

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high, self.error, self.df)

    @property
    def verdict(self) -> str:
        return verdict(self.estimate, self.above, self.seeds)


def verdict(found: Estimate, above: float, seeds: int) -> str:
    """The one rule of all verdicts: HOLDS where the whole interval over replicates is above, FAILS
    where it is below, NO_VERDICT else, or where there is one training."""
    if seeds < 2 or found.low is None or found.high is None:
        return NO_VERDICT
    return HOLDS if found.low > above else FAILS if found.high < above else NO_VERDICT


@dataclass(frozen=True)
class Cell:
    """One (sparsity, bits): both orders compared, averaged over the runs that have both.

    A run is a trained model under one calibration draw: (seed, draw).
    """

    sparsity: float
    bits: int
    prune_first: float  # M(P then Q)
    quantize_first: float  # M(Q then P)
    advantage: float  # A(Q->P) = M(Q then P) - M(P then Q)
    low: float | None  # its interval over runs and examples; None without per-example sums
    high: float | None
    p: float | None  # of the test that A is 0, by the same error
    winner: str  # PRUNE_FIRST, QUANTIZE_FIRST, UNDECIDED, EQUAL (A is exactly 0) or NO_INTERVAL
    performance_gap: float | None  # G(P, Q) = M(P alone) - M(Q alone)
    pruner_ratio: float | None  # C*_P; the bound where censored
    quantizer_ratio: float | None  # C_Q; None where some run lacks the quantizer alone
    gap: float | None  # C*_P - C_Q
    gap_low: float
    gap_high: float
    status: str  # "ok", "below", "above", "tie", "mixed" over runs, "unknown"
    # of significant cells "right", "wrong", "undecided" or "no gap", else "not significant", or
    # NO_INTERVAL
    pih: str
    runs: tuple[tuple[int, int], ...]
    advantage_by_run: tuple[float, ...]
    state: str = UNJUDGED  # USABLE, DAMAGED or BROKEN: what the better order leaves of the model
    zero_fraction: float | None = None  # of the weights, by the quantizer alone
    # A(Q->P) of the layers alone, M = -(the sum of their relative output errors): as measured, and
    # by ownership (experiments.runner.ownership); what they differ by is interference
    by_errors: float | None = None
    by_ownership: float | None = None

    @property
    def zeros_say(self) -> int:
        """Of the zero fraction: 1 quantize first, -1 prune first, 0 where it is not known."""
        if self.zero_fraction is None:
            return 0
        return 1 if self.zero_fraction >= self.sparsity - RATIO_TOLERANCE else -1


@dataclass(frozen=True)
class Comparison:
    """One pruner against one quantizer on one model, in one measure, over the whole grid.

    policy: what of it sets this comparison apart from others of the study; "" if nothing does.
    methods, settings: the names of pruner and quantizer, and what sets them and the policy apart.
    """

    model: str
    policy: str
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
    methods: tuple[str, str] = ("", "")
    settings: dict[str, str] = field(default_factory=dict)  # "pruner: tie" -> "index"

    @property
    def subject(self) -> str:
        """The model, with the policy where the study has several."""
        return f"{self.model} [{self.policy}]" if self.policy else self.model

    @property
    def grid(self) -> str:
        """What sets the quantizer's grid apart from the usual one: 'convention=full', 'usual'."""
        told = (key.removeprefix("quantizer: ") for key in self.settings)
        own = {key: self.settings.get(f"quantizer: {key}") for key in told}
        changed = [f"{k}={v}" for k, v in own.items() if v and USUAL_GRID.get(k, v) != v]
        return ", ".join(changed) or "usual"

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
class Choice:
    """One setting changed alone, on one model (:mod:`experiments.analysis.choices`).

    order, moved, shift: mean over cells of |A| under the usual value, of how far the other moves
    it, and of the difference itself, over runs; in the measure's unit. won: cells of the usual
    value that an order wins (at a controlled rate of false winners); kept, lost: of these, the
    ones that the same order wins under the other value, or the other order does. verdicts: of
    every claim of PIH's, under the usual value and under the other.
    """

    model: str
    scale: str
    setting: str
    usual: str
    value: str
    pairs: int
    cells: int
    order: Estimate
    moved: Estimate
    shift: Estimate
    won: int
    kept: int
    lost: int
    verdicts: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Total:
    """Comparisons pooled: of one subject, or (``model`` None) of all of them on one scale.

    Models of ``Summary.at_chance`` have no total and are in none.
    """

    model: str | None
    scale: str
    comparisons: int
    cells: int
    wins: dict[str, int]
    discoveries: dict[str, int]  # the same, as many as may be with 5 % of them false at most
    tau: Estimate  # mean of the comparisons' taus
    tau_bits: Estimate
    tau_sparsity: Estimate
    score: Score
    sign: Estimate  # share of a run's counted cells where PIH's sign is right
    replication: Replication
    spread: Spread
    states: dict[str, dict[str, int]] = field(default_factory=dict)  # state -> discoveries in it,
    # and under "cells" how many cells
    rules: tuple[Rule, ...] = ()
    added_by_gap: Estimate = NOTHING  # to the zero fraction: rules.added_by_gap
    margin: Estimate = NOTHING  # the zero fraction's share of won cells less prune first's
    usable: Spread = Spread(None, None, None, None)  # the same as ``spread``, of usable cells alone


@dataclass(frozen=True)
class Summary:
    """Everything a study found. ``problems`` says what is missing, failed or was left out.

    ``models`` are subjects: with their policy where the study has several. ``notes``: what the
    records hold besides, of which no comparison of two orders can speak.
    ``at_chance``: models of which a run's dense model does no better than guessing, so that what
    an order does to them is noise; ``problems`` gives the numbers.
    """

    study: str
    records: int
    ok: int
    failed: int
    seeds: tuple[int, ...]
    draws: tuple[int, ...]
    replicates: int
    level: float
    comparisons: tuple[Comparison, ...]
    totals: tuple[Total, ...]
    problems: tuple[str, ...] = field(default=())
    at_chance: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())
    choices: tuple[Choice, ...] = field(default=())

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Of every claim, on every model and scale that has a total."""
        found = []
        for total in self.totals:
            values = (total.tau_bits, total.tau_sparsity, total.sign)
            for (claim, above), e in zip(CLAIMS.items(), values, strict=True):
                if total.model is not None and e.value is not None:
                    told = (e.value, e.low, e.high, above, len(self.seeds), len(self.draws))
                    found.append(Verdict(claim, total.model, total.scale, *told, e.error, e.df))
        return tuple(found)

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(comparison.subject for comparison in self.comparisons))

    @property
    def scales(self) -> tuple[str, ...]:
        """'natural', 'log', 'kl' and those of people's own measures, if anything is on them."""
        known = dict.fromkeys(m.scale for m in MEASURES.values())
        found = dict.fromkeys(measure_of(c.measure).scale for c in self.comparisons)
        return tuple([s for s in known if s in found] + [s for s in found if s not in known])

    def usual_scale(self, model: str) -> str:
        """The one a model is judged on if none is asked for: its natural one, else its first."""
        return next((scale for scale in self.scales if self.select(model, scale)), "natural")

    @property
    def mean_of(self) -> str:
        """Over what a cell is the mean, in words; "" if over one run."""
        return _over(len(self.seeds), len(self.draws))

    def mean_on(self, model: str, scale: str) -> str:
        """The same of one model, which may have fewer."""
        runs = {run for c in self.select(model, scale) for cell in c.cells for run in cell.runs}
        return _over(len({seed for seed, _ in runs}), len({draw for _, draw in runs}))

    def comparisons_on(self, scale: str) -> tuple[Comparison, ...]:
        """The comparisons of all models on one scale."""
        return tuple(c for c in self.comparisons if measure_of(c.measure).scale == scale)

    def select(self, model: str, scale: str) -> tuple[Comparison, ...]:
        """The comparisons of one model on one scale."""
        return tuple(c for c in self.comparisons_on(scale) if c.subject == model)

    def to_json(self) -> str:
        """Strict JSON, stable from run to run; infinite and undefined numbers are null."""
        said = plain(self)
        for entry, comparison in zip(said["comparisons"], self.comparisons, strict=True):
            entry["wins"] = dict(comparison.wins)
            entry["median_advantage"] = comparison.median_advantage
        said["verdicts"] = [plain(v) | {"verdict": v.verdict} for v in self.verdicts]
        return to_json(said, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Summary:
        """What :meth:`to_json` wrote. Raises ValueError for anything else."""
        said = json.loads(text)
        if not isinstance(said, dict) or "comparisons" not in said:
            raise ValueError("no summary of a study: it has no 'comparisons'")
        read = from_plain(cls, said)
        return replace(read, comparisons=tuple(map(_uncensored, read.comparisons)))


def _over(seeds: int, draws: int) -> str:
    counts = {"training seeds": seeds, "calibration draws": draws}
    return " x ".join(f"{count} {what}" for what, count in counts.items() if count > 1)


def _uncensored(comparison: Comparison) -> Comparison:
    """With the infinite ends of censored gaps, which JSON has no name for."""

    def ends(cell: Cell) -> Cell:
        low, high = cell.gap_low, cell.gap_high
        return replace(
            cell,
            gap_low=-math.inf if math.isnan(low) else low,
            gap_high=math.inf if math.isnan(high) else high,
        )

    return replace(comparison, cells=tuple(map(ends, comparison.cells)))
