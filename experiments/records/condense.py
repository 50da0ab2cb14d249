"""Records small enough to be kept beside the code, from which all the same is computed.

The test examples' clusters are pooled into a few groups, which then are what intervals resample;
what describes a cell for people and programs alike stays.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from experiments.records.codec import INTEGERS, decode_sums, encode_sums
from experiments.records.schema import Record, latest
from perturb.files import write_atomic

GROUPS = 24  # of clusters: t with 23 degrees of freedom is close to a normal
LAYER = ("out_rel", "owned_rel")  # of every layer, what analyses read
DROPPED = ("clusters", "layer_shapes", "solver", "seconds", "skipped")


def condense(record: Record, groups: int = GROUPS) -> Record:
    """The record with its clusters pooled, at random but the same for equally many clusters."""
    kept = {key: value for key, value in record.items() if key not in DROPPED}
    if record["status"] != "ok":
        return kept
    sums = decode_sums(record)
    count = len(next(iter(sums.values())))
    if count > groups:
        place = np.random.default_rng(count).permutation(count) % groups
        kept["sums"] = encode_sums({n: _pooled(n, values, place) for n, values in sums.items()})
    kept["layers"] = {
        layer: {key: measured[key] for key in LAYER if key in measured}
        for layer, measured in record["layers"].items()
    }
    return kept


def _pooled(name: str, values: np.ndarray, place: np.ndarray) -> np.ndarray:
    total = np.bincount(place, values.astype(float))
    return np.rint(total).astype(int) if name in INTEGERS else total


def store(records: Iterable[Record], path: Path, groups: int = GROUPS) -> None:
    """Write condensed records, each cell's last, gzipped: the same records give the same bytes."""
    held = latest(records).values()
    lines = "".join(f"{json.dumps(condense(r, groups), sort_keys=True)}\n" for r in held)
    write_atomic(path, gzip.compress(lines.encode(), mtime=0))
