"""Synthetic records of a study whose truth is known, for tests and for trying out figures.

The loss of a variant is additive with a known order effect: per token, in nats,
``base + d_P(sparsity) + d_Q(bits)`` and, for both orders, ``-/+ A / 2`` with
``A = slope (d_P - d_Q) + offset``. ``slope > 0, offset = 0`` is a world where PIH holds exactly;
a negative offset is one where pruning first is better whatever the gap. Noise is per cluster
and damps with the damage, so that variants are paired as they are on real test examples.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.records import Record, encode_sums

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8)
BITS = (8, 6, 5, 4, 3, 2)


def make_record(
    order: str,
    *,
    sparsity: float | None = None,
    bits: int | None = None,
    nll: Any = (1.0, 1.0),
    count: Any = None,
    correct: Any = None,
    kl: Any = None,
    sums: dict[str, Any] | None = None,
    pruner: str | dict[str, Any] = "wanda",
    quantizer: str | dict[str, Any] = "gptq",
    model: str = "llama-docs",
    kind: str = "text",
    seed: int = 0,
    draw: int = 0,
    policy: dict[str, Any] | None = None,
    study: str = "synthetic",
    status: str = "ok",
    **extra: Any,
) -> Record:
    """One record by hand: per-cluster sums in, everything else filled in consistently.

    kl: its sums, or, as in records before schema 2, the mean alone. sums: further ones.
    pruner, quantizer: a name, or all settings but the amount.
    """
    amounts = {"P": {"sparsity": sparsity}, "Q": {"bits": bits}}
    methods = {
        letter: {"name": given} if isinstance(given, str) else given
        for letter, given in (("P", pruner), ("Q", quantizer))
    }
    letters = "" if order == "dense" else order
    stages = [methods[letter] | amounts[letter] for letter in letters]
    names = {
        "P": f"{methods['P']['name']}-{sparsity or 0:g}",
        "Q": f"{methods['Q']['name']}-{bits}",
    }
    chain = ">".join(names[letter] for letter in letters) or "dense"
    nll = np.asarray(nll, float)
    count = np.ones(nll.size, int) if count is None else np.asarray(count)
    if kind == "images" and correct is None:
        correct = np.zeros(nll.size, int)
    held = {"count": count, "nll": nll, "correct": correct, **(sums or {})}
    held["kl"] = kl if np.ndim(kl) else None
    held = {name: values for name, values in held.items() if values is not None}
    metrics: dict[str, Any] = {
        name: float(np.sum(values) / count.sum())
        for name, values in held.items()
        if name != "count"
    }
    metrics["kl"] = metrics.get("kl", kl)
    if correct is not None:
        metrics["accuracy"] = metrics.pop("correct")
    else:
        metrics["perplexity"] = float(np.exp(min(metrics["nll"], 700.0)))
    drawn = f"/c{draw}" if draw else ""
    record: Record = {
        "schema": 2,
        "label": f"{model}/s{seed}{drawn}/{chain}",
        "study": study,
        "model": model,
        "kind": kind,
        "seed": seed,
        "calibration": {"draw": draw},
        "policy": policy or {},
        "stages": stages,
        "ratio": 16 / ((1 - (sparsity or 0)) * (bits or 16)),  # dense bits / stored bits
        "status": status,
        "error": None if status == "ok" else "ValueError: made to fail",
        "metrics": metrics,
        "sums": encode_sums(held),
        "layers": {},
        "achieved_sparsity": sparsity or 0.0,
        "skipped": {},
        "versions": {},
        "data": {},
        "device": "cpu",
        "seconds": {"total": 0.0},
    }
    return identified(record | extra)


def amount_of(record: Record, name: str) -> Any:
    """The sparsity or the bits of a record, None if no stage has any."""
    return next((s[name] for s in record["stages"] if s.get(name) is not None), None)


def identified(record: Record) -> Record:
    """With the id that a runner would give it: of the settings that decide it."""
    decisive = ("model", "seed", "calibration", "policy", "stages", "study")
    text = repr([record[key] for key in decisive])
    return record | {"cell": hashlib.sha256(text.encode()).hexdigest()[:16]}


def make_study(
    *,
    models: dict[str, str] | None = None,
    pruners: Sequence[str] = ("magnitude", "sparsegpt", "wanda"),
    quantizers: Sequence[str] = ("gptq", "rtn"),
    sparsities: Sequence[float] = SPARSITIES,
    bits: Sequence[int] = BITS,
    seeds: Sequence[int] = (0,),
    clusters: int = 200,
    slope: float = 0.3,
    offset: float = 0.0,
    noise: float = 0.3,
    draws: Sequence[int] = (0,),
    kl_sums: bool = False,
) -> list[Record]:
    """Every record of a complete grid; deterministic. kl_sums: as since schema 2."""
    models = models or {"llama-docs": "text", "resnet-digits": "images"}
    records = []
    for model, kind in models.items():
        for seed, draw in itertools.product(seeds, draws):
            world = _World(model, kind, seed, draw, clusters, slope, offset, noise, kl_sums)
            records += list(world.records(pruners, quantizers, sparsities, bits))
    return records


class _World:
    def __init__(
        self,
        model: str,
        kind: str,
        seed: int,
        draw: int,
        clusters: int,
        slope: float,
        offset: float,
        noise: float,
        kl_sums: bool,
    ) -> None:
        self.common: dict[str, Any] = {"model": model, "kind": kind, "seed": seed, "draw": draw}
        self.kl_sums = kl_sums
        self.kind, self.slope, self.offset, self.noise = kind, slope, offset, noise
        shared = np.random.default_rng(zlib.crc32(model.encode()))
        self.count = shared.integers(64, 192, clusters) if kind == "text" else np.ones(clusters)
        self.base = (1.5 if kind == "text" else 0.1) + shared.gamma(2.0, 0.2, clusters)
        self.hardness = shared.uniform(0.0, 4.0, clusters)  # nll at which an image is missed
        self.key = f"{model}/{seed}" + (f"/{draw}" if draw else "")

    def records(
        self,
        pruners: Sequence[str],
        quantizers: Sequence[str],
        sparsities: Sequence[float],
        bits: Sequence[int],
    ) -> Iterator[Record]:
        better = {"magnitude": 1.6, "rtn": 1.5}
        yield self._record("dense", 0.0, 0.0)
        for p in pruners:
            for s in sparsities:
                yield self._record("P", better.get(p, 1.0) * 2.0 * s**4, 0.0, pruner=p, sparsity=s)
        for q in quantizers:
            for b in bits:
                d_q = better.get(q, 1.0) * 12.0 * 4.0**-b
                yield self._record("Q", 0.0, d_q, quantizer=q, bits=b)
        for p in pruners:
            for q in quantizers:
                for s in sparsities:
                    for b in bits:
                        d_p = better.get(p, 1.0) * 2.0 * s**4
                        d_q = better.get(q, 1.0) * 12.0 * 4.0**-b
                        method = {"pruner": p, "quantizer": q, "sparsity": s, "bits": b}
                        yield self._record("PQ", d_p, d_q, **method)
                        yield self._record("QP", d_p, d_q, **method)

    def _record(self, order: str, d_p: float, d_q: float, **method: Any) -> Record:
        damage = d_p + d_q
        if len(order) == 2:  # A = M(QP) - M(PQ): what PQ loses, QP gains
            half = 0.5 * (self.slope * (d_p - d_q) + self.offset)
            damage += half if order == "PQ" else -half
        name = f"{self.key}/{order}/{sorted(method.items())}"
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        jitter = 1.0 + self.noise * rng.standard_normal(self.base.size)
        per_token = self.base + damage * np.maximum(jitter, 0.0)
        correct = (per_token < self.hardness).astype(int) if self.kind == "images" else None
        kl = np.maximum(damage * jitter, 0.0) * self.count
        return make_record(
            order,
            nll=per_token * self.count,
            count=self.count.astype(int),
            correct=correct,
            kl=kl if self.kl_sums else float(kl.sum() / self.count.sum()),
            **method,
            **self.common,
        )


def make_chains(
    loss: Callable[[tuple[str, ...], int], float],
    chains: Sequence[tuple[str, ...]],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    clusters: int = 60,
    noise: float = 0.02,
    study: str = "synthetic",
    model: str = "llama-docs",
    ratio: float = 4.0,
) -> list[Record]:
    """Records of chains of any stages, by their names: per token ``1 + loss(chain, seed)`` nats,
    and noise on every cluster, most of which all chains of a training share; KL is twice the loss.
    """
    records = []
    for seed in seeds:
        shared = np.random.default_rng([seed, clusters]).normal(0, 0.3, clusters)
        for chain in [(), *chains]:
            draws = np.random.default_rng([seed, *(zlib.crc32(s.encode()) for s in chain)])
            own = draws.normal(0, noise, clusters)
            nll = 10 * (1 + loss(chain, seed) + shared + (own - own.mean() if chain else 0))
            count = np.full(clusters, 10)
            kl = 2.0 * loss(chain, seed) * count
            record = make_record(
                "dense", nll=nll, kl=kl, count=count, seed=seed, study=study, model=model
            )
            name = ">".join(chain) or "dense"
            stages = [{"name": s.partition("[")[0].partition("-")[0], "label": s} for s in chain]
            record |= {"stages": stages, "label": f"{model}/s{seed}/{name}", "ratio": ratio}
            records.append(identified(record))
    return records
