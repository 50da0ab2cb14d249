"""Rules that name the better order before both are run, and what following them costs.

Each says of a cell +1 (quantize first), -1 (prune first) or 0 (nothing):

    gap (PIH)        the sign of C*_P - C_Q: the stronger method last
    zero fraction    quantize first where the quantizer ALONE sends at least the pruning ratio of
                     the weights to 0: below it pruning only removes zeros
    layer errors     the order whose layers' relative output errors have the smaller sum (it needs
                     both orders compressed, and no evaluation)
    ownership        the same of the errors that each weight's owner makes alone (Theorem 1): layer
                     errors without interference
    prune first, quantize first

Shapes are ``[cells]`` of one run.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.summary import (
    BROKEN,
    DAMAGED,
    LOSS,
    POINTS,
    RATIO_TOLERANCE,
    UNJUDGED,
    USABLE,
    Measure,
)

GAP, ZEROS, ERRORS, OWNED = "gap (PIH)", "zero fraction", "layer errors", "ownership"
PRUNE, QUANTIZE = "prune first", "quantize first"
RULES = (GAP, ZEROS, ERRORS, OWNED, PRUNE, QUANTIZE)

Ints = np.ndarray
Floats = np.ndarray


def predictions(
    gap_sign: Ints, zeros: Floats, sparsity: Floats, errors: Floats, owned: Floats
) -> dict[str, Ints]:
    """What every rule says.

    gap_sign as of :func:`perturb.measure.intensity.gap_signs`; zeros: what the quantizer alone
    sends to 0; errors: the sum over layers of prune first's relative output error less quantize
    first's; owned: the same by ownership; all nan where unknown.
    """
    first = np.where(zeros >= sparsity - RATIO_TOLERANCE, 1, -1)
    return {
        GAP: np.where(np.abs(gap_sign) == 1, gap_sign, 0),
        ZEROS: np.where(np.isfinite(zeros), first, 0),
        ERRORS: np.sign(np.nan_to_num(errors)).astype(int),
        OWNED: np.sign(np.nan_to_num(owned)).astype(int),
        PRUNE: np.full(gap_sign.shape, -1),
        QUANTIZE: np.full(gap_sign.shape, 1),
    }


def share_right(said: Ints, sign: Ints) -> float:
    """Of the won cells (``sign`` of A, 0: open) of which the rule says something; nan of none."""
    counted = (sign != 0) & (said != 0)
    return float((said == sign)[counted].mean()) if counted.any() else np.nan


def regret(said: Ints, advantage: Floats, judged: np.ndarray) -> float:
    """What following the rule loses to the better order of each cell, mean over those ``judged``.

    Where it says nothing, either order is taken half of the time. In the unit of A.
    """
    if not judged.any():
        return np.nan
    size = np.abs(advantage)
    lost = np.where(said == 0, size / 2, np.where(said * advantage < 0, size, 0.0))
    return float(lost[judged].mean())


def added_by_gap(gap: Ints, zeros: Ints, sign: Ints) -> float:
    """What the gap's sign still tells of the winner among won cells of which the zero fraction says
    one thing: the difference of the shares that quantize first wins, gap > 0 less gap < 0.

    The mean over the two strata of the zero rule, weighted by n+ n- / (n+ + n-) (Mantel & Haenszel
    1959). 0: nothing; 1: everything. nan where no stratum has gaps of both signs.
    """
    total = weight = 0.0
    for said in (-1, 1):
        here = (sign != 0) & (zeros == said)
        stronger, weaker = (sign[here & (gap == g)] > 0 for g in (1, -1))
        if stronger.size and weaker.size:
            w = stronger.size * weaker.size / (stronger.size + weaker.size)
            total += w * (stronger.mean() - weaker.mean())
            weight += w
    return total / weight if weight else np.nan


def states(better: Floats, dense: Floats, measure: Measure, classes: int | None) -> np.ndarray:
    """How much the better order of each cell leaves of the model: USABLE where it loses at most
    LOSS nats or POINTS of accuracy, BROKEN where it does no better than guessing, DAMAGED else.

    UNJUDGED of a person's own measure, and of an unknown dense model.
    """
    floor = _floor(dense, measure)
    if floor is None:
        return np.full(better.shape, UNJUDGED, dtype=object)
    found = np.where(better >= floor, USABLE, DAMAGED).astype(object)
    guessing = _chance(measure, classes)
    if guessing is not None:
        found[better <= guessing] = BROKEN
    found[~np.isfinite(better) | ~np.isfinite(dense)] = UNJUDGED
    return found


def _floor(dense: Floats, measure: Measure) -> Floats | None:
    return {
        "accuracy": dense - POINTS,
        "neg_nll": dense - LOSS,
        "neg_kl": dense - LOSS,
        "neg_perplexity": dense * np.exp(LOSS),
    }.get(measure.name)


def _chance(measure: Measure, classes: int | None) -> float | None:
    if not classes:
        return None
    known: Mapping[str, float] = {
        "accuracy": 1 / classes,
        "neg_nll": -np.log(classes),
        "neg_perplexity": -float(classes),
    }
    return known.get(measure.name)
