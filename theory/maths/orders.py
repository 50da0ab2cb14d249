"""Orders of n methods, numbered by intensity: permutations, swaps, the losses of theorem 4."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.maths.algebra import Number

Order = tuple[int, ...]
Loss = TypeVar("Loss", float, Fraction)


def orders(n: int) -> list[Order]:
    return list(itertools.permutations(range(n)))


def swapped(order: Order, at: int) -> Order:
    """The order with positions at and at + 1 exchanged."""
    return (*order[:at], order[at + 1], order[at], *order[at + 2 :])


def inversions(order: Sequence[int]) -> int:
    """Pairs with the larger number, the stronger method, first."""
    return sum(a > b for a, b in itertools.combinations(order, 2))


def precedence(order: Sequence[int]) -> np.ndarray:
    """[n, n] of 0 and 1: whether the row's method comes before the column's."""
    place = np.argsort(order)
    return (place[:, None] < place[None, :]).astype(int)


def out_of_place(order: Order) -> list[int]:
    """Positions of the adjacent inversions."""
    return [i for i in range(len(order) - 1) if order[i] > order[i + 1]]


def additive_loss(before: Number, stronger: Number, cost: Number) -> Any:
    """sum of cost over the inversions. before: see :func:`precedence`, [..., n, n]; stronger
    [n, n]: whether the row's method is stronger than the column's; cost [n, n]."""
    return (before * stronger * cost).sum((-2, -1))


def accumulate(n: int, step: Array) -> list[Array]:
    """The context-dependent loss of every order of n methods numbered by intensity.

    step: g of every order, in the order of :func:`orders`; that of the sorted order is its loss.
    """
    every = orders(n)
    loss: dict[Order, Array] = {}
    for order in sorted(every, key=inversions):
        better = [loss[swapped(order, i)] for i in out_of_place(order)]
        most = better[0] if better else 0 * step[0]
        for other in better[1:]:
            most = jnp.maximum(most, other)
        loss[order] = most + step[every.index(order)]
    return [loss[order] for order in every]


def contexts(every: Iterable[Order]) -> list[tuple[Order, Order]]:
    """Every context of every adjacent pair: the order with the stronger one first, the other."""
    return [(order, swapped(order, i)) for order in every for i in out_of_place(order)]


def premise(loss: Mapping[Order, Loss]) -> list[tuple[Order, bool]]:
    """Of every context the order with the stronger one first, and whether the other is at least as
    good. Methods are numbered by intensity; ``loss`` has all orders."""
    return [(order, loss[other] <= loss[order]) for order, other in contexts(loss)]
