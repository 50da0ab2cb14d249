"""``python -m figures``: draw what a study found, from its records alone."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from experiments.analysis import summarize
from experiments.analysis.chains import chains_of
from experiments.findings.types import LOG
from experiments.records import load
from experiments.summary import OWN, Summary
from figures.manifest import CHAINS, DRAWINGS, SCALES, THEORY, jobs
from figures.stored import manifest, sheets
from figures.style import FORMATS, to_bytes
from perturb import cli
from perturb.cli import BadInput
from perturb.files import write_atomic

EPILOG = """\
examples:
  python -m figures list
      what can be drawn, and from which records
  python -m figures
      every figure of the repository, as PNG and PDF, from the records in it
  python -m figures --records results/embedded --out docs/figures
      every figure of a study, one file a model and measure
  python -m figures orders --records results/multistage --out docs/figures
      the figure of a study of other chains than pairs
  python -m figures heatmap --records results/embedded/records.jsonl --measure log --format svg
      one kind of figure, with M = -NLL, which 2-bit models do not blow up

  python -m figures --theory results/theory/verify.json --out docs/figures
      what a verification of the theorems found (phase, affine, margins)

measures: natural (accuracy for images, -perplexity for text), log (-NLL), kl (-KL to the dense
model), own:NAME (a measure of your own task), all. A(Q->P) > 0 means that quantizing first is
better.
exit codes: 0 drawn, 2 bad input (one line on stderr), 130 stopped by Ctrl-C, 1 failure of ours.
"""
MOST_REPLICATES = 100_000
KINDS = {**DRAWINGS, **CHAINS, "claims": None, **THEORY}


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
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
        help=f"list, or any of {', '.join((*DRAWINGS, *CHAINS, *THEORY))}; all if none",
    )
    parser.add_argument(
        "--records",
        type=Path,
        help="records.jsonl (or .jsonl.gz), a summary.json (or .json.gz), or the study's folder",
    )
    parser.add_argument(
        "--theory", type=Path, metavar="FILE", help="verify.json of python -m theory, instead"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to write to (of the repository's figures: results/figures)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="default: png; of the repository's figures pdf, too"
    )
    parser.add_argument(
        "--measure", help=f"{', '.join(SCALES)}, own:NAME or all; default: natural, or your own"
    )
    parser.add_argument("--model", action="append", help="only this model (may be repeated)")
    parser.add_argument(
        "--replicates", type=int, default=1000, metavar="B", help="bootstrap replicates (1000)"
    )
    return parser


def _records_file(path: Path) -> Path:
    names = ("records.jsonl", "records.jsonl.gz", "summary.json")
    tried = [path] if not path.is_dir() else [path / name for name in names]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise BadInput(f"no records at {tried[0]}: run the study first, or give its folder")


def _summary(file: Path, replicates: int) -> Summary:
    """Of records, or what was made of them before."""
    if file.name.endswith((".json", ".json.gz")):
        raw = file.read_bytes()
        return Summary.from_json((gzip.decompress(raw) if file.suffix == ".gz" else raw).decode())
    return summarize(load(file), replicates=replicates)


def _listing() -> str:
    lines = []
    for drawing in DRAWINGS.values():
        lines += [f"{drawing.name:<12} {drawing.shows}", f"{'':<12} needs {drawing.needs}"]
    for one in CHAINS.values():
        lines += [f"{one.name:<12} {one.shows}", f"{'':<12} needs the study {one.study}"]
    for name, (shows, _) in THEORY.items():
        lines += [f"{name:<12} {shows}", f"{'':<12} needs verify.json of python -m theory verify"]
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


def _draw_all(arguments: argparse.Namespace) -> None:
    """What the repository's records give, a folder a study."""
    out: Path = arguments.out or Path("results/figures")
    cli.check_folder("--out", out)
    formats = (arguments.format,) if arguments.format else ("png", "pdf")
    for sheet in sheets(arguments.names):
        if sheet.missing:
            print(f"{sheet.name}: no records, python -m experiments run {sheet.study} makes them")
            continue
        figure = sheet.draw()
        for format in formats if figure is not None else ():
            path = out / sheet.study / f"{sheet.name}.{format}"
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(figure, path, format)  # type: ignore[arg-type]
    if not arguments.names:
        write_atomic(out / "MANIFEST.md", manifest())
        print(out / "MANIFEST.md")


def _draw_chains(arguments: argparse.Namespace) -> None:
    """Figures of other chains than pairs, of any study's records."""
    file = _records_file(arguments.records)
    for name in dict.fromkeys(arguments.names):
        try:
            found = tuple(chains_of(load(file), LOG, arguments.replicates))
            figure = CHAINS[name].draw(found)
        except (KeyError, IndexError, StopIteration, ValueError, TypeError) as error:
            raise BadInput(
                f"{file}: {name} cannot be drawn of these records ({error}); it needs those of "
                f"the study {CHAINS[name].study}"
            ) from error
        _write(figure, arguments.out / f"{name}.{arguments.format}", arguments.format)


def run(argv: list[str]) -> None:
    """Parse, draw and write; raises :class:`BadInput` for what the user can put right."""
    arguments = _parser().parse_args(argv)
    if arguments.names == ["list"]:
        print(_listing())
        return
    named = arguments.records is not None or arguments.theory is not None
    known: Mapping[str, object] = (
        THEORY if arguments.theory else {**DRAWINGS, **CHAINS} if named else KINDS
    )
    unknown = [name for name in arguments.names if name not in known]
    if unknown:
        other = DRAWINGS if known is THEORY else THEORY
        hint = "; it needs " + ("--records" if known is THEORY else "--theory")
        raise BadInput(
            f"no figure named {unknown[0]!r}{hint if unknown[0] in other else ''}: there are "
            f"{', '.join(known)}"
        )
    if not named:
        _draw_all(arguments)
        return
    arguments.format = arguments.format or "png"
    if arguments.out is None:
        raise BadInput("--out is missing: name the folder to write the figures to")
    if not 1 <= arguments.replicates <= MOST_REPLICATES:
        raise BadInput(
            f"--replicates {arguments.replicates}: must be at least 1 and at most {MOST_REPLICATES}"
        )
    wanted = arguments.measure
    if wanted not in (None, "all", *SCALES) and not wanted.startswith(OWN):
        raise BadInput(f"--measure {wanted}: choose {', '.join(SCALES)}, {OWN}NAME or all")
    cli.check_folder("--out", arguments.out)
    if arguments.records is not None and arguments.theory is not None:
        raise BadInput("--records and --theory exclude each other: draw one after the other")
    if arguments.theory is not None:
        _draw_theory(arguments)
        return
    if CHAINS.keys() & set(arguments.names):
        if not CHAINS.keys() >= set(arguments.names):
            raise BadInput(f"draw {', '.join(CHAINS)} apart from the other figures")
        _draw_chains(arguments)
        return
    file = _records_file(arguments.records)
    try:
        summary = _summary(file, arguments.replicates)
    except (ValueError, OSError, zlib.error) as error:
        raise BadInput(f"{file}: {error}" if str(file) not in str(error) else str(error)) from error
    for model in arguments.model or ():
        if model not in summary.models:
            raise BadInput(f"no model {model!r} in {file}: it has {', '.join(summary.models)}")
    if wanted is not None and wanted.startswith(OWN) and wanted not in summary.scales:
        raise BadInput(f"--measure {wanted}: {file} has {', '.join(summary.scales) or 'none'}")
    scales = summary.scales if wanted == "all" else None if wanted is None else (wanted,)
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
    """The exit code (:func:`perturb.cli.call`); 1 where the reader of its output, head for one,
    had seen enough: the rest is not drawn."""

    def drawn(arguments: list[str]) -> int:
        try:
            run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return 0

    return cli.call(drawn, argv)


if __name__ == "__main__":
    sys.exit(main())
