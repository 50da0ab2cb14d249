"""The log survives kills and second runners, and says everything it was told."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os

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
    examples = records.decode_examples(records.load(path)[1])
    assert examples.nll.tolist() == [1.5, 2.5]
    assert examples.count.tolist() == [1, 1]
    assert examples.correct is None


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
        ({"schema": 2}, "schema 2"),
        ({"order": "PP"}, "order = 'PP'"),
        ({"kind": "sound"}, "kind = 'sound'"),
        ({"bits": None}, "does not fit"),
        ({"pruner": None}, "does not fit"),
        ({"quantizer": {}}, "no 'name'"),
        ({"seed": True}, "seed = True"),
        ({"metrics": None}, "needs metrics"),
        ({"examples": {"count": "AAAA", "nll": "AAAAAAAA", "correct": None}}, "one length"),
    ],
)
def test_records_that_cannot_be_are_refused_before_they_are_written(tmp_path, change, message):
    path = tmp_path / "records.jsonl"
    with RecordLog(path) as log, pytest.raises(ValueError, match=message):
        log.append(RECORDS[2] | change)
    assert path.read_bytes() == b""


def test_a_failed_cell_needs_no_results(tmp_path):
    failed = {k: v for k, v in RECORDS[1].items() if k not in ("metrics", "examples", "layers")}
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
