"""Several processes at one verification: every task once, nothing lost, and none left behind."""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from theory import workers
from theory.workers import Task

TASKS = [Task(name, 100, 3) for name in ("robust", "intensity", "rotation", "lowrank")]


def perform(task, advance=lambda done: None):
    advance(task.instances)
    return {"name": task.name, "process": os.getpid()}


def fail(task, advance=lambda done: None):
    raise ZeroDivisionError("on purpose")


def alike(monkeypatch, name="perform"):
    """Processes that do what ``perform`` says, without the seconds that jax takes to start."""
    code = (
        f"from tests.test_theory_workers import {name}; from theory import workers; "
        f"workers.perform = {name}; workers.main()"
    )
    monkeypatch.setattr(workers, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setattr(workers, "perform", perform)


@pytest.fixture
def started(monkeypatch):
    """The processes that are started."""
    found, real = [], workers._started

    @contextmanager
    def noted(count):
        with real(count) as processes:
            found.extend(processes)
            yield processes

    monkeypatch.setattr(workers, "_started", noted)
    return found


@pytest.mark.parametrize("others", [0, 1, 2])
def test_every_task_is_done_once(monkeypatch, others):
    alike(monkeypatch)
    done, began, advanced = {}, [], []

    def after_the_others(task, advance):
        wait_for(done, others)  # each of them has done one
        return perform(task, advance)

    monkeypatch.setattr(workers, "perform", after_the_others)
    workers.share(TASKS, others, done, began.append, advanced.append)
    assert {t.name for t in TASKS} == set(done)
    assert all(done[name]["name"] == name for name in done)
    assert sum(advanced) == 100 * len(TASKS)
    here = [name for name in done if done[name]["process"] == os.getpid()]
    assert sorted(here) == sorted(began[:-1])
    assert began[-1] == ""
    assert bool(others) == (len(here) < len(TASKS))


def wait_for(done, count):
    for _ in range(2000):
        if len(done) >= count:
            return
        time.sleep(0.02)
    raise AssertionError("no other process did anything")


def test_a_process_that_fails_is_told_and_none_is_left(monkeypatch, started, capfd):
    alike(monkeypatch, "fail")
    done = {}

    def after_the_other(task, advance):
        started[0].wait(100)
        for thread in threading.enumerate():  # that it ended is heard a moment later
            if "(ask)" in thread.name:
                thread.join(100)
        return perform(task)

    monkeypatch.setattr(workers, "perform", after_the_other)
    with pytest.raises(RuntimeError, match=r"verified (robust|intensity) ended with exit code 1"):
        workers.share(TASKS, 1, done)
    assert "on purpose" in capfd.readouterr().err
    assert set(done) <= {"robust", "intensity"}  # what this process did meanwhile, no more
    assert len(done) == 1
    assert all(p.poll() is not None for p in started)


def test_an_interrupt_keeps_what_is_done_and_ends_the_others(monkeypatch, started):
    alike(monkeypatch)
    done = {}

    def interrupted(task, advance):
        wait_for(done, 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workers.share(TASKS, 1, done)
    assert len(done) == 3
    assert started[0].poll() is not None


def test_the_messages_of_a_process(monkeypatch):
    monkeypatch.setattr(workers, "perform", perform)
    tasks, messages = io.BytesIO(), io.BytesIO()
    for task in TASKS[:2]:
        pickle.dump(task, tasks)
    tasks.seek(0)
    workers.work(tasks, messages)
    messages.seek(0)
    heard = [pickle.load(messages) for _ in range(4)]
    assert [kind for kind, _ in heard] == ["advance", "done"] * 2
    assert [value["name"] for kind, value in heard if kind == "done"] == ["robust", "intensity"]
