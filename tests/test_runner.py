"""The study runner: prefixes shared, failures recorded, killed runs resumed to the same bits."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

import perturb
from experiments import __main__ as door
from experiments import evaluate, runner
from experiments.evaluate import Evaluation, Evaluator
from experiments.records import RecordLog, RecordLogLocked, decode_sums, load, without_seconds
from experiments.runner import Clock, Job, Shared, clock, finished, job, run_study, running, walk
from experiments.study import (
    Conditions,
    Own,
    Policy,
    Study,
    axis,
    find,
    pairs,
    permutations,
    policy_config,
)
from experiments.task import Task
from experiments.train import load_or_train
from experiments.watch import CELLS, Lines
from perturb import GPTQ, RTN, GridSpec, Magnitude, SparseGPT, Wanda, chain, compress, network
from perturb.cli import BadInput
from perturb.compression import Opened
from perturb.measure.errors import output_error, owned_error
from perturb.stage import Versions
from perturb.state import Parameters, parameters_of
from tests import child

MINE = '''
"""A person's own model: three layers, two of one shape (what takes time here is compiling)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data.types import Split
from experiments.task import Task, batched, correct, kl, nll

WEIGHTS, CALIBRATION, TEST = 1, 2, 3


class MLP(nnx.Module):
    def __init__(self, rng):
        def linear(n_in, n_out):
            weight = jnp.asarray(rng.normal(size=(n_in, n_out)) / np.sqrt(n_in), jnp.float32)
            return nnx.Linear(n_in, n_out, kernel_init=lambda *_: weight, rngs=nnx.Rngs(0))

        self.first, self.middle, self.last = linear(16, 16), linear(16, 16), linear(16, 5)
        self.norm = nnx.BatchNorm(16, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.last(nnx.relu(self.middle(x)))


def margin(outputs, dense, targets):
    """How far the best class is from the second."""
    ranked = jnp.sort(outputs, -1)
    return ranked[..., -1] - ranked[..., -2]


def task(seed=0):
    model = MLP(np.random.default_rng([WEIGHTS, seed]))
    model.eval()
    rng = np.random.default_rng(TEST)
    inputs, labels = rng.normal(size=(96, 16)), rng.integers(0, 5, 96)
    cluster = np.arange(96, dtype=np.int32) // 2
    test = Split(inputs.astype(np.float32), labels.astype(np.int32), cluster)

    def draw(number):
        rng = np.random.default_rng([CALIBRATION, number])
        return batched(rng.normal(size=(48, 16)).astype(np.float32), 24)

    measures = {"nll": nll, "correct": correct, "kl": kl, "margin": margin}
    return Task(model, draw(0), test, measures, more=draw, data={"code": "1"})
'''
STUDY = """
from functools import partial
from experiments.study import Own, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT

SPARSITIES = (0.0, 0.5)
PRUNERS = (Magnitude, partial(SparseGPT, tie="random"))
STUDY = Study(
    name="tiny",
    description="for tests",
    models=(Own("MINE"),),
    plans=(
        *pairs(
            [axis(pruner, sparsity=SPARSITIES) for pruner in PRUNERS],
            [axis(RTN, bits=(4, 2))],
        ),
        *pairs([axis(Magnitude, sparsity=SPARSITIES)], [axis(GPTQ, bits=(4, 2))]),
    ),
    exclude=("last",),
)
"""
EXCLUDE = ("last",)
RANDOM = partial(SparseGPT, tie="random")
SMALL = pairs([axis(RANDOM, sparsity=0.5)], [axis(RTN, bits=4)])  # 5 cells
Records = dict[str, dict[str, Any]]  # by the end of the label: the chain's name


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, of this process and of those that are killed."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module", autouse=True)
def _kept_programs(programs: Path) -> Iterator[None]:
    compilation_cache.reset_cache()
    child.keep_programs(programs)
    yield
    compilation_cache.reset_cache()
    child.keep_programs(None)


@pytest.fixture(scope="session")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Own:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return Own(f"{path}:task")


@pytest.fixture(scope="session")
def study_file(mine: Own, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.py"
    path.write_text(STUDY.replace("MINE", mine.source))
    return path


@pytest.fixture(scope="session")
def study(study_file: Path) -> Study:
    return find(str(study_file))


@pytest.fixture(scope="session")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the text is of all that :func:`whole` compiles."""
    return tmp_path_factory.mktemp("lowered")


@pytest.fixture(scope="session")
def whole(study: Study, tmp_path_factory: pytest.TempPathFactory, lowered: Path) -> Path:
    jax.config.update("jax_dump_ir_to", str(lowered))
    try:
        return run_study(study, tmp_path_factory.mktemp("whole"), watch=Quiet())
    finally:
        jax.config.update("jax_dump_ir_to", None)


@pytest.fixture
def small(mine: Own) -> Study:
    return Study("small", "", (mine,), SMALL, exclude=EXCLUDE)


class Quiet:
    """A watch that only remembers what it is told."""

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.lines: list[str] = []
        self.tables: list[list[str]] = []
        self.total = 0

    def begin(self, cells: int) -> None:
        self.total = cells

    def model(self, line: str) -> None:
        self.lines.append(line)

    def note(self, line: str) -> None:
        self.lines.append(line)

    def cell(self, label: str) -> None:
        self.cells.append(label)

    def alone(self, records: list[dict[str, Any]]) -> None:
        self.tables.append([r["label"] for r in records])


def run(study: Study, out: Path, watch: Quiet | None = None) -> Records:
    """What a run of the study leaves, by chain."""
    path = run_study(study, out, watch=watch or Quiet())
    return by_chain(door._last(path.parent))


def by_chain(records: Sequence[dict[str, Any]]) -> Records:
    """All of them but their times and the commit (who edits files while tests run changes it)."""
    return {
        r["label"].rpartition("/")[2]: without_seconds(r)
        | {"versions": {k: v for k, v in r["versions"].items() if k != "commit"}}
        for r in records
    }


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many versions each pass over the test examples was about."""
    passes: list[int] = []
    real = Evaluator.__call__

    def count(self: Evaluator, versions: Sequence[Parameters]) -> list[Evaluation]:
        passes.append(len(versions))
        return real(self, versions)

    monkeypatch.setattr(Evaluator, "__call__", count)
    return passes


# --------------------------------------------------------------------------- what a run leaves


def test_every_cell_once_and_ok(study: Study, whole: Path) -> None:
    records = load(whole)
    assert len(records) == len({r["cell"] for r in records}) == len(study.chains())
    assert len({r["label"] for r in records}) == len(records)
    assert {r["status"] for r in records} == {"ok"}
    assert Counter(len(r["stages"]) for r in records) == {0: 1, 1: 8, 2: 24}
    orders = Counter(tuple("bits" in s for s in r["stages"]) for r in records)
    assert orders == {(): 1, (False,): 4, (True,): 4, (False, True): 12, (True, False): 12}
    cells = (whole.parent / CELLS).read_text().split("\n")
    assert sorted(r["cell"] for r in records) == cells


def test_same_seed_same_bits_and_a_torn_log_resumes_to_the_same_records(
    study: Study, whole: Path, tmp_path: Path
) -> None:
    lines = whole.read_bytes().splitlines(keepends=True)
    path = tmp_path / "tiny" / "records.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(lines[:13]) + lines[13][:100])  # killed while writing line 14
    assert run(study, tmp_path) == by_chain(load(whole))
    assert len(load(path)) == len(lines)
    assert path.read_bytes().splitlines(keepends=True)[:13] == lines[:13]


def test_finished_cells_are_not_evaluated_again(
    study: Study, whole: Path, tmp_path: Path, evaluated: list[int]
) -> None:
    path = tmp_path / "tiny" / "records.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:-2]))
    watch = Quiet()
    run(study, tmp_path, watch)
    assert sum(evaluated) == 2
    assert "31 cells are there already" in watch.lines
    assert len(watch.cells) == watch.total == 33


def test_resuming_a_finished_study_computes_nothing(
    study: Study,
    whole: Path,
    tmp_path: Path,
    evaluated: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "tiny" / "records.jsonl"
    path.parent.mkdir()
    path.write_bytes(whole.read_bytes())

    def never(what: str) -> Callable[..., Any]:
        return lambda *_, **__: pytest.fail(f"it computes {what}")

    monkeypatch.setattr(walk, "expand", never("versions"))
    monkeypatch.setattr(walk, "layer_measures", never("measures"))
    for method in ("moments", "norms"):
        monkeypatch.setattr(network.Network, method, never(method))
    monkeypatch.setattr(Evaluator, "_kept", property(never("the dense outputs")))
    watch = Quiet()
    assert run(study, tmp_path, watch) == by_chain(load(whole))
    assert not evaluated
    assert path.read_bytes() == whole.read_bytes()
    assert len(watch.cells) == watch.total == 33
    assert len(watch.tables[0]) == 1 + 8  # what the methods alone do is told again


def test_orders_agree_exactly_where_a_stage_does_nothing(whole: Path) -> None:
    records = by_chain(load(whole))
    seen = 0
    for name, r in records.items():
        first, _, second = name.partition(">")
        if second == "magnitude-0":
            other = records[f"{second}>{first}"]
            assert other["metrics"] == r["metrics"]
            assert other["sums"] == r["sums"]
            seen += 1
    assert seen == 4


def test_records_say_what_was_done(whole: Path) -> None:
    for r in load(whole):
        assert r["policy"] == {"calibrate": "recalibrate", "norms": "reestimate", "zeros": "free"}
        assert r["calibration"]["examples"] == 48
        assert r["calibration"]["batch"] == 24
        assert r["data"]["weights"]
        assert r["data"]["measures"] == ["correct", "kl", "margin", "nll"]
        assert r["versions"]["jax"] == jax.__version__
        assert r["skipped"] == {"last": "excluded by 'last'"}
        assert r["kind"] == "own"
        assert r["model"] == "mine.py:task"
        amounts = {k: s[k] for s in r["stages"] for k in ("sparsity", "bits") if k in s}
        if len(amounts) == 2:
            stored = r["storage"]
            kept = 1 - stored["kept"] / stored["weights"]
            assert kept == pytest.approx(r["achieved_sparsity"], abs=1e-6)
            assert stored["bits"] == amounts["bits"] * stored["kept"]
            rest = 16 * (stored["parameters"] - stored["weights"])
            expected = 16 * stored["parameters"] / (rest + stored["bits"])
            assert r["ratio"] == pytest.approx(expected)
            assert 1 < r["ratio"] < stored["layers_ratio"]  # a part of this model is excluded
            assert r["layers"].keys() == {"first", "middle"}
            assert all(m["out_err"] >= 0 for m in r["layers"].values())
            assert all(m["pruned"] <= m["zero"] <= 1 for m in r["layers"].values())
        if amounts.keys() == {"sparsity"}:  # floor(s n) of every layer: a little less than s
            assert amounts["sparsity"] - 0.02 < r["achieved_sparsity"] <= amounts["sparsity"] + 1e-6


def test_the_dense_record_says_what_intervals_and_layers_are_about(whole: Path, mine: Own) -> None:
    dense, *others = load(whole)
    assert dense["stages"] == []
    assert dense["layer_shapes"] == {"first": [16, 16], "middle": [16, 16]}
    assert dense["clusters"] == list(range(48))
    assert all(not r.keys() & {"layer_shapes", "clusters"} for r in others)
    assert dense["metrics"]["kl"] == pytest.approx(0, abs=1e-6)
    assert (dense["ratio"], dense["achieved_sparsity"]) == (1.0, 0.0)
    test = task_of(mine).test
    for r in (dense, *others):
        sums = decode_sums(r)
        assert sums.keys() == {"count", "correct", "kl", "margin", "nll"}
        assert {v.shape for v in sums.values()} == {(48,)}
        assert sums["count"].tolist() == [2] * 48
        for name in ("nll", "kl", "margin"):
            mean = sums[name].sum(dtype=float) / len(test)
            assert mean == pytest.approx(r["metrics"][name], rel=1e-6, abs=1e-9)
        assert sums["correct"].sum() / len(test) == r["metrics"]["accuracy"]


def test_records_hold_the_commit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held,) = {r["versions"]["commit"] for r in load(whole)}
    assert re.fullmatch(r"[0-9a-f]{40}\+?|unknown", held)

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "perturb" / "__init__.py"
    file.parent.mkdir()
    file.write_text("")
    monkeypatch.setattr(perturb, "__file__", str(file))
    read = job.commit.__wrapped__
    assert read() == "unknown"
    git("init", "-q")
    assert read() == "unknown"  # nothing is committed
    git("add", ".")
    git("commit", "-qm", "one")
    assert read() == git("rev-parse", "HEAD")
    (tmp_path / "notes").write_text("not the code's\n")
    assert read() == git("rev-parse", "HEAD")
    file.write_text("x = 1\n")
    assert read() == git("rev-parse", "HEAD") + "+"
    # in somebody else's checkout, as an installed package may be, it is not the code's commit
    monkeypatch.setattr(perturb, "__file__", str(tmp_path / "lib" / "perturb" / "__init__.py"))
    (tmp_path / "lib" / "perturb").mkdir(parents=True)
    assert read() == "unknown"


# ------------------------------------------------------------- a cell is the compressed model


def task_of(model: Own, seed: int = 0) -> Task:
    return running.own_task(model, seed)[0]


@lru_cache
def evaluator_of(model: Own, seed: int) -> Evaluator:
    task = task_of(model, seed)
    specs, _ = network.find_layers(task.model, exclude=EXCLUDE)
    return Evaluator(task, network.Network(task.model, specs))


def is_that_of(
    record: dict[str, Any], compressed: perturb.Compression, model: Own, seed: int = 0
) -> None:
    evaluate = evaluator_of(model, seed)
    (found,) = evaluate([parameters_of(compressed.state, evaluate.network.shapes)])
    assert found.metrics == record["metrics"]
    assert record["ratio"] == compressed.ratio
    assert record["achieved_sparsity"] == pytest.approx(compressed.sparsity, abs=1e-7)


@pytest.mark.parametrize(
    "stages",
    [
        (Magnitude(0.5), GPTQ(2)),
        (RTN(2), RANDOM(0.5)),
        (RANDOM(0.5), RTN(4)),
    ],
)
def test_a_cell_is_exactly_what_compress_gives(
    stages: tuple[Any, ...], study: Study, mine: Own, whole: Path
) -> None:
    task = task_of(mine)
    name = runner.job.chain_name(stages)
    compressed = compress(task.model, chain(*stages), task.calibration, key=0, exclude=EXCLUDE)
    is_that_of(by_chain(load(whole))[name], compressed, mine)


def test_no_program_has_weights_compiled_into_it(whole: Path, lowered: Path) -> None:
    """What a function closes over is; of a large model that takes memory and minutes."""
    texts = [path.read_text() for path in lowered.glob("*.mlir")]
    assert any("jit_sums" in text for text in texts)
    held = [c for text in texts for c in re.findall(r"constant dense<\"\w+\"> : (tensor.+)", text)]
    assert not [shape for shape in held if "16x16xf32" in shape or "16x5xf32" in shape]


def test_a_pass_is_as_large_as_its_outputs_let_it_be(
    mine: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all passes are alike where they can be; the sums are the same."""
    usual = evaluator_of(mine, 0)
    assert [len(inputs) for inputs, _ in usual.batches] == [96]
    sums = []
    for examples, sizes in ((96, [96]), (95, [48, 48]), (20, [16] * 6), (1, [1] * 96)):
        monkeypatch.setattr(evaluate, "CPU_OUTPUTS", examples * 5 * 4)
        made = Evaluator(usual.task, usual.network)
        assert [len(inputs) for inputs, _ in made.batches] == sizes
        if examples > 1:
            sums.append(made([Parameters({}, {})])[0].sums)
    for name, value in sums[0].items():
        for other in sums[1:]:
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-5)


def test_what_owners_do_alone_is_recorded_of_pairs_in_both_orders(mine: Own, whole: Path) -> None:
    """By :func:`perturb.measure.errors.owned_error`; Theorem 1 on both orders, and nothing else."""
    records, task = by_chain(load(whole)), task_of(mine)

    def made(*stages: Any) -> Any:
        return compress(task.model, chain(*stages), task.calibration, key=0, exclude=EXCLUDE)

    dense = Opened(task.model, task.calibration, Policy(), exclude=EXCLUDE).context.start()
    moments, weights = dense.reference.moments, dense.reference.weights
    alone = made(GPTQ(4)).matrices
    for stages in ((Magnitude(0.5), GPTQ(4)), (GPTQ(4), Magnitude(0.5))):
        record = records[runner.job.chain_name(stages)]
        both = made(*stages).matrices
        assert record["layers"].keys() == weights.keys()
        for name, w in weights.items():
            expected = owned_error(w, both[name].mask, alone[name].weight, moments[name])
            energy = output_error(w, moments[name])
            found = record["layers"][name]["owned_rel"]
            assert found == pytest.approx(float(expected / energy), rel=1e-4)
    pairs_ = {r["label"].rpartition("/")[2] for r in records.values() if len(r["stages"]) == 2}
    for name, record in records.items():
        assert all(("owned_rel" in x) == (name in pairs_) for x in record["layers"].values())


def test_own_measures_are_those_of_the_compressed_model(mine: Own, whole: Path) -> None:
    task = task_of(mine)
    compressed = compress(
        task.model, chain(Magnitude(0.5), RTN(4)), task.calibration, exclude=EXCLUDE
    )
    logits = np.asarray(nnx.jit(lambda m, x: m(x))(compressed.model, task.test.inputs), float)
    ranked = np.sort(logits, -1)
    record = by_chain(load(whole))["magnitude-0.5>rtn-4"]
    margin = (ranked[:, -1] - ranked[:, -2]).reshape(48, 2).sum(1)
    np.testing.assert_allclose(decode_sums(record)["margin"], margin, rtol=1e-4, atol=1e-5)
    right = np.argmax(logits, -1) == task.test.targets
    assert record["metrics"]["accuracy"] == np.mean(right)
    assert decode_sums(record)["correct"].tolist() == right.reshape(48, 2).sum(1).tolist()


# ------------------------------------------------------------------ seeds, draws and policies


def test_draws_policies_and_seeds_are_axes(mine: Own, tmp_path: Path) -> None:
    policies = (Policy(), Policy(calibrate="dense", norms="keep"))
    study = Study(
        "axes",
        "",
        (mine,),
        ((axis(RTN, bits=4), axis(Wanda, sparsity=0.5)),),
        seeds=(0, 7),
        calibrations=(0, 3),
        policies=policies,
        exclude=EXCLUDE,
    )
    watch = Quiet()
    records = load(run_study(study, tmp_path, watch=watch))
    assert study.runs == 8
    assert watch.total == len(records) == len({r["cell"] for r in records}) == 8 * 3
    labels = {r["label"]: r for r in records}
    assert len(labels) == 24
    suffix = {policies[0]: "default", policies[1]: "calibrate=dense,norms=keep"}
    told = {
        f"mine.py:task/s{seed}/c{draw}/{suffix[policy]}/{end}"
        for seed in (0, 7)
        for draw in (0, 3)
        for policy in policies
        for end in ("dense", "rtn-4", "rtn-4>wanda-0.5")
    }
    assert labels.keys() == told
    assert [len(t) for t in watch.tables] == [2] * 8
    hashes = {(r["calibration"]["draw"], r["calibration"]["hash"]) for r in records}
    assert len(hashes) == 2
    nll = {label: r["metrics"]["nll"] for label, r in labels.items()}
    pruned = [v for label, v in nll.items() if label.endswith(">wanda-0.5")]
    assert len(set(pruned)) == 8  # each of the axes matters
    dense = {label: v for label, v in nll.items() if label.endswith("/dense")}
    assert len(set(dense.values())) == 2  # of these, the seed alone
    task = task_of(mine, 7)
    for policy in policies:
        compressed = compress(
            task.model,
            chain(RTN(4), Wanda(0.5)),
            task.draw(3),
            calibrate=policy.calibrate,
            norms=policy.norms,
            key=7,
            exclude=EXCLUDE,
        )
        record = labels[f"mine.py:task/s7/c3/{suffix[policy]}/rtn-4>wanda-0.5"]
        assert record["policy"]["norms"] == policy.norms
        is_that_of(record, compressed, mine, 7)


def test_sequential_calibration_runs_through_the_runner(mine: Own, tmp_path: Path) -> None:
    policy = Policy(calibrate="sequential")
    plans = ((axis(Wanda, sparsity=0.5), axis(GPTQ, bits=3)),)
    study = Study("s", "", (mine,), plans, policies=(policy,), exclude=EXCLUDE)
    records = run(study, tmp_path)
    assert {r["status"] for r in records.values()} == {"ok"}
    task = task_of(mine)
    stages = chain(Wanda(0.5), GPTQ(3))
    compressed = compress(
        task.model, stages, task.calibration, calibrate="sequential", exclude=EXCLUDE
    )
    is_that_of(records["wanda-0.5>gptq-3"], compressed, mine)


def test_a_presets_metrics_are_those_of_its_compressed_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a convolutional net (any weights do), its norms re-estimated unless kept."""

    def untrained(preset: Any, *_: Any) -> tuple[nnx.Module, float]:
        model = nnx.jit(lambda: preset.build(nnx.Rngs(0)))()
        model.eval()
        return model, 0.0

    monkeypatch.setattr("experiments.train.train", untrained)
    forward = nnx.jit(lambda model, inputs: model(inputs))
    exclude = ("layer2.*", "fc")  # few shapes
    plans = ((axis(Magnitude, sparsity=0.5), axis(RTN, bits=4)),)
    policies = (
        Policy(),
        Policy(norms="keep"),
        Conditions(examples=16),
        Conditions(exclude=("conv1", "no such layer")),
    )
    study = Study("b", "", ("tiny-resnet",), plans, policies=policies, exclude=exclude)
    cache = tmp_path / "cache"
    records = load(run_study(study, tmp_path, watch=Quiet(), cache=cache))
    assert {r["kind"] for r in records} == {"images"}
    trained = load_or_train("tiny-resnet", cache=cache)
    assert trained.cached
    data = trained.dataset
    assert {r["data"]["weights"] for r in records} == {trained.weights_hash}
    assert {r["data"]["hash"] for r in records} == {data.hash}
    inputs = np.asarray(data.calibration.inputs)
    batches = [inputs[i : i + 64] for i in range(0, len(inputs), 64)]
    nll = []
    for policy in policies:
        given = policy if isinstance(policy, Conditions) else Conditions()
        fewer = inputs[:: len(inputs) // 16]
        assert len(fewer) == 16
        compressed = compress(
            trained.model, chain(Magnitude(0.5), RTN(4)), [fewer] if given.examples else batches,
            norms=policy.norms, exclude=[*exclude, *given.exclude[:1]],
        )  # fmt: skip
        logits = np.asarray(forward(compressed.model, data.test.inputs))
        right = np.argmax(logits, -1) == data.test.targets
        (record,) = (
            r for r in records if len(r["stages"]) == 2 and r["policy"] == policy_config(policy)
        )
        assert record["metrics"]["accuracy"] == pytest.approx(float(np.mean(right)), abs=1e-9)
        assert record["layers"].keys() == compressed.matrices.keys()
        assert record["calibration"]["examples"] == (given.examples or len(inputs))
        nll.append(record["metrics"]["nll"])
    assert len(set(nll)) == len(policies)
    many = replace(study, policies=(Conditions(examples=500),))
    with pytest.raises(ValueError, match="500 calibration examples are asked for, a draw has 128"):
        run_study(many, tmp_path, watch=Quiet(), cache=cache)


# ---------------------------------------------------------------------------- plans as a tree


def test_three_stages_in_all_orders_share_their_prefixes(
    mine: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: list[int]
) -> None:
    parts = (axis(Magnitude, sparsity=0.5), axis(RTN, bits=4), axis(Wanda, sparsity=0.6))
    study = Study("three", "", (mine,), permutations(*parts), exclude=EXCLUDE)
    expanded: list[tuple[Any, ...]] = []
    real = walk.expand

    def count(before: Any, stages: Any, context: Any, position: int) -> Any:
        expanded.append((*(s.name for s in stages), position))
        return real(before, stages, context, position)

    monkeypatch.setattr(walk, "expand", count)
    records = run(study, tmp_path)
    assert len(records) == sum(evaluated) == 1 + 3 + 6 + 6
    assert Counter(e[-1] for e in expanded) == {0: 3, 1: 6, 2: 6}  # and not 6 times 3
    assert expanded[:3] == [("magnitude", 0), ("rtn", 0), ("wanda", 0)]
    task = task_of(mine)
    stages = chain(RTN(4), Magnitude(0.5), Wanda(0.6))
    compressed = compress(task.model, stages, task.calibration, exclude=EXCLUDE)
    is_that_of(records["rtn-4>magnitude-0.5>wanda-0.6"], compressed, mine)
    # a lost branch is walked again, and nothing else
    path = tmp_path / "three" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lost = [line for line in lines if "/wanda-0.6>rtn-4>magnitude-0." in line]
    path.write_text("".join(line for line in lines if line not in lost))
    expanded.clear()
    evaluated.clear()
    assert run(study, tmp_path) == records
    assert expanded == [("wanda", 0), ("rtn", 1), ("magnitude", 2)]
    assert sum(evaluated) == len(lost) == 1


def test_where_the_methods_alone_would_take_too_much_no_branch_waits(
    mine: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same records in another order: a quantizer's first, as pairs' layers ask for it."""
    prune, quantize = axis(Magnitude, sparsity=(0.3, 0.5)), axis(RTN, bits=(4, 3))
    study = Study("large", "", (mine,), pairs([prune], [quantize]), exclude=EXCLUDE)
    usual = run(study, tmp_path / "usual")
    lengths = [len(r["stages"]) for r in usual.values()]
    assert lengths == sorted(lengths)
    begun: list[int] = []
    real = walk.expand

    def count(before: Any, *rest: Any) -> Any:
        gc.collect()
        begun.append(sum(v.size for v in gc.get_objects() if isinstance(v, Versions)))
        return real(before, *rest)

    monkeypatch.setattr(walk, "expand", count)
    monkeypatch.setattr(walk, "WAITING", 0)
    monkeypatch.setattr(walk, "LARGE", 0)
    records = run(study, tmp_path / "large")
    assert [*records] == ["dense", *(n for n in usual if n.startswith("rtn")),
                          *(n for n in usual if n.startswith("magnitude"))]  # fmt: skip
    assert any("owned_rel" in layer for layer in usual["rtn-4>magnitude-0.5"]["layers"].values())
    for name, record in records.items():
        for part in ("metrics", "sums", "layers", "storage", "cell"):
            assert record[part] == usual[name][part], (name, part)
    assert begun[0] == begun[2]  # before the second branch nothing of the first is left


def test_plans_need_not_be_of_one_length(mine: Own, tmp_path: Path) -> None:
    a, b = axis(Magnitude, sparsity=0.5), axis(RTN, bits=(4, 2))
    study = Study("l", "", (mine,), (a, (a, b), (b,)), exclude=EXCLUDE)
    assert [len(c) for c in study.chains()] == [0, 1, 2, 2, 1, 1]
    names = {"dense", "magnitude-0.5", "rtn-4", "rtn-2"}
    names |= {"magnitude-0.5>rtn-4", "magnitude-0.5>rtn-2"}
    assert run(study, tmp_path).keys() == names


def test_quantizers_that_differ_in_their_grid_are_both_run(mine: Own, tmp_path: Path) -> None:
    grids = (GridSpec(), GridSpec(symmetric=False), GridSpec(clip="mse"), GridSpec(True, "row"))
    axes = [axis(partial(RTN, grid=g), bits=3) for g in grids]
    prune = [axis(Magnitude, sparsity=0.5)]
    assert len(Study("g", "", (mine,), pairs(prune, axes[:3])).chains()) == 1 + 1 + 3 + 6
    study = Study("g", "", (mine,), tuple((a,) for a in axes[:3]), exclude=EXCLUDE)
    records = run(study, tmp_path)
    assert len(records) == len(study.chains()) == 1 + 3
    alone = [r for n, r in records.items() if n.startswith("rtn")]
    assert len({r["metrics"]["nll"] for r in alone}) == 3
    assert [r["stages"][0]["grid"]["symmetric"] for r in alone] == [True, False, True]
    assert axes[0] == axes[3]  # the default, spelled out
    with pytest.raises(ValueError, match="plans lists a value twice"):
        Study("g", "", (mine,), pairs(prune, [axes[0], axes[3]]))


# ------------------------------------------------------------------------------------ failures


def test_a_failing_family_is_recorded_and_the_others_go_on(
    mine: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: list[int]
) -> None:
    prune = [axis(Magnitude, sparsity=0.5), axis(Wanda, sparsity=0.5)]
    study = Study("f", "", (mine,), pairs(prune, [axis(RTN, bits=4)]), exclude=EXCLUDE)
    real = walk.expand

    def broken(before: Any, stages: Any, *rest: Any) -> Any:
        if stages[0].name == "wanda":
            raise MemoryError("no room")
        return real(before, stages, *rest)

    monkeypatch.setattr(walk, "expand", broken)
    records = run(study, tmp_path)
    assert records["magnitude-0.5>rtn-4"]["status"] == "ok"
    failed = {k for k, r in records.items() if r["status"] == "error"}
    assert failed == {"wanda-0.5", "wanda-0.5>rtn-4", "rtn-4>wanda-0.5"}
    assert records["wanda-0.5"]["error"] == "MemoryError: no room"
    monkeypatch.setattr(walk, "expand", real)
    evaluated.clear()
    again = run(study, tmp_path)  # and once the cause is gone, only those run again
    assert sum(evaluated) == 3
    assert {r["status"] for r in again.values()} == {"ok"}
    path = tmp_path / "f" / "records.jsonl"
    assert len(finished(path)) == len(study.chains()) == len(load(path)) - 3


def test_a_layer_that_is_not_finite_fails_its_cell_by_name(
    mine: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = walk.expand

    def broken(before: Any, stages: Any, *rest: Any) -> Any:
        done = real(before, stages, *rest)
        if stages[0].name == "rtn":
            state = done.versions.state
            matrix = state.matrices["middle"]
            weight = matrix.weight.at[-1, 0, 0].set(jnp.nan)  # of the last version alone
            state = state.with_matrices({"middle": matrix._replace(weight=weight)})
            done.versions.state = state
        return done

    monkeypatch.setattr(walk, "expand", broken)
    plans = ((axis(Magnitude, sparsity=0.5), axis(RTN, bits=(4, 2))), (axis(RTN, bits=(4, 2)),))
    study = Study("n", "", (mine,), plans, exclude=EXCLUDE)
    records = run(study, tmp_path)
    failed = {k: r["error"] for k, r in records.items() if r["status"] == "error"}
    assert set(failed) == {"rtn-2", "magnitude-0.5>rtn-2"}
    assert all("layer middle: " in e and "not finite" in e for e in failed.values())


def test_outputs_that_are_not_finite_fail_their_cell(
    mine: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a measure of one's own divides by zero."""
    text = Path(mine.source.removesuffix(":task")).read_text()
    path = tmp_path / "mine.py"
    path.write_text(
        text.replace(
            "ranked[..., -2]\n", "ranked[..., -2] + 0 / (kl(outputs, dense, targets) > 1e-6)\n"
        )
    )
    study = Study("o", "", (Own(f"{path}:task"),), (axis(RTN, bits=2),), exclude=EXCLUDE)
    records = run(study, tmp_path)
    assert {k: r["status"] for k, r in records.items()} == {"dense": "error", "rtn-2": "ok"}
    assert "not finite (margin)" in records["dense"]["error"]


# ------------------------------------------------------------------------------------ identity


def ids_of(study: Study) -> dict[str, str]:
    """Ids of the cells of a study of one model and seed."""
    (model,), (seed,) = study.models, study.seeds
    assert isinstance(model, Own)
    shared = Shared(study, str(model), seed, task_of(model, seed), None, Clock())  # type: ignore[arg-type]
    made = Job(shared, study.calibrations[0], study.policies[0])
    return {made.label(c).rpartition("/")[2]: made.cell_id(c) for c in study.chains()}


def _edited(old: str, new: str) -> Callable[[Study, Path, Any], Study]:
    def change(study: Study, folder: Path, _: Any) -> Study:
        assert MINE.count(old) == 1
        (folder / "mine.py").write_text(MINE.replace(old, new))
        return replace(study, models=(Own(f"{folder / 'mine.py'}:task"),))

    return change


def _given(**fields: Any) -> Callable[[Study, Path, Any], Study]:
    return lambda study, *_: replace(study, **fields)


def _another_jax(study: Study, _: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(job, "version", lambda name: "9.9" if name == "jax" else version(name))
    return study


def _another_version(study: Study, _: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setattr(perturb, "__version__", "9.9")
    return study


def _another_device(study: Study, _: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    device = SimpleNamespace(platform="gpu", device_kind="another")
    monkeypatch.setattr(job.jax, "devices", lambda *_: [device])
    return study


SNAP = pairs([axis(partial(RANDOM, on_grid="snap"), sparsity=0.5)], [axis(RTN, bits=4)])
CHANGES: dict[str, Callable[[Study, Path, Any], Study]] = {
    "weights": _edited("WEIGHTS, CALIBRATION, TEST = 1", "WEIGHTS, CALIBRATION, TEST = 9"),
    "calibration examples": _edited("1, 2, 3", "1, 9, 3"),
    "calibration batches": _edited("np.float32), 24)", "np.float32), 16)"),
    "test examples": _edited("1, 2, 3", "1, 2, 9"),
    "clusters": _edited("dtype=np.int32) // 2", "dtype=np.int32) // 4"),
    "measures": _edited('"correct": correct, ', ""),
    "draw": _given(calibrations=(1,)),
    "seed": _given(seeds=(1,)),
    "calibrate": _given(policies=(Policy(calibrate="dense"),)),
    "norms": _given(policies=(Policy(norms="keep"),)),
    "zeros": _given(policies=(Policy(zeros="keep"),)),
    "layers": _given(exclude=("last", "middle")),
    "setting": _given(plans=SNAP),
    "jax": _another_jax,
    "version": _another_version,
    "device": _another_device,
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_a_cell_is_in_its_id(
    change: str, small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ids_of(small)
    after = ids_of(CHANGES[change](small, tmp_path, monkeypatch))
    same = {name for name in before if before[name] == after.get(name)}
    assert len(set(before.values())) == len(set(after.values())) == 5
    assert same == ({"dense", "rtn-4"} if change == "setting" else set())


EMBEDDED = """
import numpy as np
from flax import nnx
from experiments.data.types import Split
from experiments.task import Task

def task():
    model = nnx.Sequential(nnx.Embed(8, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(1)))
    tokens = np.arange(8, dtype=np.int32)
    return Task(model, [tokens], Split(tokens, tokens % 4, tokens))
"""


def test_an_included_embedding_is_in_the_id(tmp_path: Path) -> None:
    """What is not included is in no list of what was skipped either."""
    (tmp_path / "embedded.py").write_text(EMBEDDED)
    study = Study("e", "", (Own(f"{tmp_path / 'embedded.py'}:task"),), SMALL)
    plain, with_embedding = ids_of(study), ids_of(replace(study, include=("layers.0",)))
    assert plain.keys() == with_embedding.keys()
    assert not {*plain.values()} & {*with_embedding.values()}


def test_the_code_of_a_task_is_in_the_id_unless_it_says_otherwise(
    small: Study, tmp_path: Path
) -> None:
    """A measure or a forward pass may change where no weight and no datum does."""
    before = ids_of(small)
    edit = _edited("ranked[..., -2]\n", "2 * ranked[..., -2]\n")
    assert ids_of(edit(small, tmp_path, None)) == before  # its task says: code 1, as before
    found = []
    for old in ("1 * ranked", "2 * ranked"):
        text = MINE.replace(', data={"code": "1"}', "").replace("- ranked", f"- {old}")
        (tmp_path / "mine.py").write_text(text)
        found.append(ids_of(replace(small, models=(Own(f"{tmp_path / 'mine.py'}:task"),))))
    assert len({*before.values(), *found[0].values(), *found[1].values()}) == 15


def test_what_decides_nothing_is_not_in_the_id(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study's name, its other cells, who ran it with which Python, where the model's file is."""
    before = ids_of(small)
    monkeypatch.setattr(job.platform, "python_version", lambda: "3.99")
    monkeypatch.setattr(job, "commit", lambda: "0" * 40)
    monkeypatch.setattr(job, "version", lambda name: "9.9" if name == "numpy" else version(name))
    (tmp_path / "mine.py").write_text(MINE)
    models = (Own(f"{tmp_path / 'mine.py'}:task"),)
    plans = (*SNAP, *SMALL)
    after = ids_of(replace(small, name="other", description="?", models=models, plans=plans))
    assert before.items() <= after.items()
    assert len(after) == 5 + 3


@pytest.mark.parametrize("change", ["weights", "draw", "setting", "jax", "zeros", "device"])
def test_a_changed_study_computes_all_that_changed_and_reports_only_its_own(
    change: str,
    small: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluated: list[int],
) -> None:
    """As an unfinished run goes on under a changed study, code or machine: nothing is mixed."""
    path = run_study(small, tmp_path, watch=Quiet())
    held = path.read_bytes().splitlines(keepends=True)[:4]
    path.write_bytes(b"".join(held))
    before = {r["cell"] for r in load(path)}
    evaluated.clear()
    changed = CHANGES[change](small, tmp_path, monkeypatch)
    run_study(changed, tmp_path, watch=Quiet())
    after = set(ids_of(changed).values())
    assert sum(evaluated) == len(after - before) == (3 if change == "setting" else 5)
    assert {r["cell"] for r in door._last(path.parent)} == after
    assert {r["cell"] for r in load(path)} == before | after  # nothing is thrown away
    assert path.read_bytes().startswith(b"".join(held))


# --------------------------------------------------------------------- as a library, and told


def test_run_study_as_a_call(
    small: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, spent = Quiet(), Clock()
    path = run_study(small, tmp_path / "new" / "folder", watch=watch, clock=spent)
    assert path == tmp_path / "new" / "folder" / "small" / "records.jsonl"
    labels = [r["label"] for r in load(path)]
    assert watch.cells == labels
    assert watch.total == 5
    assert watch.tables == [["mine.py:task/s0/dense", *labels[1:3]]]
    assert "seed 0: 96 test examples" in watch.lines[0]
    assert "left dense: last (excluded by 'last')" in watch.lines[1]
    assert len(watch.lines) == 2
    assert capsys.readouterr() == ("", "")
    phases = {"train", "calibrate", "compress", "measure", "evaluate", "compile"}
    assert spent.spent.keys() == phases
    assert all(v >= 0 for v in spent.spent.values())
    with RecordLog(path), pytest.raises(RecordLogLocked):
        run_study(small, tmp_path / "new" / "folder", watch=watch)


def test_lines_where_there_is_no_terminal(
    small: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain ones on stderr, one now and then, that say where the run is."""
    run_study(small, tmp_path, watch=Lines(every=0))
    captured = capsys.readouterr()
    assert not captured.out
    assert "\x1b" not in captured.err
    lines = captured.err.splitlines()
    assert all(re.match(r"\[ *\d+ s\] \S", line) for line in lines)
    told = [line.split("] ", 1)[1] for line in lines]
    assert "5 cells to measure" in told
    assert "1 of 5 cells, at mine.py:task/s0/dense" in told
    assert "5 of 5 cells, at mine.py:task/s0/rtn-4>sparsegpt-0.5" in told
    run_study(small, tmp_path, watch=Lines(every=1e9))  # only what happens once
    again = capsys.readouterr().err
    assert "5 cells are there already" in again
    assert " of 5 cells" not in again
    run_study(small, tmp_path)  # the default
    assert "5 cells are there already" in capsys.readouterr().err


def test_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("experiments.watch.time.monotonic", lambda: now[0])
    lines = Lines(every=30)
    lines.begin(100)
    for i in range(100):
        now[0] += 1
        lines.cell(f"m/{i}")
    err = capsys.readouterr().err.splitlines()
    assert err[1:] == [f"[{t:6.0f} s] {t} of 100 cells, at m/{t - 1}" for t in (30, 60, 90)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{MINE}\n\ndef task(seed=0):\n    return 1, 2\n", "experiments.task.Task, got tuple"),
        (MINE.replace(", more=draw", ", kind='sound'"), "kind must be one of images, text, own"),
        (MINE.replace("test, measures", "test, {}"), "measures is empty"),
        ("def task(:\n", "SyntaxError"),
        (MINE.replace("def task", "def another"), "has no function 'task'"),
    ],
)
def test_a_task_that_is_none_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    study = Study("w", "", (Own(f"{tmp_path / 'mine.py'}:task"),), SMALL, exclude=EXCLUDE)
    with pytest.raises(BadInput, match=says):
        run_study(study, tmp_path, watch=Quiet())


def test_a_draw_that_there_is_not_is_refused_before_any_work(
    tmp_path: Path, evaluated: list[int]
) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace(", more=draw", ""))
    model = Own(f"{tmp_path / 'mine.py'}:task")
    study = Study("w", "", (model,), SMALL, calibrations=(0, 1), exclude=EXCLUDE)
    with pytest.raises(ValueError, match="no calibration draw 1"):
        run_study(study, tmp_path, watch=Quiet())
    assert not evaluated


def test_jax_amounts_are_checked_as_any_others(mine: Own) -> None:
    for amount in (jnp.float32(1.0), jnp.array(-0.1), jnp.array(jnp.nan)):
        with pytest.raises(ValueError, match="sparsity must lie in"):
            axis(Magnitude, sparsity=(0.5, amount))
    for bits in (jnp.int32(1), jnp.int32(17), jnp.float32(2.5)):
        with pytest.raises(ValueError, match="bits must be a whole number from 2 to 16"):
            axis(RTN, bits=(4, bits))
    with pytest.raises(ValueError, match="sparsity is"):  # several are no amount
        axis(Magnitude, sparsity=(jnp.array([0.5, 1.5]),))
    for method in (Magnitude, Wanda, SparseGPT):
        with pytest.raises(ValueError, match="sparsity must lie in"):
            method(jnp.float32(1.5))
    for method in (RTN, GPTQ):
        with pytest.raises(ValueError, match="bits must be a whole number"):
            method(jnp.int32(99))
    # and in range, they are the same cells
    given = pairs([axis(RANDOM, sparsity=jnp.float32(0.5))], [axis(RTN, bits=jnp.array([4.0]))])
    study = Study("small", "", (mine,), SMALL, exclude=EXCLUDE)
    assert ids_of(replace(study, plans=given)) == ids_of(study)


def test_every_second_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    compiling = clock._Compiling(listening=True)
    monkeypatch.setattr(clock, "_COMPILING", compiling)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def compile(seconds: float, kind: str = "backend_compile_duration") -> None:
        compiling._heard(f"/jax/core/compile/{kind}", seconds)

    spent = Clock()
    with spent.phase("outer"):
        now[0] = 10.0
        with spent.phase("inner"):
            now[0] = 12.0
            compile(2.0, "jaxpr_trace_duration")  # from 10 to 12, within the next one
            now[0] = 14.0
            compile(4.0, "jaxpr_trace_duration")
            now[0] = 17.0
            compile(3.0)
            now[0] = 18.0
        compiling._heard("/jax/checkpoint", 5.0)
        now[0] = 20.0
        with spent.phase("outer"):
            now[0] = 21.0
    assert spent.spent == {"inner": 1.0, "outer": 13.0, "compile": 7.0}
    assert spent.programs == 1


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


# --------------------------------------------------------------------------------------- kills


PART = 1 + 2 + 2 + 8


@pytest.fixture(scope="session")
def part(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the study, for runs in processes of their own."""
    path = tmp_path_factory.mktemp("part") / "part.py"
    text = study_file.read_text().replace("in PRUNERS", "in PRUNERS[:1]")
    path.write_text("".join(line for line in text.splitlines(True) if "axis(GPTQ" not in line))
    assert len(find(str(path)).chains()) == PART
    return path


def appears(marker: Path, process: Any) -> None:
    deadline = time.monotonic() + 120
    while not marker.exists():
        assert process.is_alive(), "it ended before it got there"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_whenever_it_ends_with_the_same_records(
    part: Path, whole: Path, programs: Path, tmp_path: Path
) -> None:
    """While starting, in the middle of a line, right after one, between two, and at the end."""
    mine = {runner.job.chain_name(c) for c in find(str(part)).chains()}
    expected = {k: r for k, r in by_chain(load(whole)).items() if k in mine}
    assert len(expected) == len(mine) == PART
    path, out = tmp_path / "tiny" / "records.jsonl", tmp_path
    log, marker = tmp_path / "log", tmp_path / "marker"

    def size() -> int:
        return path.stat().st_size if path.exists() else 0

    def killed(process: Any) -> int:
        """Kill it; how many records there are then, each whole and as it must be."""
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL, log.read_text()
        marker.unlink(missing_ok=True)
        held = load(path) if path.exists() else []
        assert len({r["cell"] for r in held}) == len(held)
        found = by_chain(held)
        assert found == {k: expected[k] for k in found}
        return len(held)

    def grown(process: Any, before: int) -> None:
        while size() <= before and process.is_alive():
            time.sleep(0.001)

    counts = []
    for delay in (0.0, 0.3):  # while starting: before anything, then somewhere on the way
        process = child.start(child.study, log, part, out, programs)
        time.sleep(delay)
        counts.append(killed(process))
    for nth in (1, 2, 4):  # in the middle of a line, of the first one too
        arguments = (part, out, programs, nth, marker)
        process = child.start(child.study_on_a_slow_disk, log, *arguments)
        appears(marker, process)
        counts.append(killed(process))
        assert not path.read_bytes().endswith(b"\n")  # torn, and mended by the next run
    assert counts[2] == 0 or counts[1] > 0
    for delay in (0.0, 0.01):  # somewhere after a line, before the one after the next
        before = size()
        arguments = (part, out, programs, 2, marker)
        process = child.start(child.study_that_stays, log, *arguments)
        grown(process, before)
        time.sleep(delay)
        counts.append(killed(process))
    assert counts == sorted(counts)
    assert 0 < counts[-1] < PART - 1
    missing = PART - counts[-1]
    for nth in (1, missing - 1):  # right after a line: of the last one too
        arguments = (part, out, programs, nth, marker)
        process = child.start(child.study_that_stays, log, *arguments)
        appears(marker, process)
        counts.append(killed(process))
    assert counts[-1] == PART
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[: PART - 3]))
    process = child.start(child.study, log, part, out, programs)
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    records = load(path)
    assert len(records) == PART
    assert by_chain(records) == expected


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_so_in_one_line_and_leaves_whole_records(
    sent: signal.Signals, code: int, part: Path, whole: Path, programs: Path, tmp_path: Path
) -> None:
    log, marker = tmp_path / "log", tmp_path / "marker"
    process = child.start(child.study_that_stays, log, part, tmp_path, programs, 3, marker, True)
    appears(marker, process)
    os.kill(process.pid or 0, sent)
    process.join(60)
    assert process.exitcode == code
    last = log.read_text().splitlines()[-1]
    assert last == "stopped; run the same command again to go on"
    assert "Traceback" not in log.read_text()
    path = tmp_path / "tiny" / "records.jsonl"
    assert path.read_bytes().count(b"\n") == 3
    assert path.read_bytes().endswith(b"\n")
    expected = by_chain(load(whole))
    found = by_chain(load(path))
    assert found == {k: expected[k] for k in found}
    RecordLog(path).close()  # the lock is gone


# ------------------------------------------------------------------------------------ the door


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
    assert door.main(argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_study_that_does_not_fit_a_model_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nm.py"
    text = STUDY.replace('Own("MINE")', '"tiny-resnet"').replace('("last",)', '("layer2.*", "fc")')
    text = text.replace('tie="random"', "scope=NofM(2, 4)").replace("(0.0, 0.5)", "(0.5,)")
    path.write_text(text.replace("SparseGPT\n", "NofM, SparseGPT\n", 1))
    assert "NofM(2, 4)" in path.read_text()
    assert door.main(["run", str(path), "--out", str(tmp_path)]) == 2
    assert "do not divide into groups of 4" in capsys.readouterr().err
