"""From records to findings: exact bookkeeping on hand-made studies, laws on synthetic ones."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from rich.console import Console

from experiments.analysis import render, summarize
from experiments.records import decode_examples
from experiments.summary import (
    EQUAL,
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Estimate,
    Score,
)
from perturb.measure import intensity
from tests.synthetic import make_record, make_study

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
    assert found.tau == Estimate(*[pytest.approx(tau)] * 3)
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
        records = [r for r in HAND_MADE if r["order"] != "P"]
        records += [flat("P", loss, sparsity=0.5), flat("P", loss, sparsity=0.9)]
        for measure in ("neg_nll", "neg_perplexity"):
            cells = only(summarize(records, replicates=20), measure).cells
            assert {cell.pruner_ratio for cell in cells} == {ratio}
            assert {cell.gap for cell in cells if 16 / cell.bits == ratio} <= {0.0}


def test_intervals_are_the_paired_cluster_bootstrap():
    records = make_study(models={"m": "images"}, pruners=["wanda"], quantizers=["rtn"], clusters=80)
    summary = summarize(records, replicates=300, bootstrap_seed=7)
    by_cell = {r["cell"]: decode_examples(r) for r in records}
    rng = np.random.default_rng([7, 80])
    weights = intensity.cluster_bootstrap_weights(80, 300, rng)
    for cell in only(summary, "accuracy").cells:
        pq = by_cell[f"m/s0/wanda-{cell.sparsity:g}>rtn-{cell.bits}"]
        qp = by_cell[f"m/s0/rtn-{cell.bits}>wanda-{cell.sparsity:g}"]
        difference = (weights @ (qp.correct - pq.correct)) / 80
        low, high = np.quantile(difference, [0.025, 0.975])
        assert (cell.low, cell.high) == (pytest.approx(low), pytest.approx(high))
        assert cell.advantage == pytest.approx((qp.correct - pq.correct).mean())


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
        assert cell.seeds == (0, 3)
        assert cell.advantage_by_seed == (one.advantage, other.advantage)
        assert cell.advantage == pytest.approx((one.advantage + other.advantage) / 2)
        assert cell.gap_low == pytest.approx((one.gap_low + other.gap_low) / 2)
    widths = [np.mean([c.high - c.low for c in s.cells]) for s in (joint, *singles)]
    assert widths[0] < min(widths[1:])  # two noisy models average


def test_one_seed_without_a_cell_does_not_lose_it():
    records = make_study(models={"m": "text"}, pruners=["wanda"], quantizers=["rtn"], seeds=(0, 1))
    gone = "m/s1/rtn-4>wanda-0.5"
    summary = summarize([r for r in records if r["cell"] != gone], replicates=20)
    found = only(summary)
    assert len(found.cells) == 30
    (cell,) = [c for c in found.cells if (c.sparsity, c.bits) == (0.5, 4)]
    assert cell.seeds == (0,)
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
    records = [r for r in records if r["order"] != "dense" or seed % 2]
    summary = summarize(records, replicates=30)
    assert summary.failed == 40
    assert any(problem.endswith("failed: ValueError: [no] layers") for problem in summary.problems)
    ok = {r["cell"] for r in records if r["status"] == "ok"}
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
    assert any(f"{broken['cell']}: no finite neg_nll" in p for p in summary.problems)
    exploded = flat("QP", 5000.0, sparsity=0.5, bits=2)  # exp(5000) is no float
    records[-1] = exploded
    cells = only(summarize(records, replicates=20), "neg_perplexity").cells
    assert len(cells) == 6
    assert cells[2].winner == PRUNE_FIRST


def test_configurations_of_one_name_are_told_apart_by_what_differs():
    def config(record, per):
        if record["quantizer"]:
            settings = {"name": "gptq", "bits": record["bits"], "grid": {"per": per, "clip": "mse"}}
            record = record | {"quantizer": settings, "cell": f"{record['cell']}/{per}"}
        return record

    records = [config(r, per) for r in HAND_MADE for per in ("row", 64)]
    summary = summarize(records, replicates=9)
    assert {c.quantizer for c in summary.comparisons} == {"gptq (per=64)", "gptq (per=row)"}
    assert {c.pruner for c in summary.comparisons} == {"wanda"}
    assert summary.problems == ()


def test_a_label_names_every_difference_and_nothing_collides():
    """A nested setting called as the method's own one, and one that is null against one unset."""
    settings = [
        {"name": "gptq", "per": "row", "grid": {"per": "row", "bits": 4}},
        {"name": "gptq", "per": "row", "grid": {"per": 64, "bits": 4}},
        {"name": "gptq", "per": 64, "grid": {"per": "row", "bits": 4}},
        {"name": "gptq", "per": 64, "grid": {"per": "row", "bits": 8}},
        {"name": "gptq", "per": 64, "grid": {"per": "row", "bits": 8}, "target": None},
    ]
    records = []
    for i, config in enumerate(settings):
        for r in HAND_MADE:
            if r["quantizer"]:
                r = r | {"quantizer": config | {"bits": r["bits"]}, "cell": f"{r['cell']}/{i}"}
            records.append(r)
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
    summary = summarize(make_study(clusters=20), replicates=20)
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
        make_record(
            r["order"], sparsity=r["sparsity"], bits=r["bits"], nll=np.full(CLUSTERS, 2.0),
            correct=correct.astype(int), model="resnet", kind="images",
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
    other = [
        make_record(r["order"], sparsity=r["sparsity"], bits=r["bits"], seed=1,
                    nll=np.full(CLUSTERS, 4.0))
        for r in HAND_MADE
    ]  # fmt: skip
    summary = summarize(with_data([*HAND_MADE, *other], classes=40), replicates=20)
    assert summary.at_chance == ("llama-docs",)
    (told,) = [p for p in summary.problems if "at chance" in p]
    assert told.startswith("llama-docs, seed 1: the dense model is at chance (nll 4 [4, 4]")


def test_a_wrong_cell_of_a_model_at_chance_is_no_failure_of_pih():
    out = io.StringIO()
    render(summarize(with_data(HAND_MADE, classes=2), replicates=20), Console(file=out, width=120))
    assert "Where PIH fails" not in out.getvalue()


def test_records_that_no_mean_may_pool_are_refused():
    first, *rest = HAND_MADE
    told = r"differ in policies \(calibrate \"dense\" and unset, norms true and unset\)"
    with pytest.raises(ValueError, match=told) as caught:
        summarize([first | {"policies": {"calibrate": "dense", "norms": True}}, *rest])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"differ in data \(hash \"a\" and \"b\"\)"):
        summarize([*with_data([first], hash="a"), *with_data(rest, hash="b")])
    other_seed = [r | {"seed": 1, "cell": r["cell"].replace("/s0/", "/s1/")} for r in HAND_MADE]
    summarize([*with_data(HAND_MADE, weights="a"), *with_data(other_seed, weights="b")])
    with pytest.raises(ValueError, match="differ in policies"):
        summarize([*HAND_MADE, *(r | {"policies": {"norms": True}} for r in other_seed)])


def test_a_summary_covers_the_cells_it_is_told_to():
    two = [r | {"seed": 1, "cell": r["cell"].replace("/s0/", "/s1/")} for r in HAND_MADE]
    other_study = [r | {"study": "other", "cell": f"x{r['cell']}"} for r in HAND_MADE]
    cells = {r["cell"] for r in HAND_MADE if r["bits"] != 2}
    covered = summarize([*HAND_MADE, *two, *other_study], cells, replicates=20)
    alone = summarize([r for r in HAND_MADE if r["bits"] != 2], replicates=20)
    assert covered == alone
    assert covered.seeds == (0,)
    assert len(only(covered).cells) == 4
    (told,) = summarize(HAND_MADE, {*cells, "llama-docs/s9/dense"}, replicates=20).problems
    assert told == f"1 of {len(cells) + 1} cells not run yet: llama-docs/s9/dense"
    with pytest.raises(ValueError, match="got none"):
        summarize(HAND_MADE, set())


def test_ratios_are_those_of_the_records():
    """Half of the model is not compressed: 8, 4 and 2 bits store 3/4, 5/8 and 9/16 of it."""
    ratios = {8: 4 / 3, 4: 8 / 5, 2: 16 / 9}
    honest = [
        r | {"ratio": ratios[r["bits"]]} if r["order"] == "Q" else r | {"ratio": 7.0}
        for r in HAND_MADE
    ]
    cells = only(summarize(honest, replicates=20)).cells
    assert [c.quantizer_ratio for c in cells] == [ratios[c.bits] for c in cells]
    half = (4 / 3 + 8 / 5) / 2  # pruning half is midway between 8 and 4 bits
    assert [c.pruner_ratio for c in cells[:3]] == pytest.approx([half] * 3)
    assert [c.gap for c in cells[:3]] == pytest.approx([half - ratios[b] for b in (8, 4, 2)])
    bare = [{k: v for k, v in r.items() if k != "ratio"} for r in HAND_MADE]
    assert [c.quantizer_ratio for c in only(summarize(bare, replicates=20)).cells[:3]] == [2, 4, 8]
    same = [r | {"ratio": 2.0} if r["order"] == "Q" and r["bits"] != 2 else r for r in HAND_MADE]
    told = "gptq, seed 0: 4 bits store as much as another width, left out of the quantization curve"
    assert told in summarize(same, replicates=20).problems
    absent = [r for r in HAND_MADE if not (r["order"] == "Q" and r["bits"] == 4)]
    cell = only(summarize(absent, replicates=20)).cells[1]
    assert (cell.quantizer_ratio, cell.pruner_ratio, cell.gap) == (None, None, None)


def test_what_cannot_be_compared_is_refused_or_reported():
    with pytest.raises(ValueError, match="exactly one study"):
        summarize([])
    with pytest.raises(ValueError, match="'a', 'synthetic'"):
        summarize([*HAND_MADE, flat("dense", 1.0) | {"study": "a", "cell": "other"}])
    twin = HAND_MADE[6] | {"cell": "twin"}
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
