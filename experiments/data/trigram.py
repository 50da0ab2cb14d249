"""A byte trigram model, the baseline that a language model has to beat.

Witten and Bell's interpolation (IEEE Trans. Inf. Theory 37(4), 1991): the longer the history,
the finer the estimate, and a history passes on as much mass as it has seen distinct bytes::

    p(c | h) = (n(h c) + d(h) p(c | h')) / (n(h) + d(h))

``n`` counts, ``d(h)`` is the number of distinct bytes seen after ``h``, ``h'`` is ``h`` without
its oldest byte, and below the empty history lies the uniform 1/256. No parameter is fitted.
"""

from __future__ import annotations

import numpy as np

from experiments.data.types import Split


def trigram_bits_per_byte(train: Split, test: Split) -> float:
    """Mean of ``-log2 p`` over the targets of ``test``, with counts from ``train``.

    Both are text splits, ``int [N, T]``. A window starts without a history: its first target
    is predicted from one byte, as a network has to.
    """
    windows = np.concatenate([train.inputs, train.targets[:, -1:]], axis=1).astype(np.int64)
    # Counted inside windows only: a byte's history never crosses from one window to the next.
    unigram = np.bincount(windows.ravel(), minlength=256)  # [256]
    bigram = np.bincount(
        (windows[:, :-1] * 256 + windows[:, 1:]).ravel(), minlength=256**2
    ).reshape(256, 256)
    trigram = np.bincount(
        ((windows[:, :-2] * 256 + windows[:, 1:-1]) * 256 + windows[:, 2:]).ravel(),
        minlength=256**3,
    ).reshape(256, 256, 256)

    older, newer, target = _histories(test)
    p = np.full(target.shape, 1 / 256)
    p = _interpolate(p, unigram[target], int(unigram.sum()), int(np.count_nonzero(unigram)))
    total, distinct = bigram.sum(axis=1), np.count_nonzero(bigram, axis=1)  # [256]
    p = _interpolate(p, bigram[newer, target], total[newer], distinct[newer])
    total, distinct = trigram.sum(axis=2), np.count_nonzero(trigram, axis=2)  # [256,256]
    known = older >= 0
    finer = _interpolate(
        p, trigram[older, newer, target], total[older, newer], distinct[older, newer]
    )
    return float(-np.log2(np.where(known, finer, p)).mean())


def _histories(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two bytes before each target, older and newer, and the target, all ``[N, T]``.

    The first target of a window has no older byte: -1 there.
    """
    newer = split.inputs.astype(np.int64)
    older = np.concatenate([np.full((len(newer), 1), -1), newer[:, :-1]], axis=1)
    return older, newer, split.targets.astype(np.int64)


def _interpolate(
    lower: np.ndarray, count: np.ndarray, total: np.ndarray | int, distinct: np.ndarray | int
) -> np.ndarray:
    """One step of the recursion; a history never seen leaves ``lower`` as it is."""
    weight = total + distinct
    return np.where(weight > 0, (count + distinct * lower) / np.maximum(weight, 1), lower)
