"""Where models come from: what a MODEL on the command line names, as something that can be run.

    model, batches, forward, token_weights = load(text, loader(text), seed=0, exclude=[])

A MODEL is the name of an installed model (an entry point of the group ``perturb.models``),
``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``. Models are found by name at run time, so
whatever uses this door imports neither the models nor what trained them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from perturb import network
from perturb.cli import BadInput as BadInput

GROUP = "perturb.models"  # entry points: name -> callable(name, seed) -> (model, batches)

# model, calibration batches, forward(model, batch), token weights if the loader has any
Loaded = tuple[Any, list[Any], network.Forward, network.TokenWeights | None]


def installed() -> dict[str, EntryPoint]:
    """The models that can be named, in the order in which their packages declare them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def loader(text: str) -> Callable[[int], Any]:
    """What gives a model with its batches for a seed (see :func:`load`); not called yet.

    Raises :class:`BadInput` for a MODEL that names nothing callable.
    """
    source, colon, function = text.rpartition(":")
    if not colon:
        return preset(text)
    what, home = f"MODEL {text}", None
    if not source.endswith(".py") and os.sep not in source:
        module = user_code(what, lambda: importlib.import_module(source))
    else:
        path = Path(source)
        if not path.is_file():
            raise BadInput(f"{what}: there is no file {source}")
        module, home = from_file(what, path), path.parent
    made = getattr(module, function, None)
    if not callable(made):
        raise BadInput(f"{what}: {source} has no function {function!r}")
    try:
        takes_seed = "seed" in inspect.signature(made).parameters
    except (TypeError, ValueError):  # a builtin does not tell
        takes_seed = False
    return lambda seed: user_code(what, lambda: made(seed=seed) if takes_seed else made(), home)


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


def preset(name: str) -> Callable[[int], Any]:
    """:func:`loader` for an installed model's name."""
    known = installed()
    if name not in known:
        names = ", ".join(known) or (
            "none: entry points come with an installation, run pip install -e . again"
        )
        function = f"; for a file say which function, {name}:FUNCTION" if ".py" in name else ""
        raise BadInput(
            f"MODEL {name}: no model of that name is installed (installed: {names}){function}; "
            "your own model is FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, see --help"
        )
    try:
        made = known[name].load()
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"MODEL {name}: its entry point {known[name].value} does not load ({error}); "
            "run pip install -e . again"
        ) from error

    def make(seed: int) -> Any:
        try:
            with printing_to_stderr():
                return made(name, seed)
        except (ValueError, OSError) as error:
            raise BadInput(f"MODEL {name}: {error}") from error

    return make


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
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit is none of Exception
        told = (str(error).strip().splitlines() or [""])[0]
        raise BadInput(
            f"{what}: {type(error).__name__}{': ' if told else ''}{told}{_place(error, home)}"
        ) from error


def _place(error: BaseException, home: Path | None) -> str:
    if isinstance(error, SyntaxError):
        return ""  # its text tells already
    files = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    files = [f for f in files if Path(f.filename).is_file()]  # not <string> and the like
    if home is not None:
        files = [f for f in files if Path(f.filename).resolve().parent == home.resolve()]
    return f" ({Path(files[-1].filename).name}, line {files[-1].lineno})" if files else ""


def load(text: str, make: Callable[[int], Any], seed: int, exclude: Sequence[str] = ()) -> Loaded:
    """The model, its batches and how to run it; refused here if it cannot be run at all.

    text: the MODEL, for messages; make: what :func:`loader` gave for it, a function of the seed
    that returns (model, batches), (.., .., forward) or (.., .., forward, token_weights), where
    None is a forward that calls the model; exclude: patterns of layers to leave alone. Batches
    are listed once, a generator of them too. Raises :class:`BadInput` for what the user can put
    right.
    """
    what = f"MODEL {text}"
    made = make(seed)
    if not isinstance(made, tuple) or len(made) not in (2, 3, 4):
        raise BadInput(
            f"{what}: it must return (model, calibration batches), or these two and forward, or "
            f"these three and token_weights; it returned {type(made).__name__}"
            + (f" of {len(made)}" if isinstance(made, (tuple, list)) else "")
        )
    model, calibration, forward, token_weights = [*made, None, None][:4]
    for name, function in (("forward", forward), ("token_weights", token_weights)):
        if function is not None and not callable(function):
            raise BadInput(
                f"{what}: its {name} must be a function (or None), got {type(function).__name__}"
            )
    forward = network.call if forward is None else forward
    if isinstance(calibration, str) or not isinstance(calibration, Iterable):
        raise BadInput(
            f"{what}: its calibration batches must be a list of model inputs, "
            f"got {type(calibration).__name__}"
        )
    if not (isinstance(calibration, (Mapping, list, tuple)) or hasattr(calibration, "shape")):
        calibration = user_code(what, lambda: list(calibration))  # a generator is theirs to run
    try:
        specs, _ = network.find_layers(model, exclude=exclude)
        batches = network.batches_of(calibration)
    except ValueError as error:
        raise BadInput(f"{what}: {error}") from error
    seen = set()
    for i, batch in enumerate(batches):
        shapes = [np.shape(a) for a in jax.tree.leaves(batch)]
        form = (jax.tree.structure(batch), *shapes)
        if form not in seen:
            seen.add(form)
            _check_runs(f"{what}: on calibration batch {i}", model, specs, batch, forward, shapes)
    return model, batches, forward, token_weights


def _check_runs(
    what: str, model: Any, specs: Any, batch: Any, forward: network.Forward, shapes: list[Any]
) -> None:
    """Trace the model once on a batch: nothing is computed."""
    try:
        with printing_to_stderr():
            network.call_order(model, specs, batch, forward)
    except ValueError as error:
        raise BadInput(f"{what}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BadInput(
            f"{what}, of shape {', '.join(map(str, shapes))}, the model cannot be run: "
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        ) from error


def compilation_cache() -> None:
    """Keep compiled programs between runs: compiling is most of what a small model costs."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        root = os.environ.get("PERTURB_CACHE") or f"{base}/compression-order"
        jax.config.update("jax_compilation_cache_dir", str(Path(root).expanduser() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
