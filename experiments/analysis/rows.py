"""Performance of every variant on the test examples, and on every bootstrap draw of them.

Everything is computed on rows: row 0 is the estimate (every cluster once), rows 1..B are the
bootstrap replicates, whose cluster weights are shared by all variants. One code path thus serves
the estimate and its interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from experiments.records import COUNT, Record, decode, dtype_of
from experiments.summary import Estimate, compared_by
from perturb.measure import bootstrap

NLL_CAP = 700.0  # nats: exp overflows beyond; only a broken model gets there

SECONDARY = "square"  # sums that are recorded, and compared only where there are no others

Rows = np.ndarray  # [1 + B, ...] float64; [1, ...] of a measure without sums


def measure_rows(records: list[Record], replicates: int, seed: int) -> dict[str, dict[str, Rows]]:
    """cell id -> measure -> [1 + B] rows of M, by one matmul a set of test examples.

    Variants with identical sums share one column, so that equal models are EXACTLY equal in
    every replicate: a matmul rounds different columns differently.
    """
    table: dict[str, dict[str, Rows]] = {record["cell"]: {} for record in records}
    by_count: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_count[record["sums"][COUNT]].append(record)
    shared = _shared_sums(records)
    for encoded, group in by_count.items():
        count = decode(encoded, dtype_of(COUNT)).astype(float)
        rng = np.random.default_rng([seed, count.size])
        drawn = bootstrap.cluster_bootstrap_weights(count.size, replicates, rng)
        weights = np.concatenate([np.ones((1, count.size)), drawn])
        for name in sorted({name for record in group for name in shared[record["model"]]}):
            mine = [record for record in group if name in shared[record["model"]]]
            texts = [record["sums"][name] for record in mine]
            columns = {text: j for j, text in enumerate(dict.fromkeys(texts))}
            sums = np.stack([decode(text, dtype_of(name)) for text in columns], axis=1)
            means = bootstrap.replicate_means(weights, sums.astype(float), count).T
            for record, text in zip(mine, texts, strict=True):
                for measure in compared_by(record["kind"], name):
                    entry = table[record["cell"]]
                    entry[measure.name] = _performance(measure.name, means[columns[text]])
    for record in records:  # up to schema 1 the divergence had no sums: an estimate only
        kl = record["metrics"].get("kl")
        if kl is not None:
            table[record["cell"]].setdefault("neg_kl", np.array([-float(kl)]))
    return table


def _shared_sums(records: Iterable[Record]) -> dict[str, set[str]]:
    """Of every model the sums that all its records have: a mean is over rows of one kind."""
    shared: dict[str, set[str]] = {}
    for record in records:
        names = set(record["sums"]) - {COUNT}
        shared[record["model"]] = shared.get(record["model"], names) & names
    return {model: names - {SECONDARY} or names for model, names in shared.items()}


def _performance(measure: str, mean: Rows) -> Rows:
    """Higher is better: the negative of everything but a share of right answers."""
    if measure == "accuracy":
        return mean
    return -np.exp(np.minimum(mean, NLL_CAP)) if measure == "neg_perplexity" else -mean


def mean_of_defined(rows: list[Rows]) -> Rows:
    """Mean over a list, row by row, of what is defined in that row."""
    stacked = np.stack(rows)
    defined = np.isfinite(stacked)
    count = defined.sum(0)
    return np.where(defined, stacked, 0.0).sum(0) / np.where(count > 0, count, np.nan)


def interval(rows: Rows, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends over the replicates; nan without any."""
    if len(rows) < 2:
        return np.full(rows.shape[1:], np.nan), np.full(rows.shape[1:], np.nan)
    return bootstrap.percentile_interval(rows[1:], level)


def estimate(rows: Rows, level: float) -> Estimate:
    """Row 0 with the interval of the others, and their standard deviation."""
    low, high = interval(rows, level)
    with np.errstate(over="ignore"):  # of a broken model
        error = number(rows[1:].std()) if len(rows) > 1 else None
    return Estimate(number(rows[0]), number(low), number(high), error)


def number(value: np.ndarray | float) -> float | None:
    """None for what is not finite."""
    return float(value) if np.isfinite(value) else None
