"""Robust ordering: bubble sort with symbols, small tables of losses, one context too few."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.orders import Order, additive_loss, orders, out_of_place, precedence, swapped

MOST = 3  # of the losses that are enumerated


def _costs(loss: dict[Order, int], n: int) -> np.ndarray:
    eta = np.zeros((n, n), int)
    for order in loss:
        for i in out_of_place(order):
            a, b = order[i], order[i + 1]
            eta[a, b] = max(eta[a, b], loss[swapped(order, i)] - loss[order])
    return eta


def exact() -> Exact:
    """Three methods, every table of six losses 0..MOST; whole numbers."""
    every, cases, failure = orders(3), 0, None
    stronger = np.tril(np.ones((3, 3), int), -1)
    before = {order: precedence(order) for order in every}
    attained = False
    for values in itertools.product(range(MOST + 1), repeat=len(every)):
        loss = dict(zip(every, values, strict=True))
        eta = _costs(loss, 3)
        for order in every:
            lead = loss[(0, 1, 2)] - loss[order]
            bound = int(additive_loss(before[order], stronger, eta))
            attained |= lead == bound > 0
            cases += 1
            if lead > bound and failure is None:
                failure = f"losses {values}, order {order}"
    if failure is None and not attained:
        failure = "the bound is not attained"
    return Exact(f"3 methods, all losses 0 to {MOST} of the 6 orders", cases, failure)


def prove() -> Proof:
    """The path of bubble sort, its swaps as symbols."""
    n = 4
    cost = np.array([[sympy.Symbol(f"eta{i}{j}") for j in range(n)] for i in range(n)])
    stronger = np.array([[int(i > j) for j in range(n)] for i in range(n)])
    residual = sympy.Integer(0)
    for start in orders(n):
        order, paid = start, sympy.Integer(0)
        while places := out_of_place(order):
            i = places[0]
            paid += cost[order[i], order[i + 1]]
            order = swapped(order, i)
        left = additive_loss(precedence(start), stronger, cost)
        residual += sympy.expand(left - paid) ** 2
    return Proof(
        (
            symbolic.step(
                "from each of 24 orders, swaps of neighbours that are out of place pay the eta of "
                "each inversion once, and end sorted",
                residual,
            ),
        ),
        beyond="a swap changes the loss by at most its eta, so the sum of the changes along the "
        "path, loss(sorted) - loss(order), is at most the sum of the etas; for any n, a swap of "
        "neighbours that are out of place takes away their inversion and no other",
    )


def necessity() -> tuple[Counterexample, ...]:
    """Methods 0 < 1 < 2: 2 and 1 had better be 2, 1 behind 0, and 1, 2 in front of it."""
    loss = {(0, 1, 2): 1, (0, 2, 1): 0, (1, 0, 2): 2, (1, 2, 0): 2, (2, 0, 1): 3, (2, 1, 0): 3}
    front = max(loss[(1, 2, 0)] - loss[(2, 1, 0)], 0)
    return (
        Counterexample(
            "over all contexts",
            "losses 1, 0, 2, 2, 3, 3 of the orders 012, 021, 102, 120, 201, 210; eta_12 taken "
            "where nothing precedes: 0",
            "<=",
            Fraction(loss[(0, 1, 2)] - loss[(0, 2, 1)]),
            Fraction(front),
        ),
    )
