"""``python -m experiments``: train the models, run both orders, report which wins."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import time
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

EPILOG = """\
examples:
  python -m experiments list
      the studies and the models there are
  python -m experiments run embedded
      train three small models (once), run 3 pruners x 2 quantizers in both orders over
      5 sparsities x 6 bit widths, print what was found, draw it
  python -m experiments run embedded --seeds 3
      the same on three trainings of each model; what is there already is kept
  python -m experiments run my_study.py --models llama-text --text notes.txt
      your own grid (a file that defines STUDY) on your own text
  python -m experiments report results/embedded
      the findings again, from the records alone

A run may be stopped at any time and started again: finished cells are never computed twice.
Trained models are cached in $PERTURB_CACHE, else in ~/.cache/compression-order.
exit codes: 0 done, 2 bad input (one line on stderr), 1 failure of ours.
"""


class BadInput(Exception):
    """Something the user can put right; its text is the one line they read."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m experiments",
        description="Does the order of compression methods matter, when, and how much? "
        "Measured on trained Flax models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("list", help="the studies and the models there are")
    run = commands.add_parser("run", help="run a study, or go on with it")
    run.add_argument("study", help="a study's name, or a .py file that defines STUDY")
    run.add_argument("--out", type=Path, default=Path("results"), help="default: results/")
    run.add_argument("--models", nargs="+", metavar="MODEL", help="instead of the study's")
    run.add_argument("--seeds", type=int, metavar="N", help="training seeds 0..N-1")
    run.add_argument("--calibrate", help="sequential, recalibrate or dense: see perturb.compress")
    run.add_argument("--text", type=Path, metavar="FILE", help="the text of llama-text models")
    run.add_argument("--images-dir", type=Path, metavar="DIR", help="folder of IDX files (fashion)")
    run.add_argument("--no-figures", action="store_true", help="print only")
    report = commands.add_parser("report", help="print what the records of a study say")
    report.add_argument("records", type=Path, help="a study's folder, or its records.jsonl[.gz]")
    train = commands.add_parser("train", help="train (or load) one model and say how good it is")
    train.add_argument("model")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--text", type=Path, metavar="FILE")
    train.add_argument("--images-dir", type=Path, metavar="DIR")
    return parser


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _list(console: Console) -> None:
    from experiments.models.presets import PRESETS
    from experiments.study import builtin

    for title, rows in (
        ("Studies", builtin().items()),
        ("Models", ((p.name, f"{p.description}; {p.expected}") for p in PRESETS.values())),
    ):
        table = Table(title=title, title_justify="left", box=None, show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column()
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _train(arguments: argparse.Namespace, console: Console) -> None:
    from experiments.train import load_or_train

    trained = load_or_train(
        arguments.model, arguments.seed, text=arguments.text, images_dir=arguments.images_dir
    )
    console.print(_quality(trained))


def _quality(trained) -> str:
    """How good a trained model is, against the peer its data has."""
    m = trained.metrics
    if "accuracy" in m:
        good = f"accuracy {m['accuracy']:.2%} on {len(trained.dataset.heldout)} held-out images"
    else:
        good = (
            f"{m['bits_per_byte']:.3f} bits per byte on held-out text "
            f"(a byte trigram: {m['trigram_bits_per_byte']:.3f})"
        )
    source = "cached" if trained.cached else f"trained in {trained.seconds:.0f} s"
    return (
        f"{trained.preset}, seed {trained.seed}: {good}, {m['parameters']:,} parameters, {source}"
    )


def _check(study, arguments: argparse.Namespace) -> None:
    """Everything that can be refused before any training: data, and layers that do not fit."""
    from flax import nnx

    from experiments.data.load import load
    from experiments.models.presets import PRESETS
    from experiments.runner import check_study

    for name in study.models:
        preset = PRESETS[name]
        if preset.dataset not in ("digits", "docstrings"):  # those are always there
            load(
                preset.dataset,
                length=preset.window,
                text=arguments.text,
                images_dir=arguments.images_dir,
            )
        model = nnx.eval_shape(lambda preset=preset: preset.build(nnx.Rngs(0)))
        try:
            check_study(study, model)
        except ValueError as error:
            raise BadInput(f"study {study.name!r} on {name}: {error}") from error


def _run(arguments: argparse.Namespace, console: Console) -> None:
    import jax

    from experiments.records import RecordLog, RecordLogLocked
    from experiments.runner import Clock, Run, finished, run_model
    from experiments.study import find
    from experiments.train import cache_dir, load_or_train

    if arguments.seeds is not None and arguments.seeds < 1:
        raise BadInput(f"--seeds {arguments.seeds}: must be at least 1")
    study = find(arguments.study).with_options(
        models=tuple(arguments.models) if arguments.models else None,
        seeds=tuple(range(arguments.seeds)) if arguments.seeds else None,
        calibrate=arguments.calibrate,
    )
    _check(study, arguments)
    # Programs compiled once are read back by the next run.
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

    folder = arguments.out / study.name
    path = folder / "records.jsonl"
    total = study.cells_per_run * len(study.models) * len(study.seeds)
    console.print(
        f"[bold]{study.name}[/]: {study.description}\n{total} compressed models "
        f"({len(study.models)} models x {len(study.seeds)} seeds), calibration "
        f"{study.calibrate!r}, on {jax.devices()[0].device_kind}; records in {path}"
    )
    prefixes = tuple(f"{model}/s{seed}/" for model in study.models for seed in study.seeds)
    mine = methodcaller("startswith", prefixes)
    clock = Clock()
    start = time.perf_counter()
    try:
        log = RecordLog(path)
    except RecordLogLocked as error:
        raise BadInput(str(error)) from error
    with log, _progress(console) as progress:
        done = finished(path)
        if done:
            console.print(f"{len(done)} cells are there already and stay as they are")
        # finished cells count too: the estimate is of what is left
        bar = progress.add_task("cells", total=total, completed=sum(map(mine, done)))
        for model in study.models:
            for seed in study.seeds:
                with clock.phase("train"):
                    trained = load_or_train(
                        model,
                        seed,
                        text=arguments.text,
                        images_dir=arguments.images_dir,
                        progress=progress,
                    )
                console.print(_quality(trained))
                prefix = f"{model}/s{seed}/"
                progress.update(bar, description=f"{model} s{seed}")
                run = Run(study, trained, log, done, clock, partial(progress.advance, bar))
                run_model(run, partial(_alone, console, path, prefix))
    failed = _report(path, folder, console)
    spent = ", ".join(f"{k} {v:.0f} s" for k, v in clock.spent.items())
    console.print(f"\n{time.perf_counter() - start:.0f} s in all: {spent}")
    if not arguments.no_figures:
        # A process of its own: figures are drawn from the records, never from what is in memory.
        drawn = subprocess.run(
            [
                sys.executable,
                "-m",
                "figures",
                "--records",
                str(folder),
                "--out",
                str(folder / "figures"),
                "--measure",
                "all",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        console.print(f"{len(drawn.stdout.splitlines())} figures in {folder / 'figures'}")
    if failed:
        console.print(f"[bold red]{failed} cells failed[/]; run again to retry them")


def _alone(console: Console, path: Path, prefix: str) -> None:
    """What each method does on its own: the first thing worth reading of a model."""
    from experiments.records import load

    mine = [r for r in load(path) if r["cell"].startswith(prefix) and r["status"] == "ok"]
    dense = next(r for r in mine if r["order"] == "dense")
    name = "accuracy" if dense["kind"] == "images" else "perplexity"
    shown = (lambda v: f"{v:.1%}") if name == "accuracy" else (lambda v: f"{v:.4g}")
    best = shown(dense["metrics"][name])
    console.print(f"{name} of each method alone (dense: {best})")
    table = Table()
    rows: dict[str, list[tuple[str, str]]] = {}
    for r in mine:
        if r["order"] in ("P", "Q"):
            amount = f"{r['sparsity']:.0%}" if r["order"] == "P" else f"{r['bits']} bit"
            method = r["cell"].removeprefix(prefix).rpartition("-")[0]
            rows.setdefault(method, []).append((amount, shown(r["metrics"][name])))
    table.add_column("method", no_wrap=True)
    for _ in range(max(map(len, rows.values()), default=0)):
        table.add_column(justify="right")
    for method, values in rows.items():
        table.add_row(method, *(f"[dim]{amount}[/]\n{value}" for amount, value in values))
    console.print(table)


def _report(path: Path, folder: Path, console: Console) -> int:
    """Print and store the findings; returns how many cells failed."""
    from experiments.analysis import render, summarize
    from experiments.records import load
    from perturb.files import write_atomic

    summary = summarize(load(path))
    write_atomic(folder / "summary.json", summary.to_json())
    text = io.StringIO()
    render(summary, Console(width=150, file=text))
    write_atomic(folder / "report.txt", text.getvalue())
    console.print()
    render(summary, console)
    return summary.failed


def run(argv: list[str]) -> None:
    """Parse and do; raises :class:`BadInput` for what the user can put right."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        if arguments.command == "list":
            _list(console)
        elif arguments.command == "train":
            _train(arguments, console)
        elif arguments.command == "report":
            folder = arguments.records
            path = folder
            if folder.is_dir():
                names = ("records.jsonl", "records.jsonl.gz")
                path = next((folder / n for n in names if (folder / n).is_file()), folder)
            if not path.is_file():
                raise BadInput(f"no records at {path}: run the study first, or give its folder")
            from experiments.analysis import render, summarize
            from experiments.records import load

            render(summarize(load(path)), console)
        else:
            _run(arguments, console)
    except (ValueError, FileNotFoundError) as error:
        raise BadInput(str(error)) from error


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 bad input. Anything else raises: Python's 1, with a traceback."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
