"""``python -m theory``: what is proved or derived here, and checks of it that can fail."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from perturb import cli
from perturb.cli import BadInput
from theory.interrupts import heard

INSTANCES, MOST_INSTANCES = 100_000, 10**12
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
      all of them: proofs, 100000 instances each, attacks, counterexamples, phase diagrams;
      longer the first time, when nothing is compiled yet. Writes verify.json, report.md and
      figures to results/theory
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
    from theory import commands  # seconds: after what can be refused at once, and Ctrl-C is heard

    names = list(dict.fromkeys(arguments.names))
    if arguments.command == "models":
        return commands.models(names, arguments.seed, out)
    statements = commands.chosen(names)
    if arguments.command == "list":
        return commands.show(statements)
    draw = not arguments.no_figures
    return commands.verify(statements, arguments.instances, arguments.seed, out, draw)


def main(argv: list[str] | None = None) -> int:
    """The exit code (:func:`perturb.cli.call`); 1 if something does not hold."""
    with heard():
        return cli.call(run, argv)


if __name__ == "__main__":
    sys.exit(main())
