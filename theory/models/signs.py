"""Which order wins in one layer, and what two laws say of it without trying both.

The loss is the squared error of the weights, the pruner takes the smallest magnitudes of the
layer, the quantizer rounds to the nearest point of a FIXED grid (a scale a row). With d = w^2 - e,
e = (Q(w) - w)^2, S what pruning the dense weights removes, T what pruning the rounded ones does:

    A(Q->P) = sum_S d - sum_T d                                  (exactly, ties in the mean)

Two laws (THEORY of the project: the zero fraction; N2, the beta law):

    zeros   where rounding alone zeroes at least the ratio, T is among what is 0 already, d = 0
            there, and A = sum_S d >= 0 as no point is nearer than the nearest: quantize first.
            Elsewhere the rule says prune first, which is a theorem where all rows have one step.
    beta    A ~ -N f(tau) Var(delta) [(1 - e')/2 + beta], beta = Cov(e, delta) / Var(delta), of the
            units at the threshold tau of a = w^2, f the density of a there, delta = Q(w)^2 - w^2
            the change of the score and e' the slope of E[e | a].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

WINDOW = 0.1  # of the units, those at the threshold: the nearest in rank
FEWEST = 64


def order_in_a_layer(w: ArrayLike, rounded: ArrayLike, sparsity: float) -> dict[str, float]:
    """A(Q->P) of one matrix over ||w||^2, and what the laws go by; w, Q(w) of one shape.

    advantage   A, by the formula above
    zero        the fraction that rounding alone sends to 0
    beta        nan where delta does not vary at the threshold
    predicted   the beta law's A
    """
    w, q = (np.asarray(x, np.float64).ravel() for x in (w, rounded))
    removed = int(np.floor(round(w.size * sparsity, 6)))
    energy = float(w @ w) or 1.0
    a, score, e = w**2, q**2, (q - w) ** 2
    gain = a - e
    by_rank = np.argsort(a, kind="stable")
    pruned_first = float(gain[by_rank[:removed]].sum())
    law = beta_law(a, score - a, e, by_rank, removed)
    return {
        "advantage": (pruned_first - _mean_over_ties(score, gain, removed)) / energy,
        "zero": float(np.mean(q == 0)),
        "beta": law[0],
        "predicted": law[1] / energy,
    }


def _mean_over_ties(score: np.ndarray, gain: np.ndarray, removed: int) -> float:
    """The sum of ``gain`` over the ``removed`` smallest scores; what ties goes at random."""
    if removed == 0:
        return 0.0
    threshold = np.partition(score, removed - 1)[removed - 1]
    below, at = score < threshold, score == threshold
    rest = removed - int(below.sum())
    return float(gain[below].sum() + gain[at].mean() * rest)


def beta_law(
    a: np.ndarray, delta: np.ndarray, e: np.ndarray, by_rank: np.ndarray, removed: int
) -> tuple[float, float]:
    """beta, and the A(Q->P) that it predicts, of units [N] with the dense saliency a.

    by_rank: their order by a; the units at the threshold are those nearest to ``removed`` in it.
    nan, nan where they have no spread.
    """
    count = a.size
    half = max(FEWEST, int(WINDOW * count)) // 2
    near = by_rank[max(0, removed - half) : removed + half]
    width = float(np.ptp(a[near]))
    if near.size < 3 or width == 0:
        return np.nan, np.nan
    density = near.size / count / width
    center = a[near] - a[near].mean()

    def against_a(x: np.ndarray) -> tuple[float, np.ndarray]:
        slope = float(center @ (x - x.mean()) / (center @ center))
        return slope, x - x.mean() - slope * center

    _, moved = against_a(delta[near])
    slope, error = against_a(e[near])
    variance = float(np.mean(moved**2))
    if variance <= 1e-20 * float(np.mean(a)) ** 2:
        return np.nan, np.nan
    beta = float(np.mean(error * moved)) / variance
    return beta, -count * density * variance * ((1 - slope) / 2 + beta)
