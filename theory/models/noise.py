"""The error of rounding as noise: is it of zero mean, symmetric, uniform, independent of w?

The error eps = Q(w) - w is a function of w, so it is never independent in the strict sense. What
the theorems need, and what is measured here, is that nothing visible of it is left at the
resolution of the weights' distribution: correlations, and the share of its variance that the bin
of w explains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

BINS = 20  # of equally many weights


def correlation_ratio(eps: np.ndarray, w: np.ndarray, bins: int = BINS) -> float:
    """eta^2: the fraction of the variance of eps [n] that quantile bins of w [n] explain.

    Corrected for the (bins - 1) / (n - 1) that chance explains: 0 on average if eps and w are
    independent (single values may be below), 1 if the bin determines eps.
    """
    n = len(w)
    rank = np.empty(n, np.int64)
    rank[np.argsort(w, kind="stable")] = np.arange(n)
    bin_ = rank * bins // n
    count = np.bincount(bin_, minlength=bins)
    mean = np.bincount(bin_, eps, bins) / np.maximum(count, 1)
    total = float(((eps - eps.mean()) ** 2).sum())
    within = float(((eps - mean[bin_]) ** 2).sum())
    if total == 0 or n <= bins:
        return 0.0
    return 1 - (within / (n - bins)) / (total / (n - 1))


def two_sided(w: np.ndarray, bins: int = BINS) -> dict[str, float]:
    """How far the law of w [n] is from even and from unimodal, the sign law's assumptions.

    uneven      P(w > 0) - P(w < 0)
    modes       the mass that would have to move for the density of |w| to fall: half of the
                distance of its histogram (equal widths, up to the 99 % quantile) to the nearest
                that falls, by pooling adjacent violators; of chance alone about sqrt(bins / n) / 4
    """
    size = np.abs(w)
    top = float(np.quantile(size, 0.99))
    count = np.histogram(size, bins, (0, top))[0].astype(float) if top else np.zeros(bins)
    pools: list[tuple[float, int]] = []  # mean height, width
    for height in count:
        pools.append((float(height), 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    fallen = np.repeat([p[0] for p in pools], [p[1] for p in pools])
    return {
        "uneven": float(np.mean(w > 0) - np.mean(w < 0)),
        "modes": float(np.abs(count - fallen).sum()) / 2 / max(len(w), 1),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size else 0.0


def describe(w: ArrayLike, rounded: ArrayLike, step: ArrayLike) -> dict[str, float]:
    """Of the error of one matrix, all weights pooled; w, Q(w) and the steps D, all [out, in].

    mean        mean / standard deviation, and t = mean / standard error
    edge        what mean is if only the largest weight of every row biases it: on a symmetric
                grid it lies half way between two codes and goes down, -D/2 in one of ``in``
    skew        third standardised moment; 0 if symmetric
    linear      correlation of eps and w
    size        correlation of eps^2 and |w|
    explained   :func:`correlation_ratio` of eps on w
    zero        fraction of weights rounded to 0
    variance    mean eps^2 over mean D^2 / 12, which is 1 for uniform noise
    """
    inputs = np.shape(w)[-1]
    w, q, d = (np.asarray(a, np.float64).ravel() for a in (w, rounded, step))
    eps = q - w
    n, mean, deviation = len(eps), float(eps.mean()), float(eps.std())
    unit = deviation if deviation else 1.0
    return {
        "mean": mean / unit,
        "t": mean / unit * n**0.5,
        "edge": -float(d.mean()) / 2 / inputs / unit,
        "skew": float(((eps - mean) ** 3).mean()) / unit**3,
        "linear": correlation(eps, w),
        "size": correlation(eps**2, np.abs(w)),
        "explained": correlation_ratio(eps, w),
        "zero": float(np.mean(q == 0)),
        "variance": float((eps**2).mean() / ((d**2).mean() / 12)),
    }
