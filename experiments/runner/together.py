"""Several processes for one run: each takes a training of a model at a time, on cores of its own.

A small model keeps one core busy and a second one hardly. Cells of different trainings share
nothing, so they are measured side by side; this process alone has the records, and appends what
the others send. On fewer cores XLA adds the terms of a product in another order, and a weight that
lies between two grid points, or at the edge of a mask, may fall to the other side: cells then
differ a little, as between two machines.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from experiments.records import Record
from experiments.runner.clock import Clock, Spent, peak
from experiments.runner.desk import StudyDesk
from experiments.runner.running import run_training
from experiments.study import Study
from experiments.watch import Watch
from perturb.backend import compile_quickly
from perturb.cli import BadInput
from perturb.programs import cache_programs

CONTEXT = multiprocessing.get_context("spawn")  # a fork would copy jax's locks without its threads


@dataclass(frozen=True)
class Training:
    """The n-th study's m-th training."""

    study: int
    number: int
    model: str


def cores() -> list[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_together(
    studies: Sequence[Study],
    out: Path,
    workers: int,
    make: Callable[[], Sequence[Study]],
    begin: Callable[[int], Watch],
    end: Callable[[int, Spent], None],
    **options: Any,
) -> None:
    """Run all trainings of the studies, so many at a time.

    make: gives the same studies in another process (picklable, as a study of one's own need not
    be). begin: is called with a study's number before its first training, end after its last.
    options: of :func:`experiments.runner.run_study`, but those of the caller's terminal.
    Raises as :func:`experiments.runner.run_study`, and BadInput where a process was killed.
    """
    left = [
        Training(n, m, str(model))
        for n, study in enumerate(studies)
        for m, (model, _) in enumerate(study.trainings)
    ]
    unfinished = Counter(t.study for t in left)
    spent = {n: Spent() for n in unfinished}
    inbox: SimpleQueue[tuple[_Worker, str, tuple[Any, ...]]] = SimpleQueue()
    desks: dict[int, StudyDesk] = {}
    with ExitStack() as stack:
        shares = _shares(cores(), min(workers, len(left)))
        crew = [stack.enter_context(_worker(s, inbox, make, options)) for s in shares]
        while True:
            for worker in crew:
                if worker.at is None and left:
                    at = _next(left, worker.last, [w.at for w in crew if w.at])
                    left.remove(at)
                    if at.study not in desks:
                        watch = begin(at.study)
                        desks[at.study] = stack.enter_context(
                            StudyDesk(studies[at.study], out, watch)
                        )
                    worker.start(at, desks[at.study].done)
            if not any(w.at for w in crew):
                return
            worker, what, told = inbox.get()
            if worker.at is None:
                continue
            n = worker.at.study
            if what == "ended":
                worker.at = None
                spent[n].merge(*told)
                unfinished[n] -= 1
                if not unfinished[n]:
                    desks[n].__exit__()
                    end(n, spent[n])
            elif what == "refused":
                raise BadInput(*told)
            elif what == "failed":
                raise RuntimeError(f"a process of study {studies[n].name} failed:\n{told[0]}")
            elif what == "gone":
                raise BadInput(
                    f"a process that ran {worker.at.model} for study {studies[n].name} has died "
                    f"({worker.died()}): run the same command again, or with fewer --workers if "
                    "the memory was too small"
                )
            else:
                getattr(desks[n], what)(*told)


def _next(left: Sequence[Training], last: Training | None, busy: Sequence[Training]) -> Training:
    """For a worker that was at ``last``: the same model, whose programs it has; else one that no
    other is compiling for; else the first."""

    def place(training: Training) -> tuple[bool, bool]:
        def alike(other: Training | None) -> bool:
            return other is not None and (other.study, other.model) == key

        key = training.study, training.model
        return not alike(last), any(alike(other) for other in busy)

    return min(left, key=place)  # of equals the first


def _shares(cores: Sequence[int], workers: int) -> list[Sequence[int]]:
    """The cores in so many parts, of which none is much larger."""
    edges = [len(cores) * k // workers for k in range(workers + 1)]
    return [cores[a:b] for a, b in pairwise(edges)]


# --------------------------------------------------------------------------------- processes


class _Worker:
    """The other end of a process, and the training that it is at."""

    def __init__(self, process: Any, connection: Connection) -> None:
        self.at: Training | None = None
        self.last: Training | None = None
        self._process, self._connection = process, connection

    def start(self, training: Training, done: set[str]) -> None:
        self.at = self.last = training
        with suppress(ConnectionError):  # then it is said to be gone
            self._connection.send((training, done))

    def died(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        return f"signal {-code}" if code and code < 0 else f"exit code {code}"


@contextmanager
def _worker(
    share: Sequence[int],
    inbox: SimpleQueue[tuple[_Worker, str, tuple[Any, ...]]],
    make: Callable[[], Sequence[Study]],
    options: Mapping[str, Any],
) -> Iterator[_Worker]:
    """A process on these cores, whose messages come into the inbox; stopped at the end."""
    ours, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_work, args=(its, make, dict(options)), daemon=True)
    with _on(share):  # from its start: libraries count the cores when they are imported
        process.start()
    its.close()
    worker = _Worker(process, ours)

    def listen() -> None:
        with suppress(EOFError, OSError):
            while True:
                what, told = ours.recv()
                inbox.put((worker, what, told))
        inbox.put((worker, "gone", ()))

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield worker
    finally:
        process.terminate()
        process.join()
        ours.close()


@contextmanager
def _on(share: Sequence[int]) -> Iterator[None]:
    """What is started within has these cores, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class _Sender:
    """A desk (:class:`experiments.runner.desk.Desk`) whose records another process has."""

    connection: Connection
    done: set[str]

    def _send(self, what: str, *told: Any) -> None:
        self.connection.send((what, told))

    def model(self, line: str) -> None:
        self._send("model", line)

    def note(self, line: str) -> None:
        self._send("note", line)

    def opened(self, cells: Mapping[str, str]) -> None:
        self._send("opened", dict(cells))

    def append(self, record: Record) -> None:
        self.done.add(record["cell"])
        self._send("append", record)

    def alone(self, cells: Sequence[str]) -> None:
        self._send("alone", list(cells))


def _work(
    connection: Connection, make: Callable[[], Sequence[Study]], options: Mapping[str, Any]
) -> None:
    """What a process does until it is told to stop, or its parent is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us as well; the parent stops us
    compile_quickly()
    cache_programs()
    with suppress(EOFError, ConnectionError):
        try:
            studies = make()
            while True:
                training, done = connection.recv()
                study, clock = studies[training.study], Clock()
                model, seed = study.trainings[training.number]
                run_training(study, model, seed, _Sender(connection, done), clock, **options)
                connection.send(("ended", (clock.spent, clock.programs, peak())))
        except (EOFError, ConnectionError):
            raise
        except (BadInput, ValueError, OSError) as error:  # what can be put right
            connection.send(("refused", (str(error),)))
        except BaseException:
            connection.send(("failed", (traceback.format_exc(),)))
