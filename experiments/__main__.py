"""``python -m experiments``: train the models, run both orders, report which wins."""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments.analysis import render, summarize
from experiments.analysis.variants import role
from experiments.records import RecordLogLocked, latest, load
from experiments.report.again import failed_cells, report_again
from experiments.watch import CELLS, RECORDS, Lines, Watch
from perturb import cli
from perturb.cli import BadInput
from perturb.files import write_atomic

if TYPE_CHECKING:
    from experiments.runner import Spent
    from experiments.study import Study

MANY_SEEDS = 1000
DATA = ("text", "window", "images_dir", "images")  # options that say what models are run on
AMOUNT = re.compile(r"(.+?)-([\d.]+(?:e[-+]\d+)?)")  # ends a stage's name; 1e-05 is one amount
EPILOG = """\
examples:
  python -m experiments list
      the studies and the models there are
  python -m experiments run embedded
      train four small models five times (once), run 2 pruners x 2 quantizers in both orders over
      3 sparsities x 4 bit widths under 3 calibration draws, print what was found, draw it
  python -m experiments run embedded --seeds 10
      the same on ten trainings of each model; what is there already is kept
  python -m experiments run all --workers 2
      every study there is, two trainings at a time; some hours on two cores
  python -m experiments run quarot --size gpu
      the same study on larger models
  python -m experiments run my_study.py --models llama-text --text notes.txt
      your own grid (a file that defines STUDY) on your own text
  python -m experiments run start --models SmolLM2-135M --text notes.txt --window 256
      a published checkpoint (a folder with config.json and safetensors, or a GGUF file) there
  python -m experiments run start --models resnet-50 --images photos/
      a checkpoint of images on those of a folder, or, with --images photographs, on crops of the
      photographs in installed packages; without labels M is -KL to the dense model
  python -m experiments report results/embedded
      the findings again, from the records alone
  python -m experiments report results/embedded --at sparsity=0.5,bits=4
      which order to take there: both orders of every pair, and one sentence of advice

A run may be stopped at any time and started again: finished cells are never computed twice.
What is reported after a run is that run's: its study as it is now, its models and its seeds.
Trained models are cached in $PERTURB_CACHE, else in ~/.cache/compression-order.
exit codes: 0 done, 1 cells failed (they are named) or a failure of ours, 2 bad input (one line
on stderr), 130 stopped by Ctrl-C, 143 by SIGTERM.
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
    run.add_argument("study", help="a study's name, a .py file that defines STUDY, or all")
    run.add_argument(
        "--size", default="small", help="small (two cores), gpu or paper: on larger models"
    )
    run.add_argument("--out", type=Path, default=Path("results"), help="default: results/")
    run.add_argument("--models", nargs="+", metavar="MODEL", help="instead of the study's")
    run.add_argument("--seeds", type=int, metavar="N", help="training seeds 0..N-1")
    run.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes side by side, each at a training and on cores of its own (1)",
    )
    run.add_argument("--calibrate", help="sequential, recalibrate or dense: see perturb.compress")
    run.add_argument("--norms", help="reestimate or keep batch norms' statistics after a stage")
    run.add_argument("--zeros", help="of the weights: free, or keep (count as pruned)")
    run.add_argument(
        "--text", type=Path, metavar="FILE", help="the text of llama-text models and checkpoints"
    )
    run.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="tokens an example of a checkpoint has, or the side of an image in pixels",
    )
    run.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images of checkpoints: a folder, or photographs (those in installed packages)",
    )
    run.add_argument("--images-dir", type=Path, metavar="DIR", help="folder of IDX files (fashion)")
    run.add_argument("--no-figures", action="store_true", help="print only")
    report = commands.add_parser("report", help="print what the records of a study say")
    report.add_argument("records", type=Path, help="a study's folder, or its records.jsonl[.gz]")
    report.add_argument("--at", metavar="sparsity=S,bits=B", help="which order to take there")
    report.add_argument("--json", action="store_true", help="the same as JSON, for programs")
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
    from experiments.runner.running import quality
    from experiments.train import load_or_train

    check_cache(arguments.model, [arguments.seed])
    trained = load_or_train(
        arguments.model, arguments.seed, text=arguments.text, images_dir=arguments.images_dir
    )
    console.print(quality(trained))


class _Bars:
    """A :class:`experiments.runner.Watch` on a terminal: a bar of cells, lines above it."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress, self._bar = console, progress, TaskID(0)

    def begin(self, cells: int) -> None:
        # finished cells count too: the estimate is of what is left
        self._bar = self._progress.add_task("cells", total=cells)

    def model(self, line: str) -> None:
        self._console.print(line)

    def note(self, line: str) -> None:
        self._console.print(line, markup=False)

    def cell(self, label: str) -> None:
        self._progress.update(self._bar, advance=1, description=label[:40])

    def alone(self, records: list[dict[str, Any]]) -> None:
        _alone(self._console, records)

    def end(self) -> None:
        """Make room for what is found."""
        self._progress.update(self._bar, visible=False)


class _Told(Lines):
    """Without a terminal: lines on stderr, and the same tables on standard output."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def model(self, line: str) -> None:
        self._console.print(line)

    def note(self, line: str) -> None:
        self._console.print(line, markup=False)

    def alone(self, records: list[dict[str, Any]]) -> None:
        _alone(self._console, records)


def _check_data(chosen: Sequence[Study], arguments: argparse.Namespace) -> None:
    """Refuses data that no model of the studies takes."""
    from experiments.study import Checkpoint

    models = [model for study in chosen for model in study.models]
    takes = {name for study in chosen for name in study.datasets}
    if any(isinstance(m, Checkpoint) for m in models):
        takes |= {"text", "window", "images"}
    for option, key, dataset in (
        ("--text", "text", "text"),
        ("--window", "window", "window"),
        ("--images-dir", "images_dir", "fashion"),
        ("--images", "images", "images"),
    ):
        given = getattr(arguments, key)
        if given is not None and dataset not in takes:
            whose = "the study" if len(chosen) == 1 else "these studies"
            known = ", ".join(dict.fromkeys(map(str, models)))
            raise BadInput(f"{option} {given}: no model of {whose} takes it ({known})")


def _check(study: Study, arguments: argparse.Namespace) -> None:
    """Everything else that can be refused before any training: paths, layers that do not fit."""
    from experiments.runner.running import check_models

    folder = arguments.out / study.name
    cli.check_folder("--out", folder)
    if folder.is_dir():
        for name in (RECORDS, CELLS, "summary.json", "report.txt"):
            cli.check_file("--out", folder / name)
        if not arguments.no_figures:
            cli.check_folder("--out", folder / "figures")
    if arguments.window is not None and arguments.window < 2:
        raise BadInput(f"--window {arguments.window}: must be at least 2 tokens")
    options = {k: getattr(arguments, k) for k in DATA}
    check_models(study, **options)


def _run(arguments: argparse.Namespace, console: Console) -> int:
    from experiments.chosen import choose
    from perturb.backend import compile_quickly
    from perturb.programs import cache_programs

    seeds = arguments.seeds
    if seeds is not None and not 1 <= seeds <= MANY_SEEDS:
        raise BadInput(f"--seeds {seeds}: must be at least 1 and at most {MANY_SEEDS}")
    chosen, told = choose(arguments)
    for line in told:
        console.print(line, markup=False)
    _check_data(chosen, arguments)
    compile_quickly()
    _check_workers(arguments.workers)
    for study in chosen:
        _check(study, arguments)
    cache_programs()
    if len(chosen) > 1:
        cells = sum(len(study.chains()) * study.runs for study in chosen)
        console.print(f"{len(chosen)} studies, {cells} models to measure")
    try:
        if arguments.workers == 1:
            return max(_run_one(study, arguments, console) for study in chosen)
        return _run_together(chosen, arguments, console)
    except RecordLogLocked as error:
        raise BadInput(str(error)) from error


def _check_workers(workers: int) -> None:
    """Refuses more processes than there are cores for, or several on one accelerator."""
    if workers == 1:
        return
    from experiments.runner.together import cores

    most = len(cores())
    if not 1 <= workers <= most:
        raise BadInput(
            f"--workers {workers}: must be at least 1 and at most {most}, the number of cores"
        )
    import jax

    if (backend := jax.default_backend()) != "cpu":
        raise BadInput(f"--workers {workers}: a {backend} is one process's: leave it out")


class _Session:
    """A study of the command: told at its beginning, reported and drawn at its end."""

    def __init__(
        self,
        study: Study,
        arguments: argparse.Namespace,
        console: Console,
        progress: Progress | None,
    ) -> None:
        self.study, self.arguments, self.console = study, arguments, console
        self.watch: Watch = _Bars(console, progress) if progress else _Told(console)
        self.folder: Path = arguments.out / study.name

    def begin(self) -> Watch:
        import jax

        study, path = self.study, self.folder / RECORDS
        chains = len(study.chains())
        self.console.print(
            f"[bold]{escape(study.name)}[/]: {escape(study.description)}\n{chains * study.runs} "
            f"models to measure ({len(study.models)} models x {len(study.seeds)} seeds x "
            f"{len(study.calibrations)} calibration draws x {len(study.policies)} policies x "
            f"{chains} chains of stages), on {jax.devices()[0].device_kind}; records in "
            f"{escape(str(path))}"
        )
        self.start = time.perf_counter()
        return self.watch

    def end(self, spent: Spent) -> int:
        """The exit code: 1 if cells failed or nothing could be drawn."""
        console, folder, workers = self.console, self.folder, self.arguments.workers
        if isinstance(self.watch, _Bars):
            self.watch.end()
        records = _last(folder)
        _report(records, folder, console)
        phases = ", ".join(f"{k} {v:.0f} s" for k, v in spent.seconds.items())
        by, each = (f" by {workers} processes", " each") if workers > 1 else ("", "")
        console.print(
            f"\n{time.perf_counter() - self.start:.0f} s in all{by}: {phases}; {spent.programs} "
            f"programs, {spent.peak:.1f} GB at most{each}"
        )
        drawn = self.arguments.no_figures or _draw(
            folder / RECORDS, records, folder / "figures", console
        )
        failed = failed_cells(records, console)
        if failed:
            console.print("run again to retry them")
        return 0 if drawn and not failed else 1


def _run_one(study: Study, arguments: argparse.Namespace, console: Console) -> int:
    """Run, report and draw one study in this process."""
    from experiments.runner import Clock, Spent, run_study

    clock, spent = Clock(), Spent()
    options: dict[str, Any] = {k: getattr(arguments, k) for k in DATA}
    with _progress(console) if console.is_terminal else nullcontext() as progress:
        session = _Session(study, arguments, console, progress)
        watch = session.begin()
        run_study(study, arguments.out, watch=watch, clock=clock, progress=progress, **options)
    spent.add(clock)
    return session.end(spent)


def _run_together(chosen: Sequence[Study], arguments: argparse.Namespace, console: Console) -> int:
    """The same of all studies, in several processes."""
    from experiments.chosen import again
    from experiments.runner import run_together

    options: dict[str, Any] = {k: getattr(arguments, k) for k in DATA}
    codes = []
    with _progress(console) if console.is_terminal else nullcontext() as progress:
        sessions = [_Session(study, arguments, console, progress) for study in chosen]

        def end(n: int, spent: Spent) -> None:
            codes.append(sessions[n].end(spent))

        run_together(
            chosen,
            arguments.out,
            arguments.workers,
            partial(again, arguments),
            lambda n: sessions[n].begin(),
            end,
            **options,
        )
    return max(codes)


def _last(folder: Path) -> list[dict[str, Any]]:
    """The records of the cells that a folder's last run was about, once each."""
    records = latest(load(folder / RECORDS))
    wanted = set((folder / CELLS).read_text(encoding="utf-8").split("\n"))
    return [record for cell, record in records.items() if cell in wanted]


def _draw(path: Path, records: Sequence[dict[str, Any]], out: Path, console: Console) -> bool:
    """Draw these records of a file; whether that went well.

    A process of its own: figures are drawn from records, never from what is in memory.
    """
    with tempfile.TemporaryDirectory() as folder:
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


def _alone(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """What each stage does on its own: the first thing worth reading of a model."""
    held = [r for r in records if r["status"] == "ok"]
    dense = next((r for r in held if not r["stages"]), None)
    if dense is None:
        return  # it failed, which is told at the end
    metrics = dense["metrics"]
    name = next(n for n in ("accuracy", "perplexity", *metrics) if n in metrics)
    shown = (lambda v: f"{v:.1%}") if name == "accuracy" else (lambda v: f"{v:.4g}")
    console.print(f"{name} of each method alone (dense: {shown(metrics[name])})")
    rows: dict[str, list[tuple[str, str]]] = {}
    for r in held:
        if r["stages"]:
            method, amount = _method_and_amount(r)
            rows.setdefault(method, []).append((amount, shown(r["metrics"][name])))
    table = Table()
    table.add_column("method", no_wrap=True)
    for _ in range(max(map(len, rows.values()), default=0)):
        table.add_column(justify="right")
    for method, values in rows.items():
        table.add_row(escape(method), *(f"[dim]{amount}[/]\n{value}" for amount, value in values))
    console.print(table)


def _method_and_amount(record: dict[str, Any]) -> tuple[str, str]:
    """Of a stage alone: what it is called, and how much of it."""
    name, stage = record["label"].rpartition("/")[2], record["stages"][0]
    parts = AMOUNT.fullmatch(name)
    if parts is None:
        return name, ""
    told = {"P": lambda: f"{stage['sparsity']:.0%}", "Q": lambda: f"{stage['bits']} bit"}
    return parts[1], told.get(role(stage) or "", lambda: parts[2])()


def _report(records: Sequence[dict[str, Any]], folder: Path, console: Console) -> None:
    """Print and store the findings."""
    summary = summarize(records)
    write_atomic(folder / "summary.json", summary.to_json())
    text = io.StringIO()
    render(summary, Console(width=150, file=text))
    write_atomic(folder / "report.txt", text.getvalue())
    console.print()
    render(summary, console)


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
            return report_again(arguments.records, console, arguments.at, arguments.json)
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
