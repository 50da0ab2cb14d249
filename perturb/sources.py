"""Where models come from: what a MODEL on the command line names, as something that can be run.

    model, batches, forward = load(text, loader(text), seed=0, exclude=[])

A MODEL is the name of an installed model (an entry point of the group ``perturb.models``),
``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``. Models are found by name at run time, so
whatever uses this door imports neither the models nor what trained them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import jax

from perturb import modules

GROUP = "perturb.models"  # entry points: name -> callable(name, seed) -> (model, batches)


class BadInput(Exception):
    """Something the user can put right; its text is the one line they read."""


Loaded = tuple[Any, Any, modules.Forward]  # model, calibration batches, forward(model, batch)


def installed() -> dict[str, EntryPoint]:
    """The models that can be named, in the order in which their packages declare them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def loader(text: str) -> Callable[[int], Any]:
    """What gives (model, batches) or (model, batches, forward) for a seed; not called yet.

    Raises :class:`BadInput` for a MODEL that names nothing callable.
    """
    source, colon, function = text.rpartition(":")
    if not colon:
        return preset(text)
    if not source.endswith(".py") and os.sep not in source:
        module = user_code(text, lambda: importlib.import_module(source))
    else:
        path = Path(source)
        if not path.is_file():
            raise BadInput(f"MODEL {text}: there is no file {source}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise BadInput(f"MODEL {text}: {source} is no Python file (.py)")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent.resolve()))  # as for a script: its neighbours import
        run = spec.loader.exec_module
        user_code(text, lambda: run(module))
    made = getattr(module, function, None)
    if not callable(made):
        raise BadInput(f"MODEL {text}: {source} has no function {function!r}")
    takes_seed = "seed" in inspect.signature(made).parameters
    return lambda seed: user_code(text, lambda: made(seed=seed) if takes_seed else made())


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
            return made(name, seed)
        except (ValueError, OSError) as error:
            raise BadInput(f"MODEL {name}: {error}") from error

    return make


def user_code(text: str, run: Callable[[], Any]) -> Any:
    """Run what the user wrote; an exception there is theirs, told with its last line."""
    try:
        return run()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        raise BadInput(f"MODEL {text}: {type(error).__name__}: {error} ({where})") from error


def load(text: str, make: Callable[[int], Any], seed: int, exclude: Sequence[str] = ()) -> Loaded:
    """The model, its batches and how to run it; refused here if it cannot be run at all.

    text: the MODEL, for messages; make: what :func:`loader` gave for it; exclude: patterns of
    layers to leave alone. Raises :class:`BadInput` for what the user can put right.
    """
    made = make(seed)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise BadInput(
            f"MODEL {text}: it must return (model, calibration batches), or these two and "
            f"forward; it returned {type(made).__name__}"
            + (f" of {len(made)}" if isinstance(made, (tuple, list)) else "")
        )
    model, calibration, forward = made if len(made) == 3 else (*made, modules.call)
    try:
        specs, _ = modules.find_layers(model, exclude=exclude)
        batch = modules.batches_of(calibration)[0]
    except ValueError as error:
        raise BadInput(f"MODEL {text}: {error}") from error
    try:
        modules.call_order(model, specs, batch, forward)
    except ValueError as error:
        raise BadInput(f"MODEL {text}: on its first calibration batch: {error}") from error
    except Exception as error:
        shapes = ", ".join(str(getattr(a, "shape", a)) for a in jax.tree.leaves(batch))
        raise BadInput(
            f"MODEL {text}: it cannot be run on its first calibration batch, of shape {shapes}: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    return model, calibration, forward


def compilation_cache() -> None:
    """Keep compiled programs between runs: compiling is most of what a small model costs."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        root = os.environ.get("PERTURB_CACHE") or f"{base}/compression-order"
        jax.config.update("jax_compilation_cache_dir", str(Path(root).expanduser() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
