"""What no mean may pool, and what can be told of a model before it is compressed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.analysis.variants import DENSE, Run, Subject
from experiments.records import COUNT, Record, draw_of
from perturb.measure import bootstrap


def refuse_mixtures(records: list[Record]) -> None:
    """Raise ValueError for records of one model that were made in ways that do not mix.

    Under one policy a model is calibrated on as many examples and has the same layers left out; one
    seed of it has one set of data and weights, and one calibration draw of that is, under one
    policy, the same examples.
    """
    first: dict[tuple[Any, ...], tuple[Record, Mapping[str, Any]]] = {}
    for record in records:
        model, seed, draw = record["model"], record["seed"], draw_of(record)
        policy = json.dumps(record["policy"], sort_keys=True)  # which are compared apart
        sizes = {k: v for k, v in record["calibration"].items() if k not in ("draw", "hash")}
        examples = {"hash": record["calibration"].get("hash")}
        for what, values, same in (
            ("calibration", sizes, ("sizes", model, policy)),
            ("calibration", examples, ("examples", model, seed, draw, policy)),
            ("the layers left out", record.get("skipped") or {}, ("skipped", model, policy)),
            ("data", record.get("data") or {}, ("data", model, seed)),
        ):
            held, other = first.setdefault(same, (record, values))
            differs = [k for k in sorted({*values, *other}) if _text(values, k) != _text(other, k)]
            if differs:
                told = ", ".join(f"{k} {_text(other, k)} and {_text(values, k)}" for k in differs)
                raise ValueError(
                    f"{held['label']} and {record['label']} differ in {what} ({told}): "
                    "summarise them apart"
                )


def _text(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key], sort_keys=True) if key in config else "unset"


def same_examples(records: Iterable[Record], problems: list[str]) -> list[Record]:
    """Pairing needs one test set a trained model: drop what was evaluated on another."""
    first: dict[tuple[str, int], Record] = {}
    kept = []
    for record in records:
        reference = first.setdefault((record["model"], record["seed"]), record)
        if record["sums"][COUNT] == reference["sums"][COUNT]:
            kept.append(record)
        else:
            problems.append(
                f"{record['label']}: evaluated on other examples than {reference['label']}, "
                "left out"
            )
    return kept


def at_chance(runs: Mapping[Subject, list[Run]], level: float) -> dict[Subject, list[str]]:
    """A line for every run whose dense model does no better than guessing, by subject.

    Guessing has accuracy 1 / classes and, on text, NLL log(classes); to be better is to have the
    whole bootstrap interval on the better side. Records that do not say how many classes there
    are (``data["classes"]``), or have neither measure, leave it open.
    """
    found = {subject: [*_lost(mine, level)] for subject, mine in runs.items()}
    return {subject: lines for subject, lines in found.items() if lines}


def _lost(runs: Iterable[Run], level: float) -> Iterable[str]:
    for run in runs:
        dense = run.variants.get(DENSE)
        classes = dense and (dense.record.get("data") or {}).get("classes")
        name = next((n for n in ("accuracy", "neg_nll") if dense and n in dense.rows), None)
        if not dense or not classes or name is None:
            continue
        rows, chance = dense.rows[name], 1 / classes if name == "accuracy" else -math.log(classes)
        low, high = bootstrap.percentile_interval(rows[1:], level)
        if low <= chance:
            ends = sorted(abs(float(x)) for x in (low, high))
            yield (
                f"{run.name}: the dense model is at chance ({name.removeprefix('neg_')} "
                f"{abs(rows[0]):.4g} [{ends[0]:.4g}, {ends[1]:.4g}], guessing one of {classes} "
                f"gives {abs(chance):.4g}): the model's cells count in no total"
            )
