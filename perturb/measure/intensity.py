"""Intensity of a compression method, the advantage of an order, and whether one tells the other.

Performance ``M`` is higher-is-better throughout (accuracy, -perplexity, -NLL). ``f -> g`` means
that ``f`` is applied first. Orientation, everywhere in this project::

    A(Q->P) = M(Q first, then P) - M(P first, then Q)        > 0: quantize first wins
    gap     = C*_P - C_Q                                     > 0: pruning is the stronger

with C a compression ratio, dense bits / stored bits of the whole model, C_Q that of a quantizer
and C*_P the one at which quantization alone performs as the pruner does.

The Progressive Intensity Hypothesis (PIH: the stronger method goes last) says that A(Q->P)
grows with the gap (trend) and has its sign (sign). Source: Kim et al., ICLR 2026, arXiv
2603.18426; isotonic fit, censoring and intervals are ours. Correlations are in
:mod:`perturb.measure.ranks`, intervals in :mod:`perturb.measure.bootstrap`. numpy float64, no jax.

**Censoring.** An equivalent ratio outside the measured curve is known only as a bound. It is
kept as an interval ``low <= C* <= high`` with an infinite side, never extrapolated, and used
only for what the interval already decides: a sign, or the order of two gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Floats = np.ndarray  # float64

STATUSES = ("ok", "below", "above", "tie")
OK, BELOW, ABOVE, TIE = range(4)


class EquivalentRatio(NamedTuple):
    """C* with what is known about it: ``low <= C* <= high``.

    ``ok``: low = value = high. ``below``: better than every measured point, C* <= value.
    ``above``: worse than every point, C* >= value. ``tie``: the fitted curve is flat at this
    performance over [low, high] and ``value`` = low, the smallest ratio that matches.
    """

    value: float
    status: str
    low: float
    high: float


class RatioBounds(NamedTuple):
    """:class:`EquivalentRatio` for arrays; ``status`` indexes ``STATUSES``."""

    value: Floats
    status: np.ndarray
    low: Floats
    high: Floats


class SignAccuracy(NamedTuple):
    """How many of ``counted`` significant cells each rule for the order's sign gets right.

    ``undecided`` significant cells have a gap whose interval contains both signs, and of
    ``no_gap`` ones the gap is exactly 0, of which PIH says nothing. Both are in no denominator,
    so that the three rules are scored on the same cells.
    """

    counted: int
    pih: int
    prune_first: int
    quantize_first: int
    undecided: int
    no_gap: int


def performance_gap(m_first: Floats | float, m_second: Floats | float) -> Floats:
    """G(f1, f2) = M(f1(model)) - M(f2(model)), in the unit of M; > 0: f2 is the stronger. [Kim]"""
    return np.asarray(m_first, float) - np.asarray(m_second, float)


def order_advantage(m_qp: Floats | float, m_pq: Floats | float) -> Floats:
    """A(Q->P) = M(Q then P) - M(P then Q), in the unit of M; > 0: quantize first wins. [Kim]"""
    return np.asarray(m_qp, float) - np.asarray(m_pq, float)


def quantization_curve(performance: Floats) -> Floats:
    """Least-squares nonincreasing fit of M along increasing ratio: ``[..., n] -> [..., n]``.

    min_f sum_i (f_i - M_i)^2 subject to f_1 >= f_2 >= ..., by pooling adjacent violators
    (Barlow et al. 1972), unit weights. Points that violate nothing keep their exact value;
    pooled ones share the mean of their block. Raises ValueError for non-finite performance.
    """
    curve = np.array(performance, float)
    if not np.isfinite(curve).all():
        raise ValueError("the quantization curve holds non-finite performance: drop those points")
    rows = curve.reshape(-1, curve.shape[-1])  # a view: the copy above is ours
    for index in np.flatnonzero((np.diff(rows, axis=-1) > 0).any(axis=-1)):
        rows[index] = _pool(rows[index].tolist())
    return curve


def _pool(values: list[float]) -> list[float]:
    blocks: list[tuple[float, float, int]] = []  # mean, sum, length
    for value in values:
        mean, total, length = value, value, 1
        while blocks and blocks[-1][0] < mean:
            _, earlier, count = blocks.pop()
            total, length = total + earlier, length + count
            mean = total / length
        blocks.append((mean, total, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def equivalent_ratios(m: Floats, ratios: Floats, m_curve: Floats) -> RatioBounds:
    """Ratio at which quantization alone performs as ``m``: C* by linear interpolation.

    ``m [..., k]`` performances, ``ratios [n]`` strictly increasing C_Q of the curve,
    ``m_curve [..., n]`` its performances; results ``[..., k]``. The curve is what the caller
    measured: pass the dense model as its first point (C = 1) to let C* lie between 1 and the
    widest grid. Interpolation is on :func:`quantization_curve`; a performance that equals a
    fitted value returns that point's ratio exactly, so C* at the curve's own points is C_Q
    wherever the measured curve is strictly decreasing there. -inf is worse than every point.

    Raises ValueError for a nan in ``m``, a non-finite curve, or ratios that do not increase.
    """
    m, ratios = np.asarray(m, float), np.asarray(ratios, float)
    if ratios.ndim != 1 or not ratios.size or not (np.diff(ratios) > 0).all():
        raise ValueError(f"ratios must be one increasing row, got {ratios.tolist()}")
    if np.isnan(m).any():
        raise ValueError("performance is nan: a failed variant has no equivalent ratio")
    fit = quantization_curve(m_curve)
    if fit.shape[-1] != ratios.size:
        raise ValueError(f"{ratios.size} ratios for a curve of {fit.shape[-1]} points")
    last = ratios.size - 1
    at_least = (fit[..., None, :] >= m[..., :, None]).sum(-1)  # [..., k] points no worse than m
    better = (fit[..., None, :] > m[..., :, None]).sum(-1)
    left, right = np.clip(at_least - 1, 0, last), np.clip(better, 0, last)
    equal = at_least > better  # fitted points better .. at_least-1 equal m
    fit_left = np.take_along_axis(np.broadcast_to(fit, (*m.shape[:-1], fit.shape[-1])), left, -1)
    fit_right = np.take_along_axis(np.broadcast_to(fit, (*m.shape[:-1], fit.shape[-1])), right, -1)
    drop = np.where(fit_left > fit_right, fit_left - fit_right, 1.0)
    fraction = np.clip((fit_left - np.maximum(m, fit_right)) / drop, 0.0, 1.0)
    between = ratios[left] + fraction * (ratios[right] - ratios[left])
    value = np.where(equal, ratios[right], between)
    status = np.where(equal & (left > right), TIE, OK)
    status = np.where(at_least == 0, BELOW, np.where(better == ratios.size, ABOVE, status))
    low = np.where(status == BELOW, -np.inf, value)
    high = np.where(status == ABOVE, np.inf, np.where(status == TIE, ratios[left], value))
    return RatioBounds(value, status, low, high)


def equivalent_ratio(m: float, ratios: Floats, m_curve: Floats) -> EquivalentRatio:
    """C* of one performance on one curve ``[n]``: see :func:`equivalent_ratios`."""
    bounds = equivalent_ratios(np.array([m]), ratios, m_curve)
    status = STATUSES[int(bounds.status[0])]
    return EquivalentRatio(float(bounds.value[0]), status, float(bounds.low[0]), bounds.high.item())


def gap_signs(low: Floats, high: Floats) -> np.ndarray:
    """Sign of a gap known to lie in [low, high]: -1, 0, 1, or 2 where the interval allows both.

    A censored gap therefore counts exactly where its bound already decides the sign.
    """
    low, high = np.asarray(low, float), np.asarray(high, float)
    return np.where(low > 0, 1, np.where(high < 0, -1, np.where((low == 0) & (high == 0), 0, 2)))


def significant_sign(advantage: Floats, low: Floats, high: Floats, resolution: float) -> np.ndarray:
    """Sign of A where its interval [low, high] excludes 0, else 0.

    Also 0 where |A| <= ``resolution`` (the rounding of the evaluation: paired intervals of two
    equal models are so tight that rounding alone would look significant), where the interval
    lies on the other side than A, and where there is no interval (nan).
    """
    advantage = np.asarray(advantage, float)
    excluded = np.where(np.asarray(low) > 0, 1, np.where(np.asarray(high) < 0, -1, 0))
    seen = np.where(np.abs(advantage) > resolution, np.sign(advantage), 0).astype(int)
    return np.where(seen == excluded, seen, 0)


def sign_accuracy(sign: np.ndarray, gap_sign: np.ndarray) -> SignAccuracy:
    """Score PIH and the two constant rules on the significant cells.

    ``sign [n]`` from :func:`significant_sign` (0 = not significant: not counted), ``gap_sign
    [n]`` from :func:`gap_signs`. PIH predicts sign(A(Q->P)) = sign(gap), which is nothing where
    the gap is exactly 0; 'always prune first' predicts -1, 'always quantize first' +1.
    """
    sign, gap_sign = np.asarray(sign), np.asarray(gap_sign)
    counted = (sign != 0) & (np.abs(gap_sign) == 1)
    return SignAccuracy(
        int(counted.sum()),
        int((counted & (sign == gap_sign)).sum()),
        int((counted & (sign < 0)).sum()),
        int((counted & (sign > 0)).sum()),
        int(((sign != 0) & (gap_sign == 2)).sum()),
        int(((sign != 0) & (gap_sign == 0)).sum()),
    )
