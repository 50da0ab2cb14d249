"""Where the time goes, and what compiling costs the process."""

from __future__ import annotations

import resource
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import jax

from perturb.network import forget_programs


@dataclass
class _Compiling:
    """Of the whole process: jax has no way to take a listener back, so there is one."""

    seconds: float = 0.0
    programs: int = 0
    listening: bool = False
    _spans: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=1000))

    def listen(self) -> None:
        if not self.listening:
            jax.monitoring.register_event_duration_secs_listener(self._heard)
            self.listening = True

    def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
        if not event.startswith("/jax/core/compile/"):
            return
        self.programs += event.endswith("backend_compile_duration")
        # heard at its end; tracing a program spans the tracing of those that it calls
        start = time.perf_counter() - duration_secs
        while self._spans and self._spans[-1][0] >= start:
            self.seconds -= self._spans.pop()[1]
        self._spans.append((start, duration_secs))
        self.seconds += duration_secs


_COMPILING = _Compiling()


@dataclass
class Clock:
    """Where the time goes, in seconds, every second once: a phase within another, and compilation
    (tracing and reading programs back, too), are taken out of the phase that they happened in.

    programs: made or read back since the clock began.
    """

    spent: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _COMPILING.listen()
        self._before = _COMPILING.programs

    @property
    def programs(self) -> int:
        return _COMPILING.programs - self._before

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, compiled, before = time.perf_counter(), _COMPILING.seconds, dict(self.spent)
        try:
            yield
        finally:
            within = {k: v - before.get(k, 0.0) for k, v in self.spent.items()}
            compiling = _COMPILING.seconds - compiled - within.get("compile", 0.0)
            own = time.perf_counter() - start - compiling - sum(within.values())
            self.spent[name] = self.spent.get(name, 0.0) + own
            self.spent["compile"] = self.spent.get("compile", 0.0) + compiling


@dataclass
class Spent:
    """What a study took: seconds of every phase, programs made, and a process's memory at most."""

    seconds: Counter[str] = field(default_factory=Counter)
    programs: int = 0
    peak: float = 0.0  # GB

    def add(self, clock: Clock) -> None:
        """What a clock of this process has counted."""
        self.merge(clock.spent, clock.programs, peak())

    def merge(self, seconds: Mapping[str, float], programs: int, gigabytes: float) -> None:
        self.seconds.update(seconds)
        self.programs += programs
        self.peak = max(self.peak, gigabytes)


def peak() -> float:
    """Memory that this process has had at most, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def drop_programs_if_many(limit: int = 40_000, maps: Path = Path("/proc/self/maps")) -> bool:
    """Forget the compiled programs if they take more than ``limit`` memory maps; whether so.

    A program for a CPU takes dozens. Linux allows a process 65530, and LLVM dies of the next one.
    """
    if not maps.exists() or maps.read_bytes().count(b"\n") <= limit:
        return False
    forget_programs()
    return True
