"""Records of earlier schemas as those of the present one; nothing is written back.

Schema 1 (versions 0.1 and 0.2) knew one pruner and one quantizer and named a cell by its label.
"""

from __future__ import annotations

from typing import Any

from experiments.records.schema import SCHEMA, Record

_ROLES = {"P": ("pruner", "sparsity"), "Q": ("quantizer", "bits")}
ORDERS = ("dense", "P", "Q", "PQ", "QP")


def upgrade(record: Any, where: str) -> Any:
    """A record of schema 1 as one of schema 2; anything else as it is.

    Raises ValueError, naming ``where``, for a record that schema 1 did not allow.
    """
    if not isinstance(record, dict) or record.get("schema") != 1:
        return record
    order = record.get("order")
    if order not in ORDERS:
        raise ValueError(f"{where} ({record.get('cell')}): order = {order!r}, not one of {ORDERS}")
    stages = []
    for letter in "" if order == "dense" else order:
        role, amount = _ROLES[letter]
        config = record.get(role)
        if not isinstance(config, dict) or record.get(amount) is None:
            raise ValueError(
                f"{where} ({record.get('cell')}): order {order!r} does not fit {role} = "
                f"{config!r}, {amount} = {record.get(amount)!r}"
            )
        stages.append(config | {amount: record[amount]})
    policies = dict(record.get("policies") or {})
    examples = policies.pop("calibration_examples", None)
    batch = policies.pop("calibration_batch", None)
    made: Record = {
        key: value
        for key, value in record.items()
        if key not in ("order", "pruner", "quantizer", "sparsity", "bits", "policies", "examples")
    }
    made |= {
        "schema": SCHEMA,
        "label": record.get("cell"),
        "calibration": {"draw": 0, "examples": examples, "batch": batch},
        "skipped": policies.pop("skipped", {}),
        "policy": policies,
        "stages": stages,
    }
    if isinstance(record.get("examples"), dict):
        made["sums"] = {k: v for k, v in record["examples"].items() if v is not None}
    return made
