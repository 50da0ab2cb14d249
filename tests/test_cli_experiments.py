"""``python -m experiments`` as a user meets it, studies, and what all four command lines share."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import experiments.__main__ as door
import figures.__main__
import perturb.__main__
import theory.__main__
from experiments.labels import chain_name
from experiments.records import RecordLog, encode_sums, load
from experiments.runner import Job, running
from experiments.runner.job import DECISIVE
from experiments.study import Policy, Study, find
from perturb import (
    cli,
)
from perturb import sources as cli_sources
from tests import child

ROOT = Path(__file__).parent.parent
MAINS = {
    "perturb": perturb.__main__,
    "experiments": door,
    "theory": theory.__main__,
    "figures": figures.__main__,
}
STUDY = """
from functools import partial
from experiments.study import Own, Policy, Study, axis, pairs, permutations
from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda

STUDY = Study(
    name="mine",
    description="for tests",
    models=("tiny-resnet",),
    plans=pairs(
        [axis(Magnitude, sparsity=(0.3, 0.5))],
        [axis(RTN, bits=(4,))],
    ),
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


def more(text: str) -> tuple[str, str]:
    """A further argument of the study."""
    return "    ),\n)", f"    ),\n    {text},\n)"


# ----------------------------------------------------------------------------- a run's report


class MadeUp(Job):
    """Cells with an identity and without a model."""

    def __init__(self, shared: Any, draw: int, policy: Policy) -> None:
        self.shared, self.draw, self.policy = shared, draw, policy
        self.opened = SimpleNamespace(  # type: ignore[assignment]
            coverage=SimpleNamespace(describe=lambda: "all of the parameters"),
            network=SimpleNamespace(shapes={"layer": (2, 3)}),
        )
        self.base = {
            "schema": 2,
            "study": shared.study.name,
            "model": shared.model,
            "kind": "images",
            "seed": shared.seed,
            "calibration": {"draw": draw, "examples": 8, "batch": 8, "hash": f"{draw}"},
            "policy": asdict(policy),
            "skipped": {},
            "versions": dict.fromkeys(DECISIVE, "1"),
            "data": {"name": "made up", "hash": "0", "weights": "0", "measures": ["nll"]},
            "device": "cpu cpu",
        }


@pytest.fixture
def made_up(monkeypatch):
    """Runs without models: ``broken`` tells which cells fail, and how."""
    broken: dict[str, str] = {}
    evaluated: list[str] = []

    def run_job(job: MadeUp, after_alone: Any) -> None:
        chains = sorted(job.shared.study.chains(), key=len)
        for i, c in enumerate(chains):
            if len(c) == 2 and len(chains[i - 1]) == 1:
                after_alone()
            if not job.missing([c]):
                continue
            label = job.label(c)
            evaluated.append(label)
            failed = next((text for end, text in broken.items() if label.endswith(end)), None)
            nll = np.random.default_rng(len(label)).gamma(2, size=20)
            sums = {"count": np.ones(20), "nll": nll, "correct": np.zeros(20), "kl": nll / 20}
            bits = np.prod([s.bits / 16 if hasattr(s, "bits") else 1 - s.sparsity for s in c])
            result = {
                "status": "ok",
                "error": None,
                "metrics": {"nll": nll.mean(), "accuracy": 0.0, "kl": nll.mean() / 20},
                "sums": encode_sums(sums),
                "layers": {},
                "ratio": 1 / bits,
                "achieved_sparsity": 0.0,
            }
            failure = {"status": "error", "error": failed}
            job.shared.desk.append(job._begun(c) | (result if failed is None else failure))

    monkeypatch.setattr(running, "run_job", run_job)
    monkeypatch.setattr(running, "Job", MadeUp)
    task = SimpleNamespace(draw=lambda number: None)
    monkeypatch.setattr(running, "load_task", lambda model, *_, **__: (task, f"{model} is there"))
    return SimpleNamespace(broken=broken, evaluated=evaluated)


RUN = ("run", "study.py", "--out", "out")


def test_a_run_reports_its_own_cells_and_seeds(made_up, tmp_path, monkeypatch, capsys):
    drawn: list[list[str]] = []

    def draw(command, **_):
        source = Path(command[command.index("--records") + 1])
        drawn.append([r["label"] for r in load(source)])
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
    assert "8 models to measure" in said
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
    chains = find("study.py").chains()
    assert set(drawn[1]) == {f"tiny-resnet/s0/{chain_name(c)}" for c in chains}
    assert len(load(Path("out/mine/records.jsonl"))) == 16 + 3  # nothing is thrown away
    assert door.main(["report", "out/mine"]) == 0
    said = capsys.readouterr().out
    assert "mine: 8 variants measured" in said
    assert "11 records of other cells or seeds are left out" in said
    assert door.main(["report", "out/mine/records.jsonl"]) == 0
    assert "mine: 19 variants measured" in capsys.readouterr().out


def test_what_each_method_does_alone_is_of_this_study(made_up, tmp_path, capsys):
    def shown(method: str = "magnitude") -> list[str]:
        assert door.main([*RUN, "--no-figures"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (row,) = (line for line in lines if line.startswith(f"│ {method} "))
        return [cell.strip() for cell in row.strip("│").split("│")]

    (tmp_path / "study.py").write_text(STUDY.replace("(0.3, 0.5)", "(0.00001, 0.5)"))
    assert shown() == ["magnitude", "0%", "50%"]  # 1e-05 is one amount, not a label's end
    (tmp_path / "study.py").write_text(STUDY)
    assert shown() == ["magnitude", "30%", "50%"]
    text = "axis(Magnitude, sparsity=(0.3, 0.5))"
    long = "axis(partial(Magnitude, scope='row'), sparsity=(1/3, 0.5))"
    (tmp_path / "study.py").write_text(STUDY.replace(text, long))
    assert shown("magnitude[scope=row]") == ["magnitude[scope=row]", "33%", "50%"]


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
    assert captured.err == "[     0 s] 8 cells to measure\n"


def test_options_reach_the_study(made_up, monkeypatch):
    seen: list[Study] = []
    monkeypatch.setattr(door, "_check", lambda study, arguments: seen.append(study))
    options = ("--norms", "keep", "--calibrate", "dense", "--no-figures")
    assert door.main([*RUN, *options]) == 0
    assert seen[0].policies == (Policy("dense", "keep", "free"),)


def test_options_change_every_policy_of_a_study(made_up, monkeypatch, tmp_path):
    """Those that are the same then are one."""
    seen: list[Study] = []
    monkeypatch.setattr(door, "_check", lambda study, arguments: seen.append(study))
    policies = "policies=(Policy(), Policy(norms='keep'), Policy(zeros='keep'))"
    (tmp_path / "study.py").write_text(STUDY.replace(*more(policies)))
    assert door.main([*RUN, "--norms", "keep", "--no-figures"]) == 0
    assert seen[0].policies == (Policy(norms="keep"), Policy(norms="keep", zeros="keep"))


def test_all_studies_are_checked_first_and_run_one_after_another(
    made_up, monkeypatch, tmp_path, capsys
):
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(STUDY.replace('name="mine"', f'name="{name}"'))
    far = "Checkpoint('far.gguf', text='t.txt')"
    study = STUDY.replace('"tiny-resnet"', far).replace("study import", "study import Checkpoint,")
    (tmp_path / "third.py").write_text(study)
    (tmp_path / "fourth.py").write_text(STUDY.replace("tiny-resnet", "resnet-fashion"))
    monkeypatch.setattr("experiments.data.fashion.DEBIAN", tmp_path)
    monkeypatch.setattr(
        "experiments.chosen.names", lambda: ["first.py", "second.py", "third.py", "fourth.py"]
    )
    seen: list[str] = []
    monkeypatch.setattr(door, "_check", lambda study, arguments: seen.append(study.name))
    made_up.broken["rtn-4"] = "nan"  # of the first study and of the second
    assert door.main(["run", "all", "--out", "out", "--no-figures"]) == 1
    assert seen == ["first", "second"]
    assert {p.parent.name for p in Path("out").glob("*/summary.json")} == {"first", "second"}
    told = capsys.readouterr().out
    assert "2 studies, 16 models to measure" in told
    assert "third.py is left out, for there is no far.gguf here" in told
    assert f"fourth.py is left out, for there is no Fashion-MNIST in {tmp_path}" in told.replace(
        "\n", ""
    )
    made_up.broken.clear()
    assert door.main(["run", "all", "--out", "out", "--no-figures"]) == 0
    assert door.main(["run", "all", "--images", ".", "--out", "out"]) == 2
    assert "--images .: no model of these studies takes it (tiny-resnet)" in capsys.readouterr().err


# ----------------------------------------------------------------- what is refused before work


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((*RUN, "--norms", "no"), "norms must be one of 'reestimate', 'keep'; got 'no'"),
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
        ((*RUN, "--size", "big"), "--size big: choose small, gpu, paper"),
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
def test_sigterm_is_143_and_one_line(name, monkeypatch, capsys):
    """As Ctrl-C: whatever is open is closed, and nothing takes it for a failure of its own."""
    closed: list[str] = []

    def stop(argv: list[str]) -> int:
        try:
            cli_sources.user_code("MODEL m", lambda: os.kill(os.getpid(), signal.SIGTERM))
        except Exception:
            closed.append("taken for a failure")
        finally:
            closed.append("closed")
        return 0

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(MAINS[name], "run", stop)
    assert MAINS[name].main([]) == 143
    captured = capsys.readouterr()
    assert captured.err.startswith("stopped")
    assert captured.err.count("\n") == 1
    assert closed == ["closed"]
    assert signal.getsignal(signal.SIGTERM) is before  # a caller's own handler is back


def test_a_command_may_be_called_from_a_thread(capsys):
    """Where Python allows no signal handlers."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(door.main(["list"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("name", MAINS)
def test_a_warning_is_one_line(name, monkeypatch, capsys):
    import warnings

    monkeypatch.setattr(MAINS[name], "run", lambda argv: warnings.warn("odd\nthing", stacklevel=1))
    assert MAINS[name].main([]) == 0
    assert capsys.readouterr().err == "warning: odd thing\n"


STOPPED = "import os, signal, time\nos.kill(os.getpid(), signal.SIG{})\ntime.sleep(60)\n"


def test_ctrl_c_while_a_users_file_runs(tmp_path):
    (tmp_path / "it.py").write_text(STOPPED.format("INT"))
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "run", "it.py"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (130, "", 1)


@pytest.mark.parametrize(
    ("module", "argv", "name", "code"),
    [
        ("experiments", ("run", "it.py"), "TERM", 143),
        ("theory", ("models", "it.py:f"), "INT", 130),
    ],
)
def test_a_signal_while_a_users_file_runs(module, argv, name, code, tmp_path):
    (tmp_path / "it.py").write_text(STOPPED.format(name))
    log = tmp_path / "log"
    process = child.start(child.command, log, module, list(argv))
    process.join(60)
    said = log.read_text()
    assert (process.exitcode, said[:7], said.count("\n")) == (code, "stopped", 1)


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
