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

A model that is at chance before it is compressed cannot tell which order is better: its cells
are shown and in no total (:func:`_at_chance`).
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from experiments.analysis.contrasts import Compared, Key, Rows, Run, Variant, compare, estimate
from experiments.records import Record, decode, latest
from experiments.summary import MEASURES, Score, Summary, Total
from perturb.measure import intensity

NLL_CAP = 700.0  # nats: exp overflows beyond; only a broken model gets there
_GRID_KEYS = {"name", "sparsity", "bits", "ratio"}  # axes of the grid, not part of a method


def summarize(
    records: Iterable[Record],
    cells: Collection[str] | None = None,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    bootstrap_seed: int = 0,
) -> Summary:
    """Analyse the records of one study; the same records give the same summary, bit for bit.

    cells: ids of the cells to cover; the others count nowhere (default: all). Missing and failed
    cells are left out and named in ``problems``. Raises ValueError when there is no record,
    records of several studies, or records of one model that no mean may pool: with other
    policies, or of one seed with other data.
    """
    every = latest(records)
    held = [record for cell, record in every.items() if cells is None or cell in cells]
    studies = sorted({record["study"] for record in held})
    if len(studies) != 1:
        raise ValueError(f"need the records of exactly one study, got {studies or 'none'}")
    _refuse_mixtures(held)
    problems: list[str] = []
    absent = sorted(set(cells or ()) - every.keys())
    if absent:
        problems.append(f"{len(absent)} of {len(set(cells or ()))} cells not run yet: {absent[0]}")
    failed = [record for record in held if record["status"] == "error"]
    problems += [f"{record['cell']}: failed: {_short(record.get('error'))}" for record in failed]
    usable = _same_examples([r for r in held if r["status"] == "ok"], problems)
    rows = _measure_rows(usable, replicates, bootstrap_seed)
    runs = _runs(usable, rows, problems)
    at_chance = {model: told for model, seeds in runs.items() if (told := _at_chance(seeds, level))}
    problems[:0] = [f"{model}, {line}" for model, told in at_chance.items() for line in told]

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
        totals=tuple(_totals(compared, at_chance, level)),
        problems=tuple(dict.fromkeys(problems)),
        at_chance=tuple(at_chance),
    )


def _short(error: object) -> str:
    return (str(error or "").strip().splitlines() or ["no message"])[0][:160]


def _refuse_mixtures(records: list[Record]) -> None:
    """One model has one set of policies, and one seed of it one set of data and weights."""
    for part, same in (("policies", ("model",)), ("data", ("model", "seed"))):
        first: dict[tuple[Any, ...], Record] = {}
        for record in records:
            held = first.setdefault(tuple(record[key] for key in same), record)
            one, other = held.get(part) or {}, record.get(part) or {}
            differs = [k for k in sorted({*one, *other}) if _text(one, k) != _text(other, k)]
            if differs:
                told = ", ".join(f"{k} {_text(one, k)} and {_text(other, k)}" for k in differs)
                raise ValueError(
                    f"{held['cell']} and {record['cell']} differ in {part} ({told}): "
                    "summarise them apart"
                )


def _text(config: dict[str, Any], key: str) -> str:
    return json.dumps(config[key], sort_keys=True) if key in config else "unset"


def _at_chance(runs: list[Run], level: float) -> list[str]:
    """A line for every seed whose dense model does no better than guessing.

    Guessing has accuracy 1 / classes and, on text, NLL log(classes); to be better is to have the
    whole bootstrap interval on the better side. Records that do not say how many classes there
    are (``data["classes"]``) leave it open.
    """
    lines = []
    for run in runs:
        dense = run.variants.get(Key("dense", None, None, None, None))
        classes = dense and (dense.record.get("data") or {}).get("classes")
        if not dense or not classes:
            continue
        name = "accuracy" if "accuracy" in dense.rows else "neg_nll"
        rows, chance = dense.rows[name], 1 / classes if name == "accuracy" else -math.log(classes)
        low, high = intensity.percentile_interval(rows[1:], level)
        if low <= chance:
            ends = sorted(abs(float(x)) for x in (low, high))
            lines.append(
                f"seed {run.seed}: the dense model is at chance ({name.removeprefix('neg_')} "
                f"{abs(rows[0]):.4g} [{ends[0]:.4g}, {ends[1]:.4g}], guessing one of {classes} "
                f"gives {abs(chance):.4g}): the model's cells count in no total"
            )
    return lines


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
    """A method's configuration -> its name; with what differs, where one name has several.

    A nested setting goes by its own name (``per``), by its path (``grid.per``) where that is
    another's as well.
    """
    configs: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        if record[part] is not None:
            configs[record[part]["name"]].setdefault(_canonical(record[part]), _flat(record[part]))
    labels = {}
    for name, variants in configs.items():
        keys = sorted({key for config in variants.values() for key in config} - _GRID_KEYS)
        leaves = Counter(key.rpartition(".")[2] for key in (*keys, *_GRID_KEYS))
        varying = [key for key in keys if len({_text(c, key) for c in variants.values()}) > 1]
        for canonical, config in variants.items():
            told = []
            for key in varying:
                leaf = key.rpartition(".")[2]
                value = config[key] if isinstance(config.get(key), str) else _text(config, key)
                told.append(f"{leaf if leaves[leaf] == 1 else key}={value}")
            labels[canonical] = f"{name} ({', '.join(told)})" if told else name
    return labels


def _flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their path: a label names the one that differs, not its whole group."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{path}{key}.") if nested else {path + key: value}
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


def _totals(compared: list[Compared], at_chance: Collection[str], level: float) -> Iterator[Total]:
    """One line a model, then one over all models, on every scale; without models at chance."""
    several = len({c.comparison.model for c in compared}) > 1
    compared = [c for c in compared if c.comparison.model not in at_chance]
    for scale in dict.fromkeys(measure.scale for measure in MEASURES.values()):
        here = [c for c in compared if MEASURES[c.comparison.measure].scale == scale]
        models = list(dict.fromkeys(c.comparison.model for c in here))
        for model in [*models, None] if several and models else models:
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
