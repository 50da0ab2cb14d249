"""The log survives kills and second runners, and says everything it was told."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import records
from experiments.records import RecordLog, RecordLogLocked

OLD = Path(__file__).parent.parent / "figures" / "records"
WANDA = {"name": "wanda", "sparsity": 0.5, "scope": "row"}
GPTQ = {"name": "gptq", "bits": 4, "grid": {"per": "row"}}


def made(name: str, *stages: dict[str, Any], nll: Any = (1.0, 1.0)) -> records.Record:
    return {
        "schema": records.SCHEMA,
        "cell": f"{zlib.crc32(name.encode()):016x}",
        "label": f"m/s0/{name}",
        "study": "tiny",
        "model": "m",
        "kind": "text",
        "seed": 0,
        "calibration": {"draw": 0, "examples": 8, "batch": 4, "hash": "f"},
        "policy": {"calibrate": "recalibrate", "norms": "reestimate", "zeros": "free"},
        "stages": list(stages),
        "status": "ok",
        "error": None,
        "metrics": {"nll": float(np.mean(nll))},
        "sums": records.encode_sums({"count": [1] * len(nll), "nll": nll, "kl": [0.5] * len(nll)}),
        "layers": {},
        "seconds": {"evaluate": 0.1},
    }


RECORDS = [
    made("dense"),
    made("wanda-0.5", WANDA, nll=[1.5, 2.5]),
    made("wanda-0.5>gptq-4", WANDA, GPTQ, nll=[1.75, 2.5]),
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
    assert {k: v.tolist() for k, v in sums.items()} == {
        "count": [1, 1],
        "nll": [1.5, 2.5],
        "kl": [0.5, 0.5],
    }


def test_counts_are_stored_exactly_and_any_other_measure_as_a_float():
    big = 2**24 + 1  # no float32
    sums = {"count": [big], "correct": [big], "nll": [0.1], "margin": [-1.5]}
    encoded = records.encode_sums(sums)
    found = records.decode_sums({"sums": encoded})
    assert {k: v.dtype.name for k, v in found.items()} == {
        "count": "int32",
        "correct": "int32",
        "nll": "float32",
        "margin": "float32",
    }
    assert found["count"] == found["correct"] == [big]
    assert found["nll"] == np.float32(0.1)
    assert found["margin"] == -1.5
    with pytest.raises(ValueError, match="do not fit"):
        records.encode_sums({"correct": [0.5]})


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
        ({"schema": 1}, "schema 1"),  # read, and not written any more
        ({"kind": "sound"}, "kind = 'sound'"),
        ({"status": "maybe"}, "status = 'maybe'"),
        ({"cell": 7}, "cell = 7 has the wrong type"),
        ({"stages": None}, "stages = None"),
        ({"stages": [WANDA, {}]}, r"stages\[1\] = {} has no 'name'"),
        ({"stages": ["wanda"]}, "no 'name'"),
        ({"calibration": {}}, "no 'draw'"),
        ({"seed": True}, "seed = True"),
        ({"metrics": None}, "needs metrics"),
        ({"sums": None}, "needs metrics and sums"),
        ({"sums": {"nll": "AAAA"}}, "sums need 'count'"),
        ({"sums": {"count": "AAAA"}}, "and a measure"),
        ({"sums": {"count": "AAAA", "nll": "AAAAAAAA"}}, "one length, 'nll' is none"),
        ({"sums": {"count": "AAAA", "nll": None}}, "'nll' is none"),
    ],
)
def test_records_that_cannot_be_are_refused_before_they_are_written(tmp_path, change, message):
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log, pytest.raises(ValueError, match=message):
        log.append(RECORDS[2] | change)
    assert path.read_bytes() == b""


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


# ------------------------------------------------------------------------- earlier schemas

FIRST = {
    "schema": 1,
    "cell": "m/s0/gptq-4>wanda-0.5",
    "study": "tiny",
    "model": "m",
    "kind": "images",
    "seed": 0,
    "order": "QP",
    "pruner": {"name": "wanda", "scope": "row"},
    "quantizer": {"name": "gptq", "grid": {"per": "row"}},
    "sparsity": 0.5,
    "bits": 4,
    "status": "ok",
    "metrics": {"nll": 1.0, "accuracy": 0.5},
    "examples": {"count": "AQAAAA==", "nll": "AACAPw==", "correct": "AQAAAA=="},
    "policies": {
        "calibrate": "recalibrate",
        "norms": "reestimate",
        "zeros": "free",
        "calibration_examples": 128,
        "calibration_batch": 64,
        "skipped": {"fc": "excluded by 'fc'"},
    },
}


def written(path: Path, *held: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in held))
    return path


def test_a_record_of_the_first_schema_is_read_as_one_of_this(tmp_path):
    path = written(tmp_path / "r.jsonl", FIRST)
    before = path.read_bytes()
    (record,) = records.load(path)
    assert record["schema"] == records.SCHEMA
    assert record["cell"] == record["label"] == FIRST["cell"]
    assert record["stages"] == [
        {"name": "gptq", "grid": {"per": "row"}, "bits": 4},
        {"name": "wanda", "scope": "row", "sparsity": 0.5},
    ]
    assert record["calibration"] == {"draw": 0, "examples": 128, "batch": 64}
    assert records.draw_of(record) == 0
    assert record["policy"] == {"calibrate": "recalibrate", "norms": "reestimate", "zeros": "free"}
    assert record["skipped"] == {"fc": "excluded by 'fc'"}
    assert {k: v.tolist() for k, v in records.decode_sums(record).items()} == {
        "count": [1],
        "nll": [1.0],
        "correct": [1],
    }
    assert not record.keys() & {"order", "pruner", "quantizer", "sparsity", "bits", "examples"}
    assert path.read_bytes() == before  # nothing is written back


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("dense", []),
        ("P", ["wanda"]),
        ("Q", ["gptq"]),
        ("PQ", ["wanda", "gptq"]),
        ("QP", ["gptq", "wanda"]),
    ],
)
def test_an_order_becomes_its_stages(order, names, tmp_path):
    path = written(tmp_path / "r.jsonl", FIRST | {"order": order})
    assert [s["name"] for s in records.load(path)[0]["stages"]] == names


def test_a_measure_that_an_old_record_has_not_is_not_in_its_sums(tmp_path):
    text = FIRST | {"kind": "text", "examples": FIRST["examples"] | {"correct": None}}
    failed = {k: v for k, v in FIRST.items() if k not in ("metrics", "examples")}
    path = written(tmp_path / "r.jsonl", text, failed | {"status": "error", "error": "E: no"})
    one, other = records.load(path)
    assert one["sums"].keys() == {"count", "nll"}
    assert other["status"] == "error"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "PP"}, "order = 'PP'"),
        ({"order": None}, "order = None"),
        ({"bits": None}, "does not fit quantizer"),
        ({"sparsity": None}, "does not fit pruner"),
        ({"pruner": None}, "does not fit"),
        ({"quantizer": {}}, "no 'name'"),
        ({"schema": 0}, "schema 0, but this version reads 1 and 2"),
        ({"examples": {"count": "AAAA", "nll": "AAAAAAAA", "correct": None}}, "one length"),
    ],
)
def test_old_records_that_cannot_be_are_refused_with_their_line(tmp_path, change, message):
    path = written(tmp_path / "r.jsonl", FIRST, FIRST | change)
    with pytest.raises(ValueError, match=rf"r\.jsonl, line 2.*{message}"):
        records.load(path)


def test_a_log_of_old_records_goes_on_in_the_new_schema(tmp_path):
    path = written(tmp_path / "r.jsonl", FIRST)
    with RecordLog(path) as log:
        log.append(RECORDS[1])
    old, new = records.load(path)
    assert new == RECORDS[1]
    assert set(records.latest([old, new])) == {FIRST["cell"], new["cell"]}


@pytest.mark.parametrize("name", ["norms", "protocols", "snap", "embedded"])
def test_the_records_of_earlier_versions_stay_readable(name):
    held = records.load(OLD / f"{name}.jsonl.gz")
    assert {r["schema"] for r in held} == {records.SCHEMA}
    assert {r["study"] for r in held} == {name}
    ok = [r for r in held if r["status"] == "ok"]
    assert len(ok) > 0.9 * len(held) > 10
    assert {len(r["stages"]) for r in ok} == {0, 1, 2}
    for record in ok[:: len(ok) // 20 or 1]:
        sums = records.decode_sums(record)
        mean = sums["nll"].sum(dtype=float) / sums["count"].sum()
        assert mean == pytest.approx(record["metrics"]["nll"], rel=1e-5)
