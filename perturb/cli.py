"""What the command lines share: bad input in one line, checks before any work, exit codes.

No jax: ``figures`` and the reports on records come without it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# 128 + SIGINT and 128 + SIGTERM, as shells count
BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
PIPED = 100  # columns of a table that does not go to a terminal, unless COLUMNS says otherwise
MAX_SEED = 2**32 - 1  # jax keeps 32 bits of a seed: beyond, two seeds would be one key


class BadInput(Exception):
    """Something the user can put right; its text is the one line they read."""


class _Once(argparse.Action):
    """Stores a value, and refuses a second one: silently the last would count."""

    seen = False

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None:
            if self.seen:
                parser.error(f"{option_string} is given twice: leave one out")
            self.seen = True
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Raises :class:`BadInput` instead of printing its usage; an option is given once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def seed(text: str) -> int:
    """The value of ``--seed``."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= MAX_SEED:
        raise BadInput(f"--seed {text[:40]}: must be a whole number from 0 to {MAX_SEED}")
    return value


def columns() -> int:
    """How wide to print where there is no terminal."""
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdecimal() and int(text) else PIPED


def check_folder(what: str, folder: Path) -> None:
    """Refuse a folder that cannot be made or written to. Leaves nothing behind.

    what: the option or variable that named it, for the message.
    """
    try:
        place = folder
        while not _is_there(place):
            place = place.parent
        if not place.is_dir():
            raise BadInput(f"{what} {folder}: {place} is a file, not a folder; name another")
        # tried, not asked: os.access says yes to root where a file system still says no
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise BadInput(
            f"{what} {folder}: cannot write there ({error.strerror}); name another folder"
        ) from error


def check_file(what: str, file: Path) -> None:
    """Refuse a file that cannot be written, or whose folder is not there."""
    try:
        if file.is_dir():
            raise BadInput(f"{what} {file} is a folder: name a file in it")
        if not file.parent.is_dir():
            raise BadInput(f"{what} {file} lies in no existing folder: make {file.parent} first")
        if not _is_there(file):
            tempfile.TemporaryFile(dir=file.parent).close()
        elif not os.access(file, os.W_OK):
            raise BadInput(f"{what} {file} may not be written: name another file")
    except OSError as error:
        raise BadInput(
            f"{what} {file}: cannot write there ({error.strerror}); name another file"
        ) from error


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def _short_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def one_line(text: object) -> str:
    return " ".join(str(text).split())


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever lets Ctrl-C pass lets this pass."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """While a command runs, SIGTERM ends it as Ctrl-C does: what is open is closed."""

    def stop(*_: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # may not handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def call(
    run: Callable[[list[str]], int | None],
    argv: Sequence[str] | None,
    stopped: str = "stopped",
) -> int:
    """A command's exit code: what ``run`` returns (None: 0), 2 bad input, 130 Ctrl-C, 143 SIGTERM.

    Warnings are a line each. Anything else raises: Python's 1, with a traceback.
    """
    try:
        with _sigterm_raises(), _short_warnings():
            code = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BadInput as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        print(stopped, file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except BrokenPipeError:  # the reader, head for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code or 0
