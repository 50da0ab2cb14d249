"""``python -m perturb`` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models.presets import PRESETS
from perturb import (
    GPTQ,
    RTN,
    GridSpec,
    Joint,
    Magnitude,
    NofM,
    SparseGPT,
    Wanda,
    naming,
    registry,
    score,
    sources,
)
from perturb import __main__ as door
from perturb.__main__ import main
from perturb.scoring.words import sentences
from perturb.sources import GROUP

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

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
def later_shape(): return load()[0], [load()[1][0], jnp.zeros((4, 5))]
def no_batches(): return load()[0], 7
def no_forward(): return (*load(), 7)
def no_weights(): return (*load(), None, 7)
def generator():
    model, batches = load()
    return model, (b for b in batches)
def bad_generator():
    def batches():
        yield load()[1][0]
        raise OSError("disk gone\\nsecond line")
    return load()[0], batches()
def odd(): raise BaseException("odd")
def needs(x): return load()
def leaves(): raise SystemExit("no data")
def leaves_with_code():
    import sys
    sys.exit(3)
def talks():
    print("loading, please wait")
    model, batches = load()
    def forward(model, batch):
        print("running")
        return model(batch)
    return model, batches, forward
def warns():
    import warnings
    warnings.warn("this model\\nis old")
    return load()
def interrupted():
    import os, signal, time
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
def mark():
    open("it ran", "w").close()
    return load()
def named():
    model, batches = load()
    return {"model": model, "calibration": batches, "heldout": (b for b in batches[:1])}
def heldout_shape(): return named() | {"heldout": [jnp.zeros((4, 5))]}
def no_heldout(): return named() | {"heldout": []}
def other_heldout(): return named() | {"heldout": 7}
def unknown_key(): return named() | {"batches": []}
def missing_key(): return {"model": load()[0]}
def weighted():
    return (*load(), None, lambda batch: jnp.ones(len(batch)))
from time import time as builtin
number = 3
"""
DATACLASS_FILE = """
from __future__ import annotations
from dataclasses import dataclass
from mine import load as made

@dataclass
class Settings:
    width: int = 16

def load(): return made(Settings().width - 16)
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
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit('not today')\n")
    (tmp_path / "classes.py").write_text(DATACLASS_FILE)
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mine", "neighbour", "classes"):
        sys.modules.pop(name, None)


def methods(prune: str = "wanda:0.5", quantize: str = "gptq:4") -> tuple[str, ...]:
    return ("--prune", prune, "--quantize", quantize)


def stages(*texts: str) -> tuple[str, ...]:
    return tuple(part for text in texts for part in ("--stage", text))


METHODS = methods()
CSV, JSON = ("--format", "csv"), ("--format", "json")


class NamedBatch(NamedTuple):
    inputs: np.ndarray
    labels: np.ndarray


def out(capsys, *argv: str) -> str:
    assert main([*argv]) == 0
    captured = capsys.readouterr()
    # of a small model, biases and an excluded layer are more than a tenth: that is told
    assert all(line.startswith("warning: only ") for line in captured.err.splitlines())
    return captured.out


def test_the_table_shows_layers_a_total_and_three_sentences(capsys):
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
    assert "Advice: " in text
    assert "no held-out ones were given" in text


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_fits_its_width(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    text = out(capsys, "mine.py:load", *METHODS)
    assert max(map(len, text.splitlines())) <= int(columns)
    assert "…" not in text


def test_csv_and_json_parse(capsys):
    rows = list(csv.DictReader(io.StringIO(out(capsys, "mine.py:load", *METHODS, *CSV))))
    told = json.loads(out(capsys, "mine.py:load", *METHODS, *JSON))
    assert [r["layer"] for r in rows] == ["first", "second", "total"]
    assert float(rows[2]["pq_kl"]) == told["outputs"]["PQ"]["kl"]
    assert float(rows[2]["advantage"]) == told["total"]["order"]["advantage"]
    assert told["stages"]["P"] == {"name": "wanda", **told["stages"]["P"]}
    assert told["advantages"][0]["order"] == "QP"


def test_options_reach_the_score(capsys):
    argv = ("mine.py:load", "--prune", "magnitude:2:4", "--quantize", "rtn:3,per=8", *JSON)
    told = json.loads(
        out(capsys, *argv, "--order", "pq", "--exclude", "sec*", "--calibrate", "dense")
    )
    assert list(told["outputs"]) == ["P", "Q", "PQ"]
    assert [x["name"] for x in told["layers"]] == ["first"]
    assert "sec*" in told["skipped"]["second"]
    assert told["policy"]["calibrate"] == "dense"
    assert told["stages"]["P"]["scope"] == "2:4"
    assert told["stages"]["Q"]["grid"]["per"] == 8
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
    "no pruner": (("mine.py:load", "--quantize", "gptq:4"), "--prune is missing: name a pruner"),
    "no quantizer": (("mine.py:load", "--prune", "wanda:0.5"), "--quantize is missing"),
    "unknown method": (("mine.py:load", *methods("wnada:0.5")), "did you mean wanda?"),
    "swapped roles": (("mine.py:load", *methods("gptq:4")), "'gptq' is no pruner"),
    "joint": (("mine.py:load", *methods("joint:0.5")), "'joint' is no pruner"),
    "sparsity": (("mine.py:load", *methods("wanda:50")), "must lie in [0, 1), got 50"),
    "no sparsity": (("mine.py:load", *methods("wanda")), "as in wanda:0.5"),
    "no bits": (("mine.py:load", *methods(quantize="rtn")), "as in rtn:4"),
    "bits": (("mine.py:load", *methods(quantize="rtn:1")), "from 2 to 16, got 1"),
    "word for bits": (
        ("mine.py:load", *methods(quantize="rtn:four")),
        "'four' in 'rtn:four' is no",
    ),
    "word for damp": (("mine.py:load", *methods(quantize="gptq:4,damp=x")), "damp must be"),
    "number for bool": (
        ("mine.py:load", *methods(quantize="gptq:4,act_order=2")),
        "act_order must be true or false",
    ),
    "setting": (("mine.py:load", *methods("wanda:0.5,tye=index")), "no setting"),
    "N:M": (("mine.py:load", *methods("wanda:4:2")), "0 < N < M"),
    "group": (
        ("mine.py:load", *methods(quantize="rtn:4,per=5")),
        "2 layers: group size 5 does not",
    ),
    "order": (("mine.py:load", *METHODS, "--order", "qpq"), "some of pq, qp; got 'qpq'"),
    "one stage": (("mine.py:load", *stages("wanda:0.5")), "two to 4 stages"),
    "five stages": (("mine.py:load", *stages(*[f"rtn:{b}" for b in range(2, 7)])), "got 5"),
    "equal stages": (("mine.py:load", *stages("rtn:4", "rtn:4")), "both rtn with the same"),
    "no stages": (("mine.py:load",), "--prune wanda:0.5 --quantize gptq:4"),
    "both forms": (("mine.py:load", *METHODS, "--stage", "rtn:4"), "name every stage by --stage"),
    "stage": (("mine.py:load", *stages("wnada:0.5", "rtn:4")), "did you mean wanda?"),
    "stage amount": (("mine.py:load", *stages("rtn:99", "wanda:0.5")), "from 2 to 16, got 99"),
    "no space": (("mine.py:load", *stages("drop:0.5", "rtn:4")), "Net has no space '*' to drop"),
    "include": (("mine.py:load", *METHODS, "--include", "emb"), "'emb' matches no embedding"),
    "held-out shape": (
        ("mine.py:heldout_shape", *METHODS),
        "on held-out batch 0: the model cannot be run on a batch of shape (4, 5)",
    ),
    "no held-out": (("mine.py:no_heldout", *METHODS), "the set of held-out batches is empty"),
    "held-out": (("mine.py:other_heldout", *METHODS), "held-out batches must be a list"),
    "unknown key": (("mine.py:unknown_key", *METHODS), "unknown is 'batches'"),
    "missing key": (("mine.py:missing_key", *METHODS), "'calibration' is missing"),
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
    "percent": (("mine.py:load", *methods("wanda:50%")), "write 0.5"),
    "percent setting": (("mine.py:load", *methods("wanda,sparsity=5%")), "write 0.05"),
    "amount": (("mine.py:load", *methods("wanda:1/2")), "is a fraction such as 0.5"),
    "nan sparsity": (("mine.py:load", *methods("wanda:nan")), "must lie in [0, 1), got nan"),
    "nan bits": (("mine.py:load", *methods(quantize="rtn:nan")), "from 2 to 16, got nan"),
    "half bits": (("mine.py:load", *methods(quantize="rtn:4.5")), "from 2 to 16, got 4.5"),
    "damp": (("mine.py:load", *methods(quantize="gptq:4,damp=-1")), "damp must be a finite"),
    "nan damp": (("mine.py:load", *methods("sparsegpt:0.5,damp=nan")), "at least 0, got nan"),
    "inf damp": (("mine.py:load", *methods("sparsegpt:0.5,damp=inf")), "at least 0, got inf"),
    "block": (("mine.py:load", *methods("sparsegpt:0.5,block=0")), "at least 1, got 0"),
    "half block": (("mine.py:load", *methods(quantize="gptq:4,block=1.5")), "got 1.5"),
    "bool group": (("mine.py:load", *methods(quantize="rtn:4,per=true")), "per must be like row"),
    "no N:M": (("mine.py:load", *methods("global-magnitude:2:4")), "has no N:M patterns"),
    "setting twice": (("mine.py:load", *methods(quantize="gptq:4,per=8,per=16")), "per twice"),
    "amount twice": (("mine.py:load", *methods(quantize="gptq:4,bits=3")), "gives bits twice"),
    "pruner twice": (("mine.py:load", *METHODS, "--prune", "wanda:0.3"), "--prune is given twice"),
    "seed twice": (("mine.py:load", *METHODS, "--seed", "1", "--seed", "1"), "--seed is given"),
    "huge seed": (("mine.py:load", *METHODS, "--seed", "99999999999"), "from 0 to 4294967295"),
    "half seed": (("mine.py:load", *METHODS, "--seed", "1.5"), "--seed 1.5: must be a whole"),
    "norms": (("mine.py:load", *METHODS, "--norms", "no"), "'reestimate', 'keep'"),
    "zeros": (("mine.py:load", *METHODS, "--zeros", "no"), "'free', 'keep'"),
    "out below a file": (("mine.py:mark", *METHODS, "--out", "mine.py/x"), "no existing folder"),
    "long name": (("mine.py:mark", *METHODS, "--out", "x" * 300), "cannot write there"),
    "builtin": (("mine.py:builtin", *METHODS), "it returned float"),
    "exits at import": (("leaves.py:load", *METHODS), "SystemExit: not today (leaves.py, line 2)"),
    "odd": (("mine.py:odd", *METHODS), "BaseException: odd (mine.py, line"),
    "needs": (("mine.py:needs", *METHODS), "missing 1 required positional argument: 'x'\n"),
    "exits": (("mine.py:leaves", *METHODS), "SystemExit: no data (mine.py, line"),
    "exits with a code": (("mine.py:leaves_with_code", *METHODS), "SystemExit: 3 (mine.py, line"),
    "later shape": (("mine.py:later_shape", *METHODS), "on calibration batch 1: the model cannot"),
    "no batches": (("mine.py:no_batches", *METHODS), "must be a list of model inputs, got int"),
    "generator": (("mine.py:bad_generator", *METHODS), "OSError: disk gone (mine.py, line"),
    "forward": (("mine.py:no_forward", *METHODS), "its forward must be a function"),
    "token weights": (("mine.py:no_weights", *METHODS), "its token_weights must be a function"),
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
    assert not Path("it ran").exists()


def test_methods_are_checked_before_the_model_is_made(capsys, tmp_path):
    (tmp_path / "slow.py").write_text("raise SystemExit('this must not run')\n")
    assert main(["slow.py:load", "--prune", "wanda:2", "--quantize", "gptq:4"]) == 2
    assert "must lie in [0, 1)" in capsys.readouterr().err


def test_what_a_loader_and_its_model_print_is_not_in_the_results(capsys):
    expected = out(capsys, "mine.py:load", *METHODS, *CSV)
    assert main(["mine.py:talks", *METHODS, *CSV]) == 0
    captured = capsys.readouterr()
    assert captured.out == expected
    assert captured.err.startswith("loading, please wait\n")
    assert "running" in captured.err


def test_a_named_tuple_is_one_batch_and_not_its_fields():
    """As for compress: the loader's door lists iterators only."""
    batch = NamedBatch(np.zeros((4, 16)), np.ones(4))
    model, _ = sources.loader("mine.py:load")(0)
    made = (model, batch, lambda model, batch: model(batch.inputs))
    loaded = sources.load("mine.py:load", lambda seed: made, 0)
    assert len(loaded.calibration) == 1
    assert loaded.calibration[0] is batch


def test_a_generator_of_batches_is_listed_once(capsys):
    expected = out(capsys, "mine.py:load", *METHODS, *CSV)
    assert out(capsys, "mine.py:generator", *METHODS, *CSV) == expected


def test_a_users_file_may_define_dataclasses(capsys):
    expected = out(capsys, "mine.py:load", *METHODS, *CSV)
    assert out(capsys, "classes.py:load", *METHODS, *CSV) == expected


def test_a_file_named_like_a_module_does_not_replace_it(tmp_path):
    (tmp_path / "random.py").write_text("def load(): return 1\n")
    assert sources.loader("random.py:load")(0) == 1
    assert Path(sys.modules["random"].__file__).parent != tmp_path
    assert sources.from_file("x", Path("mine.py")).__name__ == "mine"


def test_a_warning_is_one_line(capsys):
    assert main(["mine.py:warns", *METHODS, *CSV]) == 0
    captured = capsys.readouterr()
    assert captured.err == "warning: this model is old\n"
    assert captured.out.startswith("layer,")


def test_policies_and_token_weights_reach_the_score(capsys, monkeypatch):
    asked = []

    def recorded(*args, **kwargs):
        asked.append(kwargs)
        return score(*args, **kwargs)

    monkeypatch.setattr(door, "score", recorded)
    out(capsys, "mine.py:weighted", *METHODS, "--norms", "keep", "--zeros", "keep", *CSV)
    out(capsys, "mine.py:load", *METHODS, "--norms", "reestimate", "--zeros", "free", *CSV)
    assert (asked[0]["norms"], asked[0]["zeros"]) == ("keep", "keep")
    assert asked[0]["token_weights"](np.zeros((3, 2))).shape == (3,)
    # the defaults are score's own
    assert [asked[1][k] for k in ("norms", "zeros", "token_weights")] == [
        "reestimate",
        "free",
        None,
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Wanda(np.float32(1.5)), "sparsity must lie"),
        (lambda: Wanda(jnp.float32(-0.5)), "sparsity must lie"),
        (lambda: Wanda(np.array(1.0)), "sparsity must lie"),
        (lambda: Wanda("0.5"), "sparsity must lie"),
        (lambda: Wanda(False), "sparsity must lie"),
        (lambda: Wanda(jnp.bool_(False)), "sparsity must lie in .*, got False"),
        (lambda: Wanda(np.bool_(False)), "sparsity must lie"),
        (lambda: Wanda(jnp.array([0.5, 1.5])), "sparsity must lie in .*, got 1.5"),
        (lambda: Wanda(jnp.array([[-0.1]])), "sparsity must lie"),
        (lambda: Wanda(jnp.complex64(0.5)), "sparsity must lie"),
        (lambda: Wanda(jnp.float32(np.nan)), "sparsity must lie"),
        (lambda: RTN(jnp.bool_(True)), "bits must be"),
        (lambda: RTN(jnp.array([4, 17])), "bits must be .*, got 17"),
        (lambda: RTN(jnp.float32(4.5)), "bits must be"),
        (lambda: RTN([4, 3]), r"bits must be .*, got \[4, 3\]"),  # type: ignore[arg-type]
        (lambda: Wanda((0.5,)), r"sparsity must lie in .*, got \(0.5,\)"),  # type: ignore[arg-type]
        (lambda: Wanda(np.float32(0.4), scope=NofM(2, 4)), "has sparsity 0.5"),
        (lambda: RTN(jnp.int32(1)), "bits must be"),
        (lambda: RTN(np.int64(17)), "bits must be"),
        (lambda: RTN(np.float32(4.5)), "bits must be"),
        (lambda: RTN("4"), "bits must be"),
        (lambda: GPTQ(4, damp=-0.1), "damp must be"),
        (lambda: GPTQ(4, damp=True), "damp must be"),
        (lambda: SparseGPT(0.5, block=2.0), "block must be"),
        (lambda: Joint(0.5, block=0), "block must be"),
        (lambda: Joint(0.5, damp="x"), "damp must be"),
    ],
)
def test_a_concrete_amount_is_checked_whatever_holds_it(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_traced_or_stacked_amount_passes():
    bits = jax.jit(lambda b: RTN(b).bits + 0)(jnp.int32(4))
    assert int(bits) == 4
    family = jax.tree.map(lambda *x: jnp.stack(x), RTN(jnp.int32(2)), RTN(jnp.int32(8)))
    assert family.bits.tolist() == [2, 8]
    assert float(Wanda(np.float32(0.5), scope=NofM(2, 4)).sparsity) == 0.5


def test_parse_reads_what_it_says():
    method = naming.parse("gptq:4.0,per=8,symmetric=false,damp=1")
    assert (method.bits, type(method.bits)) == (4, int)
    assert method == GPTQ(4, grid=GridSpec(per=8, symmetric=False), damp=1)
    assert naming.parse("wanda:2:4") == Wanda(scope=NofM(2, 4))


def test_all_layers_that_do_not_divide_are_told_at_once():
    shapes = {f"layer{i}": (8, n) for i, n in enumerate((6, 8, 7, 5, 9))}
    with pytest.raises(ValueError) as told:
        registry.check_layers(Wanda(scope=NofM(2, 4)), shapes)
    assert "4 layers" in str(told.value)
    assert "layer0 (6), layer2 (7), layer3 (5) and 1 more" in str(told.value)
    with pytest.raises(ValueError, match="layer layer0: group size 4 does not divide its 6"):
        registry.check_layer(RTN(4, GridSpec(per=4)), "layer0", (8, 6))
    registry.check_layers(RTN(4), shapes)
    registry.check_layers(RTN(4, GridSpec(per=4)), {"layer1": (8, 8)})


@pytest.mark.parametrize("columns", ["0", "-3", "wide", ""])
def test_a_width_that_is_none_is_the_usual_one(capsys, monkeypatch, columns):
    usual = out(capsys, "mine.py:load", *METHODS)  # at 100, see above
    monkeypatch.setenv("COLUMNS", columns)
    assert out(capsys, "mine.py:load", *METHODS) == usual


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
        x = np.concatenate([*batches] * 3)  # 96 examples, copies of 32
        calibration = SimpleNamespace(inputs=x)
        test = SimpleNamespace(inputs=x, cluster=np.arange(96) % 32)
        data = SimpleNamespace(calibration=calibration, test=test)
        return SimpleNamespace(model=model, dataset=data)

    monkeypatch.setattr("experiments.entry.load_or_train", trained)
    monkeypatch.syspath_prepend(Path.cwd())
    from experiments.entry import preset

    made = preset("tiny-resnet", 2)
    assert [len(b) for b in made["calibration"]] == [64, 32]
    assert len(made["heldout"]) == 1
    np.testing.assert_array_equal(made["heldout"][0], made["calibration"][0][:32])
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
        layers, whole, advice = sentences(scores)
        kl = {v: x.kl for v, x in scores.outputs.items()}
        wins = [x.order.prefers for x in scores.layers]
        assert f"{wins.count('PQ')} of 2 prefer to prune first" in layers
        first = "prune first" if scores.best == "PQ" else "quantize first"
        assert (first if scores.best != "equal" else "neither order") in whole
        (a,) = scores.advantages
        assert ("the interval excludes 0" in advice) == (a.sign != 0)
        assert scores.best == "equal" or f"[{a.low:+.3g}, {a.high:+.3g}]" in advice
        stronger = "pruning" if kl["P"] > kl["Q"] else "quantizing"
        assert f"Alone, {stronger} perturbs it more" in whole


def test_three_stages_and_held_out_inputs(capsys):
    text = out(capsys, "mine.py:named", *stages("wanda:0.5", "magnitude:0.3,tie=index", "rtn:4"))
    assert text.startswith("mine.py:named: A = wanda:0.5, B = magnitude:0.3,tie=index, C = rtn:4\n")
    assert "on 16 held-out examples" in " ".join(text.split())
    for order in ("A→B→C", "C→B→A"):
        assert sum(line.startswith(order) for line in text.splitlines()) == 1
    told = json.loads(
        out(capsys, "mine.py:named", *stages("rtn:4", "wanda:0.5"), *JSON, "--order", "qp")
    )
    assert list(told["outputs"]) == ["P", "Q", "QP"]
    assert told["stages"]["P"]["name"] == "wanda"
    assert (told["heldout"], told["examples"]) == (True, 16)


def test_a_wait_tells_the_stage_and_the_order(capsys, monkeypatch):
    monkeypatch.setattr(door, "LINE_EVERY", 0.0)
    assert main(["mine.py:load", *stages("wanda:0.5", "rtn:4"), "--calibrate", "sequential"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert any(
        "stage 1 of 4, P: wanda on 2 layers from first: block 2 of 2, second" in x for x in lines
    )
    assert any(x.endswith("stage 2 of 4, P→Q: rtn on 2 layers from first") for x in lines)


def test_as_a_program(tmp_path):
    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perturb", *argv],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},  # this tree, wherever it is installed
        )

    bad = call("mine.py:load", "--prune", "wanda:0.5", "--quantize", "gptq:99")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.count("\n") == 1
    assert call("methods").returncode == 0
    stopped = call("mine.py:interrupted", *METHODS)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "stopped\n")
