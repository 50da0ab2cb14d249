"""Several processes for one run: the same cells, and what becomes of a process that fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as door
from experiments.records import RecordLog, RecordLogLocked, load
from experiments.runner import Spent, run_study, together
from experiments.runner.together import Training, run_together
from experiments.study import Study, find
from perturb.cli import BadInput
from tests import child
from tests.test_runner import MINE, Quiet

STUDY = """
from experiments.study import Own, Study, axis
from perturb import RTN, Magnitude

STUDY = Study(
    name="{name}",
    description="for tests",
    models=(Own("{model}:task"),),
    plans=((axis(Magnitude, sparsity=0.5), axis(RTN, bits=(4, 2))),),
    seeds={seeds},
    exclude=("last",),
)
"""
CELLS = 4  # of a training

pytestmark = pytest.mark.skipif(
    len(together.cores()) < 2, reason="a process of its own needs a core of its own"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def programs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes keep what they compile."""
    monkeypatch.setenv("PERTURB_CACHE", str(cache))
    return cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


def written(folder: Path, name: str, seeds: tuple[int, ...], change: str = "") -> str:
    """A study's file, on a model that ``change`` is added to."""
    model = folder / f"{name}_model.py"
    model.write_text(MINE + change)
    path = folder / f"{name}.py"
    path.write_text(STUDY.format(name=name, model=model, seeds=seeds))
    return str(path)


def studies(paths: list[str]) -> list[Study]:
    return [find(path) for path in paths]


class Ran:
    """What a run of several processes told."""

    def __init__(self, paths: list[str], out: Path, workers: int = 2) -> None:
        self.events: list[tuple[str, int]] = []
        self.watches = [Quiet() for _ in paths]
        self.spent: dict[int, Spent] = {}

        def begin(n: int) -> Quiet:
            self.events.append(("begin", n))
            return self.watches[n]

        def end(n: int, spent: Spent) -> None:
            self.events.append(("end", n))
            self.spent[n] = spent

        run_together(studies(paths), out, workers, partial(studies, paths), begin, end)


FAILS = """

right = task

def task(seed=0):
    if seed == 1:
        {what}
    return right(seed)
"""

DEFECT = "import experiments.runner.running as running; running.Job = None"  # one of ours


@pytest.mark.slow
def test_the_same_cells_as_in_one_process(folder: Path, tmp_path: Path, programs: Path) -> None:
    paths = [written(folder, "a", (0, 1, 2)), written(folder, "b", (5,))]
    ran = Ran(paths, tmp_path / "together")
    assert sorted(ran.events) == [("begin", 0), ("begin", 1), ("end", 0), ("end", 1)]
    assert ran.events[:2] == [("begin", 0), ("begin", 1)]  # the two at once
    for n, (study, trainings) in enumerate(zip(studies(paths), (3, 1), strict=True)):
        alone = load(run_study(study, tmp_path / "alone", watch=Quiet()))
        path = tmp_path / "together" / study.name / "records.jsonl"
        found = {r["cell"]: r for r in load(path)}
        assert len(found) == len(alone) == len(load(path)) == CELLS * trainings
        for record in alone:
            other = found[record["cell"]]
            assert {r["status"] for r in (record, other)} == {"ok"}
            assert other["label"] == record["label"]
            # on fewer cores sums are added up in another order
            assert other["metrics"] == pytest.approx(record["metrics"], rel=1e-4, abs=1e-6)
        watch, spent = ran.watches[n], ran.spent[n]
        assert watch.total == len(watch.cells) == CELLS * trainings
        assert len(watch.tables) == trainings
        assert {len(t) for t in watch.tables} == {2}
        assert sum("test examples" in line for line in watch.lines) == trainings
        assert {"train", "calibrate", "compress", "evaluate", "compile"} <= spent.seconds.keys()
        assert spent.programs > 0
        assert 0.1 < spent.peak < 20
    before = {p: p.read_bytes() for p in (tmp_path / "together").rglob("records.jsonl")}
    again = Ran(paths, tmp_path / "together")
    assert before == {p: p.read_bytes() for p in before}  # nothing twice
    assert len(again.watches[0].cells) == CELLS * 3
    assert again.watches[0].lines.count(f"{CELLS} cells are there already") == 3


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("raise ValueError('no such data')", BadInput, "task: ValueError: no such data"),
        (DEFECT, RuntimeError, "(?s)study f failed.*Traceback.*TypeError: 'NoneType' object"),
        ("import os; os._exit(9)", BadInput, r"that ran .*task for study f has died \(exit code 9"),
        ("import os; os.kill(os.getpid(), 9)", BadInput, r"has died \(signal 9\).*--workers"),
    ],
)
def test_a_process_that_fails(
    what: str, error: type[Exception], says: str, folder: Path, tmp_path: Path, programs: Path
) -> None:
    """It ends the run; what the others have measured is there, and the records are free."""
    path = written(folder, "f", (0, 1), FAILS.format(what=what))
    with pytest.raises(error, match=says):
        Ran([path], tmp_path)
    assert not [t for t in threading.enumerate() if t.name.startswith("Process")]
    RecordLog(tmp_path / "f" / "records.jsonl").close()


def test_records_of_another_run_are_left_alone(
    folder: Path, tmp_path: Path, programs: Path
) -> None:
    path = written(folder, "locked", (0, 1))
    with RecordLog(tmp_path / "locked" / "records.jsonl"), pytest.raises(RecordLogLocked):
        Ran([path], tmp_path)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(
    folder: Path, tmp_path: Path, programs: Path
) -> None:
    """Even if that is killed and can tell them nothing."""
    waits = FAILS.format(what="import os, time, pathlib; pathlib.Path(__file__).with_suffix('.pid')"
                              ".write_text(str(os.getpid())); time.sleep(3)")  # fmt: skip
    path = written(folder, "orphans", (0, 1), waits)
    parent = together.CONTEXT.Process(target=Ran, args=([path], tmp_path))
    parent.start()
    told = folder / "orphans_model.pid"
    _until(told.is_file)
    _until(lambda: bool(told.read_text()))
    os.kill(parent.pid, signal.SIGKILL)  # type: ignore[arg-type]
    parent.join()
    worker = Path("/proc") / told.read_text()
    _until(lambda: not worker.exists())


def _until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def test_what_comes_next_is_of_a_model_whose_programs_are_there() -> None:
    a0, a1, a2 = (Training(0, n, "a") for n in range(3))
    b0, c0 = Training(0, 3, "b"), Training(1, 0, "a")
    left = [a1, a2, b0, c0]
    assert together._next(left, a0, [a0]) == a1  # its own
    assert together._next(left, None, [a0]) == b0  # one that no other is at
    assert together._next([a1, a2, c0], b0, [a0]) == c0  # another study's is another's programs
    assert together._next([a1, a2], b0, [a0]) == a1
    assert together._next(left, None, []) == a1


def test_cores_are_shared_out_evenly() -> None:
    assert together._shares([3, 5], 2) == [[3], [5]]
    assert together._shares(list(range(7)), 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert together._shares([3, 5], 1) == [[3, 5]]


@pytest.mark.slow
def test_the_command_line_in_two_processes(
    folder: Path, tmp_path: Path, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(folder, "door", (0, 1))
    out = ["--out", str(tmp_path), "--no-figures", "--workers"]
    command = [sys.executable, "-m", "experiments", "run", path, *out, "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=child.ROOT)
    assert done.returncode == 0, done.stderr
    told = done.stdout.replace("\n", " ")
    assert "8 models to measure (1 models x 2 seeds" in told
    assert " s in all by 2 processes: " in told
    assert "GB at most each" in told
    assert (tmp_path / "door" / "summary.json").is_file()
    for workers in ("0", "100000"):
        assert door.main(["run", path, *out, workers]) == 2
        assert f"--workers {workers}: must be at least 1 and at most" in capsys.readouterr().err


def test_several_processes_on_an_accelerator_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    assert door.main(["run", written(folder, "gpu", (0, 1)), "--workers", "2"]) == 2
    assert "--workers 2: a gpu is one process's" in capsys.readouterr().err
