"""Which record is which: pruner and quantizer in their order, within one trained model.

A stage with a sparsity and no bits is a pruner, one with bits and no sparsity a quantizer. What a
chain begins with that changes no weight's precision prepares the model (a rotation, a scaling, the
rounding of activations): orders are compared on the model that it leaves, whose record is the dense
one there, apart from those on the model as it was. (The distances that records hold are all from
the model as it was given.) Cells of other stages (structured, joint, per-layer rules, adapters) and
of longer chains are in no comparison of two orders.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from experiments.analysis.rows import Rows
from experiments.records import Record, draw_of

ORDERS = ("dense", "P", "Q", "PQ", "QP")
PREPARING = ("rotate", "awq", "smoothquant", "activations")  # stages that prepare a model
UNSAID = {"examples": "all", "exclude": "none"}  # of conditions that are as usual, and not recorded
_GRID_KEYS = {"name", "sparsity", "bits", "ratio"}  # axes of the grid, not part of a method

Config = Mapping[str, Any]


class Key(NamedTuple):
    """What a variant is, within one run; methods by their label."""

    order: str
    pruner: str | None
    sparsity: float | None
    quantizer: str | None
    bits: int | None


DENSE = Key("dense", None, None, None, None)


class Variant(NamedTuple):
    record: Record
    rows: dict[str, Rows]  # measure -> [1 + B]


class Run(NamedTuple):
    """The evaluated variants of one trained model under one calibration draw."""

    seed: int
    draw: int
    name: str  # as messages call it: the draw is told where there are several
    variants: dict[Key, Variant]


class Named(NamedTuple):
    """What a method or a policy is called among others: its name, and the settings in which
    some of those that bear it differ."""

    name: str
    settings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        told = ", ".join(f"{key}={value}" for key, value in self.settings)
        return f"{self.name} ({told})" if told else self.name


class Subject(NamedTuple):
    """What comparisons are about: a model, and what of the policy sets it apart."""

    model: str
    policy: str
    settings: tuple[tuple[str, str], ...] = ()  # the same, by name

    @property
    def name(self) -> str:
        return f"{self.model} [{self.policy}]" if self.policy else self.model


def role(stage: Config) -> str | None:
    """'P' of a pruner, 'Q' of a quantizer, None of anything else."""
    has_sparsity, has_bits = (stage.get(key) is not None for key in ("sparsity", "bits"))
    if has_sparsity == has_bits:
        return None
    return "P" if has_sparsity else "Q"


def order_of(record: Record) -> str | None:
    """One of ORDERS, in the order of application; None for a cell of any other plan."""
    letters = [role(stage) or "?" for stage in record["stages"][len(prepared(record)) :]]
    order = "".join(letters) or "dense"
    return order if order in ORDERS else None


def prepared(record: Record) -> tuple[str, ...]:
    """Names of the stages that prepare the model."""
    names = [stage["name"] for stage in record["stages"]]
    return tuple(itertools.takewhile(lambda name: name in PREPARING, names))


def subjects(records: Iterable[Record]) -> dict[str, Subject]:
    """Cell id -> its subject; policy and preparation are told where the records have several."""
    held = list(records)
    named = _difference(record["policy"] for record in held)
    preparations = _preparations(held)
    several = len(set(preparations.values())) > 1
    found = {}
    for record in held:
        settings = named[_text(record["policy"])]
        if several:
            settings += (("prepared", preparations[record["cell"]]),)
        policy = ", ".join(f"{key}={value}" for key, value in settings)
        found[record["cell"]] = Subject(record["model"], policy, settings)
    return found


def _preparations(records: Iterable[Record]) -> dict[str, str]:
    """Cell id -> what its model is prepared by, with the settings in which stages of one name
    differ; "no" of nothing."""
    begun = {r["cell"]: [_flat(s) for s in r["stages"][: len(prepared(r))]] for r in records}
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    every = [stage for stages in begun.values() for stage in stages]
    keys = {key for stage in every for key in stage} - {"name"}
    for stage in every:
        for key in keys:
            values[stage["name"], key].add(_setting(stage, key))

    def told(stage: Config) -> str:
        differ = (k for k in sorted(stage) if len(values[stage["name"], k]) > 1)
        return str(Named(stage["name"], tuple((k, _told(stage, k)) for k in differ)))

    return {cell: "+".join(map(told, stages)) or "no" for cell, stages in begun.items()}


def _difference(policies: Iterable[Config]) -> dict[str, tuple[tuple[str, str], ...]]:
    every = {_text(policy): policy for policy in policies}
    keys = sorted({key for policy in every.values() for key in policy})
    varying = [key for key in keys if len({_setting(p, key) for p in every.values()}) > 1]
    return {
        text: tuple(
            (k, _told(policy, k) if k in policy else UNSAID.get(k, "unset")) for k in varying
        )
        for text, policy in every.items()
    }


def runs_of(
    records: list[Record], rows: Mapping[str, dict[str, Rows]], problems: list[str]
) -> dict[Subject, list[Run]]:
    """The runs of every subject; all records must have an order."""
    named = names_of(records)
    whose = subjects(records)
    several = len({draw_of(record) for record in records}) > 1
    found: dict[Subject, dict[tuple[int, int], Run]] = defaultdict(dict)
    for record in records:
        at = record["seed"], draw_of(record)
        name = f"seed {at[0]}" + (f", draw {at[1]}" if several else "")
        run = found[whose[record["cell"]]].setdefault(at, Run(*at, name, {}))
        key = _key(record, named)
        if key in run.variants:
            other = run.variants[key].record["label"]
            problems.append(f"{record['label']}: the same variant as {other}, left out")
            continue
        run.variants[key] = Variant(record, rows[record["cell"]])
    return {subject: [by_run[at] for at in sorted(by_run)] for subject, by_run in found.items()}


def names_of(records: Iterable[Record]) -> dict[str, Named]:
    """A pruner's or a quantizer's configuration (:func:`_method`) -> what it is called."""
    held = list(records)
    return _names(held, "P") | _names(held, "Q")


def _key(record: Record, named: Mapping[str, Named]) -> Key:
    stages = {role(stage): stage for stage in record["stages"]}
    pruner, quantizer = stages.get("P"), stages.get("Q")
    return Key(
        order_of(record) or "",
        pruner and str(named[_method(pruner)]),
        pruner and float(pruner["sparsity"]),
        quantizer and str(named[_method(quantizer)]),
        quantizer and int(quantizer["bits"]),
    )


def _names(records: Iterable[Record], letter: str) -> dict[str, Named]:
    """A method's configuration -> its name; with what differs, where one name has several.

    A nested setting goes by its own name (``per``), by its path (``grid.per``) where that is
    another's as well.
    """
    configs: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        for stage in record["stages"]:
            if role(stage) == letter:
                configs[stage["name"]].setdefault(_method(stage), _flat(stage))
    named = {}
    for name, variants in configs.items():
        keys = sorted({key for config in variants.values() for key in config} - _GRID_KEYS)
        leaves = Counter(key.rpartition(".")[2] for key in (*keys, *_GRID_KEYS))
        varying = [key for key in keys if len({_setting(c, key) for c in variants.values()}) > 1]
        for canonical, config in variants.items():
            told = []
            for key in varying:
                leaf = key.rpartition(".")[2]
                told.append((leaf if leaves[leaf] == 1 else key, _told(config, key)))
            named[canonical] = Named(name, tuple(told))
    return named


def _method(stage: Config) -> str:
    """A stage without its amount."""
    return _text({k: v for k, v in stage.items() if k == "name" or k not in _GRID_KEYS})


def _flat(config: Config, path: str = "") -> dict[str, Any]:
    """Nested settings by their path: a label names the one that differs, not its whole group."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{path}{key}.") if nested else {path + key: value}
    return flat


def _text(config: Config) -> str:
    return json.dumps(config, sort_keys=True)


def _setting(config: Config, key: str) -> str:
    return json.dumps(config[key], sort_keys=True) if key in config else "unset"


def _told(config: Config, key: str) -> str:
    return config[key] if isinstance(config.get(key), str) else _setting(config, key)
