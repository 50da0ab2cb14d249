"""``python -m experiments report``: the answer at one point, for people and for programs."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json

import numpy as np
import pytest
from rich.console import Console

from experiments.__main__ import main
from experiments.analysis import summarize
from experiments.report import parse_point, point_json, render_point
from experiments.report.point import Point, advice, rows_at, value_text
from experiments.summary import measure_of
from tests.synthetic import identified, make_record, make_study

CLUSTERS = 20
TEXT = "llama-docs"
GRID = {"pruners": ("magnitude", "wanda"), "quantizers": ("gptq", "rtn"), "clusters": 40}


def pair(advantage, pruner="wanda", quantizer="gptq", sparsity=0.5, bits=4, **more):
    """Both orders with A(Q->P) nats between them, without any noise."""
    method = {"pruner": pruner, "quantizer": quantizer, "sparsity": sparsity, "bits": bits} | more
    losses = {"PQ": 2.0, "QP": 2.0 - advantage}
    return [make_record(o, nll=np.full(CLUSTERS, v), **method) for o, v in losses.items()]


def said(summary, at="sparsity=0.5,bits=4"):
    return advice(summary, rows_at(summary, parse_point(at)))


def printed(summary, at, width=100):
    out = io.StringIO()
    render_point(summary, parse_point(at), Console(file=out, width=width))
    return out.getvalue()


# ------------------------------------------------------------------------------------- a point


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("sparsity=0.5,bits=4", Point(0.5, 4)),
        ("bits=4, sparsity=.5", Point(0.5, 4)),
        ("bits=3", Point(None, 3)),
        ("sparsity=0", Point(0.0, None)),
    ],
)
def test_points(text, point):
    assert parse_point(text) == point
    assert parse_point(str(point)) == point


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no sparsity=0.5 or bits=4"),
        ("0.5,4", "'0.5' is no sparsity=0.5 or bits=4"),
        ("sparsity=0.5,bit=4", "'bit=4' is no sparsity=0.5 or bits=4"),
        ("bits=4,bits=3", "bits is given twice; leave one out"),
        ("bits=4.5", "bits must be a whole number such as 4, got '4.5'"),
        ("sparsity=50%", "sparsity must be a number such as 0.5, got '50%'"),
        ("sparsity=0.55", "no cell has both orders there; there are sparsities 0.3, 0.5"),
        ("sparsity=nan", "no cell has both orders there"),
        ("sparsity=0.5,bits=7", "bits 8, 6, 5, 4, 3, 2"),
    ],
)
def test_a_point_that_is_none_is_one_line(text, says, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    records = make_study(models={"m": "text"}, pruners=["wanda"], quantizers=["rtn"], clusters=9)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert main(["report", str(path), "--at", text]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: --at {text}")
    assert says in captured.err
    assert captured.err.count("\n") == 1


def test_a_study_without_both_orders_has_no_answer_yet():
    summary = summarize([make_record("P", sparsity=0.5)], replicates=9)
    with pytest.raises(ValueError, match="no cell has both orders yet"):
        rows_at(summary, Point(0.5, 4))


def test_the_rows_are_the_cells_there_on_the_natural_measure():
    summary = summarize(make_study(**GRID, seeds=(0, 1)), replicates=30)
    rows = rows_at(summary, Point(0.5, 4))
    assert len(rows) == 2 * 4
    assert {r.measure.name for r in rows} == {"neg_perplexity", "accuracy"}
    for row in rows:
        assert (row.cell.sparsity, row.cell.bits) == (0.5, 4)
        assert row.cell in row.comparison.cells
    assert len(rows_at(summary, Point(0.5, None))) == 8 * 6
    assert len(rows_at(summary, Point(None, 4))) == 8 * 5
    near = np.nextafter(0.5, 1)
    assert rows_at(summary, Point(float(near), 4)) == rows


def test_the_table_shows_both_orders_the_interval_and_who_wins():
    records = [*pair(0.5, bits=4), *pair(-0.25, quantizer="rtn"), *pair(0.0, "magnitude")]
    text = printed(summarize(records, replicates=20), "sparsity=0.5,bits=4")
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if " × " in line}
    assert f"{TEXT} perplexity; A in ppl" in text
    first, second = np.exp(2.0), np.exp(1.5)
    a = f"{first - second:+.3g}"
    expected = [f"{first:.4g}", f"{second:.4g}", a, f"[{a},", f"{a}]", "quantize"]
    assert rows["wanda × gptq"][3:] == expected
    assert rows["wanda × rtn"][-1] == "prune"
    assert rows["magnitude × gptq"][-1] == "equal"


@pytest.mark.parametrize("width", [80, 100, 142])
@pytest.mark.parametrize("at", ["sparsity=0.5,bits=4", "sparsity=0.5", "bits=2"])
def test_the_table_fits(width, at):
    summary = summarize(make_study(clusters=40, offset=-0.05), replicates=30)
    text = printed(summary, at, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_values_are_told_as_their_metric_is():
    accuracy, perplexity = measure_of("accuracy"), measure_of("neg_perplexity")
    assert value_text(0.9785, accuracy) == "97.9%"
    assert value_text(-4.28649, perplexity) == "4.286"
    assert value_text(-1.5e9, perplexity) == "1.5e+09"
    assert value_text(-0.125, measure_of("own:rmse")) == "0.125"


# ---------------------------------------------------------------------------------- the advice


def test_one_order_only_wins():
    records = [*pair(-0.5), *pair(-0.125, quantizer="rtn"), *pair(0.0, "magnitude")]
    told = said(summarize(records, replicates=20))
    assert told.startswith(
        "Prune first: shown to be better in 2 of 3 comparisons and worse in none"
    )
    assert "one training of each model: another may differ" in told
    flipped = [*pair(0.5), *pair(0.125, quantizer="rtn")]
    assert said(summarize(flipped, replicates=20)).startswith("Quantize first: shown to be better")


def test_exceptions_are_named_with_their_size():
    pruners = ("wanda", "magnitude", "sparsegpt")
    records = [r for p in pruners for r in pair(-0.5, p)]
    records += pair(0.5, quantizer="rtn")
    told = said(summarize(records, replicates=20))
    size = np.exp(2.0) - np.exp(1.5)
    assert told.startswith("Prune first: better in 3 of 4 comparisons, worse in 1 (clearest: ")
    assert f"{size:.3g} ppl for wanda × rtn on {TEXT}" in told


def test_no_order_leads():
    told = said(summarize([*pair(-0.5), *pair(0.5, quantizer="rtn")], replicates=20))
    assert told.startswith("It depends: ")
    assert "wanda × gptq" in told
    assert "wanda × rtn" in told
    both = [*pair(-0.5), *pair(0.5, bits=3)]
    told = said(summarize(both, replicates=20), "sparsity=0.5")
    assert "at 0.5, 4 bits" in told
    assert "at 0.5, 3 bits" in told


def test_nothing_is_shown():
    told = said(summarize(pair(0.0), replicates=20))
    assert told.startswith("Either order: neither is shown to be better in any of 1 comparison")


def test_a_mean_says_over_what():
    records = [r for seed in (0, 1, 2) for r in pair(-0.5, seed=seed)]
    assert "each a mean of 3 training seeds" in said(summarize(records, replicates=20))


def test_models_at_chance_have_no_say():
    chance = [
        r | {"data": {"classes": 2}}
        for r in [make_record("dense", nll=np.full(CLUSTERS, 1.0), model="lost"),
                  *pair(0.5, model="lost")]
    ]  # fmt: skip
    summary = summarize([*chance, *pair(-0.5)], replicates=20)
    assert summary.at_chance == ("lost",)
    assert said(summary).startswith("Prune first: shown to be better in 1 of 1 comparison and")
    assert "lost perplexity; A in ppl, at chance before it is compressed" in printed(
        summary, "bits=4"
    )
    alone = summarize(chance, replicates=20)
    assert said(alone) == "No advice: every model here is at chance before it is compressed."


def test_a_measure_without_intervals_gives_no_advice():
    summary = summarize(make_study(**GRID), replicates=9)
    bare = dataclasses.replace(summary, comparisons=summary.comparisons_on("kl"))
    assert said(bare).startswith("No advice: this measure has no intervals")


def test_the_advice_is_one_sentence_without_line_breaks():
    for offset in (-20.0, 0.0, 20.0):
        told = said(summarize(make_study(**GRID, offset=offset, noise=0.02), replicates=30))
        assert told.endswith(".")
        assert "\n" not in told
        assert ". " not in told


def test_policies_stand_apart():
    records = [
        identified(r | {"policy": {"norms": norms}})
        for norms, a in (("keep", 0.5), ("reestimate", -0.5))
        for r in pair(a)
    ]
    summary = summarize(records, replicates=20)
    text = printed(summary, "bits=4")
    for name in ("keep", "reestimate"):
        assert f"{TEXT} [norms={name}] perplexity" in text
    found = point_json(summary, Point(None, 4))["rows"]
    assert {(r["policy"], r["winner"]) for r in found} == {
        ("norms=keep", "quantize first"),
        ("norms=reestimate", "prune first"),
    }


# ------------------------------------------------------------------------------------- as JSON


@pytest.fixture
def folder(tmp_path):
    """A study's folder: a cell failed, and some records are of another run."""
    records = make_study(models={"m": "text"}, pruners=["wanda"], quantizers=["rtn"], clusters=20)
    records[-1] |= {"status": "error", "error": "ValueError: no\nroom"}
    other = make_record("dense", model="m", seed=7)
    text = "".join(json.dumps(r) + "\n" for r in [*records, other])
    (tmp_path / "records.jsonl").write_text(text)
    (tmp_path / "cells.txt").write_text("\n".join(r["cell"] for r in records))
    return tmp_path, records


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_json_stands_alone_on_standard_output(folder, capsys):
    path, records = folder
    assert main(["report", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == summarize(records).to_json()
    assert strict(captured.out)["records"] == len(records)
    assert "1 records of other cells or seeds are left out" in captured.err
    assert "failed: m/s0/rtn-2>wanda-0.8: ValueError: no\n" in captured.err


def test_json_of_a_point_holds_what_the_table_shows(folder, capsys):
    path, records = folder
    assert main(["report", str(path), "--at", "sparsity=0.5,bits=4", "--json"]) == 1
    found = strict(capsys.readouterr().out)
    summary = summarize(records)
    (row,) = found["rows"]
    (cell,) = (r.cell for r in rows_at(summary, Point(0.5, 4)))
    assert found["at"] == {"sparsity": 0.5, "bits": 4}
    assert (row["model"], row["pruner"], row["quantizer"]) == ("m", "wanda", "rtn")
    assert row["quantize_first"] - row["prune_first"] == pytest.approx(row["advantage"])
    same = ("prune_first", "quantize_first", "advantage", "low", "high", "winner")
    assert {k: row[k] for k in same} == {k: getattr(cell, k) for k in same}
    assert found["advice"] == said(summary)


def test_a_packed_file_and_a_folder_say_the_same(folder, capsys):
    path, _ = folder
    packed = path / "deep" / "records.jsonl.gz"
    packed.parent.mkdir()
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    packed.write_bytes(gzip.compress(b"".join(lines[:-1])))
    arguments = ["--at", "sparsity=0.5,bits=4"]
    assert main(["report", str(packed.parent), *arguments]) == 1
    alone = capsys.readouterr().out
    assert main(["report", str(path), *arguments]) == 1
    beside = capsys.readouterr().out
    assert "are left out" in beside.removesuffix(alone)
    assert beside.endswith(alone)
    assert f"{path}" not in alone
