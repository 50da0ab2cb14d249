"""What a verification consists of, done by several processes at once.

Proofs hold Python's lock, and programs of one process run one at a time (:func:`prepare`): what is
left to threads is compiling, and one process leaves cores idle. So this one does the tasks, longest
first, and so do processes of its own, each taking the next one when it is through.

``python -m theory.workers`` is one of those: it reads pickled tasks from its standard input, writes
pickled :data:`Message` objects to its output, and ends with its input. A terminal's Ctrl-C does not
reach it (it has a session of its own): who started it ends it.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import jax

from perturb.backend import compile_quickly
from perturb.programs import cache_programs
from theory.engine import verify as engine
from theory.engine.verify import Record, finding_record
from theory.phase.diagrams import Phase, diagrams
from theory.phase.findings import findings as phase_findings
from theory.statements.catalogue import statement

COMMAND = [sys.executable, "-m", "theory.workers"]
PHASE = "phase"  # the task that is no statement
Message = tuple[str, Any]  # ("advance", instances) while at work, then ("done", Record)


class Task(NamedTuple):
    """One statement, or PHASE for the diagrams, with the settings of the verification."""

    name: str
    instances: int
    seed: int


def prepare() -> None:
    """Before jax starts: keep compiled programs between runs, and run one program at a time.

    On few cores XLA's CPU client has been seen to wait for itself when programs are dispatched
    while others are in flight (all of its threads parked, nothing running); inline they cannot.
    """
    compile_quickly()
    cache_programs()
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def perform(task: Task, advance: Callable[[int], None] = lambda done: None) -> Record:
    """The record of a task; advance: called with the number of instances just done."""
    if task.name != PHASE:
        return engine.verify(statement(task.name), task.instances, task.seed, advance)
    phases = diagrams(jax.random.key(task.seed))
    return {
        "diagrams": [_diagram(d) for d in phases],
        "findings": [finding_record(f) for f in phase_findings(phases)],
    }


def _diagram(d: Phase) -> Record:
    arrays = ("advantage", "error", "gap", "never", "sign")
    return {
        "stage": d.stage,
        "rho": d.rho,
        "weights": d.weights,
        "bits": d.bits,
        **{name: getattr(d, name) for name in arrays},
    }


def share(
    tasks: Sequence[Task],
    others: int,
    done: dict[str, Record],
    began: Callable[[str], None] = lambda name: None,
    advance: Callable[[int], None] = lambda done: None,
) -> None:
    """All tasks, in this order, by this process and ``others`` more; their records come to ``done``
    by name, each as soon as it is finished: an exception leaves those there.

    began: called with the name of what this process takes; advance: as in :func:`perform`, from
    any thread. Raises RuntimeError when another process ends before its time.
    """
    waiting = deque(tasks)  # both ends of a deque are safe between threads
    failures: list[Exception] = []

    def take() -> Iterator[Task]:
        while waiting:
            try:
                yield waiting.popleft()
            except IndexError:  # another took the last
                return

    def ask(process: subprocess.Popen[bytes]) -> None:
        try:
            for task in take():
                done[task.name] = _ask(process, task, advance)
        except Exception as error:
            failures.append(error)
            waiting.clear()

    with _started(others) as processes:
        threads = [threading.Thread(target=ask, args=(p,), daemon=True) for p in processes]
        for thread in threads:
            thread.start()
        for task in take():
            began(task.name)
            done[task.name] = perform(task, advance)
        began("")
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _started(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, start_new_session=True)
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _ask(process: subprocess.Popen[bytes], task: Task, advance: Callable[[int], None]) -> Record:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(task, process.stdin)
        process.stdin.flush()
        while True:
            kind, value = pickle.load(process.stdout)
            if kind == "done":
                return value
            advance(value)
    except (EOFError, OSError, pickle.UnpicklingError) as error:
        raise RuntimeError(
            f"the process that verified {task.name} ended with exit code {process.wait()}; what it "
            "printed is above"
        ) from error


def work(tasks: IO[bytes], messages: IO[bytes]) -> None:
    """Perform pickled tasks until there are no more."""

    def tell(kind: str, value: Any) -> None:
        pickle.dump((kind, value), messages)
        messages.flush()

    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        tell("done", perform(Task(*task), lambda done: tell("advance", done)))


def main() -> None:
    prepare()
    # what is printed on the way must not come between messages
    messages, sys.stdout = sys.stdout.buffer, sys.stderr
    work(sys.stdin.buffer, messages)


if __name__ == "__main__":
    main()
