"""Theorem 2a in numbers: the exact A on the best grids, and what is left of PIH there."""

from __future__ import annotations

import numpy as np
from jax import Array
from scipy.stats import kendalltau

from theory.engine.statement import Finding, verdict
from theory.maths.densities import DENSITIES
from theory.maths.grids import BITS, SPARSITIES, grid_table
from theory.thresholds import AGREES, ZERO


def measure(key: Array) -> tuple[Finding, ...]:
    rows, taus_bits, taus_p, positive, won, right, stronger = [], [], [], 0, 0, 0, 0
    for density in DENSITIES:
        table = grid_table(density)
        a, gap = table["advantage"], table["gap"]
        resolved = np.abs(a) > ZERO
        positive += int(np.sum(a > ZERO))
        won += int(resolved.sum())
        right += int(np.sum(np.sign(a[resolved]) == np.sign(gap[resolved])))
        stronger += int(np.sum(gap[resolved] > 0))
        for i, p in enumerate(SPARSITIES):
            tau = kendalltau(np.where(resolved[i], a[i], 0), gap[i]).statistic
            taus_bits.append(float(tau))
            rows.append(
                (
                    density.name,
                    f"{p:.0%}",
                    *(f"{x:.2e}" if abs(x) > ZERO else "0" for x in a[i]),
                    f"{tau:+.2f}",
                )
            )
        for b in range(len(BITS)):
            tau = kendalltau(np.where(resolved[:, b], a[:, b], 0), gap[:, b]).statistic
            if np.isfinite(tau):
                taus_p.append(float(tau))
    finite = [t for t in taus_bits if np.isfinite(t)]
    numbers = {
        "cells": float(len(DENSITIES) * len(BITS) * len(SPARSITIES)),
        "A > 0": float(positive),
        "A < 0": float(won - positive),
        "sign of the gap right": right / won,
        "mean tau along bits": float(np.mean(finite)),
        "least tau along bits": float(np.min(finite)),
        "mean tau along sparsity": float(np.mean(taus_p)),
    }
    return (
        Finding(
            "2a: A(Q->P) <= 0 on the best symmetric grids",
            "false" if positive else "holds",
            f"A < 0 in {won - positive} and A > 0 in {positive} of {int(numbers['cells'])} cells "
            f"({len(DENSITIES)} laws of weights, {BITS[0]} to {BITS[-1]} bits, {SPARSITIES[0]:.0%} "
            f"to {SPARSITIES[-1]:.0%}), 0 in the others",
            numbers,
            required=True,
        ),
        Finding(
            "PIH, sign: A(Q->P) has the sign of the gap (blind magnitude + rounding)",
            verdict(right == won, right / won >= AGREES),
            f"A < 0 in {'all' if not positive else won - positive} of the {won} cells where it is "
            f"not 0, and pruning is the stronger in {stronger} of them: there the gap's sign is "
            f"wrong, and it is right in the {right} others for no reason of its own",
            numbers,
        ),
        Finding(
            "PIH, trend along the bits at a fixed ratio (blind magnitude + rounding)",
            verdict(min(finite) > 1 - ZERO, min(finite) > 0),
            f"Kendall's tau of A against the gap is {numbers['mean tau along bits']:+.2f} on "
            f"average (least {numbers['least tau along bits']:+.2f}; narrower: always above 0): A "
            "is 0 at coarse grids (order-free zone), dips below 0 and returns to 0",
            numbers,
            ("weights", "pruned", *(f"{b} bit" for b in BITS), "tau"),
            tuple(rows),
        ),
        Finding(
            "our extension of PIH: the trend along the sparsity (blind magnitude + rounding)",
            verdict(min(taus_p) > 1 - ZERO, min(taus_p) > 0),
            f"Kendall's tau is {numbers['mean tau along sparsity']:+.2f} on average (least "
            f"{min(taus_p):+.2f}; narrower: always above 0)",
            numbers,
        ),
    )
