"""What the measurements of :mod:`theory.models.measure` say of each assumption, by fixed rules.

Nothing here touches a model: numbers in, fits and verdicts out, so that recorded results can be
judged again. "narrower" means: true under a further condition, which the finding names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from theory.engine.statement import Finding, verdict
from theory.models import orders
from theory.models.noise import BINS
from theory.models.orders import Record, short
from theory.thresholds import ALONE, CLEAR, FLOOR, MEAN, SHARE, SKEW, SMALL, SPREAD, WITHIN

ORDER = ("median", "worst")  # of a noise measure over layers
ERRORS = ("a token", "a prediction", "relative", "weights")  # what E may be taken to be


def _errors(layer: Record, kind: str) -> np.ndarray:
    """E of a layer by setting: E||dW x||^2 a token, summed over the tokens of a prediction,
    relative to E||W x||^2, or ||dW||^2."""
    out = np.array(layer["error"])
    return {
        "a token": out,
        "a prediction": out * layer["tokens"],
        "relative": out / layer["energy"] if layer["energy"] else out,
        "weights": np.array(layer["change"]),
    }[kind]


def fit(error: np.ndarray, kl: np.ndarray, use: np.ndarray) -> dict[str, float]:
    """KL = kappa E^slope over the chosen points: kappa = median KL / E (slope 1), the log-log
    slope and its R^2; nothing for less than three points."""
    use = use & (error > 0) & (kl > 0)
    if use.sum() < 3:
        return {}
    x, y = np.log(error[use]), np.log(kl[use])
    slope, intercept = np.polyfit(x, y, 1)
    rest, total = ((y - slope * x - intercept) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    return {
        "kappa": float(np.median(kl[use] / error[use])),
        "slope": float(slope),
        "r2": float(1 - rest / total) if total else 1.0,
        "points": int(use.sum()),
    }


def spread(kappas: Sequence[float]) -> dict[str, float]:
    """How far the layers' kappas are apart: largest / smallest, and the deviation of their log."""
    k = np.log(np.array(kappas))
    return {"factor": float(np.exp(np.ptp(k))), "log deviation": float(k.std())}


def fits(result: Record) -> dict[str, Any]:
    """``linearity``: fits of KL against E by layer (E a token), on small perturbations and on
    all, and by kind of E the spread of kappa; ``noise``: by bits, each measure's median over
    layers and worst layer."""
    layers = result["layers"]
    linearity: dict[str, Any] = {}
    for reach, limit in (("small", ALONE), ("all", np.inf)):
        use = [(np.array(x["kl"]) > FLOOR) & (np.array(x["kl"]) <= limit) for x in layers]
        by_kind = {
            kind: [
                fit(_errors(x, kind), np.array(x["kl"]), u)
                for x, u in zip(layers, use, strict=True)
            ]
            for kind in ERRORS
        }
        kappas = {kind: [f["kappa"] for f in found if f] for kind, found in by_kind.items()}
        linearity[reach] = {
            "layers": by_kind["a token"],
            "spread": {kind: spread(k) for kind, k in kappas.items() if k},
        }
    noise: dict[str, Any] = {}
    for bits in layers[0]["noise"]:
        noise[bits] = {}
        for name in layers[0]["noise"][bits]:
            values = np.array([x["noise"][bits][name] for x in layers])
            worst = int(np.argmax(np.abs(values)))
            noise[bits][name] = {
                "median": float(np.median(values)),
                "worst": float(values[worst]),
                "layer": layers[worst]["name"],
            }
    return {"linearity": linearity, "noise": noise}


def findings(results: Mapping[str, Record]) -> tuple[Finding, ...]:
    """Verdicts for each model of ``{name: measure_model(...)}``, one after the other."""
    found: list[Finding] = []
    for name, result in results.items():
        found += [
            _independence(name, result),
            _linearity(name, result),
            _prediction(name, result),
            *_noise(name, result),
            *orders.in_layers(name, result),
            *orders.sign_law(name, result),
        ]
    return tuple(found)


def _independence(model: str, result: Record) -> Finding:
    """Assumption 1(a)."""
    told = result["together"]
    kl, total = np.array(told["kl"]), np.array(told["sum"])
    ratio = kl / np.where(total > 0, total, 1)
    equal, small = np.abs(ratio - 1) <= WITHIN, kl <= SMALL
    rows = zip(
        result["settings"], kl, ratio, told["off-diagonal"], told["|off-diagonal|"], strict=True
    )
    return Finding(
        f"{model}: layers are independent (assumption 1a)",
        verdict(bool(equal.all()), bool(small.any() and equal[small].all())),
        f"KL of all layers together is within {WITHIN:.0%} of the sum of the single layers' in "
        f"{equal.sum()} of {len(equal)} settings, of those with KL <= {SMALL} nats in "
        f"{(equal & small).sum()} of {small.sum()} (if in all of these: narrower); at the fewest, "
        f"{min(told['effective']):.3g} of {result['predictions']} predictions carry the KL",
        {
            "smallest ratio": short(ratio.min()),
            "largest ratio": short(ratio.max()),
            "additive settings": int(equal.sum()),
            "median |off-diagonal| of K": short(np.median(told["|off-diagonal|"])),
            "predictions": result["predictions"],
            "fewest effective predictions": short(min(told["effective"])),
        },
        ("setting", "KL", "together / sum", "off-diagonal", "|off-diagonal|"),
        tuple((s, *map(short, numbers)) for s, *numbers in rows),
    )


def _linearity(model: str, result: Record) -> Finding:
    """Assumption 1(b)."""
    small, every = (result["linearity"][reach] for reach in ("small", "all"))
    slopes = {
        reach: np.array([f["slope"] for f in fitted["layers"] if f])
        for reach, fitted in (("small", small), ("all", every))
    }
    factor = every["spread"].get("a token", {"factor": np.inf})["factor"]
    linear = len(slopes["all"]) > 0 and bool(np.all(np.abs(slopes["all"] - 1) <= WITHIN))
    by_layer = len(slopes["small"]) > 0 and bool(
        np.median(np.abs(slopes["small"] - 1)) <= WITHIN
        and np.median([f["r2"] for f in small["layers"] if f]) >= 1 - WITHIN
    )
    numbers = {f"kappa spread, E {k}": short(s["factor"]) for k, s in every["spread"].items()}
    for reach, fitted in (("small", small), ("all", every)):
        done = [f for f in fitted["layers"] if f]
        if done:
            numbers |= {
                f"median slope, {reach}": short(np.median(slopes[reach])),
                f"smallest slope, {reach}": short(slopes[reach].min()),
                f"largest slope, {reach}": short(slopes[reach].max()),
                f"median R2, {reach}": short(np.median([f["r2"] for f in done])),
            }
    rows = [
        (x["name"], *(short(f[k]) for f in (s, e) if f for k in ("kappa", "slope", "r2")))
        for x, s, e in zip(result["layers"], small["layers"], every["layers"], strict=True)
        if s and e
    ]
    return Finding(
        f"{model}: the loss is kappa E, with one kappa (assumption 1b)",
        verdict(linear and factor <= SPREAD, by_layer),
        f"layers' kappas differ by a factor of {factor:.3g} (one kappa: up to {SPREAD:g}, and all "
        f"slopes within {WITHIN:.0%} of 1); with a kappa of its own a layer's KL is "
        + ("" if by_layer else "not ")
        + f"linear in E where KL <= {ALONE:g} nats (median slope within {WITHIN:.0%}, R2 >= "
        f"{1 - WITHIN:g}: narrower)",
        numbers,
        ("layer", "kappa", "slope", "R2", "kappa, all", "slope, all", "R2, all"),
        tuple(rows),
    )


def _prediction(model: str, result: Record) -> Finding:
    """Theorem 6's second-order form on a trained model."""
    told = result["together"]
    kl, predicted = np.array(told["kl"]), np.array(told["kl predicted"])
    alone = np.array(told["sum predicted"]) / np.array(told["sum"])
    ratio = predicted / kl
    small = kl <= SMALL
    logs = np.corrcoef(np.log(predicted), np.log(kl))[0, 1]
    good = np.abs(ratio - 1) <= WITHIN
    return Finding(
        f"{model}: the Gauss-Newton form predicts the loss",
        "measured",
        f"1/2 sum K is within {WITHIN:.0%} of the KL in {good.sum()} of {len(good)} settings",
        {
            "correlation of logs": short(logs),
            "median predicted / KL": short(np.median(ratio)),
            "the same where KL is small": short(np.median(ratio[small])) if small.any() else 0.0,
            "largest KL within 10 %": short(kl[good].max()) if good.any() else 0.0,
        },
        ("setting", "KL", "1/2 sum K / KL", "1/2 trace K / sum of single KLs"),
        tuple(
            (s, *map(short, numbers))
            for s, *numbers in zip(result["settings"], kl, ratio, alone, strict=True)
        ),
    )


def violations(layer: Record, bits: str) -> dict[str, bool]:
    """Whether a layer's rounding error visibly breaks each assumption at so many bits: by more
    than the limits above and by more than CLEAR standard errors."""
    seen, root = layer["noise"][bits], layer["size"] ** 0.5
    share = max(seen["linear"] ** 2, seen["size"] ** 2)
    chance = (2 * (BINS - 1)) ** 0.5 / layer["size"]  # deviation of the corrected eta^2
    return {
        "zero mean": abs(seen["mean"]) > MEAN and abs(seen["t"]) > CLEAR,
        "symmetric": abs(seen["skew"]) > SKEW and abs(seen["skew"]) * root > CLEAR * 6**0.5,
        "independent of w": (
            (share > SHARE and share**0.5 * root > CLEAR)
            or (seen["explained"] > SHARE and seen["explained"] > CLEAR * chance)
        ),
    }


RULES = {
    "zero mean": (f"|mean| > {MEAN:g} deviations", ("mean", "t")),
    "symmetric": (f"|skewness| > {SKEW:g}", ("skew",)),
    "independent of w": (
        f"w, linearly, or |w| for eps^2, or one of {BINS} bins of w explains > {SHARE:.0%} of the "
        "variance",
        ("explained", "linear", "size"),
    ),
}


def _noise(model: str, result: Record) -> list[Finding]:
    layers, found = result["layers"], []
    bits = sorted(result["noise"], key=int)
    broken = {b: [violations(x, b) for x in layers] for b in bits}
    for rule, (limit, shown) in RULES.items():
        count = {b: sum(v[rule] for v in broken[b]) for b in bits}
        # the bit widths from which on no layer breaks it
        fine = [b for i, b in enumerate(bits) if not any(count[c] for c in bits[i:])]
        says = (
            f"layers (of {len(layers)}) that break it, {limit} and {CLEAR:g} standard "
            "errors, at " + ", ".join(f"{b} bits: {n}" for b, n in count.items())
        ) + (f"; from {fine[0]} bits on none" if fine else "")
        numbers = {f"layers at {b} bits": float(n) for b, n in count.items()}
        if rule == "zero mean":
            bias = [x["noise"][b]["mean"] / x["noise"][b]["edge"] for x in layers for b in bits]
            says += (
                "; the largest weight of a row lies half way between two codes and always goes "
                "down, which alone gives a mean of -D / (2 inputs)"
            )
            numbers["mean over -D / (2 inputs), median"] = short(np.median(bias))
        rows = tuple(
            (int(b), count[b], *(short(result["noise"][b][n][w]) for n in shown for w in ORDER))
            for b in bits
        )
        found.append(
            Finding(
                f"{model}: rounding error is {rule}",
                verdict(len(fine) == len(bits), bool(fine)),
                says,
                numbers,
                ("bits", "layers", *(f"{w} {n}" for n in shown for w in ORDER)),
                rows,
            )
        )
    return found
