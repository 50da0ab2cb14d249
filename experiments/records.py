"""The record of an experiment: one JSON object a line, one line a model variant ("cell").

A record says everything that made a result (study, seeds, policies, versions, data) and the
result itself: metrics, per-layer measures and the per-cluster sums from which every interval
is computed later. A finished line is never rewritten. The rules that make this safe:

* ``RecordLog`` appends a line with ONE ``write`` on an ``O_APPEND`` descriptor and then syncs,
  so a kill leaves whole lines and at most one torn last line. The next open removes it.
* The file is locked (``flock``) as long as its log is open: a second runner gets an error, not
  an interleaved file. The lock belongs to the process and dies with it.
* Numbers JSON cannot say (nan, infinities) become ``null``.

Needs the standard library and numpy only: figures and analysis read records without jax.
"""

from __future__ import annotations

import base64
import fcntl
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturb.files import sync_folder
from perturb.files import write_atomic as write_atomic  # for those who read records only

SCHEMA = 1
KINDS = ("images", "text")
ORDERS = ("dense", "P", "Q", "PQ", "QP")
Record = dict[str, Any]

# key -> accepted types; the keys that every record has, failed or not
_REQUIRED: dict[str, tuple[type, ...]] = {
    "cell": (str,),
    "study": (str,),
    "model": (str,),
    "kind": (str,),
    "seed": (int,),
    "order": (str,),
    "pruner": (dict, type(None)),
    "quantizer": (dict, type(None)),
    "sparsity": (float, int, type(None)),
    "bits": (int, type(None)),
    "status": (str,),
}


class RecordLogLocked(RuntimeError):
    """Another process is appending to the same log."""


@dataclass(frozen=True)
class Examples:
    """Sums over clusters (documents, images) of examples (tokens): the bootstrap's material."""

    count: np.ndarray  # [clusters] int32, examples per cluster
    nll: np.ndarray  # [clusters] float32, sum of the negative log-likelihood, nats
    correct: np.ndarray | None  # [clusters] int32, sum of correct answers; None for text


# --- arrays -----------------------------------------------------------------------------------


def encode(values: Any, dtype: str) -> str:
    """Base64 of a one-dimensional array's little-endian bytes; ``dtype`` 'int32' or 'float32'.

    Raises ValueError where the values do not survive the conversion as integers.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"encode takes a one-dimensional array, got shape {array.shape}")
    stored = array.astype(np.dtype(dtype).newbyteorder("<"))
    if stored.dtype.kind == "i" and not np.array_equal(stored, array):
        raise ValueError(f"values do not fit {dtype} exactly (first: {array[:3].tolist()})")
    return base64.b64encode(stored.tobytes()).decode("ascii")


def decode(text: str, dtype: str) -> np.ndarray:
    """The array ``encode`` was given, in the machine's own byte order."""
    raw = base64.b64decode(text, validate=True)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype)


def encode_examples(count: Any, nll: Any, correct: Any = None) -> dict[str, str | None]:
    """The record's ``examples`` entry from three arrays ``[clusters]`` of sums."""
    return {
        "count": encode(count, "int32"),
        "nll": encode(nll, "float32"),
        "correct": None if correct is None else encode(correct, "int32"),
    }


def decode_examples(record: Mapping[str, Any]) -> Examples:
    """The three arrays of a record's ``examples`` entry."""
    entry = record["examples"]
    correct = entry["correct"]
    return Examples(
        decode(entry["count"], "int32"),
        decode(entry["nll"], "float32"),
        None if correct is None else decode(correct, "int32"),
    )


# --- one record -------------------------------------------------------------------------------


def validate(record: Any, where: str = "record") -> None:
    """Raise ValueError, naming ``where``, the key and its value, unless it is a record."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: schema {record.get('schema')!r}, but this version reads schema {SCHEMA}"
        )
    for key, types in _REQUIRED.items():
        if key not in record:
            raise ValueError(f"{where}: key {key!r} is missing")
        value = record[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{where}: {key} = {value!r} has the wrong type")
    cell = record["cell"]
    for key, allowed in (("kind", KINDS), ("order", ORDERS), ("status", ("ok", "error"))):
        if record[key] not in allowed:
            raise ValueError(f"{where} ({cell}): {key} = {record[key]!r}, not one of {allowed}")
    for key, amount, letter in (("pruner", "sparsity", "P"), ("quantizer", "bits", "Q")):
        present = letter in record["order"]
        if (record[key] is not None) != present or (record[amount] is not None) != present:
            raise ValueError(
                f"{where} ({cell}): order {record['order']!r} does not fit "
                f"{key} = {record[key]!r}, {amount} = {record[amount]!r}"
            )
        if present and not isinstance(record[key].get("name"), str):
            raise ValueError(f"{where} ({cell}): {key} = {record[key]!r} has no 'name'")
    if record["status"] == "error":
        return
    examples = record.get("examples")
    if not isinstance(record.get("metrics"), dict) or not isinstance(examples, dict):
        raise ValueError(f"{where} ({cell}): an ok record needs metrics and examples")
    arrays = [examples.get("count"), examples.get("nll"), examples.get("correct")]
    required = arrays[: 3 if record["kind"] == "images" else 2]
    if not all(isinstance(a, str) for a in required) or len({len(a) for a in arrays if a}) != 1:
        raise ValueError(f"{where} ({cell}): examples must hold base64 arrays of one length")


def without_seconds(record: Mapping[str, Any]) -> Record:
    """The record without its timings: equal for two runs with one seed on one device."""
    return {key: value for key, value in record.items() if key != "seconds"}


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """Cell id -> its record; of several, the last ok one (a failed cell may be retried)."""
    chosen: dict[str, Record] = {}
    for record in records:
        held = chosen.get(record["cell"])
        if held is None or record["status"] == "ok" or held["status"] == "error":
            chosen[record["cell"]] = record
    return chosen


def _jsonable(value: Any) -> Any:
    """Plain JSON values: numpy scalars and arrays unwrapped, non-finite floats to null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return value


# --- files ------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> list[Record]:
    """Every record of a log, in order; plain or gzipped (recognised by its first bytes).

    A last line that does not parse was torn by a kill and is ignored; anywhere else it is an
    error (ValueError), as is a record that fails :func:`validate`.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error}); copy it again") from None
    lines = raw.split(b"\n")
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    records = []
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        where = f"{path}, line {number + 1}"
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == last:
                break
            raise ValueError(f"{where}: not JSON ({error}); remove that line") from None
        validate(record, where)
        records.append(record)
    return records


class RecordLog:
    """An append-only log of records, open for one runner at a time.

    Opening creates the file and its folder, takes the lock and removes a torn last line
    (``torn`` tells how many bytes). Use as a context manager, or call ``close``.
    Raises :class:`RecordLogLocked` if another runner has it open.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.torn = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            self._lock()
            self._mend()
            sync_folder(self.path.parent)  # the new name itself must survive a power cut
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecordLogLocked(
                f"another run is appending to {self.path}; wait for it or stop it "
                "(the lock ends with its process, there is nothing to delete)"
            ) from None

    def _mend(self) -> None:
        size = os.fstat(self._fd).st_size
        if size == 0:
            return
        if os.pread(self._fd, 2, 0) == b"\x1f\x8b":
            raise ValueError(f"{self.path} is gzipped: unpack it before appending to it")
        # the last line starts after the last newline that is not the file's final byte
        start, block = size - 1, b""
        while start > 0 and b"\n" not in block:
            step = min(1 << 16, start)
            start -= step
            block = os.pread(self._fd, step, start)
        start += block.rfind(b"\n") + 1
        line = os.pread(self._fd, size - start, start)
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = not line.strip()
        if not whole:
            os.ftruncate(self._fd, start)
            os.fsync(self._fd)
            self.torn = size - start
        elif not line.endswith(b"\n"):  # complete but for its newline, which the next line needs
            os.write(self._fd, b"\n")

    def append(self, record: Record) -> None:
        """Write one record, whole or not at all, and return when it is on the disk.

        Raises ValueError for a record that :func:`validate` rejects, OSError on a full disk.
        """
        if self._fd < 0:
            raise ValueError(f"{self.path}: the log is closed")
        plain = _jsonable(record)
        validate(plain, f"record for {self.path}")
        line = json.dumps(plain, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)
        if written != len(line):
            os.ftruncate(self._fd, before)
            raise OSError(f"{self.path}: wrote {written} of {len(line)} bytes; is the disk full?")
        os.fsync(self._fd)

    def close(self) -> None:
        """Release the lock; harmless when called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
