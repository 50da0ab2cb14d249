"""Synthetic records of a study whose truth is known, for tests and for trying out figures.

The loss of a variant is additive with a known order effect: per token, in nats,
``base + d_P(sparsity) + d_Q(bits)`` and, for both orders, ``-/+ A / 2`` with
``A = slope (d_P - d_Q) + offset``. ``slope > 0, offset = 0`` is a world where PIH holds exactly;
a negative offset is one where pruning first is better whatever the gap. Noise is per cluster
and damps with the damage, so that variants are paired as they are on real test examples.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.records import Record, encode_examples

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
    pruner: str = "wanda",
    quantizer: str = "gptq",
    model: str = "llama-docs",
    kind: str = "text",
    seed: int = 0,
    study: str = "synthetic",
    status: str = "ok",
    **extra: Any,
) -> Record:
    """One record by hand: per-cluster sums in, everything else filled in consistently."""
    has_p, has_q = "P" in order, "Q" in order
    stages = {"P": f"{pruner}-{sparsity:g}" if has_p else "", "Q": f"{quantizer}-{bits}"}
    chain = "dense" if order == "dense" else ">".join(stages[letter] for letter in order)
    nll = np.asarray(nll, float)
    count = np.ones(nll.size, int) if count is None else np.asarray(count)
    if kind == "images" and correct is None:
        correct = np.zeros(nll.size, int)
    mean = float(nll.sum() / count.sum())
    metrics: dict[str, Any] = {"nll": mean, "kl": extra.pop("kl", None), "logit_mse": 0.0}
    if correct is not None:
        metrics["accuracy"] = float(np.sum(correct) / count.sum())
    else:
        metrics["perplexity"] = float(np.exp(min(mean, 700.0)))
    record: Record = {
        "schema": 1,
        "cell": f"{model}/s{seed}/{chain}",
        "study": study,
        "model": model,
        "kind": kind,
        "seed": seed,
        "order": order,
        "pruner": {"name": pruner} if has_p else None,
        "quantizer": {"name": quantizer} if has_q else None,
        "sparsity": sparsity if has_p else None,
        "bits": bits if has_q else None,
        "ratio": 16 / ((1 - (sparsity or 0)) * (bits or 16)),  # dense bits / stored bits
        "status": status,
        "error": None if status == "ok" else "ValueError: made to fail",
        "metrics": metrics,
        "examples": encode_examples(count, nll, correct),
        "layers": {},
        "achieved_sparsity": sparsity or 0.0,
        "policies": {},
        "versions": {},
        "data": {},
        "device": "cpu",
        "seconds": {"total": 0.0},
    }
    return record | extra


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
) -> list[Record]:
    """Every record of a complete grid; deterministic."""
    models = models or {"llama-docs": "text", "resnet-digits": "images"}
    records = []
    for model, kind in models.items():
        for seed in seeds:
            world = _World(model, kind, seed, clusters, slope, offset, noise)
            records += list(world.records(pruners, quantizers, sparsities, bits))
    return records


class _World:
    def __init__(
        self,
        model: str,
        kind: str,
        seed: int,
        clusters: int,
        slope: float,
        offset: float,
        noise: float,
    ) -> None:
        self.common: dict[str, Any] = {"model": model, "kind": kind, "seed": seed}
        self.kind, self.slope, self.offset, self.noise = kind, slope, offset, noise
        shared = np.random.default_rng(zlib.crc32(model.encode()))
        self.count = shared.integers(64, 192, clusters) if kind == "text" else np.ones(clusters)
        self.base = (1.5 if kind == "text" else 0.1) + shared.gamma(2.0, 0.2, clusters)
        self.hardness = shared.uniform(0.0, 4.0, clusters)  # nll at which an image is missed
        self.key = f"{model}/{seed}"

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
        kl = float(np.mean(damage * jitter)) if damage else 0.0
        return make_record(
            order,
            nll=per_token * self.count,
            count=self.count.astype(int),
            correct=correct,
            kl=max(kl, 0.0),
            **method,
            **self.common,
        )
