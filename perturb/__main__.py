"""``python -m perturb``: the score of a pruner and a quantizer on one model, in both orders."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import math
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perturb import cli, registry, sources
from perturb.cli import BadInput
from perturb.policy import CHOICES, Policy
from perturb.scoring.engine import ARROWS, ORDERS, Scores, score

FORMATS = ("table", "csv", "json")

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
                    batch) gives the logits; or also token_weights, where token_weights(batch)
                    weighs its tokens: 0 for padding. What it prints goes to stderr

METHOD is name[:amount][,setting=value...]
  amount is a pruner's sparsity (0.5) or N:M pattern, N kept (2:4), and a quantizer's bits (4);
  settings are those that python -m perturb methods shows; a quantizer's grid takes
  symmetric=true|false, per=tensor|row|GROUP_SIZE, clip=absmax|mse, convention=half|full;
  sparsegpt's on_grid says what becomes of an earlier quantizer's grid: refit (the survivors
  get a new one), snap (they stay on it) or release (they leave it, as published)

examples:
  python -m perturb resnet-digits --prune wanda:0.5 --quantize gptq:4
  python -m perturb llama-docs --prune sparsegpt:2:4 --quantize gptq:3,per=32,symmetric=false
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
        "--seed", type=cli.seed, default=0, help="of training and of the methods (0)"
    )
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
    usual = "0.5" if role == "pruner" else "4"
    example = f"{'wanda' if role == 'pruner' else 'gptq'}:{usual}"
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
        raise BadInput(f"{option} {text}: the {what} is missing, as in {name}:{usual}")
    try:
        return registry.parse(text)
    except ValueError as error:
        raise BadInput(f"{option} {text}: {error}") from error


def _methods_text() -> str:
    lines = []
    for name, cls in sorted(registry.methods().items(), key=lambda item: (_kind(item[1]), item[0])):
        doc = (sys.modules[cls.__module__].__doc__ or cls.__doc__ or "").strip().splitlines()[0]
        defaults = [
            f"{f.name}={str(f.default).lower() if isinstance(f.default, bool) else f.default}"
            for f in dataclasses.fields(cls)
            if f.name not in (*registry.LEAVES, "grid")
        ]
        lines += textwrap.wrap(f"{name:<17} {_kind(cls):<14}{doc}", 100, subsequent_indent=" " * 32)
        indent = " " * 32
        lines += textwrap.wrap(
            ", ".join(defaults), 100, initial_indent=indent, subsequent_indent=indent
        )
    return "\n".join([*lines, "", "Write them as name:amount,setting=value; --help has examples."])


# ------------------------------------------------------------------------------------- output


def _percent(x: float, decimals: int | None = None) -> str:
    """100 x to three significant digits (0.0123, 1.23, 12.3, 123), or to so many decimals."""
    p = 100 * x
    if not math.isfinite(p):
        return f"{p:g}".replace("inf", "∞")
    places = _places(p) if decimals is None else decimals
    return f"{p:.{places}f}" if p == 0 or abs(p) >= 0.5 * 10**-places else f"{p:.0e}"


def _places(p: float) -> int:
    return min(4, max(0, 2 - math.floor(math.log10(abs(p))))) if p else 0


def _column(values: list[float], sign: str = "") -> list[str]:
    """Fractions as per cent, all with the decimals that the largest needs for three digits."""
    places = _places(100 * max((abs(v) for v in values if math.isfinite(v)), default=0.0))
    texts = [_percent(v, places) for v in values]
    return [sign + t if v > 0 else t for t, v in zip(texts, values, strict=True)]


def _short(name: str, width: int) -> str:
    """A name in at most ``width`` characters: initials of what leads to it, else a gap inside.

    Numbers stay whole, ``layer1.0.conv2`` is ``l1.0.conv2``: they tell layers apart.
    """
    if len(name) > width:
        name = re.sub(r"([^\W\d])[^.]*?(\d*)\.", r"\1\2.", name)
    tail = (width - 1) * 3 // 5
    return name if len(name) <= width else f"{name[: width - 1 - tail]}…{name[-tail:]}"


def _grid(*columns: str, gap: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _layer_table(scores: Scores, width: int) -> Table:
    layers = (*scores.layers, scores.total)
    columns: list[tuple[str, list[str]]] = []
    for v in scores.total.variants:
        columns.append((f"err %\n{ARROWS[v]}", _column([x[v].out_rel for x in layers])))
    for v in scores.total.variants:
        snr = [f"{x[v].snr_db:.1f}".replace("inf", "∞") for x in layers]
        columns.append((f"SNR\n{ARROWS[v]}", snr))
    columns.append(("\ncos", [f"{x.cosine:.2f}".replace("-0.00", "0.00") for x in layers]))
    effects = [x.order for x in layers if x.order is not None]
    if effects:
        changed = [f"{100 * e.owner_changed:.1f}" for e in effects]
        columns.append(("owner\nchg %", changed))
        columns.append(("A_layer\npoints", _column([e.advantage_rel for e in effects], "+")))
        columns.append(("\nbest", [ARROWS[e.prefers] for e in effects]))
    needed = sum(max(map(len, (*head.split("\n"), *cells))) for head, cells in columns)
    longest = max(len(x.name) for x in layers)
    gap = 2 if width >= needed + longest + 2 * len(columns) else 1
    room = max(8, min(longest, width - needed - gap * len(columns)))
    table = _grid("\nlayer", *(head for head, _ in columns), gap=gap)
    for i, layer in enumerate(layers):
        if layer is scores.total:
            table.add_row()
        name = Text(_short(layer.name, room))
        table.add_row(
            name,
            *(cells[i] for _, cells in columns),
            style="bold" if layer is scores.total else None,
        )
    return table


def _model_table(scores: Scores) -> Table:
    shown = tuple(scores.outputs)
    both = scores.total.order is not None
    heads = [ARROWS[v] for v in shown] + (["A(Q→P)", "best"] if both else [])
    table = _grid("whole model", *heads, gap=2)
    for title, field in (("KL to the dense, nats", "kl"), ("logit MSE", "logit_mse")):
        values = {v: getattr(scores.outputs[v], field) for v in shown}
        if any(map(math.isnan, values.values())):
            continue  # a single output has no distribution
        row = [f"{x:.3g}" for x in values.values()]
        if both:
            row += [f"{values['PQ'] - values['QP']:+.2g}", ARROWS[_smaller(values)]]
        table.add_row(title, *row)
    ratios = [f"{scores.storage[v].ratio:.3g}" for v in shown]
    table.add_row("dense / stored bits", *ratios, *([""] * 2 if both else []))
    return table


def _smaller(values: dict[str, float]) -> str:
    if values["PQ"] == values["QP"]:
        return "equal"
    return "PQ" if values["PQ"] < values["QP"] else "QP"


def _distances(scores: Scores) -> tuple[str, str, dict[str, float]]:
    """How far each variant's outputs are from the dense model's: what, in which unit, numbers."""
    kl = {v: x.kl for v, x in scores.outputs.items()}
    if any(map(math.isnan, kl.values())):
        return (
            "mean squared error of the output",
            "",
            {v: x.logit_mse for v, x in scores.outputs.items()},
        )
    return "KL to the dense one", " nats", kl


def words(scores: Scores) -> tuple[str, str]:
    """What the numbers say, in two sentences made from them: about layers, about the model."""
    total = scores.total
    what, unit, d = _distances(scores)
    stronger = "pruning" if d["P"] > d["Q"] else "quantizing" if d["P"] < d["Q"] else "neither"
    if total.order is None:
        v = next(v for v in d if len(v) == 2)
        summed = total["P"].out_rel + total["Q"].out_rel
        return (
            f"Layers: {ARROWS[v]} leaves an error of {_percent(total[v].out_rel)} % of the layers' "
            f"output energy; the errors of P and Q alone add up to {_percent(summed)} %.",
            f"Model: {what} is {d[v]:.3g}{unit} after {ARROWS[v]}, {d['P']:.3g} "
            f"after P and {d['Q']:.3g} after Q alone: {stronger} perturbs it more.",
        )
    effect, count = total.order, len(scores.layers)
    wins = [x.order.prefers for x in scores.layers if x.order is not None]
    sides = {"PQ": "prune first", "QP": "quantize first", "equal": "neither order"}
    by_total, by_model = effect.prefers, _smaller(d)
    energy = total.energy or 1.0
    layers = (
        f"Layers: {wins.count('PQ')} of {count} prefer to prune first, {wins.count('QP')} to "
        f"quantize first"
        + (f", {wins.count('equal')} do not care" if "equal" in wins else "")
        + f". Summed, P→Q leaves {_percent(total['PQ'].out_rel)} % of the output energy as error "
        f"and Q→P {_percent(total['QP'].out_rel)} %: {sides[by_total]}"
        + (" wins" if by_total != "equal" else " does better")
        + f". Changed owners account for {_column([effect.by_ownership / energy], '+')[0]} points "
        f"of A, interference for {_column([effect.interference / energy], '+')[0]}."
    )
    expected = "QP" if stronger == "pruning" else "PQ"
    agrees = "agrees with the layers" if by_model == by_total else "differs from the layers"
    verdict = {expected: "as it is here", "equal": "and here they tie"}.get(
        by_model, "but here it is the other way round"
    )
    if stronger == "neither":
        alone = "Alone, both perturb it equally: the intensity hypothesis expects nothing."
    else:
        alone = (
            f"Alone, {stronger} perturbs it more ({max(d['P'], d['Q']):.3g} against "
            f"{min(d['P'], d['Q']):.3g}), so the intensity hypothesis expects "
            f"{ARROWS[expected]}, {verdict}."
        )
    model = (
        f"Model: {what} is {d['PQ']:.3g}{unit} after P→Q, {d['QP']:.3g} after Q→P: "
        f"{sides[by_model]} is better, which {agrees}. {alone} One pair, no error bar: "
        "python -m experiments compares many."
    )
    return layers, model


def render(scores: Scores, title: str, console: Console) -> None:
    """The table a person reads."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style))

    pruned = {ARROWS[v]: f"{100 * x.pruned:.1f} %" for v, x in scores.total.variants.items()}
    del pruned["Q"]
    same = len(set(pruned.values())) == 1
    sparsity = pruned["P"] if same else ", ".join(f"{p} {v}" for v, p in pruned.items())
    policies = {"calibrate": scores.calibrate, "norms": scores.norms, "zeros": scores.zeros}
    say(title, "bold")
    say(
        f"{scores.total.size:,} weights in {len(scores.layers)} layers, {sparsity} pruned; "
        + ", ".join(f"{k}={v}" for k, v in policies.items())
    )
    say(f"{scores.coverage.describe()}\n")
    console.print(_layer_table(scores, console.width))
    legend = (
        "\nerr: E|dW x|² / E|W x|²; SNR: |W|² / |dW|² in dB; cos: between dW of P and of Q alone"
    )
    if scores.total.order is not None:
        legend += (
            "; owner chg: weights that only one order prunes; A_layer = err(P→Q) − err(Q→P), "
            "> 0: quantize first is better; whole model: outputs on the calibration data"
        )
    say(legend + "\n", "dim")
    console.print(_model_table(scores))
    for variant, told in scores.solver.items():
        raised = [n for n, r in told.items() if r["retries"]]
        if raised:
            say(
                f"{ARROWS[variant]}: the damping of {len(raised)} Hessians had to be raised, "
                f"first: {raised[0]}",
                "yellow",
            )
    say("")
    for sentence in words(scores):
        say(sentence)


def _text(scores: Scores, form: str, title: str) -> str:
    if form == "csv":
        return scores.to_csv()
    if form == "json":
        return scores.to_json()
    stream = io.StringIO()
    render(scores, title, Console(file=stream, width=cli.columns()))
    return stream.getvalue()


def run(argv: list[str]) -> None:
    """Check, load, measure, write; raises :class:`BadInput` for what the user can put right."""
    arguments = _parser().parse_args(argv)
    if arguments.list or arguments.model == "methods":
        print(_methods_text())
        return
    if arguments.model == "models":
        print("\n".join(sources.installed()) or "none: run pip install -e . again")
        return
    if arguments.model is None:
        raise BadInput("MODEL is missing: a name that 'models' lists, or FILE.py:FUNCTION")
    pruner = _method("--prune", arguments.prune, "pruner")
    quantizer = _method("--quantize", arguments.quantize, "quantizer")
    out: Path | None = arguments.out
    if out is not None:
        cli.check_file("--out", out)
    loader = sources.loader(arguments.model)
    sources.compilation_cache()
    model, calibration, forward, token_weights = sources.load(
        arguments.model, loader, arguments.seed, arguments.exclude
    )
    title = f"{arguments.model}: P = {arguments.prune}, Q = {arguments.quantize}"
    console = Console(stderr=True, emoji=False)
    with console.status(Text(f"measuring {title}")), sources.printing_to_stderr():
        try:
            scores = score(
                model,
                pruner,
                quantizer,
                calibration,
                order=arguments.order,
                calibrate=arguments.calibrate,
                key=arguments.seed,
                exclude=arguments.exclude,
                forward=forward,
                norms=arguments.norms,
                zeros=arguments.zeros,
                token_weights=token_weights,
            )
        except ValueError as error:
            raise BadInput(f"MODEL {arguments.model}: {error}") from error
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
