"""Low rank and noise in numbers: Monte Carlo over spectra that fall fast and slowly."""

from __future__ import annotations

import jax
import numpy as np
from jax import Array

from theory.engine.statement import Finding, verdict
from theory.maths.lowrank import low_rank_advantage, tail_share
from theory.thresholds import CLEAR, DEVIATIONS

ROWS, COLUMNS, RANK, DRAWS = 12, 8, 3, 4000
NOISE = 1e-3  # standard deviation, largest singular value 1
FALLS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98)  # of one singular value to the next; 0: rank RANK


def spectrum(fall: float) -> np.ndarray:
    """COLUMNS singular values: geometric, or (0) RANK geometric ones and then none."""
    sigma = (fall or 0.6) ** np.arange(COLUMNS)
    return sigma if fall else np.where(np.arange(COLUMNS) < RANK, sigma, 0)


def advantage(rng: np.random.Generator, sigma: np.ndarray) -> tuple[float, float]:
    """A(Q->L)/(kappa v) and its standard error; the noise of both orders is one and its negative,
    so that what is odd in it falls out."""
    w = np.zeros((ROWS, COLUMNS))
    np.fill_diagonal(w, sigma)
    rest = float((sigma[RANK:] ** 2).sum())
    noise = NOISE * rng.normal(size=(DRAWS, ROWS, COLUMNS))
    changes = np.zeros(DRAWS)
    for sign in (1, -1):
        left, s, right = np.linalg.svd(w + sign * noise, full_matrices=False)
        kept = (left[..., :RANK] * s[:, None, :RANK]) @ right[:, :RANK]
        last = ((kept - w) ** 2).sum((1, 2))
        changes += (rest + (noise**2).sum((1, 2)) - last) / 2
    changes /= NOISE**2
    return float(changes.mean()), float(changes.std() / DRAWS**0.5)


def measure(key: Array) -> tuple[Finding, ...]:
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    rows, off, wrong, turned = [], 0.0, [], []
    plain = (ROWS - RANK) * (COLUMNS - RANK)
    for fall in FALLS:
        sigma = spectrum(fall)
        law = float(low_rank_advantage(1.0, ROWS, COLUMNS, RANK, tail_share(list(sigma), RANK)))
        mean, error = advantage(rng, sigma)
        off = max(off, abs(mean - law) / error)
        wrong.append(abs(mean - plain) > CLEAR * error)
        turned += [f"{fall:g}"] if mean < -CLEAR * error else []
        rows.append((f"{fall:g}" if fall else "rank r", f"{mean:+.2f}", f"{law:+.2f}", plain))
    return (
        Finding(
            "low rank and noise: A(Q->L) = v [(m - r)(n - r) - 2 sum], to first order",
            "holds" if off < DEVIATIONS else "false",
            f"Monte Carlo agrees to {off:.1f} standard errors over {len(FALLS)} spectra of a "
            f"{ROWS} x {COLUMNS} matrix, r = {RANK}",
            {"largest deviation, standard errors": off},
            ("sigma falls by", "A / v measured", "law", "(m - r)(n - r)"),
            tuple(rows),
            required=True,
        ),
        Finding(
            "low rank last: A(Q->L) = +v (m - r)(n - r) (our candidate)",
            verdict(not any(wrong), not wrong[0]),
            f"contradicted by the law in {sum(wrong)} of {len(FALLS)} spectra (narrower: true of a "
            f"matrix of rank r), in sign in {len(turned)}: low rank had better come first where "
            f"singular values fall by {', '.join(turned) or 'none'} from one to the next",
            {"spectra where low rank first wins": float(len(turned))},
        ),
    )
