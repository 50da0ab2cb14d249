"""Small weights in rational arithmetic: masks, ties and rounding errors without any rounding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

Vec = Sequence[Fraction] | Sequence[int] | Sequence[Fraction | int]


def masked_error(w: Vec, q: Vec, gone: Sequence[int], h: Vec | None = None) -> Fraction:
    """sum of h (w - q)^2 over the kept and h w^2 over the removed weights, exactly; h = 1."""
    h = [1] * len(w) if h is None else h
    parts = zip(w, q, gone, h, strict=True)
    return sum((c * (Fraction(a) - (0 if out else b)) ** 2 for a, b, out, c in parts), Fraction(0))


def masks(n: int, k: int) -> list[tuple[int, ...]]:
    return [tuple(int(i in c) for i in range(n)) for c in itertools.combinations(range(n), k)]


def may_remove(score: Vec, gone: tuple[int, ...]) -> bool:
    """Whether the mask is one that removes the smallest scores, under some way to break ties."""
    kept = [s for s, out in zip(score, gone, strict=True) if not out]
    removed = [s for s, out in zip(score, gone, strict=True) if out]
    return not kept or not removed or max(removed) <= min(kept)


def round_half_up(w: Fraction, step: Fraction) -> Fraction:
    """The nearest multiple; a half goes away from 0, so that Q is odd."""
    size = (abs(w) / step + Fraction(1, 2)).__floor__() * step
    return size if w >= 0 else -size


def rounding_error(w: Sequence[Fraction], step: Fraction, top: int) -> Fraction:
    """sum of (w - Q(w))^2 over nearest multiples of step up to ``top``, exactly."""
    codes = [max(-top, min(top, round(x / step))) if step else 0 for x in w]
    return sum(((x - c * step) ** 2 for x, c in zip(w, codes, strict=True)), Fraction(0))


def smallest_masks(score: Vec, k: int) -> list[tuple[int, ...]]:
    """All masks that remove k smallest scores, under all ways to break ties."""
    return [gone for gone in masks(len(score), k) if may_remove(score, gone)]


def roundings(w: Vec, step: Fraction) -> list[tuple[Fraction, ...]]:
    """All nearest roundings: half-way weights go either way."""
    ways = []
    for v in w:
        down = (v / step).__floor__()
        part = v / step - down
        codes = [down] if part < Fraction(1, 2) else [down + 1]
        ways.append([down, down + 1] if part == Fraction(1, 2) else codes)
    return [tuple(step * c for c in codes) for codes in itertools.product(*ways)]
