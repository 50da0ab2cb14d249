"""The beta law in numbers: scores that see the error, and blocks on grids of uneven steps."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from jax import Array

from theory.engine.statement import Finding
from theory.models.signs import beta_law
from theory.thresholds import CLEAR

UNITS, BATCHES = 20_000, 8
BLOCK = 16
PRUNED = (0.3, 0.5, 0.7)
NOISES = (0.002, 0.01, 0.05)
# lambda of the score a - lambda e, and v; 2 is the turn
SEEN = ((0.5, 0.02), (1.0, 0.02), (1.5, 0.02), (3.0, 0.02), (8.0, 0.02), (3.0, 0.05))


def compare(
    p: float, a: np.ndarray, delta: np.ndarray, e: np.ndarray
) -> tuple[float, float, float]:
    """(A per unit, its law by the statistics at the threshold, beta) of one batch."""
    removed = round(p * a.size)
    by_rank = np.argsort(a, kind="stable")
    gain = a - e
    last = np.argpartition(a + delta, removed)[:removed]
    true = float(gain[by_rank[:removed]].sum() - gain[last].sum()) / a.size
    beta, law = beta_law(a, delta, e, by_rank, removed)
    return true, law / a.size, beta


def _blocks(rng: np.random.Generator, v: float) -> tuple[np.ndarray, ...]:
    """Blocks of BLOCK normal weights, each weight rounded to a step of its own, 12 v on average."""
    w = rng.normal(size=(UNITS, BLOCK))
    step = rng.uniform(0.5, 1.5, w.shape)
    step *= np.sqrt(12 * v / (step**2).mean())
    q = step * np.rint(w / step)
    a = (w**2).sum(1)
    return a, (q**2).sum(1) - a, ((q - w) ** 2).sum(1)


def seen(rng: np.random.Generator, share: float, v: float) -> tuple[np.ndarray, ...]:
    """Normal weights, normal noise, and a score that knows a part of what rounding cost."""
    w, z = rng.normal(size=(2, UNITS * 5))
    e = v * z**2
    return w**2, -share * e, e


def measure(key: Array) -> tuple[Finding, ...]:
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    rows, judged, right, ratios = [], 0, 0, {}
    cells = [(f"score a - {s:g} e, v = {v:g}", partial(seen, share=s, v=v)) for s, v in SEEN]
    for p in PRUNED:
        for name, draw in [
            *cells,
            *((f"blocks, v = {v:g}", partial(_blocks, v=v)) for v in NOISES),
        ]:
            found = np.array([compare(p, *draw(rng)) for _ in range(BATCHES)])
            true, law, beta = found.mean(0)
            error = float(found[:, 0].std(ddof=1)) / BATCHES**0.5
            clear = abs(true) > CLEAR * error
            judged, right = judged + clear, right + (clear and (true > 0) == (law > 0))
            if clear:
                ratios[name, p] = float(law / true)
            off = f"{law / true:.2f}" if clear else "unclear"
            rows.append((name, f"{p:.0%}", f"{beta:+.2f}", f"{true:.2e}", f"{law:.2e}", off))
    size = [abs(r - 1) for r in ratios.values()]
    worst = max(ratios, key=lambda c: abs(np.log(max(ratios[c], 1e-9))))
    return (
        Finding(
            "the beta law's sign, where A is clear of sampling",
            "holds" if right == judged else "narrower",
            f"right in {right} of {judged} cells: scores that know the error win first up to "
            f"lambda = 2 (beta = -1/2) and lose beyond, blocks of {BLOCK} lose; the size is within "
            f"15 % in {np.mean([s < 0.15 for s in size]):.0%}, and {ratios[worst]:.2f} times A at "
            f"worst ({worst[0]}, {worst[1]:.0%})",
            {"cells judged": float(judged), "right": float(right), "worst ratio": ratios[worst]},
            ("units", "pruned", "beta", "A a unit", "law", "law / A"),
            tuple(rows),
            required=True,
        ),
    )
