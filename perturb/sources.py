"""Where models come from: what a MODEL on the command line names, as something that can be run.

    loaded = load(text, loader(text), seed=0, exclude=[])
    loaded.model, loaded.calibration, loaded.heldout, loaded.forward, loaded.token_weights

A MODEL is the name of an installed model (an entry point of the group ``perturb.models``),
``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``, or a published checkpoint (a folder or file,
which an entry point of the group ``perturb.folders`` builds). Models are found by name at run time,
so whatever uses this door imports neither the models nor what trained them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import jax
import numpy as np

from perturb import network
from perturb.checkpoints import is_checkpoint
from perturb.cli import BadInput as BadInput
from perturb.outside import from_file as from_file
from perturb.outside import named, user_code
from perturb.outside import printing_to_stderr as printing_to_stderr

GROUP = "perturb.models"  # entry points: name -> callable(name, seed) -> what load takes
FOLDERS = (
    "perturb.folders"  # any name -> callable(folder, text=, images=, window=) -> what load takes
)


@dataclass(frozen=True)
class Loaded:
    """A model that can be run, with its data.

    calibration, heldout: batches of model inputs, what stages look at and what their results are
    compared on (None: nothing apart); forward(model, batch): the logits; token_weights(batch):
    weights of its tokens, 0 for padding.
    """

    model: Any
    calibration: list[Any]
    heldout: list[Any] | None = None
    forward: network.Forward = network.call
    token_weights: network.TokenWeights | None = None


KEYS = tuple(f.name for f in fields(Loaded))
AS_TUPLE = ("model", "calibration", "forward", "token_weights")


def installed() -> dict[str, EntryPoint]:
    """The models that can be named, in the order in which their packages declare them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def loader(text: str, data: Mapping[str, Any] | None = None) -> Callable[[int], Any]:
    """What gives a model with its batches for a seed (see :func:`load`); not called yet.

    data: for a checkpoint, "text", a file, or "images", a folder, and "window", the tokens an
    example has or the side of an image; None: not said.
    Raises :class:`BadInput` for a MODEL that names nothing callable, and data for what takes none.
    """
    said = {k: v for k, v in (data or {}).items() if v is not None}
    if is_checkpoint(text) and text not in installed():
        return checkpoint(text, said)
    for name, value in said.items():
        raise BadInput(f"--{name} {value}: only a checkpoint takes it, not {text}")
    source, colon, function = text.rpartition(":")
    if not colon:
        return preset(text)
    what = f"MODEL {text}"
    made, home = named(what, source, function, "function")
    try:
        takes_seed = "seed" in inspect.signature(made).parameters
    except (TypeError, ValueError):  # a builtin does not tell
        takes_seed = False
    return lambda seed: user_code(what, lambda: made(seed=seed) if takes_seed else made(), home)


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


def checkpoint(path: str, data: Mapping[str, Any]) -> Callable[[int], Any]:
    """:func:`loader` for a folder with a config.json."""
    what = f"MODEL {path}"
    points = list(entry_points(group=FOLDERS))
    if not points:
        raise BadInput(f"{what}: nothing installed builds checkpoints; run pip install -e . again")
    made = points[0].load()

    def make(_: int) -> Any:
        try:
            with printing_to_stderr():
                return made(path, **data)
        except (ValueError, OSError) as error:
            raise BadInput(f"{what}: {error}") from error

    return make


def load(
    text: str,
    make: Callable[[int], Any],
    seed: int,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
) -> Loaded:
    """The model, its batches and how to run it; refused here if it cannot be run at all.

    text: the MODEL, for messages; make: what :func:`loader` gave for it, a function of the seed
    that returns a dict with the keys of :class:`Loaded` (model and calibration at least), a
    :class:`Loaded`, or a tuple (model, calibration), (.., .., forward) or (.., .., forward,
    token_weights); None stands for what is absent. exclude, include: patterns of layers to leave
    alone, of embeddings to take in. Batches are listed once, a generator of them too. Raises
    :class:`BadInput` for what the user can put right.
    """
    what = f"MODEL {text}"
    given = _given(what, make(seed))
    model, forward = given["model"], given.get("forward")
    token_weights = given.get("token_weights")
    for name in ("forward", "token_weights"):
        function = given.get(name)
        if function is not None and not callable(function):
            raise BadInput(
                f"{what}: its {name} must be a function (or None), got {type(function).__name__}"
            )
    forward = network.call if forward is None else forward
    calibration = _batches(what, given["calibration"], "calibration batches")
    heldout = None
    if given.get("heldout") is not None:
        heldout = _batches(what, given["heldout"], "held-out batches")
    try:
        specs, _ = network.find_layers(model, exclude=exclude, include=include)
    except ValueError as error:
        raise BadInput(f"{what}: {error}") from error
    seen = set()
    for kind, batches in (("calibration", calibration), ("held-out", heldout or [])):
        for i, batch in enumerate(batches):
            shapes = [np.shape(a) for a in jax.tree.leaves(batch)]
            form = (jax.tree.structure(batch), *shapes)
            if form not in seen:
                seen.add(form)
                _check_runs(f"{what}: on {kind} batch {i}", model, specs, batch, forward, shapes)
    return Loaded(model, calibration, heldout, forward, token_weights)


def _given(what: str, made: Any) -> dict[str, Any]:
    """What a loader returned, by the names of :class:`Loaded`'s fields."""
    if isinstance(made, Loaded):
        return {name: getattr(made, name) for name in KEYS}
    if isinstance(made, tuple) and len(made) in (2, 3, 4):
        return dict(zip(AS_TUPLE, made, strict=False))
    if isinstance(made, Mapping):
        unknown = [str(k) for k in made if k not in KEYS]
        missing = [k for k in KEYS[:2] if k not in made]
        if unknown or missing:
            wrong = f"unknown is {unknown[0]!r}" if unknown else f"{missing[0]!r} is missing"
            raise BadInput(f"{what}: the keys of what it returns are {', '.join(KEYS)}; {wrong}")
        return dict(made)
    raise BadInput(
        f"{what}: it must return (model, calibration batches), or these two and forward, or "
        f"these three and token_weights, or a dict with keys {', '.join(KEYS)}; it returned "
        f"{type(made).__name__}" + (f" of {len(made)}" if isinstance(made, (tuple, list)) else "")
    )


def _batches(what: str, given: Any, kind: str) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadInput(
            f"{what}: its {kind} must be a list of model inputs, got {type(given).__name__}"
        )
    if not (isinstance(given, (Mapping, list, tuple)) or hasattr(given, "shape")):
        given = user_code(what, lambda: list(given))  # a generator is theirs to run
    try:
        return network.batches_of(given)
    except ValueError as error:
        told = str(error)
        if kind != "calibration batches":
            told = told.replace("the calibration set", f"the set of {kind}")
        raise BadInput(f"{what}: {told}") from error


def _check_runs(
    what: str, model: Any, specs: Any, batch: Any, forward: network.Forward, shapes: list[Any]
) -> None:
    """Trace the model once on a batch: nothing is computed."""
    try:
        with printing_to_stderr():
            network.call_order(model, specs, batch, forward)
    except ValueError as error:
        told = str(error).replace("on a calibration batch of", "on a batch of")
        raise BadInput(f"{what}: {told}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise BadInput(
            f"{what}, of shape {', '.join(map(str, shapes))}, the model cannot be run: "
            f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        ) from error
