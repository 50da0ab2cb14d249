"""What a score's numbers say, in sentences made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from perturb.scoring.types import EQUAL, Advantage, Scores, arrow

PLURAL = {"P": "pruning", "Q": "quantizing"}
DISTANCES = {
    "kl": ("KL to the dense one", " nats"),
    "logit_mse": ("mean squared error of the output", ""),
}


def percent(x: float, decimals: int | None = None) -> str:
    """100 x to three significant digits (0.0123, 1.23, 12.3, 123), or to so many decimals."""
    p = 100 * x
    if not math.isfinite(p):
        return f"{p:g}".replace("inf", "∞")
    shown = places(p) if decimals is None else decimals
    return f"{p:.{shown}f}" if p == 0 or abs(p) >= 0.5 * 10**-shown else f"{p:.0e}"


def places(p: float) -> int:
    return min(4, max(0, 2 - math.floor(math.log10(abs(p))))) if p else 0


def column(values: Sequence[float], sign: str = "") -> list[str]:
    """Fractions as per cent, all with the decimals that the largest needs for three digits."""
    shown = places(100 * max((abs(v) for v in values if math.isfinite(v)), default=0.0))
    texts = [percent(v, shown) for v in values]
    return [sign + t if v > 0 else t for t, v in zip(texts, values, strict=True)]


def interval(a: Advantage) -> str:
    """``+0.0123 [+0.01, +0.0146]``."""
    if math.isnan(a.low):
        return f"{a.value:+.3g}"
    return f"{a.value:+.3g} [{a.low:+.3g}, {a.high:+.3g}]"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def data(scores: Scores) -> str:
    where = "held-out" if scores.heldout else "calibration"
    return counted(scores.examples, f"{where} example")


def sentences(scores: Scores) -> tuple[str, str, str]:
    """About the layers, about the model, and what to do."""
    if len(scores.orders) == 1:
        return _one_order(scores), _model(scores), "Advice: run the other orders, too."
    return _layers(scores), _model(scores), _advice(scores)


def _first(order: str, scores: Scores) -> str:
    if order == EQUAL:
        return "neither order"
    if tuple(scores.stages) == ("P", "Q"):
        return "prune first" if order == "PQ" else "quantize first"
    return arrow(order)


def _one_order(scores: Scores) -> str:
    total, (order,) = scores.total, scores.orders
    summed = sum(total[v].out_rel for v in scores.stages)
    return (
        f"Layers: {arrow(order)} leaves an error of {percent(total[order].out_rel)} % of the "
        f"layers' output energy; the errors of {_all(list(scores.stages))} alone add up to "
        f"{percent(summed)} %."
    )


def _all(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _layers(scores: Scores) -> str:
    total, count = scores.total, len(scores.layers)
    wins = [x.prefers for x in scores.layers]
    errors = {v: total[v].out_rel for v in total.errors}
    by_total = total.prefers
    if len(scores.stages) > 2:
        best, worst = (f(errors, key=lambda v: errors[v]) for f in (min, max))
        most = max(set(wins), key=wins.count)
        return (
            f"Layers: {wins.count(most)} of {count} prefer {_first(most, scores)}, the most of any "
            f"order. Summed, {arrow(best)} leaves the least of the output energy as error, "
            f"{percent(errors[best])} %, {arrow(worst)} the most, {percent(errors[worst])} %."
        )
    one, two = errors
    verb = "to " if tuple(scores.stages) == ("P", "Q") else ""
    text = (
        f"Layers: {wins.count(one)} of {count} prefer {verb}{_first(one, scores)}, "
        f"{wins.count(two)} {verb}{_first(two, scores)}"
        + (f", {wins.count(EQUAL)} do not care" if EQUAL in wins else "")
        + f". Summed, {arrow(one)} leaves {percent(errors[one])} % of the output energy as error "
        f"and {arrow(two)} {percent(errors[two])} %: {_first(by_total, scores)}"
        + (" wins." if by_total != EQUAL else " does better.")
    )
    effect, energy = total.order, total.energy or 1.0
    if effect is None or effect.by_ownership is None or effect.interference is None:
        return text
    return text + (
        f" Changed owners account for {column([effect.by_ownership / energy], '+')[0]} points "
        f"of A, interference for {column([effect.interference / energy], '+')[0]}."
    )


def _model(scores: Scores) -> str:
    what, unit = DISTANCES[scores.distance]
    d, orders = scores.distances, list(scores.orders)
    alone = {v: d[v] for v in scores.stages}
    shown = orders if len(orders) <= 2 else [orders[0], orders[-1]]
    if len(scores.stages) == 2 and len(orders) == 2:
        shown = [v for v in scores.total.variants if len(v) > 1]
    text = f"Model: {what} is " + ", ".join(
        f"{d[v]:.3g}{unit if i == 0 else ''} after {arrow(v)}" for i, v in enumerate(shown)
    )
    if len(orders) == 1:
        return f"{text}. {_hypothesis(alone, scores)}"
    best = scores.best
    agrees = "agrees with" if best == scores.total.prefers else "differs from"
    better = "nearest is" if len(orders) > 2 else "nearer is"
    return (
        f"{text}: {better} {_first(best, scores)}, which {agrees} the layers. "
        f"{_hypothesis(alone, scores)}{_zeros(scores)}"
    )


def _zeros(scores: Scores) -> str:
    """Of a pruner and a quantizer, what the zero fraction expects: quantize first where rounding
    alone zeroes at least what pruning takes, as pruning then only removes zeros."""
    if set(scores.stages) != {"P", "Q"}:
        return ""
    zeroed, pruned = scores.total["Q"].zero, scores.total["P"].pruned
    if not pruned:
        return ""
    at_least = zeroed >= pruned * (1 - 1e-6)
    told = "at least" if at_least else "less than"
    return (
        f" Quantizing alone sends {percent(zeroed)} % of the weights to 0, {told} the "
        f"{percent(pruned)} % that are pruned: the zero fraction expects "
        f"{_first('QP' if at_least else 'PQ', scores)}."
    )


def _hypothesis(alone: Mapping[str, float], scores: Scores) -> str:
    """What the intensity hypothesis expects: the weaker first."""
    ranked = sorted(alone, key=lambda v: alone[v])
    numbers = {v: f"{alone[v]:.3g}" for v in ranked}
    if len(set(alone.values())) < len(alone):
        return "Alone, some perturb it equally: the intensity hypothesis expects nothing."
    expected = "".join(ranked)
    orders = scores.orders
    verdict = ""
    if expected not in orders:
        verdict = ", which was not run" if len(orders) > 1 else ""
    elif len(orders) > 1:
        verdict = {expected: ", as it is here", EQUAL: ", and here they tie"}.get(
            scores.best, ", but here it is another"
        )
    if len(ranked) == 2:
        weak, strong = ranked
        who = PLURAL.get(strong, f"{strong} ({scores.stages[strong]['name']})")
        return (
            f"Alone, {who} perturbs it more ({numbers[strong]} against {numbers[weak]}), so the "
            f"intensity hypothesis expects {arrow(expected)}{verdict}."
        )
    told = ", ".join(f"{v} {numbers[v]}" for v in ranked)
    return f"Alone they are {told}: the intensity hypothesis expects {arrow(expected)}{verdict}."


def _advice(scores: Scores) -> str:
    """One sentence of what to do, from the outputs and their intervals."""
    unit = DISTANCES[scores.distance][1]
    best, over = scores.best, data(scores)
    caution = "" if scores.heldout else "; held-out inputs of your own would say more"
    if best == EQUAL:
        return f"Advice: any order, the outputs are the same on {over}{caution}."
    if len(scores.stages) == 2:
        (a,) = scores.advantages
        told = f"A({arrow(a.order)}) = {interval(a)}{unit} on {over}"
        if a.sign:
            return f"Advice: run {arrow(best)}, {told}: the interval excludes 0{caution}."
        why = "no interval" if math.isnan(a.low) else "the interval includes 0"
        return f"Advice: either order, {told}: {why}, more held-out data may tell{caution}."
    open_ = [a.over for a in scores.advantages if not a.sign]
    nearest = min(scores.advantages, key=lambda a: a.value)
    told = f"nearer than {arrow(nearest.over)} by {interval(nearest)}{unit} on {over}"
    if not open_:
        return f"Advice: run {arrow(best)}, {told}, and surely nearer than every other{caution}."
    sure = len(scores.advantages) - len(open_)
    names = ", ".join(map(arrow, open_[:3])) + (f" and {len(open_) - 3} more" if open_[3:] else "")
    return (
        f"Advice: run {arrow(best)}, {told}; surely nearer than {sure} of the "
        f"{len(scores.advantages)} others, not told apart from {names}{caution}."
    )
