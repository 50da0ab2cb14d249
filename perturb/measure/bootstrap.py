"""The paired cluster bootstrap: how sure one is of a number, on other test examples.

numpy float64, no jax.
"""

from __future__ import annotations

import numpy as np

Floats = np.ndarray  # float64


def cluster_bootstrap_weights(clusters: int, replicates: int, rng: np.random.Generator) -> Floats:
    """Multinomial counts ``[replicates, clusters]`` of resampling clusters with replacement.

    One row says how often each cluster (document, image) is drawn; each row sums to
    ``clusters``. Using the same rows for every variant is what pairs the comparison: both
    orders, each method alone and the dense model see the same resampled examples.
    Source: Efron & Tibshirani (1993), chapters 8 and 13.
    """
    if clusters < 1 or replicates < 1:
        raise ValueError(f"need at least one cluster and replicate: {clusters}, {replicates}")
    drawn = rng.integers(0, clusters, (replicates, clusters))
    drawn += clusters * np.arange(replicates)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=replicates * clusters)
    return counts.reshape(replicates, clusters).astype(float)


def replicate_means(weights: Floats, sums: Floats, count: Floats) -> Floats:
    """Means per example in every replicate, all variants by one matmul.

    mean[b, v] = sum_c w[b,c] sums[c,v] / sum_c w[b,c] count[c]: a ratio estimate, as clusters
    differ in size. ``weights [B, clusters]``, ``sums [clusters, variants]``, ``count
    [clusters]`` to ``[B, variants]``.
    """
    return (weights @ sums) / (weights @ count)[:, None]


def percentile_interval(replicates: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Percentile interval over axis 0, ignoring nan replicates: ``[B, ...] -> [...], [...]``.

    nan where more than half of the replicates are nan (a statistic that is mostly undefined).
    """
    tail = (1.0 - level) / 2.0
    replicates = np.asarray(replicates, float)
    undefined = np.isnan(replicates)
    if undefined.any():
        mostly = undefined.mean(0) > 0.5
        filled = np.where(mostly & undefined, 0.0, replicates)
        low, high = np.nanquantile(filled, [tail, 1.0 - tail], axis=0)
        return np.where(mostly, np.nan, low), np.where(mostly, np.nan, high)
    low, high = np.quantile(replicates, [tail, 1.0 - tail], axis=0)
    return low, high
