"""The study runner: prefixes shared, failures recorded, killed runs resumed to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import runner
from experiments.__main__ import main
from experiments.records import RecordLog, load, without_seconds
from experiments.runner import Clock, Run, finished, run_model
from experiments.study import Study, cell_names, find
from experiments.train import Trained, load_or_train
from perturb import GPTQ, RTN, GridSpec, Magnitude, Wanda

STUDY = """
from functools import partial
from experiments.study import Study
from perturb import GPTQ, RTN, Magnitude, SparseGPT

STUDY = Study(
    name="tiny",
    description="for tests",
    models=("tiny-resnet",),
    pruners=(Magnitude, partial(SparseGPT, tie="random")),
    sparsities=(0.0, 0.5),
    quantizers=(RTN, GPTQ),
    bits=(4, 2),
    exclude=("layer2.*", "fc"),  # few shapes: what takes time here is compiling
)
"""
EXCLUDE = ("layer2.*", "fc")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def trained(cache: Path) -> Trained:
    return load_or_train("tiny-resnet", cache=cache)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = tmp_path_factory.mktemp("study") / "tiny.py"
    path.write_text(STUDY)
    return find(str(path))


def run(study: Study, trained: Trained, path: Path) -> dict[str, dict]:
    with RecordLog(path) as log:
        run_model(Run(study, trained, log, finished(path), Clock(), lambda: None))
    return {r["cell"]: without_seconds(r) for r in load(path)}


@pytest.fixture(scope="session")
def whole(study: Study, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "records.jsonl"
    run(study, trained, path)
    return path


def test_every_cell_once_and_ok(study: Study, whole: Path) -> None:
    records = load(whole)
    assert len(records) == len({r["cell"] for r in records}) == study.cells_per_run
    assert {r["status"] for r in records} == {"ok"}
    orders = [r["order"] for r in records]
    assert {o: orders.count(o) for o in set(orders)} == {
        "dense": 1,
        "P": 4,
        "Q": 4,
        "PQ": 16,
        "QP": 16,
    }


def test_same_seed_same_bits_and_a_torn_log_resumes_to_the_same_records(
    study: Study, trained: Trained, whole: Path, tmp_path: Path
) -> None:
    expected = {r["cell"]: without_seconds(r) for r in load(whole)}
    lines = whole.read_bytes().splitlines(keepends=True)
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(lines[:13]) + lines[13][:100])  # killed while writing line 14
    assert run(study, trained, path) == expected
    assert path.read_bytes().splitlines(keepends=True)[:13] == lines[:13]


def test_finished_cells_are_not_evaluated_again(
    study: Study, trained: Trained, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    evaluated: list[int] = []
    real = runner.Evaluator.__call__
    monkeypatch.setattr(
        runner.Evaluator, "__call__", lambda self, v: evaluated.append(len(v)) or real(self, v)
    )
    run(study, trained, path)
    assert sum(evaluated) == 2


def test_orders_agree_exactly_where_a_stage_does_nothing(whole: Path) -> None:
    records = {r["cell"]: r for r in load(whole)}
    seen = 0
    for r in records.values():
        if r["order"] == "QP" and r["pruner"]["name"] == "magnitude" and r["sparsity"] == 0.0:
            p, q = r["cell"].split("/")[-1].split(">")[::-1]
            other = records[f"tiny-resnet/s0/{p}>{q}"]
            assert other["metrics"] == r["metrics"]
            assert other["examples"] == r["examples"]
            seen += 1
    assert seen == 4


def test_records_say_what_was_done(whole: Path) -> None:
    records = load(whole)
    for r in records:
        assert r["policies"]["calibrate"] == "recalibrate"
        assert r["data"]["weights"]
        assert r["versions"]["jax"] == jax.__version__
        if r["order"] in ("PQ", "QP"):
            stored = r["storage"]
            kept = 1 - stored["kept"] / stored["weights"]
            assert kept == pytest.approx(r["achieved_sparsity"], abs=1e-6)
            assert stored["bits"] == r["bits"] * stored["kept"]
            rest = 16 * (stored["parameters"] - stored["weights"])
            expected = 16 * stored["parameters"] / (rest + stored["bits"])
            assert r["ratio"] == pytest.approx(expected)
            assert 1 < r["ratio"] < stored["layers_ratio"]  # most of this model is excluded
            sizes = r["layers"]
            assert all(m["out_err"] >= 0 for m in sizes.values())
            assert all(0 <= m["owner_changed"] <= 1 for m in sizes.values())
        if r["order"] == "P":  # floor(s n) of every layer: a little less than s
            assert r["sparsity"] - 0.02 < r["achieved_sparsity"] <= r["sparsity"] + 1e-6


def test_metrics_are_those_of_the_compressed_model(trained: Trained, whole: Path) -> None:
    from perturb import chain, compress

    data = trained.dataset
    c = compress(
        trained.model,
        chain(Magnitude(0.5), RTN(4)),
        np.asarray(data.calibration.inputs),
        calibrate="recalibrate",
        exclude=EXCLUDE,
    )
    accuracy = float(
        np.mean(np.argmax(np.asarray(c.model(data.test.inputs)), -1) == data.test.targets)
    )
    record = next(r for r in load(whole) if r["cell"].endswith("/magnitude-0.5>rtn-4"))
    assert record["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def test_a_failing_family_is_recorded_and_the_others_go_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(
        "f", "", ("tiny-resnet",), (Magnitude, Wanda), (0.5,), (RTN,), (4,), exclude=EXCLUDE
    )
    real = runner.apply_family

    def broken(methods, *args, **kwargs):
        if methods[0].name == "wanda":
            raise MemoryError("no room")
        return real(methods, *args, **kwargs)

    monkeypatch.setattr(runner, "apply_family", broken)
    path = tmp_path / "records.jsonl"
    records = run(study, trained, path)
    status = {c.split("/")[-1]: (r["status"], r["error"]) for c, r in records.items()}
    assert status["magnitude-0.5>rtn-4"][0] == "ok"
    assert {k for k, v in status.items() if v[0] == "error"} == {
        "wanda-0.5",
        "wanda-0.5>rtn-4",
        "rtn-4>wanda-0.5",
    }
    assert status["wanda-0.5"][1] == "MemoryError: no room"
    monkeypatch.undo()  # and once the cause is gone, only those run again
    run(study, trained, path)
    assert len(finished(path)) == study.cells_per_run


def test_records_of_other_weights_are_not_mixed(
    study: Study, trained: Trained, whole: Path, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(whole.read_bytes().replace(trained.weights_hash.encode(), b"0" * 64))
    with pytest.raises(ValueError, match="another data"):
        run(study, trained, path)


@pytest.mark.parametrize(
    ("held", "now", "says"),
    [
        ('"norms":"reestimate"', '"norms":"keep"', "another policies"),
        ('"zeros":"free"', '"zeros":"keep"', "another policies"),
        (f'"jax":"{jax.__version__}"', '"jax":"0.4.1"', "another version of jax"),
        ('"on_grid":"refit"', '"on_grid":"snap"', "another settings of its methods"),
        ('"device":"cpu', '"device":"tpu', "another device"),
    ],
)
def test_records_that_anything_else_decided_are_not_mixed(
    study: Study, trained: Trained, whole: Path, tmp_path: Path, held: str, now: str, says: str
) -> None:
    """Settings too: the identity is a hash of them, whatever the cell is called."""
    text = whole.read_text()
    assert held in text
    changed = text.replace(held, now)
    if "settings" in says:  # what another default of the same name would have left
        records = [json.loads(line) for line in text.splitlines()]
        records[-1]["identity"] = "0" * 16
        changed = "".join(json.dumps(r) + "\n" for r in records)
    path = tmp_path / "records.jsonl"
    path.write_text(changed)
    with pytest.raises(ValueError, match=says):
        run(study, trained, path)
    assert path.read_text() == changed


def test_quantizers_that_differ_in_their_grid_are_both_run(
    trained: Trained, tmp_path: Path
) -> None:
    grids = (GridSpec(), GridSpec(symmetric=False), GridSpec(clip="mse"), GridSpec(True, "row"))
    templates = tuple(partial(RTN, grid=g) for g in grids[:3])
    study = Study("g", "", ("tiny-resnet",), (Magnitude,), (0.5,), templates, (3,), exclude=EXCLUDE)
    records = run(study, trained, tmp_path / "records.jsonl")
    assert len(records) == study.cells_per_run == 1 + 1 + 3 + 6
    alone = [r for r in records.values() if r["order"] == "Q"]
    assert len({r["metrics"]["nll"] for r in alone}) == 3
    assert [r["quantizer"]["grid"]["symmetric"] for r in alone] == [True, False, True]
    with pytest.raises(ValueError, match="same method"):
        Study(
            "g",
            "",
            ("tiny-resnet",),
            (Magnitude,),
            (0.5,),
            (RTN, partial(RTN, grid=grids[3])),
            (3,),
        )


def test_a_layer_that_is_not_finite_fails_its_cell_by_name(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.apply_family

    def broken(methods, *args, **kwargs):
        done = real(methods, *args, **kwargs)
        if methods[0].name == "rtn":
            name = next(iter(done))
            layer = done[name].layer
            weight = layer.weight.at[..., 0, 0].set(jnp.nan)
            done[name] = done[name]._replace(layer=layer._replace(weight=weight))
        return done

    monkeypatch.setattr(runner, "apply_family", broken)
    study = Study("n", "", ("tiny-resnet",), (Magnitude,), (0.5,), (RTN,), (4,), exclude=EXCLUDE)
    records = run(study, trained, tmp_path / "records.jsonl")
    failed = {c.split("/")[-1]: r["error"] for c, r in records.items() if r["status"] == "error"}
    assert set(failed) == {"rtn-4", "magnitude-0.5>rtn-4", "rtn-4>magnitude-0.5"}
    assert all("layer conv1: " in e and "not finite" in e for e in failed.values())


def test_norms_are_reestimated_unless_kept(trained: Trained, tmp_path: Path) -> None:
    from perturb import compress

    data = trained.dataset
    found = {}
    for norms in ("reestimate", "keep"):
        study = Study(
            "b",
            "",
            ("tiny-resnet",),
            (Magnitude,),
            (0.7,),
            (RTN,),
            (8,),
            norms=norms,
            exclude=EXCLUDE,
        )
        records = run(study, trained, tmp_path / f"{norms}.jsonl")
        record = next(r for r in records.values() if r["order"] == "P")
        inputs = np.asarray(data.calibration.inputs)
        batches = [inputs[i : i + 64] for i in range(0, len(inputs), 64)]
        c = compress(trained.model, Magnitude(0.7), batches, norms=norms, exclude=EXCLUDE)
        right = np.argmax(np.asarray(c.model(data.test.inputs)), -1) == data.test.targets
        assert record["metrics"]["accuracy"] == pytest.approx(float(np.mean(right)), abs=1e-3)
        assert record["policies"]["norms"] == norms
        found[norms] = record["metrics"]["nll"]
    assert found["keep"] != found["reestimate"]


def test_programs_are_dropped_before_they_exhaust_the_memory_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that compiled for long enough died in LLVM with 'Cannot allocate memory'."""
    dropped: list[str] = []
    monkeypatch.setattr(jax, "clear_caches", lambda: dropped.append("all"))
    maps = tmp_path / "maps"
    assert not runner.drop_programs_if_many(3, maps)  # no such file: not on Linux
    maps.write_text("a\nb\nc\n")
    assert not runner.drop_programs_if_many(3, maps)
    assert not dropped
    assert runner.drop_programs_if_many(2, maps)
    assert dropped == ["all"]


def test_sequential_calibration_runs_through_the_runner(trained: Trained, tmp_path: Path) -> None:
    study = Study(
        "s",
        "",
        ("tiny-resnet",),
        (Wanda,),
        (0.5,),
        (GPTQ,),
        (3,),
        calibrate="sequential",
        exclude=EXCLUDE,
    )
    records = run(study, trained, tmp_path / "records.jsonl")
    assert {r["status"] for r in records.values()} == {"ok"}


@pytest.mark.slow
def test_killed_twenty_times_it_ends_with_the_same_records(
    cache: Path, trained: Trained, whole: Path, tmp_path: Path
) -> None:
    """On a part of the study: what a killed run costs is starting it, twenty times."""
    text = STUDY.replace('(Magnitude, partial(SparseGPT, tie="random"))', "(Magnitude,)")
    (tmp_path / "tiny.py").write_text(text)
    mine = cell_names(find(str(tmp_path / "tiny.py")))
    path = tmp_path / "out" / "tiny" / "records.jsonl"
    command = [sys.executable, "-m", "experiments", "run", str(tmp_path / "tiny.py"), "--out"]
    command += [str(tmp_path / "out"), "--no-figures"]
    environment = os.environ | {"PERTURB_CACHE": str(cache)}
    rng = random.Random(0)

    def size() -> int:
        return path.stat().st_size if path.exists() else 0

    expected = {r["cell"]: without_seconds(r) for r in load(whole) if r["cell"] in mine}
    assert len(expected) == len(mine) == 1 + 2 + 4 + 16

    def ends_well() -> None:
        records = load(path)
        assert len(records) == len(expected)
        assert {r["cell"]: without_seconds(r) for r in records} == expected

    kills = 0
    while kills < 20:
        before = size()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # at a random moment: while starting, or after some progress and a little more
        waits_for_progress, delay = rng.random() < 0.5, rng.uniform(0, 0.05)
        deadline = time.monotonic() + (60 if waits_for_progress else rng.uniform(1, 6))
        while time.monotonic() < deadline and process.poll() is None:
            if waits_for_progress and size() > before:
                break
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)  # does nothing to a run that has ended
        _, error = process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills += 1
        else:  # it got to the end between two kills: check it, and start over
            assert process.returncode == 0, error
            ends_well()
            path.unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ends_well()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "nothing"], "unknown study 'nothing'"),
        (["run", "missing.py"], "there is no study file missing.py"),
        (["run", "embedded", "--models", "gpt"], "unknown model 'gpt'"),
        (["run", "embedded", "--seeds", "0"], "--seeds 0"),
        (["run", "embedded", "--calibrate", "never"], "calibrate must be one of"),
        (["report", "nowhere"], "no records at nowhere"),
        (["train", "gpt"], "gpt"),
        (["frobnicate"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_study_that_does_not_fit_a_model_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STUDY.replace('tie="random"', "scope=NofM(2, 4)").replace(
        "sparsities=(0.0, 0.5)", "sparsities=(0.5,)"
    )
    path = tmp_path / "nm.py"
    path.write_text(text.replace("SparseGPT\n", "NofM, SparseGPT\n", 1))
    assert main(["run", str(path), "--out", str(tmp_path)]) == 2
    assert "do not divide into groups of 4" in capsys.readouterr().err
