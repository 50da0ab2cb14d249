"""Rank correlation of values of which some are known as bounds only, batched over replicates.

numpy float64, no jax.
"""

from __future__ import annotations

import numpy as np

Floats = np.ndarray  # float64


def pair_order(low: Floats, high: Floats, shared: np.ndarray | None = None) -> np.ndarray:
    """Sign of x_i - x_j for every pair i < j of values in [low, high]; 2 where undecided.

    ``low, high [..., n]`` to ``[..., n (n-1) / 2]`` int8. ``shared [n]``: values with the same
    label carry the same unknown, x_i = u - known_i (one pruned model against several bit
    widths): their difference is exact even where u is censored, so pass bounds of the same u.
    """
    first, second = np.triu_indices(low.shape[-1], 1)
    low_i, low_j, high_i, high_j = (
        low[..., first],
        low[..., second],
        high[..., first],
        high[..., second],
    )
    sure = (low_i == high_i) & (low_j == high_j)
    order = np.where(low_i > high_j, 1, np.where(high_i < low_j, -1, np.where(sure, 0, 2)))
    if shared is not None:
        labels = np.asarray(shared)
        with np.errstate(invalid="ignore"):  # inf - inf: the other bound is the finite one
            step = np.sign(np.where(np.isfinite(low_i), low_i - low_j, high_i - high_j))
        step = np.where(np.isnan(step), 2, step)
        order = np.where(labels[first] == labels[second], step, order)
    return order.astype(np.int8)


def kendall_from_order(x_order: np.ndarray, y_order: np.ndarray) -> Floats:
    """Kendall's tau-b from two :func:`pair_order` arrays ``[..., pairs]``, over decided pairs.

    tau_b = (concordant - discordant) / sqrt(pairs untied in x * pairs untied in y). Pairs that
    censoring leaves undecided in x or y are dropped from all three counts. nan where one side
    is all ties or nothing is decided.
    """
    decided = (x_order != 2) & (y_order != 2)
    x, y = np.where(decided, x_order, 0), np.where(decided, y_order, 0)
    untied = np.sqrt((x != 0).sum(-1).astype(float) * (y != 0).sum(-1))
    with np.errstate(invalid="ignore"):
        return (x.astype(int) * y).sum(-1) / np.where(untied > 0, untied, np.nan)


def kendall_tau_b(x: Floats, y: Floats) -> Floats:
    """Kendall's tau-b of fully known values ``[..., n]``, batched over the leading axes."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    return kendall_from_order(pair_order(x, x), pair_order(y, y))


def spearman(x: Floats, y: Floats, keep: np.ndarray | None = None) -> Floats:
    """Spearman's rho ``[...]`` of ``x, y [..., n]``: Pearson's r of average ranks.

    ``keep [..., n]`` bool: only these values are ranked. A censored value has no rank, so the
    caller leaves it out here (Kendall's tau, above, can still use its bound). nan where fewer
    than two values remain or one side is constant.
    """
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    kept = np.broadcast_to(True if keep is None else keep, x.shape).astype(float)
    size = kept.sum(-1, keepdims=True)

    def centred_rank(values: Floats) -> Floats:
        below = (values[..., None, :] < values[..., :, None]) * kept[..., None, :]
        same = (values[..., None, :] == values[..., :, None]) * kept[..., None, :]
        rank = below.sum(-1) + 0.5 * same.sum(-1)
        return (rank - 0.5 * size) * kept  # ranks with this 0.5 average to size / 2

    rank_x, rank_y = centred_rank(x), centred_rank(y)
    scale = np.sqrt((rank_x**2).sum(-1) * (rank_y**2).sum(-1))
    return (rank_x * rank_y).sum(-1) / np.where(scale > 0, scale, np.nan)
