"""What laws of the order say of single layers of trained models, from recorded measurements.

As in :mod:`theory.models.findings`, nothing here touches a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from theory.engine.statement import Finding, verdict
from theory.models.noise import BINS
from theory.thresholds import CLEAR, RESOLUTION, SHARE, WITHIN

Record = dict[str, Any]  # of a model or a layer, as it is written and read back
LAWS = {
    "quantize first wins where rounding zeroes at least the ratio, and nowhere else": lambda case: (
        case["zero"] >= case["sparsity"] - 1e-9
    ),
    "the beta law (N2) names the winner": lambda case: (case["predicted"] or 0) > 0,
}


def short(value: float) -> float:
    """Three digits, as tables show."""
    return float(f"{value:.3g}")


def in_layers(model: str, result: Record) -> list[Finding]:
    """The two laws of :mod:`theory.models.signs`, on every layer and setting where A is not 0."""
    tables = [layer["orders"] for layer in result["layers"] if "orders" in layer]
    rows = [
        dict(zip(columns, row, strict=True))
        for columns in tables
        for row in zip(*columns.values(), strict=True)
    ]
    cases = [case for case in rows if abs(case["advantage"]) > RESOLUTION]
    if not cases:
        return []
    found = []
    for law, says in LAWS.items():
        grids: dict[str, list[bool]] = {}
        for case in cases:
            grids.setdefault(case["grid"], []).append(says(case) == (case["advantage"] > 0))
        right, total = sum(map(sum, grids.values())), len(cases)
        first = sum(case["advantage"] > 0 for case in cases)
        found.append(
            Finding(
                f"{model}: in a layer alone, {law}",
                verdict(right == total, right / total >= 1 - WITHIN),
                f"right in {right} of {total} layers x grids x widths x ratios where A is not 0 "
                f"({first} of them are won by quantizing first); narrower: in {1 - WITHIN:.0%}",
                {"share right": short(right / total), "cases": float(total)},
                ("grid", "cases", "share right"),
                tuple((g, len(x), short(sum(x) / len(x))) for g, x in grids.items()),
            )
        )
    return found


def sign_law(model: str, result: Record) -> list[Finding]:
    """What the sign law assumes of a layer's weights, and how its sign, the zero fraction and the
    beta law do there."""
    layers = [x for x in result["layers"] if "law" in x and "orders" in x]
    if not layers:
        return []
    rows, broken, above, total = [], 0, 0, 0
    for x in layers:
        law, root = x["law"], x["size"] ** 0.5
        two = law["modes"] > SHARE and law["modes"] * root > CLEAR * BINS**0.5 / 4
        uneven = abs(law["uneven"]) > SHARE and abs(law["uneven"]) * root > CLEAR
        broken += two or uneven
        table = [
            dict(zip(x["orders"], row, strict=True))
            for row in zip(*x["orders"].values(), strict=True)
        ]
        won = [case for case in table if abs(case["advantage"]) > RESOLUTION]
        above += sum(case["advantage"] > 0 for case in won)
        total += len(won)
        beta = [case["beta"] for case in won if case["beta"] is not None]
        rows.append(
            (
                x["name"],
                *(short(law[k]) for k in ("uneven", "modes")),
                short(np.median([case["zero"] for case in table])),
                short(np.median(beta)) if beta else "-",
                f"{sum(case['advantage'] > 0 for case in won)}/{len(won)}",
                *(
                    f"{sum(says(case) == (case['advantage'] > 0) for case in won)}/{len(won)}"
                    for says in LAWS.values()
                ),
            )
        )
    modes = [x["law"]["modes"] for x in layers]
    return [
        Finding(
            f"{model}: a layer's weights are even and unimodal (the sign law)",
            verdict(broken == 0, broken <= WITHIN * len(layers)),
            f"{broken} of {len(layers)} layers break it, by more than {SHARE:.0%} of the mass and "
            f"{CLEAR:g} standard errors (most that would have to move: {max(modes):.1%}; narrower: "
            f"up to {WITHIN:.0%} of the layers); A(Q->P) > 0 in {above} of {total} cases where it "
            "is not 0, for rounding is not independent of the weights",
            {
                "layers that break it": float(broken),
                "largest mass to move": short(max(modes)),
                "share A > 0": short(above / max(total, 1)),
            },
            (
                "layer",
                "uneven",
                "modes",
                "zeros",
                "beta",
                "Q first wins",
                "zeros right",
                "N2 right",
            ),
            tuple(rows),
        )
    ]
