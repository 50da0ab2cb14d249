"""``python -m figures``: draw what a study found, from its records alone."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any, NoReturn

from matplotlib.figure import Figure

from experiments.analysis import summarize
from experiments.records import load
from perturb.files import write_atomic
from figures.manifest import DRAWINGS, SCALES, THEORY, jobs
from figures.style import FORMATS, to_bytes

EPILOG = """\
examples:
  python -m figures list
      what can be drawn, and from which records
  python -m figures --records results/embedded --out docs/figures
      every figure of a study, one file a model and measure
  python -m figures heatmap --records results/embedded/records.jsonl --measure log --format svg
      one kind of figure, with M = -NLL, which 2-bit models do not blow up

  python -m figures --theory results/theory/verify.json --out docs/figures
      what a verification of the theorems found (phase, affine, margins)

measures: natural (accuracy for images, -perplexity for text), log (-NLL), kl (-KL to the dense
model; no intervals), all. A(Q->P) > 0 means that quantizing first is better.
exit codes: 0 drawn, 2 bad input (one line on stderr), 130 stopped by Ctrl-C, 1 failure of ours.
"""
MOST_REPLICATES = 100_000


class BadInput(Exception):
    """Something the user can put right; its text is the one line they read."""


# This package imports nothing of perturb: what follows is of perturb.cli, cut to its needs.


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


class _Parser(argparse.ArgumentParser):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see python -m figures --help")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to. Leaves nothing behind."""
    try:
        place = folder
        while not place.is_symlink() and not place.exists():
            place = place.parent
        if not place.is_dir():
            raise BadInput(f"--out {folder}: {place} is a file, not a folder; name another")
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise BadInput(
            f"--out {folder}: cannot write there ({error.strerror}); name another folder"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m figures",
        description="Draw figures from the records of a study. Nothing is trained or computed "
        "anew: the same records give the same files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"list, or any of {', '.join((*DRAWINGS, *THEORY))}; all if none",
    )
    parser.add_argument(
        "--records", type=Path, help="records.jsonl (or .jsonl.gz), or the study's folder"
    )
    parser.add_argument(
        "--theory", type=Path, metavar="FILE", help="verify.json of python -m theory, instead"
    )
    parser.add_argument("--out", type=Path, help="folder to write to, made if needed")
    parser.add_argument("--format", default="png", choices=FORMATS, help="default: png")
    parser.add_argument(
        "--measure", default="natural", choices=(*SCALES, "all"), help="default: natural"
    )
    parser.add_argument("--model", action="append", help="only this model (may be repeated)")
    parser.add_argument(
        "--replicates", type=int, default=1000, metavar="B", help="bootstrap replicates (1000)"
    )
    return parser


def _records_file(path: Path | None) -> Path:
    if path is None:
        raise BadInput("--records is missing: name a records.jsonl or the folder of a study")
    tried = [path] if not path.is_dir() else [path / "records.jsonl", path / "records.jsonl.gz"]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise BadInput(f"no records at {tried[0]}: run the study first, or give its folder")


def _listing() -> str:
    lines = []
    for drawing in DRAWINGS.values():
        lines += [f"{drawing.name:<10} {drawing.shows}", f"{'':<10} needs {drawing.needs}"]
    for name, (shows, _) in THEORY.items():
        lines += [f"{name:<10} {shows}", f"{'':<10} needs verify.json of python -m theory verify"]
    return "\n".join(lines)


def _write(figure: Figure, path: Path, format: str) -> None:
    try:
        write_atomic(path, to_bytes(figure, format))
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error
    print(path)


def _draw_theory(arguments: argparse.Namespace) -> None:
    """The figures of a verification's record."""
    file: Path = arguments.theory
    try:
        raw = file.read_bytes()
        record = json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)
    except OSError as error:
        raise BadInput(
            f"--theory {file}: {error.strerror}; python -m theory verify writes it"
        ) from error
    except (ValueError, EOFError, zlib.error) as error:
        raise BadInput(f"--theory {file} is no JSON: {error}") from error
    if not isinstance(record, dict) or not {"statements", "phase", "affine"} <= record.keys():
        raise BadInput(f"--theory {file} is no record of python -m theory verify")
    for name in dict.fromkeys(arguments.names) or THEORY:
        try:
            figure = THEORY[name][1](record)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(
                f"--theory {file}: {name} cannot be drawn, it lacks {error}; "
                "python -m theory verify writes it anew"
            ) from error
        if figure is not None:
            _write(figure, arguments.out / f"{name}.{arguments.format}", arguments.format)


def run(argv: list[str]) -> None:
    """Parse, draw and write; raises :class:`BadInput` for what the user can put right."""
    arguments = _parser().parse_args(argv)
    if arguments.names == ["list"]:
        print(_listing())
        return
    known = DRAWINGS if arguments.theory is None else THEORY
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        other = THEORY if known is DRAWINGS else DRAWINGS
        hint = "; it needs " + ("--theory" if known is DRAWINGS else "--records")
        raise BadInput(
            f"no figure named {unknown[0]!r}{hint if unknown[0] in other else ''}: there are "
            f"{', '.join(known)}"
        )
    if arguments.out is None:
        raise BadInput("--out is missing: name the folder to write the figures to")
    if not 1 <= arguments.replicates <= MOST_REPLICATES:
        raise BadInput(
            f"--replicates {arguments.replicates}: must be at least 1 and at most {MOST_REPLICATES}"
        )
    _check_folder(arguments.out)
    if arguments.records is not None and arguments.theory is not None:
        raise BadInput("--records and --theory exclude each other: draw one after the other")
    if arguments.theory is not None:
        _draw_theory(arguments)
        return
    file = _records_file(arguments.records)
    try:
        summary = summarize(load(file), replicates=arguments.replicates)
    except (ValueError, OSError, zlib.error) as error:
        raise BadInput(f"{file}: {error}" if str(file) not in str(error) else str(error)) from error
    for model in arguments.model or ():
        if model not in summary.models:
            raise BadInput(f"no model {model!r} in {file}: it has {', '.join(summary.models)}")
    scales = SCALES if arguments.measure == "all" else (arguments.measure,)
    names = tuple(dict.fromkeys(arguments.names)) or tuple(DRAWINGS)
    models = tuple(dict.fromkeys(arguments.model or summary.models))
    todo = list(jobs(summary, names, models, scales))
    if not todo:
        raise BadInput(f"{file} has no cell with both orders: nothing to draw yet")
    for job in todo:
        figure = job.drawing.draw(summary, job.model, job.scale)
        _write(figure, arguments.out / job.filename(arguments.format), arguments.format)
    if summary.problems:
        print(f"{len(summary.problems)} left out or missing, first: {summary.problems[0]}")


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 drawn, 2 bad input, 130 Ctrl-C. Anything else raises: Python's 1."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, head for one, has seen enough: the rest is not drawn
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
