"""What a record is: the keys that every one has, and what an ok one has besides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from experiments.records.codec import COUNT

SCHEMA = 2
KINDS = ("images", "text", "own")
Record = dict[str, Any]

# key -> accepted types; the keys that every record has, failed or not
_REQUIRED: dict[str, tuple[type, ...]] = {
    "cell": (str,),
    "label": (str,),
    "study": (str,),
    "model": (str,),
    "kind": (str,),
    "seed": (int,),
    "calibration": (dict,),
    "policy": (dict,),
    "stages": (list,),
    "status": (str,),
}


def validate(record: Any, where: str = "record") -> None:
    """Raise ValueError, naming ``where``, the key and its value, unless it is a record."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: schema {record.get('schema')!r}, but this version reads 1 and {SCHEMA}"
        )
    for key, types in _REQUIRED.items():
        if key not in record:
            raise ValueError(f"{where}: key {key!r} is missing")
        value = record[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{where}: {key} = {value!r} has the wrong type")
    label = record["label"]
    for key, allowed in (("kind", KINDS), ("status", ("ok", "error"))):
        if record[key] not in allowed:
            raise ValueError(f"{where} ({label}): {key} = {record[key]!r}, not one of {allowed}")
    for i, stage in enumerate(record["stages"]):
        if not isinstance(stage, dict) or not isinstance(stage.get("name"), str):
            raise ValueError(f"{where} ({label}): stages[{i}] = {stage!r} has no 'name'")
    if not isinstance(record["calibration"].get("draw"), int):
        raise ValueError(f"{where} ({label}): calibration has no 'draw'")
    if record["status"] == "error":
        return
    sums = record.get("sums")
    if not isinstance(record.get("metrics"), dict) or not isinstance(sums, dict):
        raise ValueError(f"{where} ({label}): an ok record needs metrics and sums")
    if COUNT not in sums or len(sums) < 2:
        raise ValueError(f"{where} ({label}): sums need {COUNT!r} and a measure, got {list(sums)}")
    for name, text in sums.items():
        if not isinstance(text, str) or len(text) != len(sums[COUNT]):
            raise ValueError(
                f"{where} ({label}): sums must hold base64 arrays of one length, {name!r} is none"
            )


def without_seconds(record: Mapping[str, Any]) -> Record:
    """The record without its timings: equal for two runs with one seed on one device."""
    return {key: value for key, value in record.items() if key != "seconds"}


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """Cell id -> its record; of several, the last ok one (a failed cell may be retried)."""
    chosen: dict[str, Record] = {}
    for record in records:
        held = chosen.get(record["cell"])
        if held is None or record["status"] == "ok" or held["status"] == "error":
            chosen[record["cell"]] = record
    return chosen


def draw_of(record: Mapping[str, Any]) -> int:
    """Which draw of calibration examples a record's stages saw."""
    return int(record["calibration"]["draw"])
