"""Methods from outside: a reader's own, by a file, a module or an entry point."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import perturb
from perturb import RTN, Wanda, chain, compress, naming, outside, registry, score
from perturb.__main__ import main
from perturb.cli import BadInput
from perturb.methods.adapt.lora import LoRA
from perturb.methods.structure.drop import Drop
from perturb.types import Solved

TEN_LINES = """\
import jax.numpy as jnp
from perturb.registry import method
from perturb.types import Solved
@method("sign")  # one bit a weight: its sign, times the mean of the row
class Sign:
    needs_stats = False
    def __call__(self, matrix, problem, key):
        scale = jnp.mean(jnp.abs(matrix.weight), -1, keepdims=True)
        signs = jnp.where(matrix.mask, scale * jnp.sign(matrix.weight), 0)
        return Solved(matrix._replace(weight=signs), None)
"""
OTHERS = """
import jax, jax.numpy as jnp
from dataclasses import dataclass
from flax import nnx
from perturb.registry import method
from perturb.stage import Outcome
from perturb.types import Solved

class Net(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(12, 4, rngs=nnx.Rngs(1))
    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))

def load():
    x = jax.random.normal(jax.random.key(1), (32, 8))
    return Net(), [x]

@method("shrink")
class Shrink:
    by: float = 0.5
    sparsity: float = 0.0
    rows: bool = False
    needs_stats = True
    def __post_init__(self):
        if not 0 < self.by <= 1: raise ValueError(f"by must lie in (0, 1], got {self.by}")
    def __call__(self, matrix, problem, key):
        by = self.by * (1 - self.sparsity)
        return Solved(matrix._replace(weight=by * matrix.weight), None)

@method("crashes")
class Crashes:
    needs_stats = False
    def __call__(self, matrix, problem, key):
        return missing

@method("bare")
class Bare:
    needs_stats = False
    def __call__(self, matrix, problem, key):
        return matrix

@method("turned")
class Turned:
    needs_stats = False
    def __call__(self, matrix, problem, key):
        return Solved(matrix._replace(weight=matrix.weight.T), None)

@method("forgot")
class Forgot:
    def __call__(self, matrix, problem, key):
        return Solved(matrix, None)

class Plain:
    name, needs_stats = "plain", False
    def __call__(self, matrix, problem, key):
        return Solved(matrix, None)

class Empty: pass

@dataclass(frozen=True)
class Identity:
    name, needs_stats = "identity", False
    def check(self, architecture): pass
    def on_state(self, state, context): return Outcome(state)

@dataclass(frozen=True)
class Late(Identity):
    name = "late"
    def on_state(self, state, context): return 1 / 0

number = 3
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "not used: jax has read it already")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    (tmp_path / "mine.py").write_text(TEN_LINES)
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("mine", "others"):
        sys.modules.pop(name, None)


def test_ten_lines_are_a_method_in_chain_compress_and_score() -> None:
    assert TEN_LINES.count("\n") == 10
    sign = naming.parse("mine.py:Sign")
    assert jax.tree.leaves(sign) == []  # no amount: a family of it has no array to count by
    model, (x,) = load()
    made = compress(model, chain(Wanda(0.5), sign), x)
    for name in ("first", "second"):
        matrix = made.matrices[name]
        pruned = compress(model, Wanda(0.5), x).matrices[name].weight
        scale = np.abs(pruned).mean(-1, keepdims=True)
        np.testing.assert_allclose(matrix.weight, scale * np.sign(pruned), rtol=1e-6)
        assert float(matrix.mask.mean()) == 0.5
    found = score(model, sign, Wanda(0.5), x)
    assert list(found.outputs) == ["A", "B", "AB", "BA"]
    assert found.storage["BA"] == made.storage
    assert found.stages["A"] == {"name": "sign"}


def load() -> Any:
    return outside.named("test", "others.py", "load", "function")[0]()


def test_the_command_line_takes_it_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["others.py:load", "--stage", "mine.py:Sign", "--stage", "others.py:Shrink:0.25"]
    assert main([*argv, "--stage", "others.py:Identity", "--format", "json", "--order", "abc"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in told["stages"].values()] == ["sign", "shrink", "identity"]
    assert told["stages"]["B"] == {"name": "shrink", "by": 0.5, "sparsity": 0.25, "rows": False}
    assert told["total"]["variants"]["B"]["fro_rel"] == pytest.approx(1 - 0.5 * 0.75)
    assert told["outputs"]["C"]["kl"] == 0
    method = naming.parse("others.py:Shrink,by=0.1,rows=true")
    assert (method.by, method.sparsity, method.rows) == (0.1, 0.0, True)


def test_a_module_and_an_entry_point_name_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    assert naming.parse("mine:Sign").name == "sign"
    points = [
        EntryPoint("one-bit", "mine:Sign", naming.GROUP),
        EntryPoint("gone", "no_such_package:Sign", naming.GROUP),
        EntryPoint("wanda", "mine:Sign", naming.GROUP),  # ours stay ours
    ]
    monkeypatch.setattr(naming, "entry_points", lambda group: points)
    assert naming.parse("one-bit").name == "sign"
    assert naming.parse("wanda:0.5") == Wanda(0.5)
    with pytest.raises(BadInput, match="No module named 'no_such_package'"):
        naming.parse("gone")
    assert main(["methods"]) == 0


def test_ours_are_named_with_their_first_number() -> None:
    assert naming.parse("drop:0.25,space=*.mlp") == Drop("*.mlp", 0.25)
    assert naming.parse("lora:4,steps=10") == LoRA(4, steps=10)
    assert {"drop", "remove", "rotate", "lora"} <= naming.stages().keys()
    with pytest.raises(ValueError, match="'1:2' in 'lora:1:2': lora has no N:M patterns"):
        naming.parse("lora:1:2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("none.py:Sign", "there is no file none.py"),
        ("mine.py:Sing", "mine.py has no class 'Sing'"),
        ("others.py:number", "has no class 'number'"),
        ("others.py:Empty", "it lacks name and needs_stats and __call__"),
        ("others.py:Forgot", "it lacks needs_stats"),
        ("others.py:Plain", "put @perturb.registry.method('plain') above its class"),
        ("mine.py:Sign:0.5", "mine.py:Sign has no amount"),
        ("mine.py:Sign,by=2", "is no setting of mine.py:Sign; it has: none"),
        ("others.py:Shrink,by=2", "by must lie in (0, 1], got 2"),
        ("others.py:Shrink,by=x", "by must be a number"),
        ("others.py:Crashes", "NameError: name 'missing' is not defined (others.py, line"),
        (
            "others.py:Bare",
            "bare on layer first [12, 8] returns Matrix: return perturb.types.Solved",
        ),
        ("others.py:Turned", "returns a weight (8, 12)"),
        ("others.py:Late", "stage late: ZeroDivisionError: division by zero (others.py, line"),
        ("nowhere.methods:Sign", "No module named 'nowhere'"),
    ],
)
def test_its_errors_are_one_line(text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["others.py:load", "--stage", text, "--stage", "rtn:4", "--order", "ab"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_the_name_of_one_of_ours_is_taken() -> None:
    with pytest.raises(ValueError, match=r"'wanda' is the name of perturb\.methods\.prune\.wanda"):

        @registry.method("wanda")
        class Mine:
            pass


def test_a_method_that_is_no_pytree_is_told_before_any_work() -> None:
    class Plain:
        name, needs_stats = "plain", False

        def __call__(self, matrix: Any, problem: Any, key: Any) -> Solved:
            return Solved(matrix, None)

    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="is no pytree"):
        compress(model, Plain())
    with pytest.raises(ValueError, match="is no pytree"):
        score(model, Plain(), RTN(4), jnp.ones((4, 8)))


def test_programs_are_kept_where_they_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, o) for o in options]
    try:
        assert perturb.cache_programs().startswith("not used")  # the variable: left as it is
        assert [getattr(jax.config, o) for o in options] == before
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        assert perturb.cache_programs() is None
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        jax.config.update(options[0], None)
        monkeypatch.setenv("PERTURB_CACHE", str(tmp_path))
        assert perturb.cache_programs() == str(tmp_path / "xla")
        assert getattr(jax.config, options[0]) == str(tmp_path / "xla")
        assert perturb.cache_programs("elsewhere") == "elsewhere"
        assert perturb.cache_programs() == "elsewhere"  # jax's own option is left as it is
    finally:
        for option, value in zip(options, before, strict=True):
            jax.config.update(option, value)
