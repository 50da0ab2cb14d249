"""``python -m experiments`` as a user meets it, studies, and what all four command lines share."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import experiments.__main__ as door
import figures.__main__
import perturb.__main__
import theory.__main__
from experiments.records import RecordLog, load
from experiments.study import Study, cell_name, cell_names, cells, find, label
from perturb import (
    GPTQ,
    RTN,
    GlobalMagnitude,
    GridSpec,
    Joint,
    Magnitude,
    NofM,
    SparseGPT,
    Wanda,
    cli,
)
from tests.synthetic import make_record

ROOT = Path(__file__).parent.parent
MAINS = {
    "perturb": perturb.__main__,
    "experiments": door,
    "theory": theory.__main__,
    "figures": figures.__main__,
}
STUDY = """
from functools import partial
from experiments.study import Study
from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda

STUDY = Study(
    name="mine",
    description="for tests",
    models=("tiny-resnet",),
    pruners=(Magnitude,),
    sparsities=(0.3, 0.5),
    quantizers=(RTN,),
    bits=(4,),
)
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.py").write_text(STUDY)
    (tmp_path / "file").write_text("a file, not a folder\n")
    yield
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def one_line(capsys, says: str) -> None:
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out


# -------------------------------------------------------------------------------- study files

WRONG = {  # what of STUDY becomes what, and what is said of it
    "syntax": ("STUDY = Study(", "STUDY = Study((", "SyntaxError: '(' was never closed (study.py"),
    "raises": (
        "STUDY =",
        "1 / 0\nSTUDY =",
        "ZeroDivisionError: division by zero (study.py, line 6)",
    ),
    "exits": ("STUDY =", "raise SystemExit(0)\nSTUDY =", "SystemExit: 0 (study.py, line 6)"),
    "import": (
        "STUDY =",
        "import no_such\nSTUDY =",
        "No module named 'no_such' (study.py, line",
    ),
    "no study": ("STUDY =", "STUDIES =", "study.py defines no STUDY = "),
    "no Study": ("STUDY = Study(", "STUDY = dict(", "Study(...), got {'name': 'mine'"),
    "missing field": ("    bits=(4,),\n", "", "argument: 'bits' (study.py, line 6)"),
    "unknown field": ("bits=", "bit=", "unexpected keyword argument 'bit' (study.py, line 6)"),
    "bare number": (
        "bits=(4,)",
        "bits=4",
        "bits is 4; it must be a tuple, each a whole number from 2 to 16, as in bits=(4,) (study",
    ),
    "bare sparsity": ("(0.3, 0.5)", "0.3", "sparsities is 0.3; it must be a tuple, each a number"),
    "bare model": ('("tiny-resnet",)', '"tiny-resnet"', "as in models=('tiny-resnet',)"),
    "bare pruner": ("(Magnitude,)", "Magnitude", "as in pruners=(Magnitude,)"),
    "bare quantizer": ("(RTN,)", "RTN", "as in quantizers=(RTN,)"),
    "bare seed": ("bits=(4,)", "bits=(4,), seeds=3", "as in seeds=(3,)"),
    "bare pattern": ("bits=(4,)", 'bits=(4,), exclude="fc"', "as in exclude=('fc',)"),
    "a set": ("bits=(4,)", "bits={4}", "bits is {4}; it must be a tuple"),
    "an iterator": ("bits=(4,)", "bits=iter((4,))", "it must be a tuple, each a whole"),
    "ready-made pruner": (
        "(Magnitude,)",
        "(Magnitude(0.5),)",
        "it must be the class of a pruner or partial(CLASS, setting=...)",
    ),
    "ready-made quantizer": ("(RTN,)", "(RTN(4),)", "it must be the class of a quantizer"),
    "a text for a pruner": ("(Magnitude,)", "('magnitude',)", "pruners[0] is 'magnitude'; it must"),
    "pruner as quantizer": ("(RTN,)", "(Wanda,)", "quantizers[0] is Wanda; it must be the class"),
    "quantizer as pruner": (
        "(Magnitude,)",
        "(partial(GPTQ, damp=0.1),)",
        "pruners[0] is partial(GPTQ, damp=0.1); it must be the class of a pruner",
    ),
    "no method": ("(Magnitude,)", "(abs,)", "with sparsity 0.3 gives 0.3; it must be the class"),
    "setting": (
        "(Magnitude,)",
        "(partial(Magnitude, tye='index'),)",
        "unexpected keyword argument 'tye'",
    ),
    "setting's value": (
        "(Magnitude,)",
        "(partial(Magnitude, tie='first'),)",
        "pruners[0], partial(Magnitude, tie='first'), with sparsity 0.3: tie must be one of",
    ),
    "amount in partial": ("(Magnitude,)", "(partial(Magnitude, sparsity=0.5),)", "'sparsity'"),
    "damp": ("(RTN,)", "(partial(GPTQ, damp=-1),)", "damp must be a finite number"),
    "block": ("(Magnitude,)", "(partial(SparseGPT, block=0),)", "block must be a whole number"),
    "same pruner": (
        "(Magnitude,)",
        "(Magnitude, partial(Magnitude, tie='random'))",
        "is the same method as pruners[0]",
    ),
    "nan": ("(0.3, 0.5)", "(float('nan'),)", "sparsities[0] is nan; it must be a number from 0"),
    "one": ("(0.3, 0.5)", "(0.3, 1.0)", "sparsities[1] is 1.0; it must be a number from 0"),
    "text": ("(0.3, 0.5)", "('0.3',)", "sparsities[0] is '0.3'; it must be a number"),
    "bits": ("bits=(4,)", "bits=(4, 1)", "bits[1] is 1; it must be a whole number from 2 to 16"),
    "half bits": ("bits=(4,)", "bits=(4.5,)", "bits[0] is 4.5; it must be a whole number"),
    "bool bits": ("bits=(4,)", "bits=(True,)", "bits[0] is True; it must be a whole number"),
    "huge seed": ("bits=(4,)", "bits=(4,), seeds=(2**32,)", "from 0 to 4294967295"),
    "negative seed": ("bits=(4,)", "bits=(4,), seeds=(-1,)", "seeds[0] is -1"),
    "twice": ("(0.3, 0.5)", "(0, 0.0)", "sparsities lists a value twice: 0.0"),
    "empty": ("bits=(4,)", "bits=()", "bits is empty; each must be a whole number"),
    "model": ("tiny-resnet", "gpt", "unknown model 'gpt'; known: "),
    "model's type": ('"tiny-resnet"', "18", "unknown model 18; known: "),
    "name": ('"mine"', '"../mine"', "name is '../mine'; it must be a text that can name"),
    "no name": ('"mine"', "None", "name is None; it must be a text that"),
    "calibrate": ("bits=(4,)", "bits=(4,), calibrate='no'", "calibrate must be one of sequential"),
    "norms": ("bits=(4,)", "bits=(4,), norms='no'", "norms must be one of reestimate, keep, got"),
    "zeros": ("bits=(4,)", "bits=(4,), zeros=0", "zeros must be one of free, keep, got 0"),
    "zeros' type": ("bits=(4,)", "bits=(4,), zeros=[]", "zeros must be one of free, keep, got []"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_file_is_one_line(case, tmp_path, capsys):
    old, new, says = WRONG[case]
    assert STUDY.count(old) == 1
    (tmp_path / "study.py").write_text(STUDY.replace(old, new))
    assert door.main(["run", "study.py", "--out", "out"]) == 2
    one_line(capsys, says)
    assert not Path("out").exists()


def test_a_study_file_imports_its_neighbours_and_prints_to_stderr(tmp_path, capsys):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "neighbour.py").write_text("BITS = [4, 3]\n")
    text = f"from neighbour import BITS\nprint('hello')\n{STUDY}".replace("(4,)", "BITS")
    (folder / "near.py").write_text(text)
    study = find("studies/near.py")
    assert study.bits == (4, 3)
    assert capsys.readouterr() == ("", "hello\n")
    sys.modules.pop("neighbour"), sys.modules.pop("near")


def test_axes_may_be_lists_ranges_and_numpy_numbers():
    axes: dict[str, Any] = {"sparsities": [np.float64(0.5), 0], "bits": range(2, 5)}
    study = Study("a", "", ["tiny-resnet"], [Magnitude], quantizers=[RTN], seeds=[1], **axes)  # type: ignore[arg-type]
    assert (study.models, study.sparsities, study.bits) == (("tiny-resnet",), (0.5, 0.0), (2, 3, 4))
    assert {type(b) for b in study.bits} == {int}
    assert {type(s) for s in study.sparsities} == {float}
    assert study.with_options(norms="keep", zeros=None) == Study(
        **{**vars(study), "norms": "keep", "zeros": "free"}
    )


# --------------------------------------------------------------------------- labels and cells


def test_labels_and_names_as_they_stand_in_records():
    assert label(GPTQ(4)) == "gptq"
    grid = GridSpec(symmetric=False, clip="mse")
    assert label(GPTQ(4, grid)) == "gptq[symmetric=False,clip=mse]"
    assert label(RTN(4, GridSpec(per=8, convention="full"))) == "rtn[per=8,convention=full]"
    assert label(SparseGPT(scope=NofM(2, 4), damp=1)) == "sparsegpt[scope=2:4,damp=1.0]"
    assert label(Joint(0.5, 4)) == "joint"
    assert label(Joint(0.5, 3)) == "joint[bits=3]"
    name = partial(cell_name, "llama-docs", 2)
    assert name("dense", None, None) == "llama-docs/s2/dense"
    assert name("P", Wanda(0.5), None) == "llama-docs/s2/wanda-0.5"
    assert name("Q", None, RTN(np.int32(4))) == "llama-docs/s2/rtn-4"
    assert name("QP", Wanda(1 / 3), RTN(4)) == "llama-docs/s2/rtn-4>wanda-0.3333333333333333"
    assert name("PQ", Wanda(0.3333333), RTN(4)) == "llama-docs/s2/wanda-0.3333333>rtn-4"
    assert name("P", Wanda(0.1 + 0.2), None) == "llama-docs/s2/wanda-0.30000000000000004"


def _any_of(cls: Any, **choices: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=choices).map(lambda chosen: partial(cls, **chosen))


_ties = st.sampled_from(("index", "random", "dense"))
_targets = st.sampled_from(("current", "dense"))
_scopes = st.sampled_from(("row", "layer", NofM(2, 4), NofM(1, 2)))
_damps = st.floats(0, 1, allow_subnormal=False) | st.sampled_from((0.01, 0.0100001, 1, 0))
_blocks = st.integers(1, 300)
_grids = st.builds(
    GridSpec,
    symmetric=st.booleans(),
    per=st.sampled_from(("tensor", "row", 1, 8, 128)),
    clip=st.sampled_from(("absmax", "mse")),
    convention=st.sampled_from(("half", "full")),
)
_shared = {
    "grid": _grids,
    "mask": st.sampled_from(("enforce", "free")),
    "scale_source": _targets,
    "target": _targets,
}
PRUNERS = st.one_of(
    _any_of(GlobalMagnitude, tie=_ties),
    *(_any_of(cls, scope=_scopes, tie=_ties, target=_targets) for cls in (Magnitude, Wanda)),
    _any_of(
        SparseGPT,
        tie=_ties,
        target=_targets,
        on_grid=st.sampled_from(("refit", "snap", "release")),
        damp=_damps,
        block=_blocks,
    ),
    _any_of(Joint, bits=st.integers(2, 16), grid=_grids, tie=_ties, damp=_damps, block=_blocks),
)
QUANTIZERS = st.one_of(
    _any_of(RTN, **_shared),
    _any_of(GPTQ, **_shared, static_groups=st.booleans(), damp=_damps, block=_blocks),
)
AMOUNTS = st.floats(0, 1, exclude_max=True) | st.sampled_from((0.3333333, 0.3333334, 0.5))


def _labels_tell(one: Any, other: Any) -> None:
    assert (label(one) == label(other)) == (one == other)


@settings(max_examples=300, deadline=None)
@given(PRUNERS, PRUNERS)
def test_pruners_share_a_label_only_if_they_are_the_same(one, other):
    amount = 0.5  # fits both patterns
    _labels_tell(one(amount), other(amount))
    _labels_tell(one(amount), one(amount))


@settings(max_examples=300, deadline=None)
@given(QUANTIZERS, QUANTIZERS, st.sampled_from((2, 4, 16)))
def test_quantizers_share_a_label_only_if_they_are_the_same(one, other, bits):
    _labels_tell(one(bits), other(bits))
    _labels_tell(one(bits), one(bits))


def test_each_setting_alone_changes_the_label():
    """So that the two tests above do not rest on what is drawn."""
    grids = [GridSpec(**c) for c in ({"symmetric": False}, {"clip": "mse"}, {"convention": "full"})]
    grids += [GridSpec(per="tensor"), GridSpec(per=8), GridSpec()]
    for cls in (RTN, GPTQ):
        assert len({label(cls(4, grid)) for grid in grids}) == len(grids)


@settings(max_examples=300, deadline=None)
@given(AMOUNTS, AMOUNTS)
def test_amounts_that_differ_name_different_cells(one, other):
    names = {cell_name("m", 0, "P", Magnitude(s), None) for s in (one, other)}
    assert len(names) == len({one, other})
    assert all(float(name.removeprefix("m/s0/magnitude-")) in (one, other) for name in names)


def test_settings_of_two_nested_ones_are_told_apart():
    @dataclass(frozen=True)
    class Two:
        bits: int
        first: GridSpec = field(default_factory=GridSpec)
        second: GridSpec = field(default_factory=lambda: GridSpec(symmetric=False))
        name = "two"

    same, coarse = GridSpec(), GridSpec(per="tensor")
    made = [Two(4), Two(4, coarse), Two(4, second=same), Two(4, same, GridSpec(False, "tensor"))]
    labels = [label(m) for m in made]
    assert labels[:2] == ["two", "two[first.per=tensor]"]
    assert labels[2:] == ["two[second.symmetric=True]", "two[second.per=tensor]"]


def test_every_cell_of_a_study_once():
    study = Study(
        "a",
        "",
        ("tiny-resnet", "llama-docs"),
        (Magnitude, Wanda),
        (0.3, 0.5),
        (RTN, partial(RTN, grid=GridSpec(symmetric=False))),
        (4, 3),
        seeds=(0, 7),
    )
    listed = cells(study)
    assert len(listed) == study.cells_per_run == 1 + 4 + 4 + 2 * 16
    names = cell_names(study)
    assert len(names) == 4 * len(listed)
    assert "llama-docs/s7/rtn[symmetric=False]-3>wanda-0.3" in names
    for order, p, q in listed:
        assert (p is not None, q is not None) == ("P" in order, "Q" in order)


# ----------------------------------------------------------------------------- a run's report


@pytest.fixture
def made_up(monkeypatch):
    """Runs without models: ``broken`` tells which cells fail, and how."""
    broken: dict[str, str] = {}
    evaluated: list[str] = []

    def run_model(run: Any, after_alone: Any) -> None:
        for order, p, q in cells(run.study):
            cell = cell_name(run.model, run.seed, order, p, q)
            if order == "PQ":
                after_alone()
                after_alone = lambda: None  # noqa: E731
            if cell in run.done:
                continue
            evaluated.append(cell)
            failed = next((text for end, text in broken.items() if cell.endswith(end)), None)
            record = make_record(
                order,
                sparsity=p and p.sparsity,
                bits=q and q.bits,
                pruner=p.name if p else "",
                quantizer=q.name if q else "",
                model=run.model,
                kind="images",
                seed=run.seed,
                study=run.study.name,
                nll=np.random.default_rng(len(cell)).gamma(2, size=20),
                kl=0.1,
                status="ok" if failed is None else "error",
            )
            assert record["cell"] == cell
            run.log.append(record | {"error": failed})

    def made(study, trained, log, done, clock, tick):
        coverage = SimpleNamespace(describe=lambda: "all of the parameters")
        return SimpleNamespace(study=study, log=log, done=done, coverage=coverage, **vars(trained))

    monkeypatch.setattr("experiments.runner.run_model", run_model)
    monkeypatch.setattr("experiments.runner.Run", made)
    monkeypatch.setattr(
        "experiments.train.load_or_train",
        lambda model, seed, **_: SimpleNamespace(model=model, seed=seed),
    )
    monkeypatch.setattr(door, "_quality", lambda trained: f"{trained.model} is there")
    return SimpleNamespace(broken=broken, evaluated=evaluated)


RUN = ("run", "study.py", "--out", "out")


def test_a_run_reports_its_own_cells_and_seeds(made_up, tmp_path, monkeypatch, capsys):
    drawn: list[list[str]] = []

    def draw(command, **_):
        source = Path(command[command.index("--records") + 1])
        drawn.append([r["cell"] for r in load(source)])
        return SimpleNamespace(returncode=0, stdout="a.png\nb.png\n", stderr="")

    monkeypatch.setattr(door.subprocess, "run", draw)
    assert door.main([*RUN, "--seeds", "2"]) == 0
    summary = json.loads(Path("out/mine/summary.json").read_text())
    assert (summary["records"], summary["seeds"]) == (2 * 8, [0, 1])
    assert len(drawn[0]) == 16
    # now another grid, and one seed
    (tmp_path / "study.py").write_text(STUDY.replace("(0.3, 0.5)", "(0.5, 0.7)"))
    made_up.evaluated.clear()
    capsys.readouterr()
    assert door.main([*RUN]) == 0
    said = capsys.readouterr().out
    assert "8 compressed models" in said
    assert "5 cells are there already" in said  # dense, P and Q alone, both orders at 0.5
    assert "2 figures in out/mine/figures" in said
    assert sorted(made_up.evaluated) == [
        "tiny-resnet/s0/magnitude-0.7",
        "tiny-resnet/s0/magnitude-0.7>rtn-4",
        "tiny-resnet/s0/rtn-4>magnitude-0.7",
    ]
    summary = json.loads(Path("out/mine/summary.json").read_text())
    assert (summary["records"], summary["ok"], summary["seeds"]) == (8, 8, [0])
    (comparison,) = (c for c in summary["comparisons"] if c["measure"] == "accuracy")
    assert [c["sparsity"] for c in comparison["cells"]] == [0.5, 0.7]
    assert set(drawn[1]) == cell_names(find("study.py"))
    assert len(load(Path("out/mine/records.jsonl"))) == 16 + 3  # nothing is thrown away
    assert door.main(["report", "out/mine"]) == 0
    said = capsys.readouterr().out
    assert "mine: 8 variants measured" in said
    assert "11 records of other cells or seeds are left out" in said
    assert door.main(["report", "out/mine/records.jsonl"]) == 0
    assert "mine: 19 variants measured" in capsys.readouterr().out


def test_what_each_method_does_alone_is_of_this_study(made_up, tmp_path, capsys):
    def shown() -> list[str]:
        assert door.main([*RUN, "--no-figures"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (row,) = (line for line in lines if line.startswith("│ magnitude "))
        return [cell.strip() for cell in row.strip("│").split("│")]

    (tmp_path / "study.py").write_text(STUDY.replace("(0.3, 0.5)", "(0.00001, 0.5)"))
    assert shown() == ["magnitude", "0%", "50%"]  # 1e-05 is one amount, not a label's end
    (tmp_path / "study.py").write_text(STUDY)
    assert shown() == ["magnitude", "30%", "50%"]


def test_a_failed_cell_is_told_and_the_exit_code_is_1(made_up, capsys):
    made_up.broken |= {
        "/magnitude-0.5": "MemoryError: no room\nfor this",
        ">magnitude-0.5": "MemoryError: no room\nfor that",
        ">rtn-4": "ValueError: other",
    }
    assert door.main([*RUN, "--no-figures"]) == 1
    captured = capsys.readouterr()
    assert "failed: tiny-resnet/s0/magnitude-0.5 and 1 more: MemoryError: no room\n" in captured.out
    assert "failed: tiny-resnet/s0/magnitude-0.3>rtn-4 and 1 more: ValueError" in captured.out
    assert "4 cells failed" in captured.out
    assert "run again to retry them" in captured.out
    assert door.main(["report", "out/mine"]) == 1
    assert "and 1 more: MemoryError: no room\n" in capsys.readouterr().out
    made_up.broken.clear()
    assert door.main([*RUN, "--no-figures"]) == 0
    assert door.main(["report", "out/mine/records.jsonl"]) == 0
    assert "failed:" not in capsys.readouterr().out


def test_a_failure_of_another_definition_does_not_fail_a_run(made_up, tmp_path):
    made_up.broken["magnitude-0.3"] = "MemoryError"
    assert door.main([*RUN, "--no-figures"]) == 1
    (tmp_path / "study.py").write_text(STUDY.replace("(0.3, 0.5)", "(0.5,)"))
    assert door.main([*RUN, "--no-figures"]) == 0


def test_a_run_without_any_result_ends_in_words(made_up, capsys):
    made_up.broken |= {"dense": "ValueError: nan", "-4": "ValueError: nan"}
    made_up.broken |= {"-0.3": "ValueError: nan", "-0.5": "ValueError: nan"}
    assert door.main([*RUN]) == 1
    captured = capsys.readouterr()
    assert "no figures: error: " in captured.out
    assert "failed: tiny-resnet/s0/dense and 7 more: ValueError: nan" in captured.out
    assert not captured.err


def test_options_reach_the_study(made_up, monkeypatch):
    seen: list[Study] = []
    monkeypatch.setattr(door, "_check", lambda study, arguments: seen.append(study))
    options = ("--norms", "keep", "--calibrate", "dense", "--no-figures")
    assert door.main([*RUN, *options]) == 0
    assert (seen[0].norms, seen[0].calibrate, seen[0].zeros) == ("keep", "dense", "free")


# ----------------------------------------------------------------- what is refused before work


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((*RUN, "--norms", "no"), "norms must be one of reestimate, keep, got 'no'"),
        ((*RUN, "--seeds", "1000000000"), "--seeds 1000000000: must be at least 1 and at most"),
        ((*RUN, "--seeds", "2", "--seeds", "3"), "--seeds is given twice"),
        ((*RUN, "--models", "gpt"), "unknown model 'gpt'"),
        ((*RUN, "--text", "file"), "--text file: no model of the study takes it (tiny-resnet)"),
        ((*RUN, "--images-dir", "."), "--images-dir .: no model of the study takes it"),
        (("run", "study.py", "--out", "file"), "file is a file, not a folder"),
        (("run", "study.py", "--out", "file/sub"), "file is a file, not a folder"),
        (("run", "study.py", "--out", "x" * 300), "cannot write there"),
        (("run", "study.py", "--out", "taken"), "taken/mine is a file, not a folder"),
        (("run", "study.py", "--out", "half"), "half/mine/figures is a file, not a folder"),
        (("run", "study.py", "--out", "odd"), "odd/mine/records.jsonl is a folder"),
        (("run", "none.py"), "there is no study file none.py"),
        (("run", "."), "unknown study '.'"),
        (("train", "tiny-resnet", "--seed", "-1"), "--seed -1: must be a whole number from 0"),
        (("train", "tiny-resnet", "--seed", "9" * 30), "from 0 to 4294967295"),
        (("train", "tiny-resnet", "--text", "file"), "not on a file"),
        (("report", "damaged.gz"), "damaged"),
    ],
)
def test_refused_before_any_work(argv, says, tmp_path, capsys, monkeypatch):
    for folder in ("taken", "half/mine", "odd/mine/records.jsonl"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("taken/mine", "half/mine/figures"):
        (tmp_path / file).write_text("")
    (tmp_path / "damaged.gz").write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20)
    monkeypatch.setattr("experiments.train.train", lambda *_: pytest.fail("it trained"))
    monkeypatch.setenv("PERTURB_CACHE", str(tmp_path / "cache"))
    assert door.main(list(argv)) == 2
    one_line(capsys, says)


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        (door, RUN),
        (door, ("train", "tiny-resnet")),
        (perturb.__main__, ("m:tiny-resnet", "--prune", "wanda:0.5", "--quantize", "rtn:4")),
    ],
)
def test_a_cache_that_cannot_keep_a_model_is_told_before_training(
    module, argv, monkeypatch, capsys, tmp_path
):
    from experiments.entry import preset

    monkeypatch.setattr("experiments.train.train", lambda *_: pytest.fail("it trained"))
    monkeypatch.setenv("PERTURB_CACHE", "file/cache")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "not used: jax has read it already")
    if module is perturb.__main__:
        monkeypatch.setattr(
            perturb.__main__.sources,
            "installed",
            lambda: {"tiny-resnet": SimpleNamespace(load=lambda: preset)},
        )
        argv = ("tiny-resnet", *argv[1:])
    assert module.main(list(argv)) == 2
    one_line(capsys, "cache folder (PERTURB_CACHE) file/cache/models: file is a file")


def test_a_full_cache_need_not_be_writable(monkeypatch, tmp_path):
    from experiments.entry import check_cache

    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    (models / "tiny-resnet-seed0-0123.safetensors").write_text("")
    monkeypatch.setenv("PERTURB_CACHE", str(tmp_path / "cache"))
    asked: list[Path] = []
    monkeypatch.setattr("experiments.entry.check_folder", lambda what, path: asked.append(path))
    check_cache("tiny-resnet", [0])
    assert not asked
    check_cache("tiny-resnet", [0, 1])
    assert asked == [models]


# ------------------------------------------------------------------------ all four command lines

THEORY = ("verify", "gaussian", "--instances", "10")


@pytest.mark.parametrize(
    ("name", "argv", "says"),
    [
        ("theory", (*THEORY, "--seed", "-1"), "--seed -1: must be a whole number from 0 to"),
        ("theory", (*THEORY, "--seed", "4294967296"), "from 0 to 4294967295"),
        ("theory", ("models", "--seed", "1e3"), "--seed 1e3: must be a whole"),
        ("theory", (*THEORY, "--out", "file"), "--out file: file is a file, not a folder"),
        ("theory", (*THEORY, "--out", "file/sub"), "--out file/sub: file is a file"),
        ("theory", (*THEORY, "--out", "x" * 300), "cannot write there"),
        ("theory", (*THEORY, "--out", "odd"), "odd/verify.json is a folder"),
        ("theory", (*THEORY, "--out", "half"), "half/figures is a file"),
        ("theory", ("models", "--out", "file/sub"), "file is a file"),
        ("theory", ("models", "--out", "odd"), "odd/models.json is a folder"),
        ("theory", ("verify", "--instances", "nan"), "--instances nan: must be a whole number"),
        ("theory", ("verify", "--instances", "inf"), "--instances inf: must be a whole number"),
        ("theory", ("verify", "--instances", "1e300"), "at most 1e+12"),
        ("theory", (*THEORY, "--instances", "20"), "--instances is given twice"),
        ("theory", ("models", "bad.py:load"), "SyntaxError"),
        ("theory", ("models", "leaves.py:load"), "SystemExit: 7 (leaves.py, line 1)"),
        ("figures", ("--records", "r", "--out", "file/sub"), "--out file/sub: file is a file"),
        ("figures", ("--records", "r", "--out", "x" * 300), "cannot write there"),
        ("figures", ("--records", "r", "--out", "o", "--out", "p"), "--out is given twice"),
        ("figures", ("--records", "r", "--out", "o", "--replicates", "9" * 12), "at most 100000"),
        ("figures", ("--records", "r", "--theory", "t", "--out", "o"), "exclude each other"),
        ("figures", ("--records", "damaged.gz", "--out", "o"), "damaged.gz"),
        ("figures", ("--theory", "damaged.gz", "--out", "o"), "damaged.gz is no JSON"),
        ("figures", ("--theory", "torn.gz", "--out", "o"), "torn.gz is no JSON"),
        ("figures", ("--theory", "other.json", "--out", "o"), "cannot be drawn"),
    ],
)
def test_bad_input_is_one_line(name, argv, says, tmp_path, capsys):
    for folder in ("half", "odd/verify.json", "odd/models.json"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "half" / "figures").write_text("")
    (tmp_path / "bad.py").write_text("def load(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(7)\n")
    (tmp_path / "damaged.gz").write_bytes(b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 20)
    (tmp_path / "torn.gz").write_bytes(b"\x1f\x8b\x08" + bytes(7))
    (tmp_path / "other.json").write_text('{"statements": [1], "phase": 1, "affine": 1}')
    assert MAINS[name].main(list(argv)) == 2
    one_line(capsys, says)
    assert not (tmp_path / "o").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
@pytest.mark.parametrize("below", ["", "sub"])
def test_a_folder_without_permission_is_refused(tmp_path, below):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(cli.BadInput, match="cannot write there"):
        cli.check_folder("--out", closed / below)
    with pytest.raises(cli.BadInput, match="cannot write there"):
        cli.check_file("--out", closed / "file")


def test_a_folder_is_tried_not_asked(tmp_path, monkeypatch):
    """As a read-only file system shows itself, to root too."""

    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(cli.BadInput, match="Read-only file system"):
        cli.check_folder("--out", tmp_path / "new")
    with pytest.raises(cli.BadInput, match="Read-only file system"):
        cli.check_file("--out", tmp_path / "new")


def test_checking_a_path_leaves_nothing_behind(tmp_path):
    before = sorted(tmp_path.iterdir())
    cli.check_folder("--out", tmp_path / "a" / "b")
    cli.check_file("--out", tmp_path / "new")
    cli.check_file("--out", tmp_path / "file")
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "a file, not a folder\n"


def test_a_link_to_nowhere_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(cli.BadInput, match="link is a file"):
        cli.check_folder("--out", tmp_path / "link" / "sub")


@pytest.mark.parametrize("name", MAINS)
def test_ctrl_c_is_130_and_one_line(name, monkeypatch, capsys):
    def stop(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(MAINS[name], "run", stop)
    assert MAINS[name].main([]) == 130
    captured = capsys.readouterr()
    assert captured.err.startswith("stopped")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("name", MAINS)
def test_a_warning_is_one_line(name, monkeypatch, capsys):
    import warnings

    monkeypatch.setattr(MAINS[name], "run", lambda argv: warnings.warn("odd\nthing", stacklevel=1))
    assert MAINS[name].main([]) == 0
    assert capsys.readouterr().err == "warning: odd thing\n"


INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


@pytest.mark.parametrize("argv", [("experiments", "run", "it.py"), ("theory", "models", "it.py:f")])
def test_ctrl_c_while_a_users_file_runs(argv, tmp_path):
    (tmp_path / "it.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (130, "", 1)


def test_ctrl_c_while_figures_wait_for_their_records(tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, "-m", "figures", "--theory", str(pipe), "--out", "o"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with pipe.open("wb"):  # returns once the other side reads
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)
    assert (process.returncode, *said) == (130, "", "stopped\n")


def test_a_locked_log_is_one_line(made_up, capsys):
    Path("out/mine").mkdir(parents=True)
    with RecordLog("out/mine/records.jsonl"):
        code = door.main([*RUN, "--no-figures"])
    assert code == 2
    assert "error: another run is appending" in capsys.readouterr().err
