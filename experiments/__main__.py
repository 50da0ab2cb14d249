"""``python -m experiments``: train the models, run both orders, report which wins."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from perturb import cli
from perturb.cli import BadInput

MANY_SEEDS, SHOWN = 1000, 10
CELLS = "cells.txt"  # of a study's folder: the ids that its last run was about
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
What is reported after a run is that run's: its study as it is now, its models and its seeds.
Trained models are cached in $PERTURB_CACHE, else in ~/.cache/compression-order.
exit codes: 0 done, 1 cells failed (they are named) or a failure of ours, 2 bad input (one line
on stderr), 130 stopped by Ctrl-C.
"""


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
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
    run.add_argument("--norms", help="reestimate or keep batch norms' statistics after a stage")
    run.add_argument("--text", type=Path, metavar="FILE", help="the text of llama-text models")
    run.add_argument("--images-dir", type=Path, metavar="DIR", help="folder of IDX files (fashion)")
    run.add_argument("--no-figures", action="store_true", help="print only")
    report = commands.add_parser("report", help="print what the records of a study say")
    report.add_argument("records", type=Path, help="a study's folder, or its records.jsonl[.gz]")
    train = commands.add_parser("train", help="train (or load) one model and say how good it is")
    train.add_argument("model")
    train.add_argument("--seed", type=cli.seed, default=0, help="of the training (0)")
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
    from experiments.entry import check_cache
    from experiments.train import load_or_train

    check_cache(arguments.model, [arguments.seed])
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


def _data_of(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The data options that concern a model: in one study some are on a file, some are not."""
    from experiments.models.presets import PRESETS

    dataset = PRESETS[name].dataset
    return {
        "text": arguments.text if dataset == "text" else None,
        "images_dir": arguments.images_dir if dataset == "fashion" else None,
    }


def _check(study: Any, arguments: argparse.Namespace) -> None:
    """Everything that can be refused before any training: data, paths, layers that do not fit."""
    from flax import nnx

    from experiments.data.load import load
    from experiments.entry import check_cache
    from experiments.models.presets import PRESETS
    from experiments.runner import check_study

    data = {name: _data_of(name, arguments) for name in study.models}
    for option, key in (("--text", "text"), ("--images-dir", "images_dir")):
        given = getattr(arguments, key)
        if given is not None and not any(options[key] for options in data.values()):
            raise BadInput(
                f"{option} {given}: no model of the study takes it ({', '.join(study.models)})"
            )
    folder = arguments.out / study.name
    cli.check_folder("--out", folder)
    if folder.is_dir():
        for name in ("records.jsonl", CELLS, "summary.json", "report.txt"):
            cli.check_file("--out", folder / name)
        if not arguments.no_figures:
            cli.check_folder("--out", folder / "figures")
    for name in study.models:
        preset = PRESETS[name]
        check_cache(name, study.seeds)
        model = nnx.eval_shape(lambda preset=preset: preset.build(nnx.Rngs(0)))
        try:
            check_study(study, model)
        except ValueError as error:
            raise BadInput(f"study {study.name!r} on {name}: {error}") from error
        if preset.dataset not in ("digits", "docstrings"):  # those are always there
            load(preset.dataset, length=preset.window, **data[name])


def _run(arguments: argparse.Namespace, console: Console) -> int:
    import jax

    from experiments.records import RecordLog, RecordLogLocked
    from experiments.runner import Clock, Run, finished, run_model
    from experiments.study import cell_names, find
    from experiments.train import cache_dir, load_or_train
    from perturb.files import write_atomic

    seeds = arguments.seeds
    if seeds is not None and not 1 <= seeds <= MANY_SEEDS:
        raise BadInput(f"--seeds {seeds}: must be at least 1 and at most {MANY_SEEDS}")
    study = find(arguments.study).with_options(
        models=tuple(arguments.models) if arguments.models else None,
        seeds=tuple(range(seeds)) if seeds else None,
        calibrate=arguments.calibrate,
        norms=arguments.norms,
    )
    _check(study, arguments)
    # Programs compiled once are read back by the next run.
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

    folder = arguments.out / study.name
    path = folder / "records.jsonl"
    mine = cell_names(study)
    console.print(
        f"[bold]{escape(study.name)}[/]: {escape(study.description)}\n{len(mine)} compressed "
        f"models ({len(study.models)} models x {len(study.seeds)} seeds), calibration "
        f"{study.calibrate!r}, on {jax.devices()[0].device_kind}; records in {escape(str(path))}"
    )
    clock = Clock()
    start = time.perf_counter()
    try:
        log = RecordLog(path)
    except RecordLogLocked as error:
        raise BadInput(str(error)) from error
    write_atomic(folder / CELLS, "\n".join(sorted(mine)))
    with log, _progress(console) as progress:
        done = finished(path)
        if done & mine:
            console.print(f"{len(done & mine)} cells are there already and stay as they are")
        # finished cells count too: the estimate is of what is left
        bar = progress.add_task("cells", total=len(mine), completed=len(done & mine))
        for model in study.models:
            for seed in study.seeds:
                with clock.phase("train"):
                    trained = load_or_train(
                        model, seed, progress=progress, **_data_of(model, arguments)
                    )
                console.print(_quality(trained))
                progress.update(bar, description=f"{model} s{seed}")
                run = Run(study, trained, log, done, clock, partial(progress.advance, bar))
                console.print(run.coverage.describe(), markup=False)
                run_model(run, partial(_alone, console, path, study, model, seed))
    records = _of(path, mine)
    _report(records, folder, console)
    spent = ", ".join(f"{k} {v:.0f} s" for k, v in clock.spent.items())
    console.print(f"\n{time.perf_counter() - start:.0f} s in all: {spent}")
    drawn = arguments.no_figures or _draw(path, records, folder / "figures", console)
    failed = _failed(records, console)
    if failed:
        console.print("run again to retry them")
    return 0 if drawn and not failed else 1


def _of(path: Path, cells: Collection[str]) -> list[dict[str, Any]]:
    """The records of these cells: a file may hold those of other seeds and earlier studies too."""
    from experiments.records import load

    return [record for record in load(path) if record["cell"] in cells]


def _draw(path: Path, records: Sequence[dict[str, Any]], out: Path, console: Console) -> bool:
    """Draw these records of a file; whether that went well.

    A process of its own: figures are drawn from records, never from what is in memory.
    """
    from experiments.records import load

    with ExitStack() as stack:
        source = path
        if len(records) < len(load(path)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            source = Path(folder) / path.name
            source.write_text("".join(f"{json.dumps(r)}\n" for r in records), encoding="utf-8")
        arguments = ["--records", str(source), "--out", str(out), "--measure", "all"]
        drawn = subprocess.run(
            [sys.executable, "-m", "figures", *arguments],
            check=False,
            capture_output=True,
            text=True,
        )
    if drawn.returncode:
        last = (drawn.stderr.strip().splitlines() or ["no message"])[-1]
        console.print(f"no figures: {last}", markup=False)
        return False
    console.print(f"{len(drawn.stdout.splitlines())} figures in {escape(str(out))}")
    return True


def _alone(console: Console, path: Path, study: Any, model: str, seed: int) -> None:
    """What each method does on its own: the first thing worth reading of a model."""
    from experiments.study import cell_name, cells, label

    names = {cell_name(model, seed, *cell): cell for cell in cells(study) if len(cell[0]) != 2}
    mine = {r["cell"]: r for r in _of(path, names) if r["status"] == "ok"}
    dense = mine.pop(cell_name(model, seed, "dense", None, None), None)
    if dense is None:
        return  # it failed, which is told at the end
    name = "accuracy" if dense["kind"] == "images" else "perplexity"
    shown = (lambda v: f"{v:.1%}") if name == "accuracy" else (lambda v: f"{v:.4g}")
    best = shown(dense["metrics"][name])
    console.print(f"{name} of each method alone (dense: {best})")
    table = Table()
    rows: dict[str, list[tuple[str, str]]] = {}
    for cell, (order, p, q) in names.items():
        if r := mine.get(cell):
            amount = f"{r['sparsity']:.0%}" if order == "P" else f"{r['bits']} bit"
            rows.setdefault(label(p or q), []).append((amount, shown(r["metrics"][name])))
    table.add_column("method", no_wrap=True)
    for _ in range(max(map(len, rows.values()), default=0)):
        table.add_column(justify="right")
    for method, values in rows.items():
        table.add_row(escape(method), *(f"[dim]{amount}[/]\n{value}" for amount, value in values))
    console.print(table)


def _report(records: Sequence[dict[str, Any]], folder: Path, console: Console) -> None:
    """Print and store the findings."""
    from experiments.analysis import render, summarize
    from perturb.files import write_atomic

    summary = summarize(records)
    write_atomic(folder / "summary.json", summary.to_json())
    text = io.StringIO()
    render(summary, Console(width=150, file=text))
    write_atomic(folder / "report.txt", text.getvalue())
    console.print()
    render(summary, console)


def _failed(records: Sequence[dict[str, Any]], console: Console) -> int:
    """Print the first line of what made cells fail, each reason once; returns how many did."""
    from experiments.records import latest

    reasons: dict[str, list[str]] = {}
    for cell, record in latest(records).items():
        if record["status"] != "ok":
            line = (str(record.get("error") or "").strip().splitlines() or ["no message"])[0]
            reasons.setdefault(line, []).append(cell)
    for line, cells in list(reasons.items())[:SHOWN]:
        more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
        console.print(f"failed: {cells[0]}{more}: {line}", markup=False, soft_wrap=True)
    failed = sum(map(len, reasons.values()))
    if failed:
        console.print(f"[bold red]{failed} cells failed[/]")
    return failed


def _report_again(records: Path, console: Console) -> int:
    """The findings of all that a file holds, of a folder those of its last run; the exit code."""
    from experiments.analysis import render, summarize
    from experiments.records import load

    path, cells = records, None
    if records.is_dir():
        if (records / CELLS).is_file():
            cells = set((records / CELLS).read_text(encoding="utf-8").split("\n"))
        names = ("records.jsonl", "records.jsonl.gz")
        path = next((records / n for n in names if (records / n).is_file()), records)
    if not path.is_file():
        raise BadInput(f"no records at {path}: run the study first, or give its folder")
    try:
        held = load(path)
    except zlib.error as error:
        raise BadInput(f"{path}: damaged gzip file ({error}); copy it again") from error
    if cells is not None:
        mine = [record for record in held if record["cell"] in cells]
        if len(mine) < len(held):
            console.print(
                f"{len(held) - len(mine)} records of other cells or seeds are left out; "
                f"{path} alone shows them too"
            )
        held = mine
    render(summarize(held), console)
    return 1 if _failed(held, console) else 0


def run(argv: list[str]) -> int:
    """Parse and do; the exit code. Raises :class:`BadInput` for what the user can put right."""
    arguments = _parser().parse_args(argv)
    console = Console()
    try:
        if arguments.command == "list":
            _list(console)
        elif arguments.command == "train":
            _train(arguments, console)
        elif arguments.command == "report":
            return _report_again(arguments.records, console)
        else:
            return _run(arguments, console)
    except (ValueError, OSError) as error:
        raise BadInput(str(error)) from error
    return 0


def main(argv: list[str] | None = None) -> int:
    """The exit code (:func:`perturb.cli.call`); 1 if cells failed."""
    return cli.call(run, argv, "stopped; run the same command again to go on")


if __name__ == "__main__":
    sys.exit(main())
