"""``python -m perturb``: the score of two to four stages on one model, in every order."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from perturb import cli, network, outside, sources
from perturb.backend import LARGE, compile_quickly, give_back
from perturb.cli import BadInput
from perturb.policy import CHOICES, Policy
from perturb.programs import cache_programs
from perturb.scoring.asked import methods_text, stages_of
from perturb.scoring.engine import score
from perturb.scoring.orders import plan_of
from perturb.scoring.table import render
from perturb.scoring.types import Scores

FORMATS = ("table", "csv", "json")
LINE_EVERY = 30.0  # seconds between two lines of a run without a terminal

DESCRIPTION = """\
What do two to four stages do to a trained model, each alone and all of them in every order? Every
layer's perturbation, which order each layer prefers, how far the model's outputs move, and which
order is the best, with an interval. Nothing is trained, except an embedded model the first time
(and the adapters of lora)."""

EPILOG = """\
MODEL is one of
  a name            of an installed model (python -m perturb models lists them)
  FILE.py:FUNCTION  or PACKAGE.MODULE:FUNCTION, called without arguments (with seed=SEED if it
                    has such a parameter), returning a dict: model, an nnx.Module; calibration,
                    a list of its inputs; and, if there are any, heldout, other inputs to compare
                    outputs on; forward, where forward(model, batch) gives the logits;
                    token_weights, where token_weights(batch) weighs its tokens, 0 for padding.
                    (model, calibration[, forward[, token_weights]]) will do, too. What it
                    prints goes to stderr
  a checkpoint      a folder with config.json and safetensors, or a GGUF file: Llama, Mistral,
                    Qwen2, Qwen3 or GPT-2, on the text of --text in windows of --window tokens;
                    ResNet, MobileNetV2, EfficientNet-lite, ViT or DeiT, on the images of --images

METHOD is name[:amount][,setting=value...]
  amount is a pruner's sparsity (0.5) or N:M pattern, N kept (2:4), a quantizer's bits (4), else
  the first setting that is a number;
  settings are those that python -m perturb methods shows; a quantizer's grid takes
  symmetric=true|false, per=tensor|row|GROUP_SIZE, clip=absmax|mse, convention=half|full;
  sparsegpt's on_grid says what becomes of an earlier quantizer's grid: refit (the survivors
  get a new one), snap (they stay on it) or release (they leave it, as published);
  a method of your own is FILE.py:CLASS or PACKAGE.MODULE:CLASS in place of the name, a class
  under @perturb.registry.method("its name"), see perturb/naming.py

examples:
  python -m perturb resnet-digits --prune wanda:0.5 --quantize gptq:4
  python -m perturb llama-docs --prune sparsegpt:2:4 --quantize gptq:3,per=32,symmetric=false
  python -m perturb llama-docs --stage drop:0.25 --stage sparsegpt:0.5 --stage gptq:4
  python -m perturb mine.py:load --stage mine.py:Sign --stage wanda:0.5 --order ab
  python -m perturb mine.py:load --prune magnitude:0.7,scope=row --quantize rtn:4 --format csv
  python -m perturb vit-digits --prune wanda:0.5 --quantize rtn:4 --exclude head --order pq

calibration (--calibrate), the inputs that a stage sees:
  recalibrate  those of the model it is handed (default)
  sequential   the same, but block after block as it compresses, as the reference codes do
  dense        those of the uncompressed model

running statistics of batch norms (--norms), after each stage
  reestimate   measured again on the calibration inputs (default)
  keep         those of the uncompressed model

zeros that the weights hold already (--zeros)
  free         are weights like others (default): a quantizer may move them
  keep         count as pruned: they stay zero

Compiled programs and models are kept in $PERTURB_CACHE, else in ~/.cache/compression-order: the
second time is faster. exit codes: 0 done, 2 bad input (one line on stderr), 130 stopped by
Ctrl-C, 1 failure of ours.
"""


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m perturb",
        usage="python -m perturb MODEL --stage METHOD --stage METHOD [...] [options]\n"
        "       python -m perturb MODEL --prune METHOD --quantize METHOD [options]\n"
        "       python -m perturb methods | models",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="see below; or methods, models")
    parser.add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="METHOD",
        help="two to four of them; lettered A, B, C, D (a pruner and a quantizer: P, Q)",
    )
    parser.add_argument("--prune", metavar="METHOD", help="a stage, for example wanda:0.5")
    parser.add_argument("--quantize", metavar="METHOD", help="a stage, for example gptq:4")
    parser.add_argument(
        "--order", default="all", metavar="ORDER", help="all (default), or some: pq or abc,cba"
    )
    parser.add_argument("--format", default="table", choices=FORMATS, help="default: table")
    for policy, choices in CHOICES.items():
        usual = getattr(Policy(), policy)
        parser.add_argument(f"--{policy}", default=usual, choices=choices, help="see below")
    parser.add_argument(
        "--exclude",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="layers that stay dense: names or shell patterns such as 'blocks.0.*'",
    )
    parser.add_argument(
        "--include",
        action="extend",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="embeddings that are compressed, too: names or shell patterns",
    )
    parser.add_argument(
        "--seed", type=cli.seed, default=0, help="of training and of the methods (0)"
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="of a checkpoint's folder")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="likewise: a folder, or photographs"
    )
    told = "tokens an example of it has (128), or the side of an image"
    parser.add_argument("--window", type=int, metavar="N", help=told)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there, not to the screen")
    parser.add_argument("--list", action="store_true", help="the methods, as 'methods' does")
    return parser


# ------------------------------------------------------------------------------------- output


def _text(scores: Scores, form: str, title: str) -> str:
    if form == "csv":
        return scores.to_csv()
    if form == "json":
        return scores.to_json()
    stream = io.StringIO()
    render(scores, title, Console(file=stream, width=cli.columns()))
    return stream.getvalue()


class _Wait:
    """What is being done: a line that changes or, without a terminal, one now and then."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.console = Console(stderr=True, emoji=False)
        self._status = self.console.status(Text(title))
        self._start = self._told = time.monotonic()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if self.console.is_terminal:
            self._status.update(Text(f"{self.title}, {text}"))
        elif now - self._told >= LINE_EVERY:
            self._told = now
            print(f"[{now - self._start:6.0f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._status:
            yield


def _score(text: str, stages: list[Any], loaded: sources.Loaded, wait: _Wait, **how: Any) -> Scores:
    """The score; what the user's model and methods raise is told in one line."""
    try:
        with wait.shown(), sources.printing_to_stderr():
            return score(
                loaded.model,
                stages,
                loaded.calibration,
                heldout=loaded.heldout,
                forward=loaded.forward,
                token_weights=loaded.token_weights,
                tell=wait,
                **how,
            )
    except ValueError as error:
        raise BadInput(f"MODEL {text}: {error}") from error
    except Exception as error:
        theirs = outside.blamed(error, stages)
        if theirs is None:
            raise
        raise BadInput(f"stage {theirs.name}: {outside.told(error)}") from error


def run(argv: list[str]) -> None:
    """Check, load, measure, write; raises :class:`BadInput` for what the user can put right."""
    arguments = _parser().parse_args(argv)
    if arguments.list or arguments.model == "methods":
        print(methods_text())
        return
    if arguments.model == "models":
        print("\n".join(sources.installed()) or "none: run pip install -e . again")
        return
    if arguments.model is None:
        raise BadInput("MODEL is missing: a name that 'models' lists, or FILE.py:FUNCTION")
    named = stages_of(arguments)
    stages = [stage for _, stage in named.values()]
    try:
        plan_of(stages, arguments.order)
    except ValueError as error:
        option = "--order" if str(error).startswith("order") else "--stage"
        raise BadInput(f"{option}: {error}") from error
    out: Path | None = arguments.out
    if out is not None:
        cli.check_file("--out", out)
    data = {k: getattr(arguments, k) for k in ("text", "images", "window")}
    loader = sources.loader(arguments.model, data)
    compile_quickly()
    cache_programs()
    loaded = sources.load(
        arguments.model, loader, arguments.seed, arguments.exclude, arguments.include
    )
    if network.size_of(loaded.model) >= LARGE:
        give_back()
    title = f"{arguments.model}: " + ", ".join(f"{k} = {text}" for k, (text, _) in named.items())
    scores = _score(
        arguments.model,
        stages,
        loaded,
        _Wait(title),
        order=arguments.order,
        key=arguments.seed,
        exclude=arguments.exclude,
        include=arguments.include,
        **{policy: getattr(arguments, policy) for policy in CHOICES},
    )
    if out is not None:
        try:
            out.write_text(_text(scores, arguments.format, title), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot write --out {out}: {error.strerror}") from error
        print(out)
    elif arguments.format == "table" and sys.stdout.isatty():
        render(scores, title, Console())
    else:
        sys.stdout.write(_text(scores, arguments.format, title))


def main(argv: list[str] | None = None) -> int:
    """The exit code (:func:`perturb.cli.call`)."""
    return cli.call(run, argv)


if __name__ == "__main__":
    sys.exit(main())
