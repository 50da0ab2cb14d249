"""``python -m theory``: what is proved or derived here, and checks of it that can fail."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from perturb import cli, sources
from perturb.cli import BadInput
from perturb.files import write_atomic
from perturb.plain import plain
from theory.engine import report
from theory.engine.verify import Programs, Record, finding_record, verify
from theory.models.findings import findings as model_findings
from theory.models.measure import measure_named
from theory.phase.diagrams import Phase, diagrams
from theory.phase.findings import findings as phase_findings
from theory.statements.affine.measure import curves
from theory.statements.catalogue import NAMES, statement

INSTANCES, MOST_INSTANCES = 100_000, 10**12
MODELS = ("resnet-digits", "vit-digits", "llama-docs")
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # the files, folders they write
    "list": ((), ()),
    "verify": (("verify.json", "report.md"), ("figures",)),
    "models": (("models.json",), ()),
}
EPILOG = """\
examples:
  python -m theory
      the statements, with sources
  python -m theory verify
      all of them: proofs, 100000 instances each, attacks, counterexamples, phase diagrams; under
      two minutes on two cores. Writes verify.json, report.md and figures to results/theory
  python -m theory verify rounding affine --instances 1e7 --seed 7
      two of them, on more and other instances (chunked: memory does not grow)
  python -m theory models resnet-digits
      how far trained models keep the assumptions: layer independence, one kappa, zero-mean noise

exit codes: 0 everything marked as holding holds, 1 something does not, 2 bad input (one line on
stderr), 130 stopped by Ctrl-C.
"""


def _whole(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value.is_integer() or not 1 <= value <= MOST_INSTANCES:
        raise BadInput(
            f"--instances {text[:40]}: must be a whole number of at least 1 and at most "
            f"{MOST_INSTANCES:.0e}, as in 1000000 or 1e6"
        )
    return int(value)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m theory",
        description="The theorems and closed forms behind the measurements, each with a check.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", default="list", help="list (default), verify or models"
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="statements or models; all if none"
    )
    parser.add_argument(
        "--instances", type=_whole, default=INSTANCES, metavar="N", help=f"{INSTANCES}"
    )
    parser.add_argument("--seed", type=cli.seed, default=0, help="of the random instances (0)")
    parser.add_argument(
        "--out", type=Path, default=Path("results/theory"), help="folder (results/theory)"
    )
    parser.add_argument("--no-figures", action="store_true", help="numbers only")
    return parser


def _list(names: list[str], console: Console) -> None:
    for name in names:
        s = statement(name)
        console.print(f"{name:<14}{s.title}", highlight=False, markup=False)
        console.print(f"{'':<14}source: {s.source}", highlight=False, markup=False)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else cli.columns())


def _prepare() -> None:
    """Before jax starts: keep compiled programs between runs, and run one program at a time.

    On few cores XLA's CPU client has been seen to wait for itself when programs are dispatched
    while others are in flight (all of its threads parked, nothing running); inline they cannot.
    """
    sources.compilation_cache()
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _verify(names: list[str], instances: int, seed: int, out: Path, draw: bool) -> int:
    console, start = _console(), time.perf_counter()
    statements = [statement(name) for name in names]
    columns = (
        TextColumn("{task.description:<13}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    records = []
    whole = names == list(NAMES)
    # instances, then as many again for the proof, the attack and what is measured
    total = 2 * instances * sum(len(s.families) for s in statements)
    err = Console(stderr=True)
    with (
        closing(Programs(statements)) as programs,  # else Ctrl-C waits for all that is to compile
        Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress,
    ):
        bar = progress.add_task("", total=total)
        for s in statements:
            progress.update(bar, description=s.name)
            advance = partial(progress.advance, bar)
            records.append(verify(s, instances, seed, programs, advance))
            progress.advance(bar, instances * len(s.families))
        progress.update(bar, description="phase" if whole else "")
        phases = diagrams(jax.random.key(seed)) if whole else []
    record = plain(
        {
            "statements": records,
            "phase": {
                "diagrams": [_diagram(d) for d in phases],
                "findings": [finding_record(f) for f in phase_findings(phases)],
            },
            "affine": curves(seed),
            "settings": {"instances": instances, "seed": seed},
            "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
            "device": jax.default_backend(),
            "seconds": time.perf_counter() - start,
        }
    )
    file = out / "verify.json"
    write_atomic(file, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False))
    figures = _draw(file, out / "figures") if draw else []
    relative = [os.path.relpath(f, out) for f in figures]
    write_atomic(out / "report.md", report.markdown(record, relative))
    _print(record, console)
    console.print(f"\n{report.setting(record)}", highlight=False)
    console.print(f"{out / 'report.md'}: proofs, margins, counterexamples", highlight=False)
    failed = [r for r in records if not r["holds"]]
    for r in failed:
        print(f"{r['name']} does not hold: {'; '.join(r['failures'])}", file=sys.stderr)
    return 1 if failed else 0


def _diagram(d: Phase) -> Record:
    arrays = ("advantage", "error", "gap", "never", "sign")
    return {
        "stage": d.stage,
        "rho": d.rho,
        "weights": d.weights,
        "bits": d.bits,
        **{name: getattr(d, name) for name in arrays},
    }


def _draw(file: Path, out: Path) -> list[str]:
    """A process of its own: figures are drawn from the record, never from what is in memory."""
    drawn = subprocess.run(
        [sys.executable, "-m", "figures", "--theory", str(file), "--out", str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    return drawn.stdout.split("\n")[:-1]


def _print(record: Record, console: Console) -> None:
    grid = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(report.COLUMNS):
        text = column in ("statement", "sympy proof", "tightness")
        grid.add_column(column, justify="left" if text else "right", no_wrap=i == 0)
    for row in report.summary_rows(record):
        grid.add_row(*(escape(cell.replace("**", "")) for cell in row))
    console.print(grid)
    console.print()
    for f in report.findings(record):
        if f["verdict"] != "measured":
            colour = {"holds": "green", "narrower": "yellow", "false": "red"}[f["verdict"]]
            console.print(
                f"[{colour}]{f['verdict']:<8}[/] {escape(f['name'])}: {escape(f['says'])}",
                highlight=False,
            )


def _models(names: list[str], seed: int, out: Path) -> int:
    console, err = _console(), Console(stderr=True)
    results: dict[str, Record] = {}
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        bar = progress.add_task("", total=1.0)

        def tell(what: str, done: float) -> None:
            progress.update(bar, description=what, completed=done)

        for name in names:
            with sources.printing_to_stderr():
                results[name] = measure_named(name, seed, tell)
    found = [finding_record(f) for f in model_findings(results)]
    record = plain(
        {
            "models": results,
            "findings": found,
            "settings": {"seed": seed},
            "versions": {"jax": jax.__version__, "python": sys.version.split()[0]},
            "device": jax.default_backend(),
        }
    )
    file = out / "models.json"
    write_atomic(file, json.dumps(record, ensure_ascii=False, allow_nan=False))
    for f in found:
        console.print(f"{f['verdict']:<9} {f['name']}: {f['says']}", highlight=False, markup=False)
    console.print(f"{file}", highlight=False)
    return 0


def run(argv: list[str]) -> int:
    """The exit code; raises :class:`BadInput`."""
    arguments = _parser().parse_args(argv)
    if arguments.command not in COMMANDS:
        raise BadInput(f"no command {arguments.command!r}: there are {', '.join(COMMANDS)}")
    out: Path = arguments.out
    written, folders = COMMANDS[arguments.command]
    if written:
        drawn = () if arguments.no_figures else folders
        for folder in (out, *(out / name for name in drawn)):
            cli.check_folder("--out", folder)
        for name in written if out.is_dir() else ():
            cli.check_file("--out", out / name)
    names = list(dict.fromkeys(arguments.names))
    if arguments.command == "models":
        for name in names:
            sources.loader(name)  # refuse an unknown name before any long work
        _prepare()
        return _models(names or list(MODELS), arguments.seed, out)
    unknown = [n for n in names if n not in NAMES]
    if unknown:
        raise BadInput(f"no statement {unknown[0]!r}: there are {', '.join(NAMES)}")
    if arguments.command == "list":
        _list(names or list(NAMES), _console())
        return 0
    _prepare()
    draw = not arguments.no_figures
    return _verify(names or list(NAMES), arguments.instances, arguments.seed, out, draw)


def main(argv: list[str] | None = None) -> int:
    """The exit code (:func:`perturb.cli.call`); 1 if something does not hold."""
    return cli.call(run, argv)


if __name__ == "__main__":
    sys.exit(main())
