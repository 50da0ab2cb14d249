"""Rules that name the better order, and choices changed alone: against numbers worked by hand."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments.analysis import render, summarize
from experiments.analysis.rules import (
    ERRORS,
    GAP,
    OWNED,
    PRUNE,
    QUANTIZE,
    ZEROS,
    added_by_gap,
    predictions,
    regret,
    share_right,
    states,
)
from experiments.records import Record
from experiments.report import markdown
from experiments.summary import (
    BROKEN,
    CLAIMS,
    DAMAGED,
    FAILS,
    HOLDS,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNJUDGED,
    USABLE,
    Estimate,
    Summary,
    measure_of,
    verdict,
)
from perturb.plain import from_plain

from .synthetic import make_record, make_study

SPARSITIES, WIDTHS = (0.05, 0.2, 0.5), (5, 4, 3)
CLUSTERS, SEEDS = 40, 5


def test_what_every_rule_says():
    nan = math.nan
    said = predictions(
        np.array([1, -1, 0, 2]),
        np.array([0.3, 0.1, 0.1 + 0.2, nan]),
        np.array([0.2, 0.2, 0.3, 0.3]),
        np.array([0.5, -0.5, 0.0, nan]),
        np.array([-0.5, 0.5, nan, 0.0]),
    )
    assert said[GAP].tolist() == [1, -1, 0, 0]
    assert said[ZEROS].tolist() == [1, -1, 1, 0]  # a fraction that is the ratio is enough
    assert said[ERRORS].tolist() == [1, -1, 0, 0]
    assert said[OWNED].tolist() == [-1, 1, 0, 0]
    assert said[PRUNE].tolist() == [-1] * 4
    assert said[QUANTIZE].tolist() == [1] * 4


def test_share_and_regret_by_hand():
    said, sign = np.array([1, -1, 0, 1]), np.array([1, 1, 1, 0])
    assert share_right(said, sign) == 0.5
    assert math.isnan(share_right(said, np.zeros(4, int)))
    advantage = np.array([0.4, 0.2, -0.6, -0.1])
    every = np.ones(4, bool)
    assert regret(said, advantage, every) == pytest.approx((0 + 0.2 + 0.3 + 0.1) / 4)
    assert regret(said, advantage, np.array([1, 1, 0, 0], bool)) == pytest.approx(0.1)
    assert math.isnan(regret(said, advantage, ~every))


def test_what_the_gap_adds_is_told_within_what_the_zeros_say():
    """The winner is the zero rule's, and the gap is correlated with it: it adds nothing. Then the
    winner is the gap's within each stratum: it adds all there is."""
    zeros = np.repeat([1, -1], 8)
    gap = np.array([1, 1, 1, 1, 1, 1, -1, -1, 1, 1, -1, -1, -1, -1, -1, -1])
    assert share_right(gap, zeros) == 12 / 16
    assert added_by_gap(gap, zeros, zeros) == 0
    assert added_by_gap(gap, zeros, gap) == 1
    one_stratum = np.where(zeros > 0, gap, 0)
    mixed = np.array([1, 1, 1, -1, -1, -1, 1, -1])
    told = added_by_gap(one_stratum[:8], zeros[:8], mixed)
    assert told == pytest.approx(3 / 6 - 1 / 2)
    assert math.isnan(added_by_gap(np.abs(gap), zeros, zeros))


@pytest.mark.parametrize(
    ("measure", "dense", "better", "classes", "expected"),
    [
        ("accuracy", 0.98, [0.94, 0.92, 0.1], 10, [USABLE, DAMAGED, BROKEN]),
        ("neg_nll", -1.0, [-1.09, -1.2, -6.0], 256, [USABLE, DAMAGED, BROKEN]),
        ("neg_perplexity", -10.0, [-11.0, -12.0, -257.0], 256, [USABLE, DAMAGED, BROKEN]),
        ("neg_kl", 0.0, [-0.05, -0.2, -9.0], 256, [USABLE, DAMAGED, DAMAGED]),
        ("neg_nll", -1.0, [-6.0, np.nan], None, [DAMAGED, UNJUDGED]),
        ("own:mae", -1.0, [-1.0], None, [UNJUDGED]),
    ],
)
def test_how_much_is_left_of_a_model(measure, dense, better, classes, expected):
    found = states(np.array(better), np.full(len(better), dense), measure_of(measure), classes)
    assert found.tolist() == expected


def world(
    advantage: Callable[[int, float, int], float],
    zeros: dict[int, float],
    quantizer: Any = "rtn",
    seeds: int = SEEDS,
    **extra: Any,
) -> list[Record]:
    """Records whose A is ``advantage(seed, sparsity, bits)`` exactly, on every test example."""

    def record(order: str, nll: float, **amounts: Any) -> Record:
        flat = np.full(CLUSTERS, nll)
        held = {"data": {"classes": 256}} | extra
        return make_record(order, nll=flat, quantizer=quantizer, model="m", **amounts, **held)

    made = []
    for seed in range(seeds):
        made.append(record("dense", 1.0, seed=seed))
        lost = {s: 0.02 + s / 10 for s in SPARSITIES}
        worse = {b: 0.04 / (b - 2) for b in WIDTHS}
        made += [record("P", 1 + lost[s], sparsity=s, seed=seed) for s in SPARSITIES]
        made += [
            record("Q", 1 + worse[b], bits=b, seed=seed, zero_fraction=zeros[b]) for b in WIDTHS
        ]
        for s in SPARSITIES:
            for b in WIDTHS:
                both, half = 1 + lost[s] + worse[b], advantage(seed, s, b) / 2
                at = {"sparsity": s, "bits": b, "seed": seed}
                layers = {"layers": {"a": {"out_rel": 0.1}, "b": {"out_rel": 0.2 - half}}}
                made.append(record("QP", both - half, **at, **layers))
                layers = {"layers": {"a": {"out_rel": 0.1}, "b": {"out_rel": 0.2 + half}}}
                made.append(record("PQ", both + half, **at, **layers))
    return made


ZERO = {5: 0.04, 4: 0.1, 3: 0.3}


def by_zeros(seed: int, sparsity: float, bits: int) -> float:
    return (0.01 + seed / 1000) * (1 if ZERO[bits] >= sparsity else -1)


def total_of(summary: Summary) -> Any:
    (total,) = (t for t in summary.totals if (t.model, t.scale) == ("m", "log"))
    return total


def test_a_world_where_the_zero_fraction_decides():
    summary = summarize(world(by_zeros, ZERO), replicates=50)
    total = total_of(summary)
    rules = {rule.name: rule for rule in total.rules}
    (comparison,) = summary.select("m", "log")
    cells = {(c.sparsity, c.bits): c for c in comparison.cells}
    assert {b: cells[0.05, b].zero_fraction for b in WIDTHS} == ZERO
    first = [(s, b) for s in SPARSITIES for b in WIDTHS if ZERO[b] >= s]
    assert len(first) == 3
    assert rules[ZEROS].right.value == rules[ERRORS].right.value == 1
    assert rules[ZEROS].regret.value == rules[ERRORS].regret.value == 0
    decided = [at for at, c in cells.items() if c.gap_low > 0 or c.gap_high < 0]
    assert 0 < len(decided) < 9  # all rules are judged where PIH's says something
    truth = np.array([1 if at in first else -1 for at in decided])
    assert rules[PRUNE].right.value == pytest.approx((truth < 0).mean())
    gap_says = np.array([1 if cells[at].gap_low > 0 else -1 for at in decided])
    assert rules[GAP].right.value == pytest.approx((gap_says == truth).mean())
    usable = [at for at, cell in cells.items() if cell.state == USABLE]
    assert 0 < len(usable) < 9
    wrong = len([at for at in usable if at in first]) / len(usable)
    assert rules[PRUNE].regret.value == pytest.approx(wrong * 0.012, rel=1e-5)
    assert rules[QUANTIZE].regret.value == pytest.approx((1 - wrong) * 0.012, rel=1e-5)
    assert rules[PRUNE].regret.low < wrong * 0.012 < rules[PRUNE].regret.high
    assert total.added_by_gap.value == pytest.approx(0)
    counts = {state: held["cells"] for state, held in total.states.items()}
    assert counts == {USABLE: len(usable), DAMAGED: 9 - len(usable)}
    for state, held in total.states.items():
        mine = [at for at, cell in cells.items() if cell.state == state]
        assert held.get(QUANTIZE_FIRST, 0) == len([at for at in mine if at in first])
        assert held.get(PRUNE_FIRST, 0) == len([at for at in mine if at not in first])
    out = io.StringIO()
    render(summary, Console(file=out, width=120), scales=("log",))
    told = " ".join(out.getvalue().split())
    assert "zero fraction 100% [100%, 100%] 0 [0, 0] nats" in told
    narrow = io.StringIO()
    render(summary, Console(file=narrow, width=80), scales=("log",))
    lines = narrow.getvalue().splitlines()
    assert any(line.startswith("  zero fraction  ") and line.endswith("0 nats") for line in lines)
    assert f"{counts[USABLE]} cells usable" in told


def test_a_choice_that_turns_the_order_around_and_one_that_does_nothing():
    """Three settings, the usual one recorded first: of the same size the other way, and equal."""

    def falling(seed: int, sparsity: float, bits: int) -> float:
        return -0.01 - seed / 1000 - 0.001 * bits * sparsity

    def turned(seed: int, sparsity: float, bits: int) -> float:
        return -falling(seed, sparsity, bits)

    grids = {name: {"name": "rtn", "clip": name} for name in ("usual", "turned", "same")}
    records = [
        record
        for name, advantage in (("usual", falling), ("turned", turned), ("same", falling))
        for record in world(advantage, ZERO, grids[name])
        if name == "usual" or any(s["name"] == "rtn" for s in record["stages"])
    ]
    summary = summarize(records, replicates=50)
    found = {c.value: c for c in summary.choices if c.scale == "log"}
    assert found.keys() == {"turned", "same"}
    for c in found.values():
        assert (c.setting, c.usual, c.pairs, c.cells) == ("quantizer: clip", "usual", 1, 9)
        assert c.won == 9
    sizes = [-falling(seed, s, b) for seed in range(SEEDS) for s in SPARSITIES for b in WIDTHS]
    size = np.mean(sizes)
    turned_found, same = found["turned"], found["same"]
    assert turned_found.order.value == same.order.value == pytest.approx(size, rel=1e-5)
    assert turned_found.moved.value == turned_found.shift.value == pytest.approx(2 * size, rel=1e-5)
    assert turned_found.moved.low < 2 * size < turned_found.moved.high
    assert (turned_found.kept, turned_found.lost) == (0, 9)
    before, after = turned_found.verdicts["trend along bits"]
    assert {before, after} == {HOLDS, FAILS}
    assert (same.moved.value, same.shift.value, same.kept, same.lost) == (0, 0, 9, 0)
    assert all(before == after for before, after in same.verdicts.values())
    out = io.StringIO()
    render(summary, Console(file=out, width=160), scales=("log",))
    told = " ".join(out.getvalue().split())
    assert "clip=turned of the quantizer usual" in told
    assert "0/9/0" in told
    narrow = io.StringIO()
    render(summary, Console(file=narrow, width=80), scales=("log",))
    (row,) = (x for x in narrow.getvalue().splitlines() if "clip=turned of the quantizer" in x)
    assert row.rstrip().endswith("0/9/0")
    assert f"trend along bits: {before}, then {after}" in told


def test_the_one_rule_of_verdicts():
    assert verdict(Estimate(0.2, 0.1, 0.3), 0.0, 5) == HOLDS
    assert verdict(Estimate(-0.2, -0.3, -0.1), 0.0, 5) == FAILS
    assert verdict(Estimate(0.2, 0.1, 0.3), 0.25, 5) == "undecided"
    assert verdict(Estimate(0.2, 0.1, 0.3), 0.0, 1) == "undecided"  # one training
    assert verdict(Estimate(0.2, None, None), 0.0, 5) == "undecided"


def test_a_summary_is_read_back_from_its_json_as_it_was():
    records = make_study(
        models={"m": "text"}, pruners=["wanda"], sparsities=(0.3, 0.9), bits=(8, 4), clusters=30
    )
    summary = summarize(records, replicates=20)
    again = Summary.from_json(summary.to_json())
    assert again.to_json() == summary.to_json()
    assert any(math.isinf(c.gap_high) for x in summary.comparisons for c in x.cells)
    assert again == summary
    with pytest.raises(ValueError, match="no 'comparisons'"):
        Summary.from_json("{}")
    with pytest.raises(ValueError, match="no Estimate: it lacks 'value'"):
        from_plain(Estimate, {})


def test_the_readmes_tables_count_what_the_summary_holds():
    """Two grids, one that zeroes much and one without 0: who wins on either side of the ratio."""
    without = dict.fromkeys(WIDTHS, 0.0)

    def first_loses(seed: int, sparsity: float, bits: int) -> float:
        return -0.01 - seed / 1000

    grids = {"half": (by_zeros, ZERO), "midrise": (first_loses, without)}
    records = [
        record
        for name, (advantage, zeros) in grids.items()
        for record in world(advantage, zeros, {"name": "rtn", "convention": name})
        if name == "half" or any(s["name"] == "rtn" for s in record["stages"])
    ]
    summary = summarize(records, replicates=50)
    assert [c.grid for c in summary.comparisons_on("log")] == ["usual", "convention=midrise"]
    lines = markdown.zeros([summary])
    assert "| m | usual | 4% / 10% / 30% | 3 | 3 | 0 | 6 | 0 | 6 |" in lines
    assert "| m | convention=midrise | 0% / 0% / 0% | 0 | 0 | 0 | 9 | 0 | 9 |" in lines
    (told,) = (line for line in lines if line.startswith("- **m**"))
    assert "the prediction came true: the zero fraction names the winner in 100%" in told
    assert "the zero fraction over pruning first: +17% [+17%, +17%]" in told
    (row,) = (line for line in markdown.choices([summary]) if "midrise" in line)
    assert row.startswith("| convention=midrise of the quantizer (half) | ")
    assert "| 6/3/0 |" in row


def test_two_sets_of_trainings_are_set_side_by_side():
    first = summarize(world(by_zeros, ZERO), replicates=50)

    def moved(seed: int, sparsity: float, bits: int) -> float:
        return by_zeros(seed, sparsity, bits) + (0.1 if sparsity == 0.5 else 0)

    second = summarize(world(moved, ZERO), replicates=50)
    lines = markdown.survives([first, second])
    assert len([line for line in lines if line.startswith("| m, 0 to 4 |")]) == 4
    assert any("in 67% of 9 cells (95 % are to be expected)" in line for line in lines)
    again = markdown.survives([first, first])
    assert any("in 100% of 9 cells" in line for line in again)
    for claim in CLAIMS:
        (v,) = (v for v in first.verdicts if (v.claim, v.scale) == (claim, "log"))
        assert any(line.startswith(f"- **{claim}**: {v.verdict} on m") for line in again)
    assert any("1e-3" in line or "thousandths" in line for line in markdown.rules([first]))
