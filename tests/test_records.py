"""The log survives kills and second runners, and says everything it was told."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import records
from experiments.records import RecordLog, RecordLogLocked
from tests.synthetic import make_record

RECORDS = [
    make_record("dense"),
    make_record("P", sparsity=0.5, nll=[1.5, 2.5]),
    make_record("PQ", sparsity=0.5, bits=4, nll=[1.75, 2.5]),
]


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_int32_survives_exactly(values):
    assert records.decode(records.encode(values, "int32"), "int32").tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_float32_survives_bit_for_bit(values):
    array = np.array(values, np.float32)
    assert records.decode(records.encode(array, "float32"), "float32").tobytes() == array.tobytes()


def test_encoding_is_little_endian_and_refuses_what_it_would_change():
    assert records.encode([1], "int32") == "AQAAAA=="
    assert records.encode(np.array([1], ">i4"), "int32") == "AQAAAA=="
    for wrong in ([2**31], [0.5]):
        with pytest.raises(ValueError, match="do not fit"):
            records.encode(wrong, "int32")
    with pytest.raises(ValueError, match="one-dimensional"):
        records.encode([[1]], "int32")


def test_append_then_load_is_the_identity(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    with RecordLog(path) as log:
        for record in RECORDS:
            log.append(record)
        assert records.load(path) == RECORDS  # readable while it is being written
    sums = records.decode_sums(records.load(path)[1])
    assert {name: values.tolist() for name, values in sums.items()} == {
        "nll": [1.5, 2.5],
        "count": [1, 1],
    }


@given(st.integers(0, 400))
def test_torn_last_line_is_ignored_then_removed(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("torn") / "records.jsonl"
    lines = [json.dumps(record).encode() + b"\n" for record in RECORDS]
    torn = lines[2][: len(lines[2]) * cut // 400]
    path.write_bytes(lines[0] + lines[1] + torn)
    whole = 3 if torn.rstrip(b"\n") == lines[2].rstrip(b"\n") else 2
    assert len(records.load(path)) == whole
    with RecordLog(path) as log:
        assert log.torn == (0 if whole == 3 else len(torn))
        log.append(RECORDS[2])
    assert records.load(path) == [*RECORDS[:whole], RECORDS[2]]


def test_a_torn_line_longer_than_the_read_block_and_alone(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"x": "' + b"y" * 300_000)
    assert records.load(path) == []
    with RecordLog(path) as log:
        assert log.torn == 300_007
        log.append(RECORDS[0])
    assert records.load(path) == RECORDS[:1]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + '\n{"torn\n' + json.dumps(RECORDS[1]) + "\n")
    with pytest.raises(ValueError, match="line 2: not JSON"):
        records.load(path)


def test_gzip_is_read_and_not_appended_to(tmp_path):
    path = tmp_path / "records.jsonl.gz"
    raw = gzip.compress("".join(json.dumps(r) + "\n" for r in RECORDS).encode())
    path.write_bytes(raw)
    assert records.load(path) == RECORDS
    with pytest.raises(ValueError, match="gzipped"):
        RecordLog(path)
    path.write_bytes(raw[:-9])
    with pytest.raises(ValueError, match="damaged gzip"):
        records.load(path)


def _hold(path, opened, finish):
    with RecordLog(path):
        opened.set()
        finish.wait(30)


def test_a_second_runner_is_refused_and_a_dead_ones_lock_is_gone(tmp_path):
    path = tmp_path / "records.jsonl"
    context = multiprocessing.get_context("spawn")
    opened, finish = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(path, opened, finish))
    holder.start()
    try:
        assert opened.wait(30)
        with pytest.raises(RecordLogLocked, match=r"another run is appending.*records\.jsonl"):
            RecordLog(path)
        holder.kill()
        holder.join(30)
        RecordLog(path).close()
    finally:
        holder.kill()
        holder.join(30)


def test_the_same_process_cannot_open_it_twice_either(tmp_path):
    with RecordLog(tmp_path / "r.jsonl"), pytest.raises(RecordLogLocked):
        RecordLog(tmp_path / "r.jsonl")
    RecordLog(tmp_path / "r.jsonl").close()


def test_a_short_write_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log:
        log.append(RECORDS[0])
        real = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        with pytest.raises(OSError, match="disk full"):
            log.append(RECORDS[1])
        monkeypatch.undo()
        log.append(RECORDS[2])
    assert records.load(path) == [RECORDS[0], RECORDS[2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema 3, but this version reads 1 and 2"),
        ({"kind": "sound"}, "kind = 'sound'"),
        ({"seed": True}, "seed = True"),
        ({"label": None}, "label = None"),
        ({"stages": {}}, "stages = {}"),
        ({"stages": [{}]}, r"stages\[0\] = {} has no 'name'"),
        ({"stages": [{"name": "wanda"}, "gptq"]}, r"stages\[1\] = 'gptq' has no 'name'"),
        ({"calibration": {}}, "calibration has no 'draw'"),
        ({"policy": "dense"}, "policy = 'dense'"),
        ({"status": "fine"}, "status = 'fine'"),
        ({"metrics": None}, "needs metrics"),
        ({"sums": None}, "needs metrics and sums"),
        ({"sums": {"nll": "AAAA"}}, r"sums need 'count' and a measure, got \['nll'\]"),
        ({"sums": {"count": "AAAA"}}, "sums need 'count' and a measure"),
        ({"sums": {"count": "AAAA", "rmse": "AAAAAAAA"}}, "one length, 'rmse' is none"),
        ({"sums": {"count": "AAAA", "rmse": None}}, "one length, 'rmse' is none"),
    ],
)
def test_records_that_cannot_be_are_refused_before_they_are_written(tmp_path, change, message):
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log, pytest.raises(ValueError, match=message) as caught:
        log.append(RECORDS[2] | change)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b""


@pytest.mark.parametrize("key", ["cell", "label", "seed", "calibration", "policy", "stages"])
def test_a_key_that_is_missing_is_named(key):
    record = {k: v for k, v in RECORDS[2].items() if k != key}
    with pytest.raises(ValueError, match=f"^here: key '{key}' is missing$"):
        records.validate(record, "here")


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name not in ("count", "correct")),
        st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3),
        max_size=4,
    )
)
def test_sums_of_every_named_measure_come_back(sums):
    given_sums = {"count": [1, 2, 3], "correct": [0, 2, 1], **sums}
    found = records.decode_sums({"sums": records.encode_sums(given_sums)})
    assert {name: values.tolist() for name, values in found.items()} == given_sums
    assert found["count"].dtype == found["correct"].dtype == np.int32


def test_a_failed_cell_needs_no_results(tmp_path):
    failed = {k: v for k, v in RECORDS[1].items() if k not in ("metrics", "sums", "layers")}
    failed |= {"status": "error", "error": "ValueError: no"}
    with RecordLog(tmp_path / "r.jsonl") as log:
        log.append(failed)
    assert records.load(tmp_path / "r.jsonl") == [failed]


def test_numbers_json_cannot_say_become_null_and_numpy_is_unwrapped(tmp_path):
    odd = RECORDS[0] | {
        "layers": {"a": {"snr": np.inf, "norm": np.float32(0.5), "rank": np.int64(3)}},
        "metrics": {"nll": float("nan"), "all": np.array([1.0, -np.inf])},
    }
    with RecordLog(tmp_path / "r.jsonl") as log:
        log.append(odd)
    (line,) = (tmp_path / "r.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert found["layers"]["a"] == {"snr": None, "norm": 0.5, "rank": 3}
    assert found["metrics"] == {"nll": None, "all": [1.0, None]}


def test_latest_prefers_a_success_and_seconds_do_not_count():
    good, bad = RECORDS[0], RECORDS[0] | {"status": "error"}
    assert records.latest([bad, good])[good["cell"]] is good
    assert records.latest([good, bad])[good["cell"]] is good
    slow = good | {"seconds": {"total": 9.0}}
    assert slow != good
    assert records.without_seconds(slow) == records.without_seconds(good)


# ------------------------------------------------------------------------------ earlier schemas

STORED = Path(__file__).parent.parent / "figures" / "records"
FIRST = {  # as version 0.2.0 wrote it
    "schema": 1,
    "study": "old",
    "model": "resnet-digits",
    "kind": "images",
    "seed": 3,
    "policies": {
        "calibrate": "recalibrate",
        "norms": "keep",
        "zeros": "free",
        "calibration_examples": 128,
        "calibration_batch": 64,
        "skipped": {"conv": "grouped"},
    },
    "versions": {"jax": "0.10.2"},
    "data": {"hash": "a"},
    "device": "cpu cpu",
    "cell": "resnet-digits/s3/rtn-4>wanda-0.5",
    "order": "QP",
    "pruner": {"name": "wanda", "sparsity": 0.5, "scope": "row"},
    "quantizer": {"name": "rtn", "bits": 4, "grid": {"per": "row"}},
    "sparsity": 0.5,
    "bits": 4,
    "identity": "0" * 16,
    "status": "ok",
    "error": None,
    "metrics": {"nll": 0.5, "accuracy": 0.75, "kl": 0.25},
    "examples": {
        "count": records.encode([2, 2], "int32"),
        "nll": records.encode([1.5, 0.5], "float32"),
        "correct": records.encode([1, 2], "int32"),
    },
    "ratio": 3.5,
    "seconds": {},
}


def test_a_record_of_schema_1_is_read_as_one_of_schema_2(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(FIRST) + "\n")
    (found,) = records.load(path)
    records.validate(found)
    assert found["cell"] == found["label"] == FIRST["cell"]
    assert found["stages"] == [FIRST["quantizer"], FIRST["pruner"]]  # as they were applied
    assert found["calibration"] == {"draw": 0, "examples": 128, "batch": 64}
    assert found["policy"] == {"calibrate": "recalibrate", "norms": "keep", "zeros": "free"}
    assert found["skipped"] == {"conv": "grouped"}
    sums = {name: values.tolist() for name, values in records.decode_sums(found).items()}
    assert sums == {"count": [2, 2], "nll": [1.5, 0.5], "correct": [1, 2]}
    gone = {"order", "pruner", "quantizer", "sparsity", "bits", "policies", "examples"}
    assert not gone & found.keys()
    same = ("study", "model", "kind", "seed", "versions", "data", "device", "metrics", "ratio")
    assert {k: found[k] for k in same} == {k: FIRST[k] for k in same}
    assert path.read_text() == json.dumps(FIRST) + "\n"  # nothing is written back


def test_failed_text_and_dense_records_of_schema_1(tmp_path):
    text = {k: v for k, v in FIRST["examples"].items() if k != "correct"} | {"correct": None}
    nothing = {"pruner": None, "quantizer": None, "sparsity": None, "bits": None}
    old = [
        FIRST | {"kind": "text", "examples": text},
        FIRST | nothing | {"order": "dense"},
        {k: v for k, v in FIRST.items() if k not in ("examples", "metrics")} | {"status": "error"},
        FIRST | {"order": "P", "quantizer": None, "bits": None},
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in old))
    found = records.load(path)
    assert set(found[0]["sums"]) == {"count", "nll"}
    assert [len(r["stages"]) for r in found] == [2, 0, 2, 1]
    assert "sums" not in found[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "PP"}, "line 1 .*: order = 'PP'"),
        ({"order": None}, "order = None"),
        ({"bits": None}, "order 'QP' does not fit quantizer"),
        ({"pruner": None}, "order 'QP' does not fit pruner = None"),
        ({"quantizer": {}}, "no 'name'"),
        ({"seed": "3"}, "seed = '3'"),
    ],
)
def test_what_schema_1_did_not_allow_is_refused(tmp_path, change, message):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(FIRST | change) + "\n")
    with pytest.raises(ValueError, match=message) as caught:
        records.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", sorted(p.name.partition(".")[0] for p in STORED.glob("*.jsonl.gz"))
)
def test_the_stored_records_are_all_there_and_nothing_is_lost(name):
    """What they say (the tables of the README) is compared in test_readme."""
    path = STORED / f"{name}.jsonl.gz"
    raw = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    found = records.load(path)
    assert len(found) == len(raw) > 0
    for old, new in zip(raw, found, strict=True):
        assert new["schema"] == records.SCHEMA
        if old["schema"] != 1:
            assert new == old
            continue
        assert (new["label"], new["seed"], new["ratio"]) == (old["cell"], old["seed"], old["ratio"])
        assert (new["metrics"], new["layers"]) == (old["metrics"], old["layers"])
        sums = {k: v for k, v in old["examples"].items() if v is not None}
        assert new["sums"] == sums
        names = {"P": old["pruner"], "Q": old["quantizer"]}
        letters = "" if old["order"] == "dense" else old["order"]
        assert new["stages"] == [names[letter] for letter in letters]


def test_a_log_of_schema_1_goes_on_in_schema_2(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(FIRST) + "\n")
    with RecordLog(path) as log:
        log.append(RECORDS[1])
    old, new = records.load(path)
    assert new == RECORDS[1]
    assert set(records.latest([old, new])) == {FIRST["cell"], new["cell"]}
    with RecordLog(path) as log, pytest.raises(ValueError, match="schema 1"):
        log.append(FIRST)  # read, and not written any more


def test_counts_are_stored_exactly_and_any_other_measure_as_a_float():
    big = 2**24 + 1  # no float32
    sums = {"count": [big], "correct": [big], "nll": [0.1], "margin": [-1.5]}
    found = records.decode_sums({"sums": records.encode_sums(sums)})
    assert [v.dtype.name for v in found.values()] == ["int32", "int32", "float32", "float32"]
    assert found["count"] == found["correct"] == [big]
    assert found["nll"] == np.float32(0.1)
    assert found["margin"] == -1.5
    with pytest.raises(ValueError, match="do not fit"):
        records.encode_sums({"correct": [0.5]})
