"""Runs in processes of their own, forked from one that has imported all of it already.

Starting Python and importing jax takes seconds, and a run that is killed ten times is started
eleven times. The server that children are forked from has imported jax and computed nothing, so
it has no threads that a fork could lose.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
import pytest

from experiments.__main__ import main
from experiments.records import RecordLog
from experiments.runner import run_study
from experiments.study import find

ROOT = Path(__file__).parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


def keep_programs(folder: Path | None) -> None:
    """Every compiled program is kept there: a child is started to be killed, not to compile."""
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if folder else 1.0)


def start(run: Any, log: Path, *arguments: Any) -> BaseProcess:
    """A process that does ``run(*arguments)``; what it says is in the file ``log``."""
    with pytest.MonkeyPatch.context() as patch:  # the server finds us wherever it is started
        path = os.environ.get("PYTHONPATH")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *([path] if path else [])]))
        forkserver.ensure_running()
    process = CONTEXT.Process(target=_begin, args=(run, log, arguments))
    process.start()
    return process


def _begin(run: Any, log: Path, arguments: tuple[Any, ...]) -> None:
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(run(*arguments))


def study(path: Path, out: Path, programs: Path) -> None:
    """Run a study's file."""
    keep_programs(programs)
    run_study(find(str(path)), out)


def study_on_a_slow_disk(path: Path, out: Path, programs: Path, nth: int, marker: Path) -> None:
    """The same, but half of the nth record is on the disk (then ``marker`` appears) and the other
    half never gets there."""
    real, seen = os.write, 0

    def slow(fd: int, data: bytes) -> int:
        nonlocal seen
        seen += data.startswith(b'{"schema"')
        if seen < nth:
            return real(fd, data)
        real(fd, data[: len(data) // 2])
        return wait(marker)

    os.write = slow  # type: ignore[assignment]
    study(path, out, programs)


def study_that_stays(
    path: Path, out: Path, programs: Path, nth: int, marker: Path, door: bool = False
) -> None:
    """The same, but it stays for ever where it has written its nth record.

    door: as the command line does it.
    """
    real, seen = RecordLog.append, 0

    def append(log: RecordLog, record: Any) -> None:
        nonlocal seen
        real(log, record)
        seen += 1
        if seen == nth:
            wait(marker)

    RecordLog.append = append  # type: ignore[method-assign]
    if door:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = "as it is"
        keep_programs(programs)
        sys.exit(main(["run", str(path), "--out", str(out), "--no-figures"]))
    study(path, out, programs)


def command(module: str, argv: list[str]) -> int:
    """``python -m module`` with these arguments."""
    return int(importlib.import_module(f"{module}.__main__").main(argv))


def wait(marker: Path) -> int:
    marker.touch()
    time.sleep(120)
    os._exit(99)
