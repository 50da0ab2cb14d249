"""What comes from outside: code of the user's, run so that its errors are theirs, in one line."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from perturb.cli import BadInput
from perturb.types import Matrix, Moments, Problem, Solved


def printing_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """While others' code runs: standard output is for results, a program may be reading them."""
    return contextlib.redirect_stdout(sys.stderr)


def user_code(what: str, run: Callable[[], Any], home: Path | None = None) -> Any:
    """Run what the user wrote; an exception there is theirs, told with its place in one line.

    what: whose code, for the message; home: its folder, if known: of the calls that led to the
    exception the last one there is told. A sys.exit there does not end this program.
    """
    try:
        with printing_to_stderr():
            return run()
    except (KeyboardInterrupt, BadInput):
        raise
    except BaseException as error:  # SystemExit is none of Exception
        raise BadInput(f"{what}: {told(error, home)}") from error


def told(error: BaseException, home: Path | None = None) -> str:
    """An exception in one line: its type, what it says first, and where it was raised."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}{': ' if first else ''}{first}{_place(error, home)}"


def _place(error: BaseException, home: Path | None) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its text tells already
    files = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    files = [f for f in files if Path(f.filename).is_file()]  # not <string> and the like
    if home is not None:
        files = [f for f in files if Path(f.filename).resolve().parent == home.resolve()]
    return f" ({Path(files[-1].filename).name}, line {files[-1].lineno})" if files else ""


def from_file(what: str, path: Path) -> ModuleType:
    """A Python file of the user's as a module; its neighbours import, as for a script.

    what: whose file it is, for messages. Raises :class:`BadInput` if it does not run.
    """
    name = path.stem
    while (other := sys.modules.get(name)) and getattr(other, "__file__", None) != str(path):
        name = f"_{name}"  # a file random.py must not stand in for Python's
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{what}: {path} is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    run = spec.loader.exec_module
    sys.modules[name] = module  # dataclasses look their module up
    try:
        user_code(what, lambda: run(module), path.parent)
    except BadInput:
        del sys.modules[name]
        raise
    return module


def named(what: str, source: str, name: str, kind: str) -> tuple[Any, Path | None]:
    """``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``, and the file's folder.

    kind: what it has to be, for the message. Raises :class:`BadInput`.
    """
    home = None
    if not source.endswith(".py") and os.sep not in source:
        module = user_code(what, lambda: importlib.import_module(source))
    else:
        path = Path(source)
        if not path.is_file():
            raise BadInput(f"{what}: there is no file {source}")
        module, home = from_file(what, path), path.parent
    made = getattr(module, name, None)
    if not callable(made):
        raise BadInput(f"{what}: {source} has no {kind} {name!r}")
    return made, home


# ------------------------------------------------------------------------- methods and stages


def is_outside(value: Any) -> bool:
    """Whether a method or stage is of a class that is none of ours."""
    return not type(value).__module__.startswith("perturb.")


def blamed(error: BaseException, values: Iterable[Any]) -> Any:
    """Of methods and stages from outside the one whose file an exception came through, or None."""
    files = {f.filename for f in traceback.extract_tb(error.__traceback__)}
    for value in values:
        file = getattr(sys.modules.get(type(value).__module__), "__file__", None)
        if is_outside(value) and file in files:
            return value
    return None


def check_kind(value: Any, what: str) -> None:
    """Refuse what is neither a method on matrices nor a stage, or cannot go through jax.

    Raises ValueError that says what is missing.
    """
    needs = {"name": str, "needs_stats": bool}
    kind = "stage" if hasattr(value, "on_state") else "method"
    missing = [n for n, t in needs.items() if not isinstance(getattr(value, n, None), t)]
    if kind == "stage" and not callable(getattr(value, "check", None)):
        missing.append("check(architecture)")
    if kind == "method" and not callable(value):
        missing.append("__call__(matrix, problem, key)")
    if missing:
        raise ValueError(
            f"{what} is no {kind} yet, it lacks {' and '.join(missing)}: a method on matrices is "
            "a class under @perturb.registry.method('its name') with needs_stats = False (or "
            "True) and __call__(self, matrix, problem, key) -> Solved"
        )
    if kind == "method" and jax.tree_util.all_leaves([value]):
        raise ValueError(
            f"{what} is no pytree, so that jax cannot take it: put @perturb.registry.method("
            f"{value.name!r}) above its class"
        )


def _trial(method: Any, out: int, n_in: int) -> Any:
    weight = jnp.ones((out, n_in))
    moments = Moments(jnp.eye(n_in), jnp.ones(()), jnp.zeros(n_in))
    problem = Problem(weight, moments if method.needs_stats else None)
    return method(Matrix(weight, weight != 0), problem, jax.random.key(0))


def try_out(method: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Trace a method from outside on the layers' shapes: nothing is computed.

    Raises ValueError for what it raises, and for what is no solution of the layer's problem.
    """
    first: dict[tuple[int, int], str] = {}
    for layer, shape in shapes.items():
        first.setdefault(shape, layer)
    for (out, n_in), layer in first.items():
        where = f"{method.name} on layer {layer} [{out}, {n_in}]"
        try:
            with printing_to_stderr():
                done = jax.eval_shape(partial(_trial, method, out, n_in))
        except Exception as error:
            raise ValueError(f"{where}: {told(error)}") from error
        if not isinstance(done, Solved) or not isinstance(done.matrix, Matrix):
            raise ValueError(
                f"{where} returns {type(done).__name__}: return perturb.types.Solved(matrix."
                "_replace(weight=..., mask=...), None)"
            )
        got = done.matrix.weight, done.matrix.mask
        if any(_shape(a) != (out, n_in) for a in got) or got[1].dtype != bool:
            raise ValueError(
                f"{where} returns a weight {_shape(got[0])} with a mask {_shape(got[1])} of "
                f"{got[1].dtype}: both must be [{out}, {n_in}], the mask bool (True: kept)"
            )


def _shape(a: Any) -> tuple[int, ...]:
    return tuple(a.shape)
