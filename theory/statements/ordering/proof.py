"""Theorem 4: the exchange argument enumerated and proved, and the counterexamples."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import sympy

from theory.engine import symbolic
from theory.engine.statement import Counterexample, Exact, Proof
from theory.maths.orders import (
    Order,
    additive_loss,
    inversions,
    orders,
    out_of_place,
    precedence,
    premise,
    swapped,
)

MOST = 6  # methods whose orders are enumerated


def exact() -> Exact:
    """The exchange argument on all permutations of 2 to 6 methods."""
    cases, failure = 0, None
    for n in range(2, MOST + 1):
        for order in orders(n):
            places = out_of_place(order)
            right = bool(places) == (inversions(order) > 0) == (order != tuple(range(n)))
            for i in places:
                right = right and inversions(swapped(order, i)) == inversions(order) - 1
            cases += 1
            if not right and failure is None:
                failure = f"{order}"
    return Exact(
        "2 to 6 methods, all orders: an unsorted one has an adjacent inversion, and swapping any "
        "leaves one inversion less",
        cases,
        failure,
    )


def prove() -> Proof:
    """The exchange identity for 4 methods, costs left symbolic: +c_ij for every order and place."""
    n = 4
    cost = np.array([[sympy.Symbol(f"c{i}{j}") for j in range(n)] for i in range(n)])
    stronger = np.array([[int(i > j) for j in range(n)] for i in range(n)])

    def loss(order: Order) -> sympy.Expr:
        return additive_loss(precedence(order), stronger, cost)

    residuals, total = [], []
    for order in orders(n):
        for i in out_of_place(order):
            a, b = order[i], order[i + 1]
            residuals.append(loss(order) - loss(swapped(order, i)) - cost[a, b])
        total.append(loss(order) - sum(cost[a, b] for a, b in _inverted(order)))
    steps = [
        symbolic.step(
            f"{len(residuals)} improving swaps of 4 methods: each changes the loss by its c",
            sum(sympy.expand(r) ** 2 for r in residuals),
        ),
        symbolic.step(
            "24 orders: the loss is the sum over inversions, 0 for the sorted order",
            sum(sympy.expand(r) ** 2 for r in total),
        ),
    ]
    return Proof(
        tuple(steps),
        beyond="every unsorted order has an adjacent inversion (enumerated to n = 6; else it would "
        "rise throughout); swaps end, inversions being finite, and only the sorted order has none",
    )


def _inverted(order: Order) -> list[tuple[int, int]]:
    return [(a, b) for a, b in itertools.combinations(order, 2) if a > b]


def necessity() -> tuple[Counterexample, ...]:
    """Three methods 0 < 1 < 2 by intensity; the loss of all six orders."""
    f = Fraction
    empty: dict[Order, Fraction] = {
        (0, 1, 2): f(1),
        (1, 0, 2): f(2),
        (0, 2, 1): f(0),  # after 0, the stronger of 1 and 2 had better come first
        (2, 0, 1): f(3),
        (1, 2, 0): f(2),
        (2, 1, 0): f(3),
    }
    failing = [order for order, holds in premise(empty) if not holds]
    at_the_front = [order for order in failing if order[0] > order[1]]
    cost = np.array([[f(0), f(0), f(0)], [f(-1), f(0), f(0)], [f(2), f(2), f(0)]])
    stronger = np.array([[int(i > j) for j in range(3)] for i in range(3)])
    signed = {order: additive_loss(precedence(order), stronger, cost) for order in orders(3)}
    start = (0, 1, 2)
    return (
        Counterexample(
            "in every context",
            "M = -(1, 2, 0, 3, 2, 3) for the orders 012, 102, 021, 201, 120, 210: the weaker first "
            f"is better in {len(premise(empty)) - len(failing)} of {len(premise(empty))} contexts, "
            f"in all where nothing precedes ({len(at_the_front)} fail), not in 0|21",
            "<=",
            empty[start],
            min(empty.values()),
        ),
        Counterexample(
            "the sign of every pair",
            "additive costs c_10 = -1, c_20 = c_21 = 2: 102 is better than 012",
            "<=",
            signed[start],
            min(signed.values()),
        ),
    )
