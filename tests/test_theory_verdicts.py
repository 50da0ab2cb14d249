"""Verdicts of our own laws, reached again by another road: plain loops, numpy, scipy, small cases.

Nothing here is shared with ``theory``: neither its closed forms nor its compressors nor its draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import jax
import numpy as np
import pytest
from scipy.stats import chi2, norm

from theory.statements.catalogue import NAMES, statement

RNG = np.random.default_rng


def removed(score: np.ndarray, k: int) -> np.ndarray:
    """The k smallest, what ties by chance of its place."""
    gone = np.zeros(len(score), bool)
    gone[np.argsort(score, kind="stable")[:k]] = True
    return gone


def rounded(w: np.ndarray, step: float, top: float) -> np.ndarray:
    return step * np.clip(np.rint(w / step), -top, top)


def squared(x: np.ndarray) -> float:
    return float((x**2).sum())


def orders(w: np.ndarray, q: np.ndarray, k: int) -> float:
    """A(Q->P) of weights and what they are rounded to, without any refitting."""
    first, last = removed(abs(w), k), removed(abs(q), k)
    return squared(w - np.where(first, 0, q)) - squared(w - np.where(last, 0, q))


def prune_first_on_a_grid() -> bool:
    w = RNG(0).normal(size=3000)
    found = []
    for bits, p in itertools.product((2, 3, 4, 6), (0.1, 0.5, 0.9)):
        top = 2 ** (bits - 1) - 1
        steps = np.linspace(0.02, 2, 100)
        step = min(steps, key=lambda s: squared(w - rounded(w, s, top)))
        found.append(orders(w, rounded(w, step, top), round(p * len(w))))
    return max(found) <= 1e-9 and min(found) < 0


def normal_noise() -> bool:
    w, z = RNG(1).normal(size=(2, 400_000))
    for p, v in itertools.product((0.2, 0.5, 0.9), (0.01, 0.2)):
        t = norm.ppf((1 + p) / 2)
        law = -2 * v * t * norm.pdf(t)
        if abs(orders(w, w + v**0.5 * z, round(p * len(w))) / len(w) / law - 1) > 0.1:
            return False
    return True


def blocks_of_weights() -> bool:
    for m, p in itertools.product((2, 5), (0.3, 0.8)):
        w, z = RNG(m).normal(size=(2, 200_000, m))
        e = 0.1**0.5 * z
        first, last = (removed((x**2).sum(1), round(p * len(w))) for x in (w, w + e))
        gain = (w**2).sum(1) - (e**2).sum(1)
        q = chi2.ppf(p, m)
        if (
            abs((gain[first].sum() - gain[last].sum()) / len(w) / (-0.2 * q * chi2.pdf(q, m)) - 1)
            > 0.1
        ):
            return False
    return True


def unimodal_against_two_modes() -> bool:
    """Every outcome of a few weights, one of which goes, ties at random; the errors given."""

    def mean(mass: dict[int, float], eps: tuple[float, ...]) -> float:
        total = 0.0
        for w in itertools.product(mass, repeat=len(eps)):
            gain = [x**2 - e**2 for x, e in zip(w, eps, strict=True)]
            lost = []
            for score in ([abs(x) for x in w], [abs(x + e) for x, e in zip(w, eps, strict=True)]):
                tied = [g for g, s in zip(gain, score, strict=True) if s == min(score)]
                lost.append(sum(tied) / len(tied))
            total += math.prod(mass[x] for x in w) * (lost[0] - lost[1])
        return total

    even = {-1: 0.25, 0: 0.5, 1: 0.25}
    errors = itertools.product((-2.0, -1.0, 0.0, 0.5, 1.0, 3.0), repeat=3)
    below = max(mean(even, eps) for eps in errors) <= 1e-12
    return below and mean({-2: 0.5, 2: 0.5}, (2.0, 0.0, 0.0, 0.0)) > 0


def seeing_the_dense_model() -> bool:
    """All masks of 8 weights with noise: of the best, of the blind one after, of the one before."""
    blind, aware = [], []
    for seed in range(60):
        w, z = RNG(seed).normal(size=(2, 8))
        q = w + 0.4 * z
        masks = [np.isin(np.arange(8), s) for s in itertools.combinations(range(8), 4)]
        errors = [squared(w - np.where(m, 0, q)) for m in masks]
        first = squared(w - np.where(removed(abs(w), 4), 0, q))
        blind.append(first - squared(w - np.where(removed(abs(q), 4), 0, q)))
        aware.append(first - min(errors))
    return float(np.mean(blind)) < 0 <= min(aware) < max(aware)


def what_the_score_sees() -> bool:
    """Q->P by the score w^2 - share e: it wins below a share of 2 and loses above."""
    signs = []
    for share in (0.5, 1.5, 3.0, 8.0):
        w, z = RNG(5).normal(size=(2, 1_000_000))
        e, k = 0.02 * z**2, 300_000
        first, last = removed(w**2, k), removed(w**2 - share * e, k)
        signs.append(np.sign((w**2 - e)[first].sum() - (w**2 - e)[last].sum()))
    return signs == [1, 1, -1, -1]


def _rows(count: int, rho: float) -> Iterable[tuple[np.ndarray, np.ndarray, float]]:
    h = rho ** abs(np.arange(4)[:, None] - np.arange(4))
    for seed in range(count):
        rng = RNG(seed)
        yield rng.normal(size=4), h, float(rng.uniform(0.3, 1.2))


MASKS = [np.isin(np.arange(4), s) for s in itertools.combinations(range(4), 2)]
CODES = np.array(list(itertools.product(range(-3, 4), repeat=4)))


def _compensated(w: np.ndarray, h: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, float]:
    """The row of least error to w with these weights 0, by least squares; its error."""
    root = np.linalg.cholesky(h).T
    x = np.zeros(4)
    x[~gone] = np.linalg.lstsq(root[:, ~gone], root @ w, rcond=None)[0]
    return x, float((x - w) @ h @ (x - w))


def _nearest(w: np.ndarray, h: np.ndarray, gone: np.ndarray, step: float) -> np.ndarray:
    off = step * CODES[~CODES[:, gone].any(1)] - w
    return w + off[np.argmin(np.einsum("ci,ij,cj->c", off, h, off))]


def _stages(w: np.ndarray, h: np.ndarray, step: float) -> dict[str, float]:
    def error(x: np.ndarray) -> float:
        return float((x - w) @ h @ (x - w))

    def best(row: np.ndarray) -> np.ndarray:
        return min(MASKS, key=lambda m: _compensated(row, h, m)[1])

    q = _nearest(w, h, np.zeros(4, bool), step)
    s, t = best(w), best(q)
    return {
        "pq": error(_nearest(_compensated(w, h, s)[0], h, s, step)),
        "qp": error(_nearest(_compensated(q, h, t)[0], h, t, step)),
        "dense": error(_nearest(_compensated(w, h, t)[0], h, t, step)),
        "S": _compensated(w, h, s)[1],
        "T": _compensated(w, h, t)[1],
    }


def either_order_wins() -> bool:
    found = [_stages(*row) for row in _rows(150, 0.9)]
    return any(x["pq"] < x["qp"] - 1e-9 for x in found) and any(
        x["qp"] < x["pq"] - 1e-9 for x in found
    )


def regret_and_dense_target() -> bool:
    found = [_stages(*row) for rho in (0.0, 0.9) for row in _rows(60, rho)]
    return all(x["S"] <= x["T"] + 1e-9 and x["dense"] <= x["qp"] + 1e-9 for x in found)


def refitting() -> bool:
    """All masks, 400 steps each, against the magnitude mask with the best of the same steps."""
    for seed in range(20):
        w = RNG(seed).normal(size=5)
        steps = np.linspace(0.02, 3, 400)

        def error(gone: np.ndarray, w: np.ndarray = w, steps: np.ndarray = steps) -> float:
            return min(squared(w - np.where(gone, 0, rounded(w, s, 2))) for s in steps)

        every = [np.isin(np.arange(5), s) for s in itertools.combinations(range(5), 2)]
        if error(removed(abs(w), 2)) > min(map(error, every)) + 1e-12:
            return False
    return True


def interference_of_groups() -> bool:
    """Absmax scales of groups of 8: none under magnitude; m (D^2 - D'^2) / 12 at random, 6 bits."""

    def error(w: np.ndarray, kept: np.ndarray, over: np.ndarray) -> float:
        step = abs(np.where(over, w, 0)).max() / 31
        return squared((w - step * np.rint(w / step))[kept]), step**2

    changes, laws = [], []
    for seed in range(4000):
        w = RNG(seed).normal(size=8)
        whole = np.ones(8, bool)
        kept = ~removed(abs(w), 4)
        if error(w, kept, whole) != error(w, kept, kept):
            return False
        kept = ~removed(RNG(seed + 10**6).random(8), 4)
        (before, d), (after, d_after) = error(w, kept, whole), error(w, kept, kept)
        changes.append(before - after)
        # the largest weight of a group lies on the grid: it has no error before, one has none after
        laws.append(((4 - kept[np.argmax(abs(w))]) * d - 3 * d_after) / 12)
    return abs(np.mean(changes) / np.mean(laws) - 1) < 0.1


def excess_of_three_weights() -> bool:
    """One block at 3 bits: exceeded somewhere, in L1 never by more than D/2 a swap."""
    exceeded, most = False, -math.inf
    for w in itertools.product(np.arange(0.25, 3.01, 0.25), repeat=2):
        x = np.array([*w, 3.0])
        q = np.rint(x)
        for tie in ((0, 1, 2), (1, 0, 2)):
            last = np.zeros(3, bool)
            last[min(range(3), key=lambda i: (q[i], tie[i]))] = True
            first = removed(x, 1)
            excess = abs(x - np.where(last, 0, q)).sum() - abs(x[first]).sum() - abs(x - q).sum()
            exceeded |= bool(excess > 1e-9)
            most = max(most, excess - 0.5 * (first != last).any())
    return exceeded and most <= 1e-9


def lipschitz() -> bool:
    for seed in range(50):
        rng = RNG(seed)
        weights = rng.normal(size=(3, 6, 6))
        after = weights + 0.1 * rng.normal(size=weights.shape)
        x = y = rng.normal(size=6)
        sizes = []
        for w, v in zip(weights, after, strict=True):
            sizes.append(np.linalg.norm(x))
            x, y = np.maximum(w @ x, 0), np.maximum(v @ y, 0)
        bound = sum(
            np.linalg.norm(after[i] - weights[i], 2)
            * sizes[i]
            * math.prod(np.linalg.norm(v, 2) for v in after[i + 1 :])
            for i in range(3)
        )
        if np.linalg.norm(y - x) > bound:
            return False
    return True


def low_rank_under_noise() -> bool:
    """2 x 2, one singular value kept: A(Q->L) is v at (1, 0), and negative at (1, 0.9)."""
    found = []
    for second in (0.0, 0.9):
        w, n = np.diag([1.0, second]), 1e-3 * RNG(7).normal(size=(20_000, 2, 2))
        changes = []
        for noise in np.concatenate([n, -n]):
            left, s, right = np.linalg.svd(w + noise)
            last = squared(s[0] * np.outer(left[:, 0], right[0]) - w)
            changes.append(second**2 + squared(noise) - last)
        found.append(np.mean(changes) / 1e-6)
    return abs(found[0] - 1) < 0.1 and abs(found[1] - (1 - 2 * 0.81 / 0.19)) < 0.8


def turning_weights() -> bool:
    """Laplace and uniform weights, mixed 64 at a time by signs: half of them pruned."""
    signs = np.ones((1, 1))
    while len(signs) < 64:
        signs = np.block([[signs, signs], [signs, -signs]])
    costs = []
    for w in (RNG(8).laplace(size=(2000, 64)), RNG(8).uniform(-1, 1, (2000, 64))):
        before, after = (np.sort(x.ravel() ** 2)[: x.size // 2].sum() for x in (w, w @ signs / 8))
        costs.append(after / before)
    return bool(costs[0] > 1 > costs[1])


def printed_table() -> bool:
    t = norm.ppf((1 + 0.75) / 2)
    by_pruning = -10 * math.log10(0.75 - 2 * t * norm.pdf(t))
    w = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    by_rounding = min(
        np.mean((w - s * np.clip(np.rint(w / s), -8, 7)) ** 2) for s in np.linspace(0.3, 0.4, 101)
    )
    return f"{by_pruning:.2f}" == "5.58" and abs(-10 * math.log10(by_rounding) - 19.26) < 0.02


def last_stages() -> bool:
    """One grid, by hand: magnitude pruning that weighs w^2 - (w - q)^2, and columns from left to
    right that are removed, rounded or both, each made up for by those behind it."""

    def sweep(w: np.ndarray, gone: np.ndarray, u: np.ndarray, rounding: bool) -> np.ndarray:
        x = w.copy()
        for j in range(len(x)):
            value = 0.0 if gone[j] else rounded(x[j], 0.5, 3) if rounding else x[j]
            x[j:] -= (x[j] - value) / u[j, j] * u[j, j:]
            x[j] = value
        return x

    loses = False
    for seed in range(40):
        w = RNG(seed).normal(size=8)
        h = 0.6 ** abs(np.subtract.outer(np.arange(8), np.arange(8)))
        u = np.linalg.cholesky(np.linalg.inv(h)).T
        q, gone = rounded(w, 0.5, 3), removed(abs(w), 4)
        first, under_mask = rounded(np.where(gone, 0, w), 0.5, 3), np.where(gone, 0, q)
        aware = np.where(removed(w**2 - (w - q) ** 2, 4), 0, q)
        by_saliency, on_grid = removed((w / u.diagonal()) ** 2, 4), sweep(w, gone & False, u, True)
        pruned = sweep(w, by_saliency, u, False)
        dense = sweep(w, by_saliency, u, True)
        seen = sweep(on_grid, removed((on_grid / u.diagonal()) ** 2, 4), u, True)
        if not (
            np.array_equal(first, under_mask)  # what a quantizer is handed, or the dense weights
            and abs(squared(first - w) - squared(aware - w)) < 1e-12
            and np.allclose(sweep(pruned, by_saliency, u, True), dense, atol=1e-12)
        ):
            return False
        loses |= not np.allclose(seen, dense)
    return loses


NAIVE: dict[str, Callable[[], bool]] = {
    "low rank and noise: A(Q->L) = v [(m - r)(n - r) - 2 sum], to first order": (
        low_rank_under_noise
    ),
    "rotation never helps pruning of scale mixtures, and helps uniform weights": turning_weights,
    "closed-form SNR table of THEORY.md": printed_table,
    "2a: A(Q->P) <= 0 on the best symmetric grids": prune_first_on_a_grid,
    "2b: A = -2 kappa n v t phi(t)": normal_noise,
    "structured pruning: A = -2 kappa v q f_m(q) a block": blocks_of_weights,
    "sign law: E A(Q->P) <= 0 with even unimodal weights, and > 0 with two modes": (
        unimodal_against_two_modes
    ),
    "2b and 2c: A blind <= 0 <= A aware": seeing_the_dense_model,
    "2c, last stage by last stage: what the dense weights make of the order, on one grid": (
        last_stages
    ),
    "the beta law's sign, where A is clear of sampling": what_the_score_sees,
    "2d: either order can win": either_order_wins,
    "compensated stages: R_S <= R_T, and a dense target is no worse than a blind one": (
        regret_and_dense_target
    ),
    "no interleaving beats pruning first and refitting the grid (weight MSE)": refitting,
    "theorem 3: none for magnitude, the on-grid law for random pruning": interference_of_groups,
    "quantize first: the sum can be exceeded, by a bounded amount": excess_of_three_weights,
    "theorem 6: the Lipschitz bound on random relu networks": lipschitz,
}


@pytest.mark.parametrize("name", NAIVE)
def test_the_plain_road_ends_there(name):
    assert NAIVE[name]()


@pytest.mark.slow
def test_required_verdicts_are_those_of_the_plain_road():
    found = {
        f.name: f.verdict
        for name in NAMES
        for f in statement(name).measure(jax.random.key(3))
        if f.required
    }
    assert found == {name: "holds" if naive() else "false" for name, naive in NAIVE.items()}
