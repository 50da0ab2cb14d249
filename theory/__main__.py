"""``python -m theory``: what is proved or derived here, and checks of it that can fail."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from theory import gaussian, ownership

EPILOG = """\
examples:
  python -m theory
      what there is, with sources
  python -m theory verify
      check all of it: closed forms digit by digit, identities on many instances
  python -m theory verify ownership --instances 100000 --seed 7
      one of them, on other instances

exit codes: 0 everything marked as holding holds, 1 something does not, 2 bad input.
"""


class BadInput(Exception):
    """Something the user can put right; its text is the one line they read."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see python -m theory --help")


@dataclass(frozen=True)
class Settings:
    instances: int
    seed: int


@dataclass(frozen=True)
class Statement:
    """``check`` prints what it looked at and says whether it holds."""

    name: str
    says: str
    source: str
    check: Callable[[Settings, Console], bool]


def _check_gaussian(_: Settings, console: Console) -> bool:
    rows = [
        (f"prune {c:.1%}", gaussian.prune_snr_db(c), printed)
        for c, printed in gaussian.PRUNE_SNR.items()
    ]
    rows += [
        (f"{bits}-bit grid", gaussian.grid_snr_db(bits), printed)
        for bits, printed in gaussian.GRID_SNR.items()
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Gaussian weights", no_wrap=True)
    for head in ("SNR, dB", "THEORY.md", ""):
        table.add_column(head, justify="right", no_wrap=True)
    holds = True
    for name, value, printed in rows:
        same = reproduces(value, printed)
        holds &= same
        table.add_row(name, f"{value:.6f}", printed, "same digits" if same else "DIFFERS")
    console.print(table)
    return holds


def reproduces(value: float, printed: str) -> bool:
    """Whether a value rounds to a printed number, digit by digit."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def _check_ownership(settings: Settings, console: Console) -> bool:
    random = ownership.check_random(settings.instances, seed=settings.seed)
    exact = ownership.check_exact(seed=settings.seed)
    for name, result, allowed in (
        (
            "float64, random instances of 64 units",
            random,
            f"smallest margin {random.margin:.3g} of what rounding may do",
        ),
        ("exact fractions, all pairs of owner sets of 4 units", exact, "equality exact"),
    ):
        counts = f"{result.instances:,} instances, {result.failures:,} fail"
        console.print(f"{name}: {counts}; {allowed}", highlight=False)
        if result.counterexample:
            console.print(f"  first: {result.counterexample}", markup=False, highlight=False)
    return random.holds and exact.holds


STATEMENTS = {
    s.name: s
    for s in (
        Statement(
            "gaussian",
            "SNR of pruning and of the MSE-optimal uniform grid on Gaussian weights, closed form",
            "derived here; compared with Kuzmin et al., arXiv 2307.02973",
            _check_gaussian,
        ),
        Statement(
            "ownership",
            "theorem 1: only units whose owner changes with the order carry the advantage",
            "Kim et al., arXiv 2603.18426",
            _check_ownership,
        ),
    )
}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m theory",
        description="The theorems and closed forms behind the measurements, each with a check.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", default="list", help="list (default) or verify")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="statements to verify; all if none"
    )
    parser.add_argument("--instances", type=int, default=10_000, metavar="N", help="10000")
    parser.add_argument("--seed", type=int, default=0, help="of the random instances (0)")
    return parser


def run(argv: list[str]) -> int:
    """The exit code; raises :class:`BadInput`."""
    arguments = _parser().parse_args(argv)
    console = Console()
    if arguments.command not in ("list", "verify"):
        raise BadInput(f"no command {arguments.command!r}: there are list and verify")
    unknown = [n for n in arguments.names if n not in STATEMENTS]
    if unknown:
        raise BadInput(f"no statement {unknown[0]!r}: there are {', '.join(STATEMENTS)}")
    if arguments.instances < 1:
        raise BadInput(f"--instances {arguments.instances}: must be at least 1")
    if arguments.seed < 0:
        raise BadInput(f"--seed {arguments.seed}: must be 0 or more")
    names = list(dict.fromkeys(arguments.names)) or list(STATEMENTS)
    if arguments.command == "list":
        for name in names:
            statement = STATEMENTS[name]
            console.print(f"{name:<10} {statement.says}", highlight=False, markup=False)
            console.print(f"{'':<10} source: {statement.source}", highlight=False, markup=False)
        return 0
    failed = []
    for name in names:
        console.print(f"[bold]{name}[/]: {STATEMENTS[name].says}", highlight=False)
        holds = STATEMENTS[name].check(Settings(arguments.instances, arguments.seed), console)
        console.print("holds\n" if holds else "[bold red]DOES NOT HOLD[/]\n")
        failed += [] if holds else [name]
    if failed:
        print(f"does not hold: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0 all holds, 1 something does not, 2 bad input."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except BadInput as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
