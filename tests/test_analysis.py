"""From records to findings: exact bookkeeping on hand-made studies, laws on synthetic ones."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from rich.console import Console

from experiments.analysis import render, summarize
from experiments.analysis.variants import order_of, role
from experiments.records import decode_sums, encode_sums
from experiments.summary import (
    EQUAL,
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Estimate,
    Score,
)
from perturb.measure import bootstrap, intensity
from tests.synthetic import amount_of, identified, make_record, make_study

CLUSTERS = 20


def flat(order, value, **method):
    """A variant with the same loss on every token: no sampling noise, intervals of width 0."""
    return make_record(order, nll=np.full(CLUSTERS, value), **method)


def both(sparsity, bits, advantage, loss=3.0):
    """PQ and QP with A(Q->P) = ``advantage`` in nats: QP loses that much less."""
    method = {"sparsity": sparsity, "bits": bits}
    return [flat("PQ", loss, **method), flat("QP", loss - advantage, **method)]


def alone():
    """Dense 1, 8 bits 1.125, 4 bits 1.375, 2 bits 2: losses float32 holds exactly.

    Pruning half (1.25) lies midway between 8 and 4 bits, C* = 3; pruning 90 % (2.5) is worse
    than 2 bits, C* >= 8.
    """
    return [
        flat("dense", 1.0),
        flat("Q", 1.125, bits=8),
        flat("Q", 1.375, bits=4),
        flat("Q", 2.0, bits=2),
        flat("P", 1.25, sparsity=0.5),
        flat("P", 2.5, sparsity=0.9),
    ]


HAND_MADE = [
    *alone(),
    *both(0.5, 8, 0.125),  # gap +1: right
    *both(0.5, 4, 0.125),  # gap -1: wrong
    *both(0.5, 2, 0.0),  # gap -5: equal, never counted
    *both(0.9, 8, -0.25),  # gap >= 6: wrong, and the bound is enough to say so
    *both(0.9, 4, 0.125),  # gap >= 4: right
    *both(0.9, 2, 0.125),  # gap >= 0: the bound does not decide the sign
]


def only(summary, measure="neg_nll"):
    (found,) = [c for c in summary.comparisons if c.measure == measure]
    return found


def test_the_hand_made_study_by_hand():
    found = only(summarize(HAND_MADE, replicates=50))
    rows = [
        (c.sparsity, c.bits, c.advantage, c.gap, c.status, c.winner, c.pih) for c in found.cells
    ]
    q, p = QUANTIZE_FIRST, PRUNE_FIRST
    assert rows == [
        (0.5, 8, 0.125, 1.0, "ok", q, "right"),
        (0.5, 4, 0.125, -1.0, "ok", q, "wrong"),
        (0.5, 2, 0.0, -5.0, "ok", EQUAL, "not significant"),
        (0.9, 8, -0.25, 6.0, "above", p, "wrong"),
        (0.9, 4, 0.125, 4.0, "above", q, "right"),
        (0.9, 2, 0.125, 0.0, "above", q, "undecided"),
    ]
    assert found.score == Score(counted=4, pih=2, prune_first=1, quantize_first=3, undecided=1)
    assert [(c.gap_low, c.gap_high) for c in found.cells[2:4]] == [(-5, -5), (6, np.inf)]
    assert all(c.low == c.high == c.advantage for c in found.cells)
    assert found.cells[0].performance_gap == -0.125  # M(P) - M(Q) = -1.25 + 1.125
    assert found.cells[3].pruner_ratio == 8.0
    # 14 of 15 pairs have a decided gap (not 0.5/8 against 0.9/2), 9 of them untied in A:
    # 4 agree, 5 do not
    tau = -1 / np.sqrt(14 * 9)
    assert found.tau == Estimate(*[pytest.approx(tau)] * 3, error=0.0)
    # along bits: 0.5 rises twice and ties once; 0.9 falls twice and ties once
    assert found.tau_bits.value == pytest.approx(0.0)
    # along sparsity, at 8, 4, 2 bits: falls, ties, rises (its gap, -5 to >= 0, is decided)
    assert found.tau_sparsity.value == pytest.approx(0.0)
    assert [c.bits for c in found.failures] == [8, 4]
    assert found.largest.advantage == -0.25
    assert found.median_advantage == 0.125


def test_perplexity_is_the_exponential_of_the_same_sums():
    summary = summarize(HAND_MADE, replicates=50)
    cell = only(summary, "neg_perplexity").cells[0]
    assert cell.advantage == pytest.approx(np.exp(3.0) - np.exp(2.875))
    curve = -np.exp([1.0, 1.125, 1.375, 2.0])
    expected = intensity.equivalent_ratio(-np.exp(1.25), np.array([1.0, 2, 4, 8]), curve)
    assert cell.pruner_ratio == pytest.approx(expected.value)


def test_a_pruner_that_performs_as_a_bit_width_has_its_ratio_exactly():
    for loss, ratio in ((1.0, 1.0), (1.125, 2.0), (1.375, 4.0), (2.0, 8.0)):
        records = [r for r in HAND_MADE if order_of(r) != "P"]
        records += [flat("P", loss, sparsity=0.5), flat("P", loss, sparsity=0.9)]
        for measure in ("neg_nll", "neg_perplexity"):
            cells = only(summarize(records, replicates=20), measure).cells
            assert {cell.pruner_ratio for cell in cells} == {ratio}
            assert {cell.gap for cell in cells if 16 / cell.bits == ratio} <= {0.0}


def test_intervals_are_the_paired_cluster_bootstrap():
    records = make_study(models={"m": "images"}, pruners=["wanda"], quantizers=["rtn"], clusters=80)
    summary = summarize(records, replicates=300, bootstrap_seed=7)
    by_label = {r["label"]: decode_sums(r)["correct"] for r in records}
    rng = np.random.default_rng([7, 80])
    weights = bootstrap.cluster_bootstrap_weights(80, 300, rng)
    for cell in only(summary, "accuracy").cells:
        pq = by_label[f"m/s0/wanda-{cell.sparsity:g}>rtn-{cell.bits}"]
        qp = by_label[f"m/s0/rtn-{cell.bits}>wanda-{cell.sparsity:g}"]
        difference = (weights @ (qp - pq)) / 80
        low, high = np.quantile(difference, [0.025, 0.975])
        assert (cell.low, cell.high) == (pytest.approx(low), pytest.approx(high))
        assert cell.advantage == pytest.approx((qp - pq).mean())


def test_equal_orders_are_equal_and_never_significant():
    summary = summarize(make_study(slope=0.0, noise=0.0, clusters=50), replicates=100)
    for comparison in summary.comparisons:
        if comparison.measure != "neg_kl":
            assert comparison.wins == {EQUAL: 30}
            assert comparison.score == Score(0, 0, 0, 0, 0, 0)
            assert comparison.tau.value is None


def test_rounding_is_not_an_order():
    noisy = [*alone(), *both(0.5, 8, 2e-7, loss=0.5), *both(0.9, 8, -0.25)]
    first, second = only(summarize(noisy, replicates=20)).cells
    assert 0 < first.advantage < 1e-6
    assert (first.winner, second.winner) == (UNDECIDED, PRUNE_FIRST)


def test_a_world_where_pih_holds_and_one_where_pruning_first_always_wins():
    for offset, best in ((0.0, "pih"), (-20.0, "prune_first")):
        summary = summarize(make_study(noise=0.02, offset=offset), replicates=100)
        for total in summary.totals:
            if total.scale == "log":
                assert total.score.counted > 0.8 * total.cells
                assert getattr(total.score, best) == total.score.counted


def test_totals_add_up():
    summary = summarize(make_study(offset=-0.05, clusters=50), replicates=50)
    for scale in ("natural", "log", "kl"):
        totals = {t.model: t for t in summary.totals if t.scale == scale}
        assert set(totals) == {"llama-docs", "resnet-digits", None}
        for model in summary.models:
            chosen = summary.select(model, scale)
            assert totals[model].cells == sum(len(c.cells) for c in chosen) == 180
            assert totals[model].score == sum((c.score for c in chosen), Score(0, 0, 0, 0, 0, 0))
            mean = np.mean([c.tau.value for c in chosen])
            assert totals[model].tau.value == pytest.approx(mean)
        assert totals[None].cells == 360
        assert sum(totals[None].wins.values()) == 360
    assert all(c.low is None for c in summary.select("llama-docs", "kl")[0].cells)


def test_seeds_are_averaged_and_kept():
    grid = {"pruners": ["wanda"], "quantizers": ["rtn"], "clusters": 60}
    model = {"m": "text"}
    both_seeds = make_study(models=model, seeds=(0, 3), **grid)
    joint = only(summarize(both_seeds, replicates=50))
    singles = [
        only(summarize([r for r in both_seeds if r["seed"] == seed], replicates=50))
        for seed in (0, 3)
    ]
    for cell, one, other in zip(joint.cells, *(s.cells for s in singles), strict=True):
        assert cell.runs == ((0, 0), (3, 0))
        assert cell.advantage_by_run == (one.advantage, other.advantage)
        assert cell.advantage == pytest.approx((one.advantage + other.advantage) / 2)
        assert cell.gap_low == pytest.approx((one.gap_low + other.gap_low) / 2)
    six = only(summarize(make_study(models=model, seeds=range(6), **grid), replicates=50))
    widths = [np.mean([c.high - c.low for c in s.cells]) for s in (six, *singles, joint)]
    assert widths[0] < min(widths[1:3])  # six noisy models average
    assert widths[3] > max(widths[1:3])  # two are too few to know by how much they differ


def moved(seed: int, size: float, seeds: int = 5):
    """A study whose trainings differ by more than their test examples: A of a training is shifted
    by a normal of this size, in a random direction a cell."""
    rng = np.random.default_rng(seed)
    records = make_study(
        models={"m": "text"}, pruners=["wanda"], quantizers=["rtn"], clusters=60, seeds=range(seeds)
    )
    for i, r in enumerate(records):
        if len(r["stages"]) == 2 and role(r["stages"][1]) == "P":
            shift = size * rng.normal()
            sums = decode_sums(r)
            sums["nll"] = sums["nll"] + shift * sums["count"]
            records[i] = r | {"sums": encode_sums(sums)}
    return records


def test_what_differs_between_trainings_is_in_the_intervals_and_named():
    summary = summarize(moved(0, 3.0), replicates=50)
    found = next(c for c in summary.comparisons if c.measure == "neg_nll")
    one = summarize(moved(0, 3.0, seeds=1), replicates=50)
    alone = next(c for c in one.comparisons if c.measure == "neg_nll")
    # of the shifts alone: their mean has a standard error of 3 / sqrt(5), and Student's t four
    # degrees of freedom; their estimate scatters, and its mean is 0.94 of it
    widths = np.array([c.high - c.low for c in found.cells])
    assert widths.mean() == pytest.approx(2 * 2.776 * 0.94 * 3 / np.sqrt(5), rel=0.15)
    assert np.mean([c.high - c.low for c in alone.cells]) < widths.mean() / 5
    total = next(t for t in summary.totals if t.model == "m" and t.scale == "log")
    assert total.spread.seed == pytest.approx(3.0, rel=0.15)
    assert total.spread.draw is None
    assert total.spread.examples < 0.3
    # one training gives a cell to an order, the next is as likely to give it to the other
    assert total.replication.won == pytest.approx(total.replication.lost, rel=0.3)
    assert total.replication.open < 0.2 * total.replication.asked
    assert sum(found.wins[w] for w in (PRUNE_FIRST, QUANTIZE_FIRST)) < 6  # of 30
    assert sum(total.discoveries.values()) <= 1


def test_verdicts_are_of_intervals_over_trainings():
    one, five = (summarize(moved(0, 0.01, seeds=n), replicates=50) for n in (1, 5))
    for summary in (one, five):
        for v in summary.verdicts:
            above = {"trend along bits": 0.0, "trend along the ratio": 0.0, "sign": 0.5}[v.claim]
            decided = v.low is not None and v.seeds > 1
            expected = "undecided"
            if decided and v.low > above:
                expected = "holds"
            elif decided and v.high < above:
                expected = "fails"
            assert (v.verdict, v.above) == (expected, above)
    assert {v.verdict for v in one.verdicts} == {"undecided"}
    assert {v.claim for v in five.verdicts} == {"trend along bits", "trend along the ratio", "sign"}
    assert {v.verdict for v in five.verdicts} != {"undecided"}
    said = json.loads(five.to_json())["verdicts"]
    assert [v["verdict"] for v in said] == [v.verdict for v in five.verdicts]
    assert {(v["seeds"], v["draws"]) for v in said} == {(5, 1)}


def test_one_seed_without_a_cell_does_not_lose_it():
    records = make_study(models={"m": "text"}, pruners=["wanda"], quantizers=["rtn"], seeds=(0, 1))
    gone = "m/s1/rtn-4>wanda-0.5"
    summary = summarize([r for r in records if r["label"] != gone], replicates=20)
    found = only(summary)
    assert len(found.cells) == 30
    (cell,) = [c for c in found.cells if (c.sparsity, c.bits) == (0.5, 4)]
    assert cell.runs == ((0, 0),)
    expected = "m, wanda x rtn, seed 1: 1 of 30 cells lack an order (sparsity/bits 0.5/4)"
    assert summary.problems == (expected,)


def test_order_of_records_and_repetition_change_nothing():
    records = make_study(models={"m": "text"}, clusters=40)
    first = summarize(records, replicates=40).to_json()
    shuffled = records + records[:50]
    random.Random(0).shuffle(shuffled)
    assert summarize(shuffled, replicates=40).to_json() == first
    parsed = json.loads(first, parse_constant=lambda name: pytest.fail(name))
    assert len(parsed["comparisons"]) == 18
    assert parsed["comparisons"][0]["wins"]


@pytest.mark.parametrize("seed", range(4))
def test_any_part_of_a_study_can_be_summarised(seed):
    rng = random.Random(seed)
    records = [r for r in make_study(clusters=20) if rng.random() < 0.7]
    for record in rng.sample(records, 40):
        record |= {"status": "error", "error": "ValueError: [no] layers\n  ...\nat last"}
    records = [r for r in records if r["stages"] or seed % 2]
    summary = summarize(records, replicates=30)
    assert summary.failed == 40
    assert any(problem.endswith("failed: ValueError: [no] layers") for problem in summary.problems)
    ok = {r["label"] for r in records if r["status"] == "ok"}
    for c in summary.comparisons:
        for cell in c.cells:
            prune, quantize = f"{c.pruner}-{cell.sparsity:g}", f"{c.quantizer}-{cell.bits}"
            for chain in (f"{prune}>{quantize}", f"{quantize}>{prune}"):
                assert f"{c.model}/s0/{chain}" in ok
            assert (cell.quantizer_ratio is None) == (f"{c.model}/s0/{quantize}" not in ok)
            if not {f"{c.model}/s0/{prune}", f"{c.model}/s0/{quantize}"} <= ok:
                assert (cell.status, cell.gap) == ("unknown", None)
                assert cell.pih in ("undecided", "not significant", NO_INTERVAL)
    render(summary, Console(file=io.StringIO(), width=120))


def test_a_model_that_broke_is_left_out_of_the_means_and_named():
    broken = flat("QP", np.nan, sparsity=0.5, bits=2)
    records = [r for r in HAND_MADE if r["cell"] != broken["cell"]] + [broken]
    summary = summarize(records, replicates=20)
    assert len(only(summary).cells) == 5
    assert any(f"{broken['label']}: no finite neg_nll" in p for p in summary.problems)
    exploded = flat("QP", 5000.0, sparsity=0.5, bits=2)  # exp(5000) is no float
    records[-1] = exploded
    cells = only(summarize(records, replicates=20), "neg_perplexity").cells
    assert len(cells) == 6
    assert cells[2].winner == PRUNE_FIRST


def with_quantizer(record, **settings):
    """The record with these settings of its quantizer, under a label that says so."""
    stages = [s | settings if role(s) == "Q" else s for s in record["stages"]]
    if stages == record["stages"]:
        return record
    return identified(record | {"stages": stages, "label": f"{record['label']}/{settings}"})


def test_configurations_of_one_name_are_told_apart_by_what_differs():
    records = [
        with_quantizer(r, grid={"per": per, "clip": "mse"})
        for r in HAND_MADE
        for per in ("row", 64)
    ]
    summary = summarize(records, replicates=9)
    assert {c.quantizer for c in summary.comparisons} == {"gptq (per=64)", "gptq (per=row)"}
    assert {c.pruner for c in summary.comparisons} == {"wanda"}
    assert summary.problems == ()


def test_a_label_names_every_difference_and_nothing_collides():
    """A nested setting called as the method's own one, and one that is null against one unset."""
    settings = [
        {"per": "row", "grid": {"per": "row", "bits": 4}},
        {"per": "row", "grid": {"per": 64, "bits": 4}},
        {"per": 64, "grid": {"per": "row", "bits": 4}},
        {"per": 64, "grid": {"per": "row", "bits": 8}},
        {"per": 64, "grid": {"per": "row", "bits": 8}, "target": None},
    ]
    records = [with_quantizer(r, **chosen) for chosen in settings for r in HAND_MADE]
    summary = summarize(records, replicates=9)
    assert {c.quantizer for c in summary.comparisons} == {
        f"gptq (grid.bits={bits}, grid.per={inner}, per={own}, target={target})"
        for bits, inner, own, target in (
            (4, "row", "row", "unset"),
            (4, 64, "row", "unset"),
            (4, "row", 64, "unset"),
            (8, "row", 64, "unset"),
            (8, "row", 64, "null"),
        )
    }
    assert {len(c.cells) for c in summary.comparisons} == {6}
    assert summary.problems == ()


def test_a_gap_of_exactly_zero_is_no_prediction():
    changed = [flat("P", 1.375, sparsity=0.5)]  # as good as 4 bits: C* = 4
    cells = {r["cell"] for r in changed}
    found = only(summarize([r for r in HAND_MADE if r["cell"] not in cells] + changed))
    cell = found.cells[1]
    assert (cell.sparsity, cell.bits, cell.gap, cell.winner) == (0.5, 4, 0.0, QUANTIZE_FIRST)
    assert cell.pih == "no gap"
    assert cell not in found.failures
    # 0.5/8 and 0.9/4 right, 0.9/8 wrong, 0.9/2 undecided
    assert found.score == Score(3, 2, 1, 2, undecided=1, no_gap=1)
    assert (found.score + found.score).no_gap == 2


def test_a_measure_without_intervals_has_no_winner_and_is_not_open():
    summary = summarize(make_study(clusters=20), replicates=20)  # up to schema 1: a mean KL only
    for comparison in summary.comparisons:
        if comparison.measure == "neg_kl":
            assert comparison.wins == {NO_INTERVAL: 30}
            assert {cell.pih for cell in comparison.cells} == {NO_INTERVAL}
        else:
            assert NO_INTERVAL not in comparison.wins
    out = io.StringIO()
    render(summary, Console(file=out, width=120), scales=("kl",))
    table = out.getvalue().split("Which order wins")[1]
    header = table.splitlines()[1]
    assert "no interval" in header
    assert "open" not in header
    row = next(line.split() for line in table.splitlines() if "wanda × gptq" in line)
    assert row[3:5] == ["30", "30"]  # cells, no interval


def again(record, **changes):
    """A record of the same order and amounts."""
    amounts = {name: amount_of(record, name) for name in ("sparsity", "bits")}
    return make_record(order_of(record), **amounts, **changes)


def with_data(records, **data):
    return [r | {"data": r["data"] | data} for r in records]


@pytest.mark.parametrize(
    ("right", "classes", "lost"),
    [
        (3, 10, True),
        (0, 10, True),
        (9, 10, False),
        (6, 4, True),
        (6, 1000, False),
        (3, None, False),
    ],
)
def test_an_image_model_at_chance_counts_in_no_total(right, classes, lost):
    """Intervals: 3 of 20 right, about [0, 0.3]; 6, [0.1, 0.5]; 9, [0.25, 0.65]."""
    correct = np.arange(CLUSTERS) < right
    images = [
        again(
            r, nll=np.full(CLUSTERS, 2.0), correct=correct.astype(int), model="resnet",
            kind="images",
        )
        for r in HAND_MADE
    ]  # fmt: skip
    records = [*HAND_MADE, *(with_data(images, classes=classes) if classes else images)]
    summary = summarize(records, replicates=200)
    assert summary.at_chance == (("resnet",) if lost else ())
    assert summary.models == ("llama-docs", "resnet")  # shown all the same
    totals = {t.model: t.cells for t in summary.totals if t.scale == "log"}
    out = io.StringIO()
    render(summary, Console(file=out, width=80))
    text = " ".join(out.getvalue().split())
    assert ("resnet is at chance before it is compressed" in text) == lost
    assert ("at chance: in no total" in text) == lost
    if lost:
        assert totals == {"llama-docs": 6, None: 6}
        assert summary.problems[0].startswith("resnet, seed 0: the dense model is at chance")
        assert f"guessing one of {classes} gives {1 / classes}" in summary.problems[0]
    else:
        assert totals == {"llama-docs": 6, "resnet": 6, None: 12}
        assert summary.problems == ()


def test_a_text_model_at_chance_and_one_seed_of_several():
    """The dense loss is 1 nat on every token: that of guessing one of e. 2 < e < 3."""
    for classes, lost in ((2, True), (3, False)):
        summary = summarize(with_data(HAND_MADE, classes=classes), replicates=20)
        assert summary.at_chance == (("llama-docs",) if lost else ())
        assert bool(summary.totals) != lost
    other = [again(r, seed=1, nll=np.full(CLUSTERS, 4.0)) for r in HAND_MADE]
    summary = summarize(with_data([*HAND_MADE, *other], classes=40), replicates=20)
    assert summary.at_chance == ("llama-docs",)
    (told,) = [p for p in summary.problems if "at chance" in p]
    assert told.startswith("llama-docs, seed 1: the dense model is at chance (nll 4 [4, 4]")


def test_a_wrong_cell_of_a_model_at_chance_is_no_failure_of_pih():
    out = io.StringIO()
    render(summarize(with_data(HAND_MADE, classes=2), replicates=20), Console(file=out, width=120))
    assert "Where PIH fails" not in out.getvalue()


def of_seed(records, seed):
    return [
        identified(r | {"seed": seed, "label": r["label"].replace("/s0/", f"/s{seed}/")})
        for r in records
    ]


def test_records_that_no_mean_may_pool_are_refused():
    first, *rest = HAND_MADE
    calibration = {"draw": 0, "examples": 64, "batch": True}
    told = r"differ in calibration \(batch true and unset, examples 64 and unset\)"
    with pytest.raises(ValueError, match=told) as caught:
        summarize([first | {"calibration": calibration}, *rest])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"differ in data \(hash \"a\" and \"b\"\)"):
        summarize([*with_data([first], hash="a"), *with_data(rest, hash="b")])
    with pytest.raises(ValueError, match=r"differ in the layers left out \(conv \"3D\" and unset"):
        summarize([first | {"skipped": {"conv": "3D"}}, *rest])
    other_seed = of_seed(HAND_MADE, 1)
    summarize([*with_data(HAND_MADE, weights="a"), *with_data(other_seed, weights="b")])
    with pytest.raises(ValueError, match="differ in calibration"):
        summarize([*HAND_MADE, *(r | {"calibration": calibration} for r in other_seed)])


def test_one_draw_of_one_seed_is_the_same_examples_and_others_are_not():
    def drawn(records, **calibration):
        return [identified(r | {"calibration": calibration}) for r in records]

    first, *rest = HAND_MADE
    with pytest.raises(ValueError, match=r"calibration \(hash \"a\" and \"b\"\)"):
        summarize([*drawn([first], draw=0, hash="a"), *drawn(rest, draw=0, hash="b")])
    summary = summarize(
        [*drawn(HAND_MADE, draw=0, hash="a"), *drawn(HAND_MADE, draw=1, hash="b")], replicates=9
    )
    assert summary.draws == (0, 1)
    assert only(summary).cells[0].runs == ((0, 0), (0, 1))


def test_draws_are_replicates_as_seeds_are():
    """A mean over the four runs of two seeds and two draws, each kept beside it."""
    grid = {"pruners": ["wanda"], "quantizers": ["rtn"], "clusters": 60, "models": {"m": "text"}}
    records = make_study(seeds=(0, 1), draws=(0, 2), **grid)
    summary = summarize(records, replicates=50)
    assert (summary.seeds, summary.draws) == ((0, 1), (0, 2))
    runs = [(0, 0), (0, 2), (1, 0), (1, 2)]
    singles = [
        only(
            summarize(
                [r for r in records if (r["seed"], r["calibration"]["draw"]) == run], replicates=50
            )
        )
        for run in runs
    ]
    joint = only(summary)
    for cell, *parts in zip(joint.cells, *(single.cells for single in singles), strict=True):
        assert cell.runs == tuple(runs)
        assert cell.advantage_by_run == tuple(part.advantage for part in parts)
        assert cell.advantage == pytest.approx(np.mean(cell.advantage_by_run))
        assert cell.prune_first == pytest.approx(np.mean([part.prune_first for part in parts]))
        assert cell.quantize_first - cell.prune_first == pytest.approx(cell.advantage)
    (total,) = (t for t in summary.totals if t.model == "m" and t.scale == "log")
    assert None not in (total.spread.seed, total.spread.draw, total.spread.both)
    out = io.StringIO()
    render(summary, Console(file=out, width=120))
    assert "mean of 2 training seeds x 2 calibration draws" in " ".join(out.getvalue().split())
    for drawn, draw in (("", 0), ("/c2", 2)):
        gone = [r for r in records if r["label"] != f"m/s1{drawn}/rtn-4>wanda-0.5"]
        told = f"m, wanda x rtn, seed 1, draw {draw}: 1 of 30 cells lack an order"
        assert summarize(gone, replicates=20).problems == (f"{told} (sparsity/bits 0.5/4)",)


def test_conditions_are_compared_apart_though_their_calibration_differs():
    """Fewer examples, and a layer that stays dense: no mean pools them, and each is a choice."""

    def under(policy, examples, skipped):
        return [
            identified(
                r
                | {"policy": {"norms": "keep"} | policy, "skipped": skipped}
                | {"calibration": {"draw": 0, "examples": examples, "hash": str(examples)}}
            )
            for r in HAND_MADE
        ]

    usual, few = under({}, 64, {}), under({"examples": 16}, 16, {})
    dense = under({"exclude": ["fc"]}, 64, {"fc": "excluded by 'fc'"})
    summary = summarize([*usual, *few, *dense], replicates=20)
    names = ("examples=all, exclude=none", "examples=16, exclude=none")
    assert summary.models[:2] == tuple(f"llama-docs [{name}]" for name in names)
    assert summary.models[2] == 'llama-docs [examples=all, exclude=["fc"]]'
    told = {(c.setting, c.usual, c.value) for c in summary.choices}
    assert told == {
        ("policy: examples", "all", "16"),
        ("policy: exclude", "none", '["fc"]'),
    }
    mixed = [*usual, *under({}, 16, {})[:1]]
    with pytest.raises(ValueError, match="differ in calibration"):
        summarize([mixed[-1], *mixed[1:]], replicates=9)


def test_orders_on_a_rotated_model_are_compared_apart():
    """A rotation leaves the function: its record is the dense model of what comes after it."""

    def rotated(record):
        if order_of(record) == "QP":
            record = again(record, nll=np.full(CLUSTERS, 1.5))
        return identified(record | {"stages": [{"name": "rotate", "seed": 0}, *record["stages"]]})

    after = [rotated(record) for record in HAND_MADE]
    assert [order_of(r) for r in after] == [order_of(r) for r in HAND_MADE]
    summary = summarize([*HAND_MADE, *after], replicates=20)
    assert summary.models == ("llama-docs [prepared=no]", "llama-docs [prepared=rotate]")
    assert summary.notes == ()
    (plain,) = summary.select("llama-docs [prepared=no]", "log")
    (alone,) = summarize(HAND_MADE, replicates=20).select("llama-docs", "log")
    assert plain.cells == alone.cells
    (turned,) = summary.select("llama-docs [prepared=rotate]", "log")
    assert {c.quantize_first for c in turned.cells} == {-1.5}
    assert [c.gap for c in turned.cells] == [c.gap for c in plain.cells]
    (choice,) = (c for c in summary.choices if c.scale == "log")
    assert (choice.setting, choice.usual, choice.value) == ("policy: prepared", "no", "rotate")


def test_preparations_of_one_name_are_told_by_their_settings():
    """Rounded activations are a model of their own, of each width; what came later is told where
    it is set."""

    def after(*stages):
        return [identified(r | {"stages": [*stages, *r["stages"]]}) for r in HAND_MADE]

    turn, wide, narrow = (
        {"name": "rotate", "seed": 0},
        {"name": "activations", "width": 8, "clip": 1.0},
        {"name": "activations", "width": 4, "clip": 1.0},
    )
    every = [*after(turn), *after(turn | {"online": True}), *after(turn, wide), *after(narrow)]
    summary = summarize(every, replicates=20)
    assert summary.notes == summary.problems == ()
    assert summary.models == (
        "llama-docs [prepared=rotate]",
        "llama-docs [prepared=rotate (online=true)]",
        "llama-docs [prepared=rotate+activations (width=8)]",
        "llama-docs [prepared=activations (width=4)]",
    )
    assert [order_of(r) for r in after(narrow)] == [order_of(r) for r in HAND_MADE]


def test_policies_are_compared_apart_and_named_by_what_differs():
    """Each as if the other were not there; nothing is pooled, and every one has its totals."""

    def under(records, **policy):
        return [identified(r | {"policy": policy}) for r in records]

    usual = under(HAND_MADE, calibrate="recalibrate", norms="reestimate", zeros="free")
    kept = under(
        [r if order_of(r) != "QP" else again(r, nll=np.full(CLUSTERS, 2.5)) for r in HAND_MADE],
        calibrate="recalibrate",
        norms="keep",
        zeros="free",
    )
    summary = summarize([*usual, *kept], replicates=20)
    names = ("llama-docs [norms=reestimate]", "llama-docs [norms=keep]")
    assert summary.models == names
    assert summary.problems == ()
    for name, records, policy in zip(names, (usual, kept), ("reestimate", "keep"), strict=True):
        alone = summarize(records, replicates=20)
        assert alone.models == ("llama-docs",)
        (mine,), (expected,) = summary.select(name, "log"), alone.select("llama-docs", "log")
        assert (mine.model, mine.policy) == ("llama-docs", f"norms={policy}")
        assert mine.cells == expected.cells
        (total,) = (t for t in summary.totals if (t.model, t.scale) == (name, "log"))
        assert total.score == expected.score
    assert {t.model for t in summary.totals} == {*names, None}
    one_missing = [r for r in kept if r is not kept[6]]
    (told,) = summarize([*usual, *one_missing], replicates=9).problems
    assert told.startswith("llama-docs [norms=keep], wanda x gptq, seed 0: 1 of 6 cells")
    lost = summarize(with_data([*usual, *kept], classes=2), replicates=9)
    assert lost.at_chance == names
    assert lost.totals == ()
    out = io.StringIO()
    render(summary, Console(file=out, width=80), scales=("log",))
    assert all(name in out.getvalue() for name in names)
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_cells_of_other_plans_are_counted_and_in_no_comparison():
    """Longer chains, two pruners, joint methods, stages that do neither: none is dropped silently,
    and none changes a number."""
    base = make_record("dense", nll=np.full(CLUSTERS, 1.0))
    wanda, gptq = {"name": "wanda", "sparsity": 0.5}, {"name": "gptq", "bits": 4}
    others = [
        [wanda, gptq, wanda],
        [wanda, wanda],
        [gptq, gptq],
        [{"name": "joint", "sparsity": 0.5, "bits": 4}],
        [{"name": "drop-heads", "share": 0.25}],
        [gptq, {"name": "rotate"}],
        [{"name": "per-layer", "rules": [["*", gptq]]}],
    ]
    more = [
        identified(base | {"stages": stages, "label": f"llama-docs/s0/other-{i}"})
        for i, stages in enumerate(others)
    ]
    assert [order_of(r) for r in more] == [None] * len(others)
    alone = summarize(HAND_MADE, replicates=20)
    summary = summarize([*more, *HAND_MADE], replicates=20)
    assert summary.comparisons == alone.comparisons
    assert summary.totals == alone.totals
    assert summary.problems == alone.problems == alone.notes == ()
    (told,) = summary.notes
    assert told.startswith("7 cells of other plans than one pruner with one quantizer are not in")
    assert told.endswith("llama-docs/s0/other-0, llama-docs/s0/other-1, ...")
    assert summary.ok == alone.ok + 7
    out = io.StringIO()
    render(summary, Console(file=out, width=80))
    assert "7 cells of other plans" in out.getvalue()
    render(summarize(more, replicates=9), Console(file=out, width=80))  # nothing else there


def test_the_order_of_a_record_is_that_of_its_stages():
    found = [order_of(make_record(order, sparsity=0.5, bits=4)) for order in ("PQ", "QP", "P", "Q")]
    assert found == ["PQ", "QP", "P", "Q"]
    assert order_of(make_record("dense")) == "dense"
    assert role({"name": "sparsegpt", "sparsity": 0.0, "bits": None}) == "P"  # 0 is an amount
    assert role({"name": "rtn", "bits": 2, "grid": {"bits": 4, "sparsity": 1}}) == "Q"


def test_a_divergence_with_sums_has_intervals_like_the_others():
    grid = {"pruners": ["wanda"], "quantizers": ["rtn"], "clusters": 60, "models": {"m": "text"}}
    records = make_study(kl_sums=True, **grid)
    summary = summarize(records, replicates=100, bootstrap_seed=3)
    found = only(summary, "neg_kl")
    assert NO_INTERVAL not in found.wins
    held = {r["label"]: decode_sums(r) for r in records}
    rng = np.random.default_rng([3, 60])
    weights = bootstrap.cluster_bootstrap_weights(60, 100, rng)
    for cell in found.cells:
        pq = held[f"m/s0/wanda-{cell.sparsity:g}>rtn-{cell.bits}"]
        qp = held[f"m/s0/rtn-{cell.bits}>wanda-{cell.sparsity:g}"]
        draws = (weights @ (pq["kl"].astype(float) - qp["kl"])) / (weights @ pq["count"])
        assert (cell.low, cell.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-9)
    bare = only(summarize(make_study(**grid), replicates=100), "neg_kl")
    assert bare.wins == {NO_INTERVAL: 30}
    estimates = [cell.advantage for cell in bare.cells]
    assert [cell.advantage for cell in found.cells] == pytest.approx(estimates, abs=1e-6)
    out = io.StringIO()
    render(summary, Console(file=out, width=120), scales=("kl",))
    assert "no interval" not in out.getvalue()


def test_one_record_without_sums_leaves_no_false_interval():
    """A mean over rows of one kind only: else the divergence of that variant would have width 0."""
    grid = {"pruners": ["wanda"], "quantizers": ["rtn"], "clusters": 30, "models": {"m": "text"}}
    records = make_study(kl_sums=True, seeds=(0, 1), **grid)
    held = records[40]
    sums = {k: v for k, v in held["sums"].items() if k != "kl"}
    summary = summarize([*records[:40], held | {"sums": sums}, *records[41:]], replicates=20)
    assert only(summary, "neg_kl").wins == {NO_INTERVAL: 30}
    assert NO_INTERVAL not in only(summary, "neg_nll").wins


def test_a_measure_of_ones_own_is_a_loss_with_intervals():
    def own(order, loss, **amounts):
        return make_record(
            order, nll=np.full(CLUSTERS, 1.0), sums={"rmse": np.full(CLUSTERS, loss)}, kind="own",
            correct=np.zeros(CLUSTERS, int), model="mine", **amounts,
        )  # fmt: skip

    at = {"sparsity": 0.5, "bits": 4}
    records = [own("dense", 1.0), own("P", 2.0, sparsity=0.5), own("Q", 1.5, bits=4)]
    records += [own("PQ", 3.0, **at), own("QP", 2.5, **at)]
    summary = summarize(records, replicates=20)
    assert summary.scales == ("natural", "log", "own:rmse")
    (cell,) = only(summary, "own:rmse").cells
    assert (cell.prune_first, cell.quantize_first, cell.advantage) == (-3.0, -2.5, 0.5)
    assert cell.winner == QUANTIZE_FIRST
    assert cell.performance_gap == -0.5
    assert not [c for c in summary.comparisons if c.measure == "neg_perplexity"]  # of text only
    out = io.StringIO()
    render(summary, Console(file=out, width=80))
    assert "Which order wins, in −rmse" in out.getvalue()
    bare = [r | {"sums": {k: r["sums"][k] for k in ("count", "rmse")}} for r in records]
    alone = summarize([r | {"metrics": {}} for r in bare], replicates=20)
    assert alone.scales == ("own:rmse",)
    assert alone.usual_scale("mine") == "own:rmse"


def test_other_sums_are_compared_only_where_there_is_nothing_else():
    """The squared distance of the outputs is in every record; a regression may have no more."""
    square = {"square": (0.5, 0.25)}
    records = [make_record("PQ", sparsity=0.5, bits=4, sums=square)]
    records += [make_record("QP", sparsity=0.5, bits=4, sums=square)]
    assert summarize(records, replicates=9).scales == ("natural", "log")
    bare = [
        r | {"kind": "own", "metrics": {}, "sums": {k: r["sums"][k] for k in ("count", "square")}}
        for r in records
    ]
    assert summarize(bare, replicates=9).scales == ("own:square",)


def test_a_summary_covers_the_cells_it_is_told_to():
    two = of_seed(HAND_MADE, 1)
    other_study = [identified(r | {"study": "other"}) for r in HAND_MADE]
    mine = [r for r in HAND_MADE if amount_of(r, "bits") != 2]
    cells = {r["cell"] for r in mine}
    covered = summarize([*HAND_MADE, *two, *other_study], cells, replicates=20)
    assert covered == summarize(mine, replicates=20)
    assert covered.seeds == (0,)
    assert len(only(covered).cells) == 4
    (told,) = summarize(HAND_MADE, {*cells, "0123456789abcdef"}, replicates=20).problems
    assert told == f"1 of {len(cells) + 1} cells not run yet: 0123456789abcdef"
    named = {**dict.fromkeys(cells, "?"), "0123456789abcdef": "llama-docs/s9/dense"}
    (told,) = summarize(HAND_MADE, named, replicates=20).problems
    assert told == f"1 of {len(cells) + 1} cells not run yet: llama-docs/s9/dense"
    with pytest.raises(ValueError, match="got none"):
        summarize(HAND_MADE, set())


def test_ratios_are_those_of_the_records():
    """Half of the model is not compressed: 8, 4 and 2 bits store 3/4, 5/8 and 9/16 of it."""
    ratios = {8: 4 / 3, 4: 8 / 5, 2: 16 / 9}
    honest = [
        r | {"ratio": ratios[amount_of(r, "bits")] if order_of(r) == "Q" else 7.0}
        for r in HAND_MADE
    ]
    cells = only(summarize(honest, replicates=20)).cells
    assert [c.quantizer_ratio for c in cells] == [ratios[c.bits] for c in cells]
    half = (4 / 3 + 8 / 5) / 2  # pruning half is midway between 8 and 4 bits
    assert [c.pruner_ratio for c in cells[:3]] == pytest.approx([half] * 3)
    assert [c.gap for c in cells[:3]] == pytest.approx([half - ratios[b] for b in (8, 4, 2)])
    bare = [{k: v for k, v in r.items() if k != "ratio"} for r in HAND_MADE]
    assert [c.quantizer_ratio for c in only(summarize(bare, replicates=20)).cells[:3]] == [2, 4, 8]
    two = {8: 2.0, 4: 2.0}
    same = [
        r | {"ratio": two.get(amount_of(r, "bits"), r["ratio"])} if order_of(r) == "Q" else r
        for r in HAND_MADE
    ]
    told = "gptq, seed 0: 4 bits store as much as another width, left out of the quantization curve"
    assert told in summarize(same, replicates=20).problems
    absent = [r for r in HAND_MADE if not (order_of(r) == "Q" and amount_of(r, "bits") == 4)]
    cell = only(summarize(absent, replicates=20)).cells[1]
    assert (cell.quantizer_ratio, cell.pruner_ratio, cell.gap) == (None, None, None)


def test_what_cannot_be_compared_is_refused_or_reported():
    with pytest.raises(ValueError, match="exactly one study"):
        summarize([])
    with pytest.raises(ValueError, match="'a', 'synthetic'"):
        summarize([*HAND_MADE, flat("dense", 1.0) | {"study": "a", "cell": "other"}])
    twin = HAND_MADE[6] | {"cell": "twin", "label": "twin"}
    assert any("twin: the same variant as" in p for p in summarize([*HAND_MADE, twin]).problems)
    other = make_record("Q", bits=3, nll=[1.0])
    assert any("other examples" in p for p in summarize([*HAND_MADE, other]).problems)


@pytest.mark.parametrize("width", [80, 110, 142])
def test_the_table_says_what_was_found_and_fits(width):
    out = io.StringIO()
    summary = summarize(HAND_MADE, replicates=50)
    render(summary, Console(file=out, width=width), scales=("log",))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    row = next(line.split() for line in text.splitlines() if "wanda × gptq" in line)
    counts = ["6"] * (width >= 110) + ["1", "4", "·", "1"]
    assert row[3 : 3 + len(counts)] == counts
    assert row[-4:] == ["2/4", "50%", "25%", "75%"]
    assert "2 of 4 cells" in text
    assert "≥ +6.00" in text
    assert ("[−0.25, −0.25]" in text) == (width >= 110)


def test_a_study_that_only_started_renders():
    out = io.StringIO()
    render(summarize([flat("dense", 1.0)], replicates=9), Console(file=out, width=80))
    assert "1 variants measured" in out.getvalue()


def test_the_report_says_what_survives_replication():
    summary = summarize(moved(0, 3.0), replicates=20)
    out = io.StringIO()
    render(summary, Console(file=out, width=80))
    told = " ".join(out.getvalue().split())
    assert "95% interval over 5 training seeds (and test examples) excludes 0" in told
    verdicts = [v for v in summary.verdicts if v.scale == "log"]
    assert len(verdicts) == 3
    for v in verdicts:
        value, low, high = (f"{x:+.2f}".replace("-", "−") for x in (v.value, v.low, v.high))
        assert f"{v.claim} {value} [{low}, {high}] {v.above:g} {v.verdict}" in told
    (total,) = (t for t in summary.totals if t.model == "m" and t.scale == "log")
    asked = total.replication
    assert f"A moves by {total.spread.seed:.3g} nats from training to training" in told
    assert f"What trainings have in common of A is {total.spread.size:.3g} nats" in told
    (one_pair,) = (c for c in summary.comparisons if c.measure == "neg_nll")
    means = np.array([cell.advantage for cell in one_pair.cells])
    assert 0 < total.spread.size < np.sqrt((means**2).mean())
    assert f"another gives {asked.won / asked.asked:.0%} to the same" in told
    one = io.StringIO()
    render(summarize(moved(0, 3.0, seeds=1), replicates=20), Console(file=one, width=80))
    told = " ".join(one.getvalue().split())
    assert "What survives" not in told  # one training says nothing of another
    assert "where A's paired bootstrap 95% interval excludes 0" in told


def test_a_run_that_lacks_a_cell_leaves_an_interval_around_what_is_there():
    records = moved(0, 3.0, seeds=4)
    gone = "m/s3/rtn-4>wanda-0.5"
    for kept in (records, [r for r in records if r["label"] != gone]):
        found = next(
            c for c in summarize(kept, replicates=20).comparisons if c.measure == "neg_nll"
        )
        for cell in found.cells:
            assert (cell.low + cell.high) / 2 == pytest.approx(cell.advantage)
            assert cell.advantage == pytest.approx(np.mean(cell.advantage_by_run))
            sem = np.std(cell.advantage_by_run, ddof=1) / np.sqrt(len(cell.runs))
            assert cell.high - cell.low >= 2 * 1.96 * sem
    assert [len(c.runs) for c in found.cells if (c.sparsity, c.bits) == (0.5, 4)] == [3]
