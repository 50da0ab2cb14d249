"""``python -m perturb`` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.models.presets import PRESETS
from perturb import RTN, Magnitude, sources
from perturb import __main__ as door
from perturb.__main__ import main, words
from perturb.score import score
from perturb.sources import GROUP

PYPROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())

USER_FILE = """
import jax, jax.numpy as jnp
from flax import nnx
from neighbour import WIDTH

class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(WIDTH, 16, rngs=rngs)
        self.second = nnx.Linear(16, 3, rngs=rngs)
    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))

def load(seed=0):
    x = jax.random.normal(jax.random.key(1), (32, WIDTH))
    return Net(nnx.Rngs(seed)), [x[:16], x[16:]]

def with_forward():
    model, batches = load()
    return model, [{"x": b} for b in batches], lambda m, b: m(b["x"])

def broken(): return 1 / 0
def alone(): return load()[0]
def empty(): return load()[0], []
def wrong_shape(): return load()[0], [jnp.zeros((4, 5))]
def no_layers(): return object(), load()[1]
def not_finite():
    model, batches = load()
    model.first.kernel[...] = jnp.full((WIDTH, 16), jnp.nan)
    return model, batches
def two_outputs(): return (*load(), lambda m, b: (m(b), b))
number = 3
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """No compilation cache of ours, a known width, and the user's folder as the working one."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "not used: jax has read it already")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(USER_FILE)
    (tmp_path / "neighbour.py").write_text("WIDTH = 16\n")
    (tmp_path / "syntax.py").write_text("def load(:\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mine", "neighbour"):
        sys.modules.pop(name, None)


METHODS = ("--prune", "wanda:0.5", "--quantize", "gptq:4")
CSV, JSON = ("--format", "csv"), ("--format", "json")


def out(capsys, *argv: str) -> str:
    assert main([*argv]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


def test_the_table_shows_layers_a_total_and_two_sentences(capsys):
    text = out(capsys, "mine.py:load", *METHODS)
    lines = text.splitlines()
    assert lines[0] == "mine.py:load: P = wanda:0.5, Q = gptq:4"
    assert max(map(len, lines)) <= 100
    for name in ("first", "second", "total"):
        (row,) = (line.split() for line in lines if line.startswith(name + " "))
        assert len(row) == 1 + 4 + 4 + 4
        assert row[-1] in ("P→Q", "Q→P", "equal")
    assert "Layers: " in text
    assert "Model: " in text


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_fits_its_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = out(capsys, "mine.py:load", *METHODS)
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "…" not in text


@pytest.mark.parametrize("width", [12, 20, 40])
def test_shortened_names_stay_different(width):
    names = [f"layer{i}.{j}.conv{k}" for i in (1, 12) for j in (0, 1) for k in (1, 2)]
    names += [f"layers.{i}.self_attn.{m}_proj" for i in (0, 11) for m in "qkvo"]
    short = [door._short(name, width) for name in names]
    assert max(map(len, short)) <= width
    if width > 12:
        assert len(set(short)) == len(names)


def test_csv_and_json_parse(capsys):
    rows = list(csv.DictReader(io.StringIO(out(capsys, "mine.py:load", *METHODS, *CSV))))
    told = json.loads(out(capsys, "mine.py:load", *METHODS, *JSON))
    assert [r["layer"] for r in rows] == ["first", "second", "total"]
    assert float(rows[2]["pq_kl"]) == told["outputs"]["PQ"]["kl"]
    assert float(rows[2]["advantage"]) == told["total"]["order"]["advantage"]
    assert told["pruner"] == {"name": "wanda", **told["pruner"]}


def test_options_reach_the_score(capsys):
    argv = ("mine.py:load", "--prune", "magnitude:2:4", "--quantize", "rtn:3,per=8", *JSON)
    told = json.loads(
        out(capsys, *argv, "--order", "pq", "--exclude", "sec*", "--calibrate", "dense")
    )
    assert list(told["outputs"]) == ["P", "Q", "PQ"]
    assert [x["name"] for x in told["layers"]] == ["first"]
    assert "sec*" in told["skipped"]["second"]
    assert told["calibrate"] == "dense"
    assert told["pruner"]["scope"] == "2:4"
    assert told["quantizer"]["grid"]["per"] == 8
    assert told["total"]["variants"]["P"]["pruned"] == 0.5


def test_the_seed_reaches_the_users_function(capsys):
    one, two = (out(capsys, "mine.py:load", *METHODS, *CSV, "--seed", s) for s in ("0", "1"))
    assert one != two


def test_a_module_and_a_forward_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert out(capsys, "mine:with_forward", *METHODS, *CSV) == out(
        capsys, "mine.py:load", *METHODS, *CSV
    )


def test_out_writes_a_file(capsys, tmp_path):
    file = tmp_path / "scores.csv"
    assert out(capsys, "mine.py:load", *METHODS, *CSV, "--out", str(file)) == f"{file}\n"
    assert len(list(csv.DictReader(file.open()))) == 3


BAD = {
    "no model": ((), "MODEL is missing"),
    "no pruner": (("mine.py:load", "--quantize", "gptq:4"), "--prune is missing"),
    "no quantizer": (("mine.py:load", "--prune", "wanda:0.5"), "--quantize is missing"),
    "unknown method": (("mine.py:load", *METHODS, "--prune", "wnada:0.5"), "did you mean wanda?"),
    "swapped roles": (("mine.py:load", *METHODS, "--prune", "gptq:4"), "'gptq' is no pruner"),
    "joint": (("mine.py:load", *METHODS, "--prune", "joint:0.5"), "'joint' is no pruner"),
    "sparsity": (("mine.py:load", *METHODS, "--prune", "wanda:50"), "must lie in [0, 1), got 50"),
    "no sparsity": (("mine.py:load", *METHODS, "--prune", "wanda"), "as in wanda:0.5"),
    "no bits": (("mine.py:load", *METHODS, "--quantize", "rtn"), "as in rtn:4"),
    "bits": (("mine.py:load", *METHODS, "--quantize", "rtn:1"), "from 2 to 16, got 1"),
    "word for bits": (("mine.py:load", *METHODS, "--quantize", "rtn:four"), "got 'four'"),
    "word for damp": (("mine.py:load", *METHODS, "--quantize", "gptq:4,damp=x"), "damp must be"),
    "number for bool": (
        ("mine.py:load", *METHODS, "--quantize", "gptq:4,act_order=2"),
        "act_order must be true or false",
    ),
    "setting": (("mine.py:load", *METHODS, "--prune", "wanda:0.5,tye=index"), "no setting"),
    "N:M": (("mine.py:load", *METHODS, "--prune", "wanda:4:2"), "0 < N < M"),
    "group": (("mine.py:load", *METHODS, "--quantize", "rtn:4,per=5"), "does not divide its 16"),
    "order": (("mine.py:load", *METHODS, "--order", "qpq"), "invalid choice: 'qpq'"),
    "format": (("mine.py:load", *METHODS, "--format", "xml"), "invalid choice: 'xml'"),
    "calibrate": (("mine.py:load", *METHODS, "--calibrate", "no"), "invalid choice: 'no'"),
    "seed": (("mine.py:load", *METHODS, "--seed", "-1"), "--seed -1"),
    "exclude": (("mine.py:load", *METHODS, "--exclude", "tail"), "'tail' matches no layer"),
    "out": (("mine.py:load", *METHODS, "--out", "no/such/file"), "no existing folder"),
    "out is a folder": (("mine.py:load", *METHODS, "--out", "."), "is a folder"),
    "file": (("none.py:load", *METHODS), "there is no file none.py"),
    "no function named": (("mine.py", *METHODS), "mine.py:FUNCTION"),
    "function": (("mine.py:lod", *METHODS), "has no function 'lod'"),
    "not a function": (("mine.py:number", *METHODS), "has no function 'number'"),
    "syntax": (("syntax.py:load", *METHODS), "SyntaxError"),
    "module": (("no_such_package.models:load", *METHODS), "No module named 'no_such_package'"),
    "raises": (("mine.py:broken", *METHODS), "ZeroDivisionError: division by zero (mine.py, line"),
    "returns a model": (("mine.py:alone", *METHODS), "it returned Net"),
    "empty": (("mine.py:empty", *METHODS), "calibration set is empty"),
    "shape": (("mine.py:wrong_shape", *METHODS), "of shape (4, 5)"),
    "no layers": (("mine.py:no_layers", *METHODS), "no compressible layer"),
    "not finite": (("mine.py:not_finite", *METHODS), "layer first: 256 of its 256 weights"),
    "two outputs": (("mine.py:two_outputs", *METHODS), "returns tuple instead of one array"),
    "preset": (("resnet-digit", *METHODS), "no model of that name is installed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, capsys):
    argv, says = BAD[case]
    assert main([*argv]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_methods_are_checked_before_the_model_is_made(capsys, tmp_path):
    (tmp_path / "slow.py").write_text("raise SystemExit('this must not run')\n")
    assert main(["slow.py:load", "--prune", "wanda:2", "--quantize", "gptq:4"]) == 2
    assert "must lie in [0, 1)" in capsys.readouterr().err


def test_help_and_lists_teach(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("examples:", "name[:amount][,setting=value...]", "FILE.py:FUNCTION", "exit codes"):
        assert word in text
    listed = out(capsys, "methods")
    assert out(capsys, "--list") == listed
    for line in ("wanda             pruner        Wanda: remove", "gptq              quantizer"):
        assert line in listed
    assert "act_order=false" in listed


def installed(monkeypatch) -> dict[str, str]:
    """The entry points as pyproject.toml declares them, installed or not."""
    declared = PYPROJECT["project"]["entry-points"][GROUP]
    points = [EntryPoint(name, value, GROUP) for name, value in declared.items()]
    monkeypatch.setattr(sources, "entry_points", lambda group: points)
    return declared


def test_every_preset_that_needs_no_file_is_declared(monkeypatch, capsys):
    declared = installed(monkeypatch)
    assert set(declared) == {n for n, p in PRESETS.items() if p.dataset != "text"}
    assert out(capsys, "models").split() == list(declared)


def test_a_preset_by_name(monkeypatch, capsys):
    installed(monkeypatch)
    asked = []

    def trained(name, seed):  # tests/test_train.py trains; here only the way to it is looked at
        from mine import load

        asked.append((name, seed))
        model, batches = load(seed)
        calibration = SimpleNamespace(inputs=np.concatenate([*batches] * 3))  # 96 examples
        return SimpleNamespace(model=model, dataset=SimpleNamespace(calibration=calibration))

    monkeypatch.setattr("experiments.entry.load_or_train", trained)
    monkeypatch.syspath_prepend(Path.cwd())
    from experiments.entry import preset

    assert [len(b) for b in preset("tiny-resnet", 2)[1]] == [64, 32]
    assert "tiny-resnet: P = wanda:0.5" in out(capsys, "tiny-resnet", *METHODS, "--seed", "2")
    assert asked == [("tiny-resnet", 2)] * 2


def test_a_preset_whose_data_is_missing(monkeypatch, capsys):
    declared = installed(monkeypatch)
    assert "resnet-fashion" in declared

    def missing(name, seed):
        raise ValueError("no folder with Fashion-MNIST: say which one")

    monkeypatch.setattr("experiments.entry.preset", missing)
    assert main(["resnet-fashion", *METHODS]) == 2
    assert "MODEL resnet-fashion: no folder" in capsys.readouterr().err


def test_the_sentences_follow_the_numbers(monkeypatch):
    """What is said of a score is what its numbers say, whichever way they point."""
    monkeypatch.syspath_prepend(Path.cwd())
    from mine import load

    model, batches = load()
    told = [score(model, Magnitude(s), RTN(b), batches) for s, b in ((0.3, 2), (0.8, 8), (0, 4))]
    for scores in told:
        layers, whole = words(scores)
        kl = {v: x.kl for v, x in scores.outputs.items()}
        wins = [x.order.prefers for x in scores.layers]
        assert f"{wins.count('PQ')} of 2 prefer to prune first" in layers
        first = "prune first" if kl["PQ"] < kl["QP"] else "quantize first"
        assert (first if kl["PQ"] != kl["QP"] else "neither order") in whole
        stronger = "pruning" if kl["P"] > kl["Q"] else "quantizing"
        assert f"Alone, {stronger} perturbs it more" in whole


def test_as_a_program(tmp_path):
    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perturb", *argv], capture_output=True, text=True, check=False
        )

    bad = call("mine.py:load", "--prune", "wanda:0.5", "--quantize", "gptq:99")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1
    assert call("methods").returncode == 0
