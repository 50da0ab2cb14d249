"""Robust ordering as a law: its sentence and its picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from theory.engine.law import Law, Line, Picture
from theory.engine.statement import Finding
from theory.maths.orders import additive_loss, orders, out_of_place, precedence, swapped

METHODS, DRAWS = 4, 200
WRONG = np.linspace(0, 1, 11)  # the share of pairs of which the stronger had better come first


def _losses(rng: np.random.Generator, wrong: float) -> tuple[float, float]:
    """(regret of sorting, its bound): costs of inversions up to 1, some of them gains, and as much
    as 0.2 of anything else."""
    every = orders(METHODS)
    cost = rng.random((METHODS, METHODS)) * np.where(rng.random((METHODS, METHODS)) < wrong, -1, 1)
    stronger = np.tril(np.ones((METHODS, METHODS)), -1)
    loss = {
        order: float(additive_loss(precedence(order), stronger, cost)) + 0.2 * rng.random()
        for order in every
    }
    eta = np.zeros((METHODS, METHODS))
    for order in every:
        for i in out_of_place(order):
            a, b = order[i], order[i + 1]
            eta[a, b] = max(eta[a, b], loss[swapped(order, i)] - loss[order])
    best = min(every, key=loss.__getitem__)
    bound = float(additive_loss(precedence(best), stronger, eta))
    return loss[every[0]] - loss[best], bound


def _draw(findings: Mapping[str, Finding]) -> Picture:
    rng = np.random.default_rng(0)
    found = np.array([[_losses(rng, w) for _ in range(DRAWS)] for w in WRONG]).mean(1)
    return Picture(
        "share of pairs that want the stronger first",
        f"loss over the best of {METHODS}! orders",
        (Line("sorted", WRONG, found[:, 0], True), Line("bound", WRONG, found[:, 1])),
    )


LAW = Law(
    "Of n methods the weakest goes first, and sorting loses at most what the inverted pairs of "
    "the best order cost, each in its worst context.",
    _draw,
)
