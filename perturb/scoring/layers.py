"""What variants did to the layers: a few variants at a time, by one program for all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb.measure import errors
from perturb.measure.layers import Shapes, measured, part_of
from perturb.scoring.types import (
    LayerScore,
    OrderEffect,
    Perturbation,
    arrow,
    nearest,
)
from perturb.stage import Reference, Versions
from perturb.types import Array

LANES = 4  # variants that one call measures: two stages with both orders are one call
SIZES = ("norm", "spectral", "energy")
FIELDS = tuple(Perturbation.__dataclass_fields__)

Row = dict[str, float]  # the fields of a Perturbation, and the sizes that it is relative to


class _Waiting(NamedTuple):
    variant: str
    weights: dict[str, Array]  # [1, out, in]
    counts: dict[str, Any]
    reference: Reference


class Gauge:
    """Measures variants against the reference that each has; ``rows`` has them by variant."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], dense: Reference) -> None:
        self.shapes: Shapes = tuple(shapes.items())
        self.dense = dense
        self._waiting: list[_Waiting] = []
        self._rows: dict[str, dict[str, Row]] = {}
        self._own: dict[str, bool] = {}  # variants that the dense model itself is the reference of

    def add(self, variant: str, version: Versions) -> None:
        """A single version."""
        if self._waiting and self._waiting[0].reference is not version.reference:
            self._measure()
        weights, counts = part_of(version.state.bare, np.zeros(1, np.int32), self.shapes)
        self._waiting.append(_Waiting(variant, weights, counts, version.reference))
        self._own[variant] = version.reference is self.dense
        if len(self._waiting) == LANES:
            self._measure()

    @property
    def rows(self) -> dict[str, dict[str, Row]]:
        self._measure()
        return self._rows

    def _measure(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        reference = waiting[0].reference
        padded = waiting + [waiting[-1]] * (LANES - len(waiting))
        weights = _joined(tuple(x.weights for x in padded))
        raw = measured(weights, dict(reference.weights), dict(reference.moments), self.shapes)
        host, counts = jax.device_get((raw, [x.counts for x in waiting]))
        for name, _ in self.shapes:
            done, dense = errors.finish(host[name]), errors.value(host[name]).dense
            sizes = dict(zip(SIZES, (dense.fro, dense.spec, dense.out), strict=True))
            for i, x in enumerate(waiting):
                row = {k: float(v[i]) for k, v in done.items()}
                row |= {k: float(counts[i][name][k][0]) for k in ("pruned", "zero")}
                row |= {k: float(v) for k, v in sizes.items()}
                self._rows.setdefault(x.variant, {})[name] = row

    def alike(self, *variants: str) -> bool:
        """Whether the variants have the dense model as their reference, all of them."""
        return all(self._own[v] for v in variants)


@jax.jit
def _joined(parts: tuple[dict[str, Array], ...]) -> dict[str, Array]:
    return {n: jnp.concatenate([p[n] for p in parts]) for n in parts[0]}


# ------------------------------------------------------------------------- two stages, two orders


class Pair(NamedTuple):
    """What two stages are to each other in a layer; None where that has no meaning."""

    cosine: float
    changed: float | None = None  # the fraction of weights that only one of the orders prunes
    by_ownership: float | None = None


def pairs(versions: Sequence[Versions], shapes: Shapes, roles: bool) -> dict[str, Pair]:
    """Of two stages alone, and their two orders if both were run: what they are to each other.

    roles: whether they are a pruner and a quantizer, which own weights. On the host, in float64, a
    layer at a time: a few sums, for which a program a shape would be compiled longer than they
    take.
    """
    reference = versions[0].reference
    parts = [part_of(v.state.bare, np.zeros(1, np.int32), shapes)[0] for v in versions]
    found = {}
    for name, _ in shapes:
        weights = [_host(part[name])[0] for part in parts]
        w = _host(reference.weights[name])
        first, second = (x - w for x in weights[:2])
        changed = owned = None
        if len(versions) == 4:
            one, two = (_mask(v, name, x) for v, x in zip(versions[2:], weights[2:], strict=True))
            changed = float(np.mean(one != two))
            if roles:  # Theorem 1: a pruned weight costs h w^2, any other h (Q(w) - w)^2
                h = errors.energy_on_host(reference.moments[name], len(w))
                costs = [errors.owned_on_host(h, w, kept, second) for kept in (one, two)]
                owned = costs[0] - costs[1]
        found[name] = Pair(_cosine(first, second), changed, owned)
    return found


def _mask(version: Versions, layer: str, weight: np.ndarray) -> np.ndarray:
    """Which weights of a layer are kept; of a layer that is no single matrix, are not 0."""
    own = version.state.matrices.get(layer)
    return weight != 0 if own is None else np.asarray(own.mask)[0]


def _host(x: Any) -> np.ndarray:
    return np.asarray(x, np.float64)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one of them is 0."""
    norms = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return float(np.sum((a / norms[0]) * (b / norms[1]))) if all(norms) else 0.0


# ------------------------------------------------------------------------------------ the scores


def layer_scores(
    gauge: Gauge, order: Sequence[str], variants: Sequence[str], found: Mapping[str, Pair]
) -> tuple[tuple[LayerScore, ...], LayerScore]:
    """Of every layer, in this order, and of all of them as one block-diagonal matrix."""
    shapes, rows = dict(gauge.shapes), gauge.rows
    usual = next((v for v in variants if gauge.alike(v)), variants[0])
    sizes = {n: math.prod(shapes[n]) for n in order}
    layers = tuple(
        _score(n, sizes[n], {v: rows[v][n] for v in variants}, rows[usual][n], found.get(n))
        for n in order
    )
    whole = {v: _sum([(sizes[n], rows[v][n]) for n in order]) for v in variants}
    pair = _total_pair(layers, [found[n] for n in order]) if found else None
    return layers, _score("total", sum(sizes.values()), whole, whole[usual], pair)


def _score(
    name: str, size: int, rows: Mapping[str, Row], dense: Row, pair: Pair | None
) -> LayerScore:
    variants = {v: Perturbation(**{k: row[k] for k in FIELDS}) for v, row in rows.items()}
    effect = None
    if pair is not None and pair.changed is not None:
        effect = _effect(variants, pair, dense["energy"])
    return LayerScore(
        name=name,
        size=size,
        **{k: dense[k] for k in SIZES},
        variants=variants,
        cosine=None if pair is None else pair.cosine,
        order=effect,
    )


def _effect(variants: Mapping[str, Perturbation], pair: Pair, energy: float) -> OrderEffect:
    first, second = (v for v in variants if len(v) > 1)
    errors_ = {v: variants[v].out_err for v in (first, second)}
    advantage = errors_[first] - errors_[second]
    owned = pair.by_ownership
    assert pair.changed is not None
    return OrderEffect(
        owner_changed=pair.changed,
        advantage=advantage,
        advantage_rel=_ratio(advantage, energy),
        by_ownership=owned,
        interference=None if owned is None else advantage - owned,
        prefers=nearest(errors_),
    )


def _ratio(a: float, b: float) -> float:
    """0/0 is 0 and x/0 is inf, as in :mod:`perturb.measure.errors`."""
    return 0.0 if a == 0 else (a / b if b else math.copysign(math.inf, a))


def _sum(blocks: Sequence[tuple[int, Row]]) -> Row:
    """The layers as one block-diagonal matrix: squares add, and ||.||_2 is the largest block's."""
    size = sum(n for n, _ in blocks)
    rows = [row for _, row in blocks]
    norm, fro = (math.hypot(*(r[k] for r in rows)) for k in ("norm", "fro"))
    spectral, spec = (max(r[k] for r in rows) for k in ("spectral", "spec"))
    energy, out = (sum(r[k] for r in rows) for k in ("energy", "out_err"))
    snr = -math.inf if fro else math.inf
    if fro and norm:
        snr = 20 * math.log10(norm / fro)
    return {
        "norm": norm,
        "spectral": spectral,
        "energy": energy,
        "fro": fro,
        "fro_rel": _ratio(fro, norm),
        "spec": spec,
        "spec_rel": _ratio(spec, spectral),
        "out_err": out,
        "out_rel": _ratio(out, energy),
        "snr_db": snr,
        **{k: sum(n * r[k] for n, r in blocks) / size for k in ("pruned", "zero")},
    }


def _total_pair(layers: Sequence[LayerScore], found: Sequence[Pair]) -> Pair:
    first, second = (v for v in layers[0].variants if len(v) == 1)
    dot = sum(p.cosine * x[first].fro * x[second].fro for x, p in zip(layers, found, strict=True))
    norms = [math.hypot(*(x[v].fro for x in layers)) for v in (first, second)]
    cosine = _ratio(dot, norms[0] * norms[1])
    if any(p.changed is None for p in found):
        return Pair(cosine)
    size = sum(x.size for x in layers)
    changed = sum(x.size * (p.changed or 0.0) for x, p in zip(layers, found, strict=True)) / size
    owned = [p.by_ownership for p in found]
    known = None if any(o is None for o in owned) else sum(o or 0.0 for o in owned)
    return Pair(cosine, changed, known)


def refuse_not_finite(layers: Sequence[LayerScore]) -> None:
    """A measure that is not finite decides nothing, least of all which order is better."""
    for layer in layers:
        own = {k: getattr(layer, k) for k in SIZES}
        told = {v: dict(vars(x)) for v, x in layer.variants.items()}
        for variant, values in ({"dense": own} | told).items():
            wrong = errors.not_finite(values)
            if wrong:
                where = "the total" if layer.name == "total" else f"layer {layer.name}"
                what = variant if variant == "dense" else arrow(variant)
                raise ValueError(
                    f"{where}: {', '.join(wrong)} of {what} ({values[wrong[0]]:g}) is not "
                    "finite: exclude the layer, or look at its weights and inputs"
                )
