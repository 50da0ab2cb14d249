"""The file that records are in: one JSON object a line, appended and never rewritten.

The rules that make this safe:

* ``RecordLog`` appends a line with ONE ``write`` on an ``O_APPEND`` descriptor and then syncs,
  so a kill leaves whole lines and at most one torn last line. The next open removes it.
* The file is locked (``flock``) as long as its log is open: a second runner gets an error, not
  an interleaved file. The lock belongs to the process and dies with it.
* Numbers JSON cannot say (nan, infinities) become ``null``.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import zlib
from pathlib import Path

from experiments.records.schema import Record, validate
from experiments.records.upgrade import upgrade
from perturb.files import sync_folder
from perturb.plain import plain


class RecordLogLocked(RuntimeError):
    """Another process is appending to the same log."""


def load(path: str | os.PathLike[str]) -> list[Record]:
    """Every record of a log, in order; plain or gzipped (recognised by its first bytes).

    Records of earlier schemas are upgraded (:mod:`experiments.records.upgrade`).

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
        record = upgrade(record, where)
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
        said = plain(record)
        validate(said, f"record for {self.path}")
        line = json.dumps(said, allow_nan=False, separators=(",", ":")).encode() + b"\n"
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
