"""The record of an experiment: one JSON object a line, one line a model variant ("cell").

A record says everything that made a result (study, seeds, policy, stages with all settings,
versions, data) and the result itself: metrics, per-layer measures and the sums over clusters of
examples from which every interval is computed later. ``cell`` is a hash of all that decides it,
``label`` its name for people. Needs the standard library and numpy only.
"""

from experiments.records.codec import COUNT, decode, decode_sums, dtype_of, encode, encode_sums
from experiments.records.log import RecordLog, RecordLogLocked, load
from experiments.records.schema import (
    SCHEMA,
    Record,
    draw_of,
    latest,
    validate,
    without_seconds,
)

__all__ = [
    "COUNT",
    "SCHEMA",
    "Record",
    "RecordLog",
    "RecordLogLocked",
    "decode",
    "decode_sums",
    "draw_of",
    "dtype_of",
    "encode",
    "encode_sums",
    "latest",
    "load",
    "validate",
    "without_seconds",
]
