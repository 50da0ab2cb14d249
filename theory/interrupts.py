"""Ctrl-C is heard wherever it falls.

Python raises KeyboardInterrupt in whatever code is running. In a finalizer or a callback of the
garbage collector (jax has one, and compiling collects a lot) it is printed and dropped, and hours
of work go on as if nobody had asked them to stop.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = 0.05  # seconds: by then the finalizer is left


@contextmanager
def heard() -> Iterator[None]:
    """Inside, a KeyboardInterrupt that was dropped is raised again, until it is not."""
    before = sys.unraisablehook

    def again(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            before(dropped)
            return
        main = threading.main_thread().ident
        assert main is not None
        timer = threading.Timer(AGAIN, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before
