"""The table that a person reads: layers in call order, orders from the best, what it all says."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perturb.network import short_names
from perturb.scoring.types import EQUAL, LayerScore, Scores, arrow
from perturb.scoring.words import column, counted, data, interval, sentences

NAME = 8  # columns that a layer's name has at least
Columns = list[tuple[str, list[str]]]


def grid(*columns: str, gap: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_edge=False)
    for i, head in enumerate(columns):
        table.add_column(head, justify="right" if i else "left", no_wrap=True)
    return table


def _snr(x: float) -> str:
    return f"{x:.1f}".replace("inf", "∞")


def _pair_columns(scores: Scores, layers: tuple[LayerScore, ...]) -> Columns:
    """Two stages: every variant's error and SNR, their cosine, and what changes with the order."""
    variants = tuple(scores.total.variants)
    columns = [(f"err %\n{arrow(v)}", column([x[v].out_rel for x in layers])) for v in variants]
    columns += [(f"SNR\n{arrow(v)}", [_snr(x[v].snr_db) for x in layers]) for v in variants]
    cosines = [x.cosine for x in layers if x.cosine is not None]
    if len(cosines) == len(layers):
        columns.append(("\ncos", [f"{c:.2f}".replace("-0.00", "0.00") for c in cosines]))
    effects = [x.order for x in layers if x.order is not None]
    if effects:
        changed = [f"{100 * e.owner_changed:.1f}" for e in effects]
        columns.append(("owner\nchg %", changed))
        columns.append(("A_layer\npoints", column([e.advantage_rel for e in effects], "+")))
    if len(scores.orders) > 1:
        columns.append(("\nbest", [arrow(x.prefers) for x in layers]))
    return columns


def _many_columns(scores: Scores, layers: tuple[LayerScore, ...]) -> Columns:
    """More stages: each alone, the best and the worst order."""
    columns = [(f"err %\n{v}", column([x[v].out_rel for x in layers])) for v in scores.stages]
    low, high = (
        [f(x.errors, key=lambda v, x=x: x.errors[v]) for x in layers]  # type: ignore[misc]
        for f in (min, max)
    )
    for head, chosen in (("best", low), ("worst", high)):
        errors = [x[v].out_rel for x, v in zip(layers, chosen, strict=True)]
        columns.append((f"err %\n{head}", column(errors)))
    for head, chosen in (("best", low), ("worst", high)):
        names = ["=" if x.prefers == EQUAL else v for x, v in zip(layers, chosen, strict=True)]
        columns.append((f"{head}\norder", names))
    return columns


def layer_table(scores: Scores, width: int) -> Table:
    layers = (*scores.layers, scores.total)
    make = _pair_columns if len(scores.stages) == 2 else _many_columns
    columns = make(scores, layers)
    needed = sum(max(map(len, (*head.split("\n"), *cells))) for head, cells in columns)
    longest = max(len(x.name) for x in layers)
    gap = 2 if width >= needed + longest + 2 * len(columns) else 1
    room = max(NAME, min(longest, width - needed - gap * len(columns)))
    names = short_names([x.name for x in scores.layers], room)
    table = grid("\nlayer", *(head for head, _ in columns), gap=gap)
    for i, layer in enumerate(layers):
        last = layer is scores.total
        if last:
            table.add_row()
        name = Text("total" if last else names[layer.name])
        table.add_row(name, *(cells[i] for _, cells in columns), style="bold" if last else None)
    return table


def model_table(scores: Scores) -> Table:
    """A row a variant: the stages alone, then the orders from the nearest."""
    orders, best = list(scores.orders), scores.best
    kl = scores.distance == "kl"
    gains = [a if a.value >= 0 else a.turned for a in scores.advantages]
    told = {a.over: interval(a) for a in gains} | {best: "best"}
    heads = [*(["KL\nnats"] if kl else []), "logit\nMSE", "err\n%", "dense /\nstored bits"]
    heads += ["best is nearer by\n[95 %]"] if len(orders) > 1 else []
    table = grid("whole\nmodel", *heads, gap=2)
    variants = (*scores.stages, *orders)
    errors = column([scores.total[v].out_rel for v in variants])
    for v, error in zip(variants, errors, strict=True):
        out = scores.outputs[v]
        row = [*([f"{out.kl:.3g}"] if kl else []), f"{out.logit_mse:.3g}", error]
        row.append(f"{scores.storage[v].ratio:.3g}")
        row += [told.get(v, "")] if len(orders) > 1 else []
        table.add_row(arrow(v), *row, style="bold" if v == best and orders[1:] else None)
    return table


def _legend(scores: Scores) -> str:
    text = "err: E|dW x|² / E|W x|²"
    if len(scores.stages) == 2:
        text += "; SNR: |W|² / |dW|² in dB; cos: between dW of both alone"
        if scores.total.order is not None:
            one, two = (arrow(v) for v in scores.total.errors)
            text += (
                f"; owner chg: weights that only one order prunes; A_layer = err({one}) − "
                f"err({two}), > 0: {two} is better"
            )
    return (
        f"{text}; whole model: outputs on {data(scores)}, 95 % intervals of the paired bootstrap "
        "over these"
    )


def uncovered(scores: Scores) -> list[str]:
    """What these numbers do not cover, a line each."""
    lines = [scores.coverage.describe()]
    few = {n: x for n, x in scores.inputs.items() if x.tokens < x.inputs}
    dead = {n: x for n, x in scores.inputs.items() if x.dead}
    if few:
        worst = min(few, key=lambda n: few[n].tokens / few[n].inputs)
        lines.append(
            f"fewer tokens than inputs in {counted(len(few), 'layer')}, the fewest in {worst} "
            f"({few[worst].tokens:g} for {few[worst].inputs})"
        )
    if dead:
        worst = max(dead, key=lambda n: dead[n].dead / dead[n].inputs)
        lines.append(
            f"inputs that were 0 in all tokens in {counted(len(dead), 'layer')}, the most in "
            f"{worst} ({dead[worst].dead} of {dead[worst].inputs})"
        )
    if scores.skipped:
        shown = [f"{n} ({why})" for n, why in list(scores.skipped.items())[:3]]
        more = f" and {len(scores.skipped) - 3} more" if len(scores.skipped) > 3 else ""
        lines.append(f"layers left alone: {', '.join(shown)}{more}")
    if not scores.heldout:
        lines.append("outputs are compared on the calibration inputs: no held-out ones were given")
    return lines


def render(scores: Scores, title: str, console: Console) -> None:
    """Print it."""

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style))

    pruned = {arrow(v): x.pruned for v, x in scores.total.variants.items() if x.pruned}
    texts = {f"{100 * p:.1f} %" for p in pruned.values()}
    if len(texts) > 1:
        few = list(pruned.items())[:4]
        sparsity = ", ".join(f"{v} {100 * p:.1f} %" for v, p in few) + " pruned"
    else:
        sparsity = f"{next(iter(texts), '0 %')} pruned"
    policies = ", ".join(f"{k}={v}" for k, v in asdict(scores.policy).items())
    say(title, "bold")
    say(f"{scores.total.size:,} weights in {len(scores.layers)} layers, {sparsity}; {policies}")
    for line in uncovered(scores):
        say(line)
    say("")
    console.print(layer_table(scores, console.width))
    say(f"\n{_legend(scores)}\n", "dim")
    console.print(model_table(scores))
    for variant, told in scores.solver.items():
        raised = [n for n, r in told.items() if r["retries"]]
        if raised:
            say(
                f"{arrow(variant)}: the damping of {len(raised)} Hessians had to be raised, "
                f"first: {raised[0]}",
                "yellow",
            )
    say("")
    for sentence in sentences(scores):
        say(sentence)
