"""How sure one is of a number on other trainings and calibration draws, not only other examples.

A statistic is measured in runs, each a training seed under a calibration draw; all runs share the
test examples. Seeds and draws are crossed random factors:

    y_sd = mu + a_s + b_d + c_sd,      mean over the runs  Var = va/S + vb/D + vc/(S D) + examples

The runs' part is estimated without bias by (MS_seed + MS_draw - MS_both) / (S D) of the analysis
of variance (each MS a mean square; MS_seed alone where there is one draw, and the other way round),
never less than either factor's own share, as a difference of mean squares may be negative. The
examples' part is the variance of the mean over the bootstrap of the examples. The interval is
Student's, with Satterthwaite's degrees of freedom: with three or five trainings a normal or a
bootstrap interval is too short (by about (S-1)/S in variance, and in the tails).

Examples that matter in some runs only are in both parts: the interval is a little too long where
the test set is small. It is too short where S D runs of one seed, or of one draw, stand for all:
what does not vary is in no interval. Coverage with known truth: ``tests/test_replicates.py``.
Sources: Satterthwaite 1946; Searle, Casella & McCulloch, Variance Components (1992), chapter 4.
numpy float64, no jax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

Floats = np.ndarray  # float64


class Components(NamedTuple):
    """Variances of one run's statistic, by where they come from; nan where one cannot tell."""

    seed: Floats
    draw: Floats
    both: Floats  # what a draw does to this training and not to that one; and rounding
    examples: Floats  # of the mean over runs


class Replicated(NamedTuple):
    """The mean over runs ``[...]`` with its interval over replicates.

    p: of the two-sided test that the mean is 0; df: of Student's t, infinite where the examples
    alone decide.
    """

    value: Floats
    error: Floats  # standard error
    df: Floats
    low: Floats
    high: Floats
    p: Floats
    components: Components


def over_replicates(
    runs: Floats, examples: Floats | float = 0.0, level: float = 0.95
) -> Replicated:
    """The interval of the mean of ``runs [seeds, draws, ...]``.

    examples ``[...]``: variance of that mean over other test examples. One seed and one draw say
    nothing of other runs: the interval is that of the examples, with df infinite.
    """
    runs = np.asarray(runs, float)
    if runs.ndim < 2 or not runs.shape[0] or not runs.shape[1]:
        raise ValueError(f"runs must be [seeds, draws, ...], got shape {runs.shape}")
    seeds, draws = runs.shape[:2]
    of_examples = np.broadcast_to(np.asarray(examples, float), runs.shape[2:])
    value = runs.mean((0, 1))
    seed_means, draw_means = runs.mean(1), runs.mean(0)
    nan = np.full(value.shape, np.nan)
    # mean squares, each with the runs that one of its means stands for
    ms_seed = draws * seed_means.var(0, ddof=1) if seeds > 1 else nan
    ms_draw = seeds * draw_means.var(0, ddof=1) if draws > 1 else nan
    ms_both = nan
    if seeds > 1 and draws > 1:
        rest = runs - seed_means[:, None] - draw_means[None] + value
        ms_both = (rest**2).sum((0, 1)) / ((seeds - 1) * (draws - 1))
    variance, df = _of_mean(ms_seed, ms_draw, ms_both, seeds, draws)
    total = variance + of_examples
    share = np.divide(variance, total, out=np.zeros_like(total), where=total > 0)
    with np.errstate(divide="ignore"):
        freedom = np.where(share > 0, df / share**2, np.inf)
    error = np.sqrt(total)
    half = stdtrit(np.minimum(freedom, 1e9), (1 + level) / 2) * error
    ratio = np.divide(np.abs(value), error, out=np.full_like(value, np.inf), where=error > 0)
    p = np.where(value == 0, 1.0, 2 * stdtr(np.minimum(freedom, 1e9), -ratio))
    components = Components(
        np.maximum((ms_seed - np.where(np.isnan(ms_both), 0, ms_both)) / draws, 0),
        np.maximum((ms_draw - np.where(np.isnan(ms_both), 0, ms_both)) / seeds, 0),
        ms_both,
        of_examples,
    )
    return Replicated(value, error, freedom, value - half, value + half, p, components)


def _of_mean(
    ms_seed: Floats, ms_draw: Floats, ms_both: Floats, seeds: int, draws: int
) -> tuple[Floats, Floats]:
    """Variance of the mean over runs, and its degrees of freedom."""
    zero = np.zeros_like(ms_seed)
    if seeds == draws == 1:
        return zero, np.full_like(ms_seed, np.inf)
    if draws == 1:
        return ms_seed / seeds, zero + seeds - 1
    if seeds == 1:
        return ms_draw / draws, zero + draws - 1
    both = ms_seed + ms_draw - ms_both
    squares = ms_seed**2 / (seeds - 1) + ms_draw**2 / (draws - 1)
    squares = squares + ms_both**2 / ((seeds - 1) * (draws - 1))
    df = np.divide(both**2, squares, out=np.ones_like(both), where=squares > 0)
    for alone, of in ((ms_seed, seeds - 1), (ms_draw, draws - 1)):
        df = np.where(alone > both, of, df)
        both = np.maximum(alone, both)
    return both / (seeds * draws), np.maximum(df, min(seeds, draws) - 1)


def discoveries(p: Floats, rate: float = 0.05) -> np.ndarray:
    """Which of the tests ``p [n]`` stand where of those that do at most ``rate`` are false.

    Benjamini & Hochberg 1995, for tests that are independent or positively dependent (1 nan is
    no test). Returns bool [n].
    """
    p = np.asarray(p, float)
    tests = np.isfinite(p)
    order = np.argsort(np.where(tests, p, np.inf), kind="stable")
    ranked = p[order]
    count = int(tests.sum())
    within = np.zeros(p.size, bool)
    within[:count] = ranked[:count] <= rate * np.arange(1, count + 1) / max(count, 1)
    last = np.flatnonzero(within)
    found = np.zeros(p.size, bool)
    found[order[: last[-1] + 1 if last.size else 0]] = True
    return found
