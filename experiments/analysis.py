"""From records to findings: which order wins, by how much, and does the hypothesis hold.

For every model, pruner and quantizer, over the grid of sparsity x bits and for each measure of
performance M: the order advantage A(Q->P) with a paired cluster-bootstrap interval, the gap
C*_P - C_Q, how A follows the gap (Kendall, Spearman), and how often the gap's sign is A's.

Everything is computed on rows: row 0 is the estimate (every cluster once), rows 1..B are the
bootstrap replicates, whose cluster weights are shared by all variants. One code path thus
serves the estimate and its interval, and the quantization curve, C* and the rank correlations
are recomputed in every replicate. The intervals say how sure one is of THESE trained models on
other test examples; the spread over training seeds is kept beside it (``advantage_by_seed``).
With several seeds a cell is the mean over its seeds, and so are its bounds.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from experiments.comparison import Compared, Key, Rows, Run, Variant, compare, estimate
from experiments.records import Record, decode, latest
from experiments.report import render
from experiments.summary import MEASURES, Score, Summary, Total
from perturb import intensity

__all__ = ["Summary", "render", "summarize"]

NLL_CAP = 700.0  # nats: exp overflows beyond; only a broken model gets there
_GRID_KEYS = {"name", "sparsity", "bits", "ratio"}  # axes of the grid, not part of a method


def summarize(
    records: Iterable[Record],
    *,
    replicates: int = 1000,
    level: float = 0.95,
    bootstrap_seed: int = 0,
) -> Summary:
    """Analyse the records of one study; the same records give the same summary, bit for bit.

    Missing and failed cells are left out and named in ``problems``. Raises ValueError when
    there is no record, or records of several studies.
    """
    held = list(latest(records).values())
    studies = sorted({record["study"] for record in held})
    if len(studies) != 1:
        raise ValueError(f"need the records of exactly one study, got {studies or 'none'}")
    problems: list[str] = []
    failed = [record for record in held if record["status"] == "error"]
    problems += [f"{record['cell']}: failed: {_short(record.get('error'))}" for record in failed]
    usable = _same_examples([r for r in held if r["status"] == "ok"], problems)
    rows = _measure_rows(usable, replicates, bootstrap_seed)
    runs = _runs(usable, rows, problems)

    compared: list[Compared] = []
    for model, seeds in runs.items():
        kind = next(iter(seeds[0].variants.values())).record["kind"]
        keys = [key for run in seeds for key in run.variants if key.order in ("PQ", "QP")]
        known = {name for run in seeds for v in run.variants.values() for name in v.rows}
        for pruner, quantizer in sorted({(str(key.pruner), str(key.quantizer)) for key in keys}):
            for measure in MEASURES.values():
                if kind in measure.kinds and measure.name in known:
                    result = compare(model, pruner, quantizer, measure, seeds, level, problems)
                    if result.comparison.cells:
                        compared.append(result)
    return Summary(
        study=studies[0],
        records=len(held),
        ok=len(held) - len(failed),
        failed=len(failed),
        seeds=tuple(sorted({record["seed"] for record in held})),
        replicates=replicates,
        level=level,
        comparisons=tuple(result.comparison for result in compared),
        totals=tuple(_totals(compared, level)),
        problems=tuple(dict.fromkeys(problems)),
    )


def _short(error: object) -> str:
    return (str(error or "no message").strip().splitlines() or ["no message"])[-1][:160]


def _same_examples(records: list[Record], problems: list[str]) -> list[Record]:
    """Pairing needs one test set a trained model: drop what was evaluated on another."""
    first: dict[tuple[str, int], Record] = {}
    kept = []
    for record in records:
        reference = first.setdefault((record["model"], record["seed"]), record)
        if record["examples"]["count"] == reference["examples"]["count"]:
            kept.append(record)
        else:
            problems.append(
                f"{record['cell']}: evaluated on other examples than {reference['cell']}, left out"
            )
    return kept


def _measure_rows(records: list[Record], replicates: int, seed: int) -> dict[str, dict[str, Rows]]:
    """cell id -> measure -> [1 + B] rows of M, by one matmul a set of test examples.

    Variants with identical sums share one column, so that equal models are EXACTLY equal in
    every replicate: a matmul rounds different columns differently.
    """
    table: dict[str, dict[str, Rows]] = defaultdict(dict)
    by_count: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_count[record["examples"]["count"]].append(record)
        kl = record["metrics"].get("kl")
        if kl is not None:
            table[record["cell"]]["neg_kl"] = np.array([-float(kl)])  # no sums: estimate only
    for encoded, group in by_count.items():
        count = decode(encoded, "int32").astype(float)
        rng = np.random.default_rng([seed, count.size])
        drawn = intensity.cluster_bootstrap_weights(count.size, replicates, rng)
        weights = np.concatenate([np.ones((1, count.size)), drawn])
        for key, dtype in (("nll", "float32"), ("correct", "int32")):
            texts = [record["examples"].get(key) for record in group]
            columns = {text: j for j, text in enumerate(dict.fromkeys(t for t in texts if t))}
            if not columns:
                continue
            sums = np.stack([decode(text, dtype) for text in columns], axis=1).astype(float)
            means = intensity.replicate_means(weights, sums, count).T  # [variants, 1 + B]
            for record, text in zip(group, texts, strict=True):
                if not text:
                    continue
                mean, entry = means[columns[text]], table[record["cell"]]
                if key == "correct":
                    entry["accuracy"] = mean
                else:
                    entry["neg_nll"] = -mean
                    entry["neg_perplexity"] = -np.exp(np.minimum(mean, NLL_CAP))
    return table


def _labels(records: list[Record], part: str) -> dict[str, str]:
    """A method's configuration -> its name; with what differs, where one name has several."""
    configs: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        if record[part] is not None:
            configs[record[part]["name"]].setdefault(_canonical(record[part]), _flat(record[part]))
    labels = {}
    for name, variants in configs.items():
        keys = sorted({key for config in variants.values() for key in config} - _GRID_KEYS)
        varying = [
            key for key in keys if len({json.dumps(c.get(key)) for c in variants.values()}) > 1
        ]
        for canonical, config in variants.items():
            told = ", ".join(f"{key}={config.get(key)}" for key in varying)
            labels[canonical] = f"{name} ({told})" if told else name
    return labels


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Nested settings side by side: a label names the one that differs, not its whole group."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value) if isinstance(value, dict) else {key: value}
    return flat


def _canonical(config: dict[str, Any]) -> str:
    return json.dumps(
        {k: v for k, v in config.items() if k == "name" or k not in _GRID_KEYS}, sort_keys=True
    )


def _runs(
    records: list[Record], rows: dict[str, dict[str, Rows]], problems: list[str]
) -> dict[str, list[Run]]:
    pruners, quantizers = _labels(records, "pruner"), _labels(records, "quantizer")
    runs: dict[str, dict[int, Run]] = defaultdict(dict)
    for record in records:
        run = runs[record["model"]].setdefault(record["seed"], Run(record["seed"], {}))
        pruner, quantizer = record["pruner"], record["quantizer"]
        key = Key(
            record["order"],
            pruner and pruners[_canonical(pruner)],
            record["sparsity"],
            quantizer and quantizers[_canonical(quantizer)],
            record["bits"],
        )
        if key in run.variants:
            other = run.variants[key].record["cell"]
            problems.append(f"{record['cell']}: the same variant as {other}, left out")
            continue
        run.variants[key] = Variant(record, rows[record["cell"]])
    return {model: [by_seed[seed] for seed in sorted(by_seed)] for model, by_seed in runs.items()}


def _totals(compared: list[Compared], level: float) -> Iterator[Total]:
    """One line a model, then one over all models, on every scale."""
    for scale in dict.fromkeys(measure.scale for measure in MEASURES.values()):
        here = [c for c in compared if MEASURES[c.comparison.measure].scale == scale]
        models = list(dict.fromkeys(c.comparison.model for c in here))
        for model in [*models, None] if len(models) > 1 else models:
            mine = [c for c in here if model in (None, c.comparison.model)]

            def mean_tau(name: str, mine: list[Compared] = mine) -> Any:
                return estimate(_mean([c.taus[name] for c in mine]), level)

            wins: Counter[str] = Counter()
            score = Score(0, 0, 0, 0, 0)
            for result in mine:
                wins += result.comparison.wins
                score += result.comparison.score
            yield Total(
                model=model,
                scale=scale,
                comparisons=len(mine),
                cells=sum(len(c.comparison.cells) for c in mine),
                wins=dict(wins),
                tau=mean_tau("tau"),
                tau_bits=mean_tau("bits"),
                tau_sparsity=mean_tau("sparsity"),
                score=score,
            )


def _mean(rows: list[Rows]) -> Rows:
    """Mean over comparisons, row by row, of those that are defined in that row."""
    stacked = np.stack(rows)
    defined = np.isfinite(stacked)
    count = defined.sum(0)
    return np.where(defined, stacked, 0.0).sum(0) / np.where(count > 0, count, np.nan)
