"""Figures come out whole, the same each time, and say what the records say."""

from __future__ import annotations

import ast
import dataclasses
import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.patches import Rectangle

import figures
from experiments.analysis import summarize
from experiments.analysis.variants import order_of
from experiments.records import RecordLog
from experiments.summary import (
    EQUAL,
    NO_INTERVAL,
    PRUNE_FIRST,
    QUANTIZE_FIRST,
    UNDECIDED,
    Summary,
)
from figures import advantage, heatmap, style
from figures.__main__ import main
from figures.manifest import DRAWINGS, jobs
from tests.synthetic import amount_of, identified, make_study

GRID = {"pruners": ("magnitude", "wanda"), "quantizers": ("gptq", "rtn"), "clusters": 40}
RECORDS = make_study(offset=-0.05, seeds=(0,), **GRID)
SUMMARY = summarize(RECORDS, replicates=60)
PER_MODEL = [drawing for drawing in DRAWINGS.values() if not drawing.whole]
TEXT, IMAGES = "llama-docs", "resnet-digits"
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with RecordLog(folder / "records.jsonl") as log:
        for record in RECORDS:
            log.append(record)
    return folder


NUMBERS = tuple(f"perturb.measure.{name}" for name in ("bootstrap", "intensity", "ranks"))


def texts(ax):
    return [text.get_text() for text in ax.texts]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_figures_meet_records_and_findings_only():
    """No models, no compressors, no jax: neither here nor in what reads the records."""
    ours = (
        "figures",
        "theory",
        "experiments.records",
        "experiments.analysis",
        "experiments.findings",
        "experiments.summary",
    )
    frame = ("perturb.cli", "perturb.files", "perturb.plain", *NUMBERS)
    folder = Path(figures.__file__).parent
    for path in folder.glob("*.py"):
        for name in imports(path):
            assert name.startswith((*ours, *frame[:2])) or not name.startswith(
                ("jax", "flax", "perturb", "experiments")
            )
    read = folder.parent / "experiments"
    parts = ("records/*.py", "summary.py", "report/*.py", "analysis/*.py", "findings/*.py")
    paths = [path for part in parts for path in read.glob(part)]
    assert len(paths) > 10
    for path in paths:
        for name in imports(path):
            assert not name.startswith(("jax", "flax", "optax", "experiments.models"))
            assert name.startswith(frame) or not name.startswith("perturb")
    for part in frame:
        for name in imports(folder.parent / f"{part.replace('.', '/')}.py"):
            assert name.split(".")[0] in {"numpy", *sys.stdlib_module_names}


READING = """
import sys
from pathlib import Path
import experiments.records, experiments.analysis, experiments.report, experiments.summary
from experiments.__main__ import main
from figures.__main__ import main as draw

file, out = sys.argv[1:]
records = experiments.records.load(file)
assert experiments.analysis.summarize(records, replicates=20).comparisons
assert main(["report", file]) == 0
assert main(["report", file, "--at", "sparsity=0.5,bits=4"]) == 0
assert draw(["--records", file, "--out", out, "--replicates", "20"]) == 0
assert any(Path(out).iterdir())
found = {"jax", "jaxlib", "flax", "optax"} & {name.split(".")[0] for name in sys.modules}
assert not found, found
"""


def test_reading_analysing_reporting_and_drawing_records_needs_no_jax(study, tmp_path):
    """As a process that has imported nothing yet: it starts at once, on a machine without jax."""
    done = subprocess.run(
        [sys.executable, "-c", READING, str(study / "records.jsonl"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("format", style.FORMATS)
@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_records_give_the_same_bytes(name, format):
    draw = DRAWINGS[name].draw
    first = style.to_bytes(draw(SUMMARY, TEXT, "log"), format)
    again = style.to_bytes(draw(summarize(RECORDS, replicates=60), TEXT, "log"), format)
    assert first == again
    assert first.startswith(MAGIC[format])
    assert len(first) > 10_000


@pytest.mark.parametrize("scale", ["natural", "log", "kl"])
@pytest.mark.parametrize("model", [TEXT, IMAGES])
def test_heatmap_marks_every_cell_with_its_winner(model, scale):
    figure = heatmap.draw(SUMMARY, model, scale)
    axes = {ax.get_title(loc="left"): ax for ax in figure.axes}
    for comparison in SUMMARY.select(model, scale):
        ax = axes[f"{comparison.pruner} × {comparison.quantizer}"]
        wins = comparison.wins
        marks = texts(ax)
        assert marks.count("P") == wins[PRUNE_FIRST]
        assert marks.count("Q") == wins[QUANTIZE_FIRST]
        assert marks.count("=") == wins[EQUAL]
        hatches = [p.get_hatch() for p in ax.patches if isinstance(p, Rectangle)]
        assert hatches.count("////") == wins[UNDECIDED]
        assert hatches.count("....") == wins[NO_INTERVAL] == (30 if scale == "kl" else 0)
        told = " ".join(text.get_text() for text in figure.texts)
        assert ("no intervals" in told) == (scale == "kl")  # whose records hold no sums
        norm = ax.collections[0].norm
        assert norm.vmin == -norm.vmax  # centred: white is zero


@pytest.mark.parametrize("model", [TEXT, IMAGES])
def test_advantage_draws_every_cell_where_it_is(model):
    figure = advantage.draw(SUMMARY, model, "natural")
    factor = 100.0 if model == IMAGES else 1.0
    axes = {ax.get_title(loc="left"): ax for ax in figure.axes}
    for comparison in SUMMARY.select(model, "natural"):
        ax = axes[f"{comparison.pruner} × {comparison.quantizer}"]
        points = [line for line in ax.lines if line.get_marker() in ("o", "<", ">", "D")]
        expected = [(c.gap, c.advantage * factor) for c in comparison.cells]
        assert sorted((p.get_xdata()[0], p.get_ydata()[0]) for p in points) == sorted(expected)
        hollow = [p for p in points if p.get_markerfacecolor() == "white"]
        assert len(hollow) == sum(c.status in ("above", "below") for c in comparison.cells)
        low, high = ax.get_xlim()
        assert all(low < gap < high for gap, _ in expected)
        bottom, top = ax.get_ylim()
        assert bottom == -top  # zero in the middle, so that the tinted quadrants meet there
        assert all(bottom < c.low * factor <= c.high * factor < top for c in comparison.cells)


def test_a_range_that_explodes_gets_a_symmetric_log_axis():
    def explode(cell):
        if cell.bits > 2:
            return cell
        return dataclasses.replace(cell, advantage=-5e4, low=-6e4, high=-4e4)

    assert {ax.get_yscale() for ax in advantage.draw(SUMMARY, TEXT, "log").axes} == {"linear"}
    wild = dataclasses.replace(
        SUMMARY,
        comparisons=tuple(
            dataclasses.replace(c, cells=tuple(map(explode, c.cells))) for c in SUMMARY.comparisons
        ),
    )
    figure = advantage.draw(wild, TEXT, "log")
    assert {ax.get_yscale() for ax in figure.axes} == {"symlog"}
    assert any("logarithmic beyond" in text.get_text() for text in figure.texts)
    assert "−5e4" in [t for ax in heatmap.draw(wild, TEXT, "log").axes for t in texts(ax)]


def replicated() -> Summary:
    """Three trainings of a world where PIH holds, with what the quantizer alone zeroes."""
    records = make_study(
        models={"m": "text", "n": "text"}, pruners=["wanda"], seeds=(0, 1, 2), clusters=40
    )
    zeros = {8: 0.01, 6: 0.05, 5: 0.1, 4: 0.2, 3: 0.55, 2: 0.75}
    return summarize(
        [
            r | {"zero_fraction": zeros[amount_of(r, "bits")]}
            if [s["name"] for s in r["stages"]] in (["gptq"], ["rtn"])
            else r
            for r in records
        ],
        replicates=20,
    )


def test_rules_and_trainings_are_those_of_the_summary(tmp_path, capsys):
    summary = replicated()
    figure = DRAWINGS["rules"].draw(summary, "", "log")
    totals = [t for t in summary.totals if t.scale == "log" and t.model]
    assert [ax.get_title(loc="left") for ax in figure.axes[::2]] == [t.model for t in totals]
    for ax, total in zip(figure.axes[::2], totals, strict=True):
        points = [line for line in ax.lines if line.get_marker() == "o"]
        shares = [rule.right.value for rule in reversed(total.rules)]
        assert [p.get_xdata()[0] for p in points] == shares
        assert [f"{x:.0%}" for x in shares] == texts(ax)
        names = [label.get_text() for label in ax.get_yticklabels()]
        assert names == [rule.name for rule in reversed(total.rules)]
    for ax, total in zip(figure.axes[1::2], totals, strict=True):
        (points,) = (line for line in ax.lines if line.get_marker() == "o")
        cells = [c for x in summary.select(total.model, "log") for c in x.cells]
        first, second = points.get_xdata(), points.get_ydata()
        assert sorted(first) == sorted(a for c in cells for a in c.advantage_by_run)
        assert sorted(second) == sorted(first)
        assert first[1] == second[0] == cells[0].advantage_by_run[1]
    gap = totals[0].rules[0]
    assert any(f"PIH's gap {gap.right.value:.0%}" in t.get_text() for t in figure.texts)
    with gzip.open(tmp_path / "stored.json.gz", "wt", encoding="utf-8") as file:
        file.write(summary.to_json())
    out = tmp_path / "out"
    arguments = ["--records", str(tmp_path / "stored.json.gz"), "--out", str(out)]
    assert main(["rules", *arguments, "--measure", "log"]) == 0
    assert [path.name for path in out.iterdir()] == ["rules-log.png"]
    assert main(["heatmap", *arguments, "--measure", "log", "--model", "m"]) == 0
    drawn = heatmap.draw(summary, "m", "log")
    assert (out / "heatmap-m-log.png").read_bytes() == style.to_bytes(drawn, "png")
    capsys.readouterr()
    (tmp_path / "wrong.json").write_text("{}")
    assert main(["--records", str(tmp_path / "wrong.json"), "--out", str(out)]) == 2
    assert "wrong.json: no summary of a study" in capsys.readouterr().err


def test_the_heat_map_draws_where_rules_change_their_mind():
    summary = replicated()
    (comparison,) = (c for c in summary.select("m", "log") if c.quantizer == "rtn")
    figure = heatmap.draw(summary, "m", "log")
    (ax,) = (ax for ax in figure.axes if ax.get_title(loc="left") == "wanda × rtn")
    rows = sorted({c.sparsity for c in comparison.cells})
    columns = sorted({c.bits for c in comparison.cells}, reverse=True)
    at = {(rows.index(c.sparsity), columns.index(c.bits)): c for c in comparison.cells}

    def zeros_say(cell):
        return cell.zero_fraction >= cell.sparsity

    expected = sum(
        zeros_say(cell) != zeros_say(at[other])
        for (row, column), cell in at.items()
        for other in ((row + 1, column), (row, column + 1))
        if other in at
    )
    green = [line for line in ax.lines if line.get_color() == heatmap.ZERO_LINE["color"]]
    assert len(green) == expected > 0
    assert [line for line in ax.lines if line.get_color() == style.INK]  # and PIH's


def test_taus_of_curves_are_of_the_means():
    (comparison,) = (c for c in replicated().select("m", "log") if c.quantizer == "rtn")
    taus = advantage.taus_of_curves(comparison)
    assert taus.keys() == {c.sparsity for c in comparison.cells}
    for sparsity, tau in taus.items():
        line = [c for c in comparison.cells if c.sparsity == sparsity]
        by_bits = [c.advantage for c in sorted(line, key=lambda c: c.bits)]
        pairs = [np.sign(b - a) for a, b in itertools.combinations(by_bits, 2)]
        assert tau == pytest.approx(np.mean(pairs))


def test_titles_come_from_the_data():
    chosen = SUMMARY.select(TEXT, "log")
    right = sum(c.score.pih for c in chosen)
    counted = sum(c.score.counted for c in chosen)
    assert f"{right / counted:.0%} of {counted} decided cells" in advantage.takeaway(chosen)
    p = sum(c.wins[PRUNE_FIRST] for c in chosen)
    q = sum(c.wins[QUANTIZE_FIRST] for c in chosen)
    leader = "pruning" if p > q else "quantizing"
    assert heatmap.takeaway(chosen).startswith(f"{leader} first wins {max(p, q)} of 120 cells")
    nothing = SUMMARY.select(TEXT, "kl")  # no intervals, so no winners
    none = "no intervals in this measure, so"
    assert heatmap.takeaway(nothing) == f"{none} none of 120 cells has a winner"
    assert advantage.takeaway(nothing) == f"{none} no cell has a winner"


def test_figures_say_what_a_ratio_is_and_which_model_is_at_chance():
    told = [t.get_text() for t in advantage.draw(SUMMARY, TEXT, "log").texts]
    assert any("C = dense bits / stored bits" in text for text in told)
    lost = dataclasses.replace(SUMMARY, at_chance=(TEXT,))
    for drawing in PER_MODEL:
        for summary, chance in ((SUMMARY, False), (lost, True)):
            titles = [t.get_text() for t in drawing.draw(summary, TEXT, "log").texts]
            assert any("dense model at chance" in " ".join(t.split()) for t in titles) == chance


def test_missing_cells_and_unknown_gaps_are_drawn_as_such():
    kept = [r for r in RECORDS if order_of(r) != "P" or amount_of(r, "sparsity") != 0.5]
    kept = [r for r in kept if not (order_of(r) == "QP" and amount_of(r, "bits") == 3)]
    summary = summarize(kept, replicates=20)
    for drawing in DRAWINGS.values():
        figure = drawing.draw(summary, TEXT, "natural")
        assert style.to_bytes(figure, "png").startswith(MAGIC["png"])
    panel = heatmap.draw(summary, TEXT, "natural").axes[0]
    assert [line.get_marker() for line in panel.lines].count("x") == 0  # no 3-bit column at all
    one = [
        r
        for r in RECORDS
        if order_of(r) != "QP" or amount_of(r, "bits") != 3 or amount_of(r, "sparsity") >= 0.6
    ]
    panel = heatmap.draw(summarize(one, replicates=20), TEXT, "natural").axes[0]
    assert [line.get_marker() for line in panel.lines].count("x") == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0004, "0"), (-0.0123, "−.012"), (0.0072, "+.007"), (0.996, "+1.0"),
     (-1.25, "−1.2"), (9.96, "+10"), (-1234.4, "−1234"), (-5e4, "−5e4"), (3e12, "+3e12")],
)  # fmt: skip
def test_numbers_fit_a_cell(value, text):
    assert heatmap._brief(value) == text


def test_the_two_winners_differ_for_every_eye():
    """Luminance differs from white enough to see, and the ratios' ramp is monotone in it."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                  for c in matplotlib.colors.to_rgb(colour)]  # fmt: skip
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in (style.PRUNE_FIRST, style.QUANTIZE_FIRST):
        assert 1.05 / (luminance(colour) + 0.05) > 3  # WCAG contrast for graphics
    ramp = [luminance(colour) for colour in style.ramp(6)]
    assert ramp == sorted(ramp, reverse=True)
    assert len(style.ramp(1)) == 1


def test_command_line_writes_whole_files(study, tmp_path, capsys):
    out = tmp_path / "new" / "figures"
    assert main(["--records", str(study), "--out", str(out), "--replicates", "20"]) == 0
    names = {f"{d.name}-{model}-natural.png" for d in PER_MODEL for model in (TEXT, IMAGES)}
    assert {p.name for p in out.iterdir()} == names  # and no temporary file left
    assert {Path(line).name for line in capsys.readouterr().out.splitlines()} == names
    for path in out.iterdir():
        assert path.read_bytes().startswith(MAGIC["png"])
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    options = ["--model", TEXT, "--measure", "all", "--format", "svg", "--replicates", "20"]
    file = str(study / "records.jsonl")
    assert main(["heatmap", "--records", file, "--out", str(out), *options]) == 0
    assert {p.name for p in out.glob("*.svg")} == {
        f"heatmap-{TEXT}-{scale}.svg" for scale in ("natural", "log", "kl")
    }


def test_policies_get_figures_of_their_own(tmp_path, capsys):
    records = [
        identified(r | {"policy": {"calibrate": "dense", "norms": norms}})
        for r in make_study(models={"m": "text"}, clusters=30, kl_sums=True, pruners=["wanda"])
        for norms in ("keep", "reestimate")
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    out = tmp_path / "out"
    options = ["--replicates", "20", "--measure", "kl"]
    assert main(["--records", str(path), "--out", str(out), *options]) == 0
    assert {p.name for p in out.iterdir()} == {
        f"{d.name}-m--norms-{norms}--kl.png" for d in PER_MODEL for norms in ("keep", "reestimate")
    }
    summary = summarize(records, replicates=20)
    for drawing in PER_MODEL:  # with sums, the divergence has intervals
        told = [t.get_text() for t in drawing.draw(summary, "m [norms=keep]", "kl").texts]
        assert not any("no interval" in text for text in told)
        assert any("m [norms=keep]" in " ".join(text.split()) for text in told)


def test_a_measure_of_ones_own_is_drawn_without_being_asked_for(tmp_path, capsys):
    def own(r):
        sums = {"count": r["sums"]["count"], "a/b": r["sums"]["nll"]}
        return r | {"kind": "own", "metrics": {}, "sums": sums}

    records = [own(r) for r in make_study(models={"m": "text"}, clusters=30, pruners=["wanda"])]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    arguments = ["--records", str(path), "--replicates", "20", "--out"]
    for i, measure in enumerate(([], ["--measure", "own:a/b"], ["--measure", "all"])):
        assert main([*arguments, str(tmp_path / str(i)), *measure]) == 0
        found = {p.name for p in (tmp_path / str(i)).iterdir()}
        assert found == {f"{d.name}-m-own-a-b.png" for d in PER_MODEL}
    capsys.readouterr()
    assert main([*arguments, str(tmp_path / "none"), "--measure", "own:c"]) == 2
    assert "--measure own:c: " in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "none"), "--measure", "natural"]) == 2
    assert "nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing"], "no figure named 'nothing'"),
        (["--records", "{study}"], "--out is missing"),
        (["--out", "{out}", "--records", "/no/such"], "no records at /no/such"),
        (["--out", "{out}", "--records", "{study}", "--format", "gif"], "invalid choice: 'gif'"),
        (["--out", "{out}", "--records", "{study}", "--model", "bert"], "no model 'bert'"),
        (["--out", "{out}", "--records", "{study}", "--replicates", "0"], "must be at least 1"),
        (["--out", "{study}/records.jsonl", "--records", "{study}"], "is a file"),
        (["--out", "{out}", "--records", "{broken}"], "line 1: not JSON"),
        (["--out", "{out}", "--records", "{empty}"], "exactly one study"),
        (["--out", "{out}", "--records", "{started}"], "nothing to draw yet"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(study, tmp_path, capsys, arguments, told):
    places = {"study": study, "out": tmp_path / "out"}
    contents = {"broken": "no\nno\n", "empty": "", "started": json.dumps(RECORDS[0]) + "\n"}
    for name, content in contents.items():
        places[name] = tmp_path / f"{name}.jsonl"
        places[name].write_text(content)
    assert main([argument.format(**places) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert told in output.err
    assert not (tmp_path / "out").exists()


def test_help_and_list_teach(capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(drawing.name in listed and drawing.needs in listed for drawing in DRAWINGS.values())
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "examples:" in capsys.readouterr().out


def test_file_names_are_safe():
    odd = dataclasses.replace(SUMMARY.comparisons[0], model="meta/llama 3")
    summary = dataclasses.replace(SUMMARY, comparisons=(odd,))
    (job,) = jobs(summary, ("heatmap",), summary.models, ("natural",))
    assert job.filename("pdf") == "heatmap-meta-llama-3-natural.pdf"


def test_the_figure_of_zeros_has_every_cell_at_its_place():
    summary = replicated()
    figure = DRAWINGS["zeros"].draw(summary, "m", "log")
    (ax,) = figure.axes
    cells = [c for x in summary.select("m", "log") for c in x.cells]
    points = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    assert {p.get_marker() for p in points} == {"o", "s"}  # of two quantizers
    found = sorted((p.get_xdata()[0], p.get_ydata()[0]) for p in points)
    assert found == sorted((c.zero_fraction - c.sparsity, c.advantage) for c in cells)
    filled = [p for p in points if p.get_markerfacecolor() != "white"]
    assert len(filled) == sum(c.winner in (PRUNE_FIRST, QUANTIZE_FIRST) for c in cells)
    won = [c for c in cells if c.winner in (PRUNE_FIRST, QUANTIZE_FIRST)]
    above = [c for c in won if c.zero_fraction >= c.sparsity]
    right = sum(c.winner == QUANTIZE_FIRST for c in above)
    title = " ".join(figure.texts[0].get_text().split())
    assert f"quantizing first wins {right} of {len(above)} cells" in title
