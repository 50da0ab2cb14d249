"""``python -m perturb``: the score of a pruner and a quantizer on one model, in both orders."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import io
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from perturb import modules, registry
from perturb.lift import CALIBRATE
from perturb.score import ARROWS, ORDERS, LayerScore, Scores, score

GROUP = "perturb.models"  # entry points: name -> callable(name, seed) -> (model, batches)
FORMATS = ("table", "csv", "json")
PIPED = 100  # columns of a table that does not go to a terminal, unless COLUMNS says otherwise

DESCRIPTION = """\
What do a pruner P and a quantizer Q do to a trained model, each alone, P first (P→Q) and
Q first (Q→P)? Every layer's perturbation, which order each layer prefers, and how far the
model's outputs move. Nothing is trained, except an embedded model the first time."""

EPILOG = """\
MODEL is one of
  a name            of an installed model (python -m perturb models lists them)
  FILE.py:FUNCTION  or PACKAGE.MODULE:FUNCTION, called without arguments (with seed=SEED if it
                    has such a parameter), returning (model, batches): an nnx.Module and a list
                    of calibration inputs; or (model, batches, forward) where forward(model,
                    batch) gives the logits

METHOD is name[:amount][,setting=value...]
  amount is a pruner's sparsity (0.5) or N:M pattern, N kept (2:4), and a quantizer's bits (4);
  settings are those that python -m perturb methods shows; a quantizer's grid takes
  symmetric=true|false, per=tensor|row|GROUP_SIZE, clip=absmax|mse, convention=half|full

examples:
  python -m perturb resnet-digits --prune wanda:0.5 --quantize gptq:4
  python -m perturb llama-docs --prune sparsegpt:2:4 --quantize gptq:3,per=32,symmetric=false
  python -m perturb mine.py:load --prune magnitude:0.7,scope=row --quantize rtn:4 --format csv
  python -m perturb vit-digits --prune wanda:0.5 --quantize rtn:4 --exclude head --order pq

calibration (--calibrate), the inputs that a stage sees:
  recalibrate  those of the model it is handed (default)
  sequential   the same, but block after block as it compresses, as the reference codes do
  dense        those of the uncompressed model

Compiled programs and models are kept in $PERTURB_CACHE, else in ~/.cache/compression-order: the
second time is faster. exit codes: 0 done, 2 bad input (one line on stderr), 1 failure of ours.
"""


class BadInput(Exception):
    """Something the user can put right; its text is the one line they read."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see python -m perturb --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m perturb",
        usage="python -m perturb MODEL --prune METHOD --quantize METHOD [options]\n"
        "       python -m perturb methods | models",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="see below; or methods, models")
    parser.add_argument("--prune", metavar="METHOD", help="for example wanda:0.5")
    parser.add_argument("--quantize", metavar="METHOD", help="for example gptq:4")
    parser.add_argument("--order", default="both", choices=ORDERS, help="default: both")
    parser.add_argument("--format", default="table", choices=FORMATS, help="default: table")
    parser.add_argument("--calibrate", default="recalibrate", choices=CALIBRATE, help="see below")
    parser.add_argument(
        "--exclude",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="layers that stay dense: names or shell patterns such as 'blocks.0.*'",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and of the methods (0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there, not to the screen")
    parser.add_argument("--list", action="store_true", help="the methods, as 'methods' does")
    return parser


# ------------------------------------------------------------------------------------ METHOD


def _kind(method: Any) -> str:
    has = {f.name for f in dataclasses.fields(method)}
    return {(True, False): "pruner", (False, True): "quantizer"}.get(
        ("sparsity" in has, "bits" in has), "neither alone"
    )


def _method(option: str, text: str | None, role: str) -> Any:
    known = sorted(n for n, cls in registry.methods().items() if _kind(cls) == role)
    example = "wanda:0.5" if role == "pruner" else "gptq:4"
    if text is None:
        raise BadInput(f"{option} is missing: name a {role} ({', '.join(known)}), as in {example}")
    name, _, amount = text.split(",")[0].partition(":")
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(
            f"{option} {text}: {name!r} is no {role}; there are {', '.join(known)}{hint}"
        )
    given = {s.partition("=")[0] for s in text.split(",")[1:]}
    if not amount and not given & {"bits", "sparsity", "scope"}:
        what = "sparsity" if role == "pruner" else "number of bits"
        raise BadInput(f"{option} {text}: the {what} is missing, as in {name}:{example[-3:]}")
    try:
        method = registry.parse(text)
    except ValueError as error:
        raise BadInput(f"{option} {text}: {error}") from error
    for owner in (method, getattr(method, "grid", None)):
        for field in dataclasses.fields(owner) if owner is not None else ():
            _check_type(f"{option} {text}", field, getattr(owner, field.name))
    return method


def _check_type(where: str, field: Any, value: Any) -> None:
    """The registry takes any text for a value; what the field is shows in its default."""
    number = field.name in registry.LEAVES or type(field.default) in (int, float)
    if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise BadInput(f"{where}: {field.name} must be a number, got {value!r}")
    if isinstance(field.default, bool) and not isinstance(value, bool):
        raise BadInput(f"{where}: {field.name} must be true or false, got {value!r}")


def _methods_text() -> str:
    lines = []
    for name, cls in sorted(registry.methods().items(), key=lambda item: (_kind(item[1]), item[0])):
        doc = (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip().splitlines()[0]
        defaults = [
            f"{f.name}={str(f.default).lower() if isinstance(f.default, bool) else f.default}"
            for f in dataclasses.fields(cls)
            if f.name not in (*registry.LEAVES, "grid")
        ]
        lines += [f"{name:<17} {_kind(cls):<10} {doc}", f"{'':<28} {', '.join(defaults)}"]
    return "\n".join([*lines, "", "Write them as name:amount,setting=value; --help has examples."])


# ------------------------------------------------------------------------------------- MODEL

Loaded = tuple[Any, Any, modules.Forward]


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _loader(text: str) -> Callable[[int], Any]:
    """What gives (model, batches) for a seed; found, but not called yet."""
    source, colon, function = text.rpartition(":")
    if not colon:
        return _preset(text)
    if not source.endswith(".py") and os.sep not in source:
        module = _user_code(text, lambda: importlib.import_module(source))
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
        _user_code(text, lambda: run(module))
    made = getattr(module, function, None)
    if not callable(made):
        raise BadInput(f"MODEL {text}: {source} has no function {function!r}")
    takes_seed = "seed" in inspect.signature(made).parameters
    return lambda seed: _user_code(text, lambda: made(seed=seed) if takes_seed else made())


def _preset(name: str) -> Callable[[int], Any]:
    known = _installed()
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

    def load(seed: int) -> Any:
        try:
            return made(name, seed)
        except (ValueError, OSError) as error:
            raise BadInput(f"MODEL {name}: {error}") from error

    return load


def _user_code(text: str, run: Callable[[], Any]) -> Any:
    """Run what the user wrote; an exception there is theirs, told with its last line."""
    try:
        return run()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        raise BadInput(f"MODEL {text}: {type(error).__name__}: {error} ({where})") from error


def _load(text: str, loader: Callable[[int], Any], seed: int, exclude: list[str]) -> Loaded:
    """The model, its batches and how to run it; refused here if it cannot be run at all."""
    made = loader(seed)
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
