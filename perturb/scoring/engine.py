"""The score of a pruner and a quantizer on one model: both alone and in both orders.

    scores = score(model, Wanda(0.5), GPTQ(4), calibration)
    scores.total["PQ"].out_rel, scores.total.order.advantage, scores.outputs["QP"].kl

Pure measurement: the model is not changed, and nothing is decided. Variants are named by the
order of application: ``P`` and ``Q`` alone, ``PQ`` = P -> Q (prune first), ``QP`` = Q -> P.
Definitions: :mod:`perturb.measure.errors` (measures), Kim et al., arXiv 2603.18426 (advantage,
ownership). All layer measures use H = E[x x^T] of the DENSE model's inputs (where BatchNorms
re-estimate their statistics, of the dense weights with those).
"""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from perturb import network
from perturb.compression import Opened
from perturb.measure import errors, intensity
from perturb.notes import check_finite
from perturb.policy import Calibrate, Norms, Policy, Zeros
from perturb.registry import to_config
from perturb.stage import Reports, expand
from perturb.state import Parameters
from perturb.storage import Storage
from perturb.types import Array, Matrix, Moments

VARIANTS = ("P", "Q", "PQ", "QP")
ORDERS: dict[str, tuple[str, ...]] = {"both": ("PQ", "QP"), "pq": ("PQ",), "qp": ("QP",)}
ARROWS = {"P": "P", "Q": "Q", "PQ": "P→Q", "QP": "Q→P", "equal": "equal"}
RESOLUTION = 1e-5  # relative; float32 sums do not resolve a smaller difference of two errors


@dataclass(frozen=True)
class Perturbation:
    """What one variant did to a layer: :func:`perturb.measure.errors.measures`, and

    pruned: fraction of weights that the pruner owns, the achieved sparsity; zero: fraction that
    is exactly 0, whoever made it so (a quantizer rounds to 0, too).
    """

    fro: float
    fro_rel: float
    spec: float
    spec_rel: float
    out_err: float
    out_rel: float
    snr_db: float
    pruned: float
    zero: float


@dataclass(frozen=True)
class OrderEffect:
    """What changes in a layer with the order, with M = -E||dW x||^2 of that layer.

    owner_changed  fraction of weights whose owner differs between the two orders
    advantage      A(Q->P) = out_err(PQ) - out_err(QP); > 0: quantize first is better
    advantage_rel  the same over E||W x||^2
    by_ownership   A(Q->P) from ownership alone (Theorem 1;
                   :func:`perturb.measure.errors.owned_error`)
    interference   advantage - by_ownership: what a method does to weights it does not own
    prefers        "PQ", "QP", or "equal" where the two errors agree to float32 rounding
    """

    owner_changed: float
    advantage: float
    advantage_rel: float
    by_ownership: float
    interference: float
    prefers: str


@dataclass(frozen=True)
class LayerScore:
    """One layer, or (``total``) all layers as the blocks of one block-diagonal matrix.

    norm, spectral, energy: ||W||_F, ||W||_2 and E||W x||^2 of the dense layer, which the
    relative measures are relative to. cosine: between the perturbations of P and of Q alone.
    """

    name: str
    size: int
    norm: float
    spectral: float
    energy: float
    variants: Mapping[str, Perturbation]
    cosine: float
    order: OrderEffect | None  # None unless both orders were run

    def __getitem__(self, variant: str) -> Perturbation:
        return self.variants[variant]


@dataclass(frozen=True)
class Outputs:
    """Distance of a variant's outputs from the dense model's, over the calibration batches.

    logit_mse: mean of (z' - z)^2 over examples and classes; kl: mean over predictions of
    KL(softmax z || softmax z'), in nats; nan where the model has a single output. Token weights
    weigh the predictions, too, where each is a token's.
    """

    logit_mse: float
    kl: float


@dataclass(frozen=True)
class Intensity:
    """Whole-model intensities from the caller's performance M (higher is better).

    gap = G(Q,P) = M(Q) - M(P), > 0: P is the stronger. advantage = A(Q->P) = M(QP) - M(PQ).
    equivalent = C*_P on the caller's quantization curve, ratio_gap = (low, high) of C*_P - C_Q;
    None without a curve. Source: Kim et al.; see :mod:`perturb.measure.intensity`.
    """

    performance: Mapping[str, float]
    gap: float
    advantage: float | None
    equivalent: intensity.EquivalentRatio | None
    ratio_gap: tuple[float, float] | None


@dataclass(frozen=True)
class Scores:
    """Everything :func:`score` measured. ``solver`` names, for each variant, the layers whose
    Hessian needed more damping than asked for or had dead inputs; ``skipped`` those left alone;
    ``storage`` is each variant's, with its ratio; ``coverage`` says what share of the model's
    parameters the layers are; ``notes`` what a reader of these numbers should know.
    """

    model: str
    pruner: Mapping[str, Any]
    quantizer: Mapping[str, Any]
    calibrate: str
    norms: str
    zeros: str
    layers: tuple[LayerScore, ...]
    total: LayerScore
    outputs: Mapping[str, Outputs]
    intensity: Intensity | None
    solver: Mapping[str, Mapping[str, Mapping[str, float]]]
    skipped: Mapping[str, str]
    storage: Mapping[str, Storage]
    coverage: network.Coverage
    notes: tuple[str, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """Flat rows with the same keys, a layer each and the total last.

        ``pq_out_rel`` is the field ``out_rel`` of variant PQ; ``pq_kl`` and ``pq_logit_mse``
        are the model's outputs and stand in the total row only.
        """
        rows = []
        for layer in (*self.layers, self.total):
            row: dict[str, Any] = {"layer": layer.name, "size": layer.size}
            row |= {"norm": layer.norm, "spectral": layer.spectral, "energy": layer.energy}
            for variant, done in layer.variants.items():
                out = asdict(self.outputs[variant])
                whole = out if layer is self.total else dict.fromkeys(out)
                row |= {f"{variant.lower()}_{k}": v for k, v in (asdict(done) | whole).items()}
            row["cosine"] = layer.cosine
            effect = layer.order and asdict(layer.order)
            rows.append(row | (effect or dict.fromkeys(f.name for f in fields(OrderEffect))))
        return rows

    def to_json(self) -> str:
        """One JSON object; what JSON cannot say (nan, infinities) is null."""
        plain = asdict(self)
        plain["coverage"]["share"] = self.coverage.share
        for variant, storage in self.storage.items():
            plain["storage"][variant]["ratio"] = storage.ratio
        return json.dumps(_finite(plain), indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """:meth:`to_rows` with a header; None is empty, an infinite SNR is ``inf``."""
        rows, text = self.to_rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def score(
    model: Any,
    pruner: Any,
    quantizer: Any,
    calibration: Any,
    *,
    order: Literal["both", "pq", "qp"] = "both",
    calibrate: Calibrate = "recalibrate",
    norms: Norms = "reestimate",
    zeros: Zeros = "free",
    key: Array | int = 0,
    exclude: Sequence[str] = (),
    forward: network.Forward = network.call,
    token_weights: network.TokenWeights | None = None,
    performance: Callable[[Any], float] | None = None,
    curve: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Scores:
    """Measure P alone, Q alone, P -> Q and Q -> P on one model.

    The variants are those of :func:`perturb.compress`, of which ``calibrate``, ``norms``,
    ``zeros``, ``key``, ``exclude``, ``forward`` and ``token_weights`` are arguments; P and Q alone
    are computed once and continued.
    calibration: a batch of model inputs or a list of them, on which inputs are measured and
    outputs ``forward(model, batch)`` (logits [..., classes]) compared.
    order: "both", or the one order to run. performance: M of a model, higher is better, and
    curve = (increasing ratios of quantizing alone as ``Scores.storage`` gives them, M there): with
    them come the whole model's intensities.
    Raises ValueError before any work for arguments that are no pruner and quantizer, and for
    what :func:`perturb.compress` refuses; afterwards, naming the layer, for a measure that is not
    finite.
    """
    _check_roles(pruner, quantizer)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
    if curve is not None and performance is None:
        raise ValueError("a curve is compared with a performance: give performance as well")
    opened = Opened(
        model,
        calibration,
        Policy(calibrate, norms, zeros),
        key,
        exclude=exclude,
        forward=forward,
        token_weights=token_weights,
    )
    context, net = opened.context, opened.network
    context.check((pruner, quantizer))
    batches = context.batches or ()
    _check_outputs(jax.eval_shape(net.outputs, net.state(Parameters({}, {})), batches[0]))
    dense = context.start()
    moments = dense.reference.moments
    methods = {"P": pruner, "Q": quantizer}
    done = {v: expand(dense, [method], context, 0) for v, method in methods.items()}
    for v in ORDERS[order]:
        done[v] = expand(done[v[0]].versions, [methods[v[1]]], context, 1)
    states = {v: x.versions.one(0) for v, x in done.items()}
    parameters = {v: x.versions.parameters(0) for v, x in done.items()}
    for v, x in parameters.items():
        check_finite(ARROWS[v], x.weights)
    measured = {
        n: _measure({v: x.matrices[n] for v, x in states.items()}, net.weights[n], moments[n])
        for n in net.specs
    }
    layers = tuple(
        _layer(n, tuple(sorted(states)), m, net.weights[n].size) for n, m in measured.items()
    )
    _refuse_not_finite((*layers, total := _total(layers)))
    storage = {v: opened.storage(x) for v, x in states.items()}
    whole = None
    if performance is not None:
        tried = {"dense": performance(model)}
        for v, own in parameters.items():
            tried[v] = performance(net.model(own))
        whole = _intensity(tried, storage["Q"].ratio, curve)
    notes = context.notes
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return Scores(
        model=type(model).__name__,
        pruner=to_config(pruner),
        quantizer=to_config(quantizer),
        calibrate=calibrate,
        norms=norms,
        zeros=zeros,
        layers=layers,
        total=total,
        outputs=_compare_outputs(net, parameters, batches, token_weights),
        intensity=whole,
        solver={v: told for v, x in done.items() if (told := _reports(x.reports))},
        skipped=opened.skipped,
        storage=storage,
        coverage=opened.coverage,
        notes=tuple(notes),
    )


def _refuse_not_finite(layers: Sequence[LayerScore]) -> None:
    """A measure that is not finite decides nothing, least of all which order is better."""
    for layer in layers:
        own = {"norm": layer.norm, "spectral": layer.spectral, "energy": layer.energy}
        told = {v: asdict(x) for v, x in layer.variants.items()}
        for variant, values in ({"dense": own} | told).items():
            wrong = errors.not_finite(values)
            if wrong:
                where = "the total" if layer.name == "total" else f"layer {layer.name}"
                raise ValueError(
                    f"{where}: {', '.join(wrong)} of {ARROWS.get(variant, variant)} "
                    f"({values[wrong[0]]:g}) is not finite: exclude the layer, or look at its "
                    "weights and inputs"
                )


def _check_roles(pruner: Any, quantizer: Any) -> None:
    for role, method, mine, other in (
        ("pruner", pruner, "sparsity", "bits"),
        ("quantizer", quantizer, "bits", "sparsity"),
    ):
        if hasattr(method, other) or not hasattr(method, mine):
            name = getattr(method, "name", repr(method))
            raise ValueError(f"{name} is no {role}: a {role} has {mine} and no {other}")


def _check_outputs(outputs: Any) -> None:
    if not (hasattr(outputs, "shape") and jnp.issubdtype(outputs.dtype, jnp.floating)):
        raise ValueError(
            f"the model returns {type(outputs).__name__} instead of one array of logits "
            "[..., classes]: say how to get it, forward=lambda model, batch: model(batch)[0]"
        )
    if not outputs.shape:
        raise ValueError("the model returns a scalar instead of logits [..., classes]")


@jax.jit
def _measure(variants: dict[str, Matrix], dense: Array, stats: Moments) -> dict[str, Any]:
    """All numbers of one layer; variants P, Q and one or both orders, matrices [out, in]."""
    p, q = variants["P"], variants["Q"]
    weight = jnp.stack([x.weight for x in variants.values()])  # [V, out, in]
    found: dict[str, Any] = {
        "raw": errors.raw_measures(dense, weight, stats),
        "cosine": errors.cosine(p.weight - dense, q.weight - dense),
        "pruned": jnp.mean(~jnp.stack([x.mask for x in variants.values()]), (-2, -1)),
        "zero": jnp.mean(weight == 0, (-2, -1)),
    }
    if {"PQ", "QP"} <= variants.keys():
        pq, qp = variants["PQ"], variants["QP"]
        found["changed"] = errors.ownership(pq, qp)["owner_changed"]
        found["owned"] = [errors.raw_owned_error(dense, x.mask, q.weight, stats) for x in (pq, qp)]
    return found


def _layer(
    name: str, variants: Sequence[str], measured: Mapping[str, Any], size: int
) -> LayerScore:
    """variants: in the order of a dict's leaves under jit, which is alphabetical."""
    measures = errors.finish(measured["raw"])
    found = errors.value(measured)
    dense = found["raw"].dense
    columns = measures | {k: found[k] for k in ("pruned", "zero")}
    done = {
        v: Perturbation(**{k: float(a[i]) for k, a in columns.items()})
        for i, v in enumerate(variants)
    }
    effect = None
    if "changed" in found:
        by_ownership = float(found["owned"][0] - found["owned"][1])
        effect = _effect(done, float(found["changed"]), by_ownership, float(dense.out))
    return LayerScore(
        name=name,
        size=size,
        norm=float(dense.fro),
        spectral=float(dense.spec),
        energy=float(dense.out),
        variants={v: done[v] for v in VARIANTS if v in done},
        cosine=float(found["cosine"]),
        order=effect,
    )


def _effect(
    variants: Mapping[str, Perturbation], changed: float, by_ownership: float, energy: float
) -> OrderEffect:
    pq, qp = variants["PQ"].out_err, variants["QP"].out_err
    advantage = pq - qp
    equal = abs(advantage) <= RESOLUTION * max(pq, qp)
    return OrderEffect(
        owner_changed=changed,
        advantage=advantage,
        advantage_rel=_ratio(advantage, energy),
        by_ownership=by_ownership,
        interference=advantage - by_ownership,
        prefers="equal" if equal else ("QP" if advantage > 0 else "PQ"),
    )


def _ratio(a: float, b: float) -> float:
    """0/0 is 0 and x/0 is inf, as in :mod:`perturb.measure.errors`."""
    return 0.0 if a == 0 else (a / b if b else math.copysign(math.inf, a))


def _total(layers: Sequence[LayerScore]) -> LayerScore:
    """The layers as one block-diagonal matrix: squares add, and ||.||_2 is the largest block's."""
    size = sum(x.size for x in layers)
    norm = math.hypot(*(x.norm for x in layers))
    spectral = max(x.spectral for x in layers)
    energy = sum(x.energy for x in layers)
    variants = {}
    for v in layers[0].variants:
        blocks = [x[v] for x in layers]
        fro, spec = math.hypot(*(b.fro for b in blocks)), max(b.spec for b in blocks)
        out = sum(b.out_err for b in blocks)
        variants[v] = Perturbation(
            fro=fro,
            fro_rel=_ratio(fro, norm),
            spec=spec,
            spec_rel=_ratio(spec, spectral),
            out_err=out,
            out_rel=_ratio(out, energy),
            snr_db=20 * math.log10(norm / fro)
            if fro and norm
            else (-math.inf if fro else math.inf),
            pruned=sum(x.size * x[v].pruned for x in layers) / size,
            zero=sum(x.size * x[v].zero for x in layers) / size,
        )
    dot = sum(x.cosine * x["P"].fro * x["Q"].fro for x in layers)
    effect, effects = None, [(x.size, x.order) for x in layers if x.order is not None]
    if effects:
        changed = sum(n * e.owner_changed for n, e in effects) / size
        effect = _effect(variants, changed, sum(e.by_ownership for _, e in effects), energy)
    cosine = _ratio(dot, variants["P"].fro * variants["Q"].fro)
    return LayerScore("total", size, norm, spectral, energy, variants, cosine, effect)


@jax.jit
def _distance(dense: Array, other: Array, weights: Array) -> tuple[Array, Array]:
    """Sums of squared logit differences, and of KL(dense || other) in nats; [..., classes].

    weights [...]: of the predictions; what has weight 0 may hold anything.
    """
    z, y = dense.astype(jnp.float32), other.astype(jnp.float32)
    log_p, log_q = jax.nn.log_softmax(z), jax.nn.log_softmax(y)
    square = jnp.sum((y - z) ** 2, -1)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)
    return tuple(jnp.sum(jnp.where(weights > 0, weights * x, 0)) for x in (square, kl))  # type: ignore[return-value]


def _prediction_weights(
    token_weights: network.TokenWeights | None, batch: Any, shape: tuple[int, ...]
) -> np.ndarray:
    """Weights [...] of the predictions of logits [..., classes]: their tokens', or 1 each where
    the predictions are no tokens (as :func:`perturb.network.capture` counts a layer's inputs)."""
    if token_weights is not None:
        weights = np.asarray(token_weights(batch), np.float32)
        if shape[: weights.ndim] == weights.shape:
            extra = (1,) * (len(shape) - weights.ndim)
            return np.broadcast_to(weights.reshape(weights.shape + extra), shape)
    return np.ones(shape, np.float32)


def _compare_outputs(
    net: network.Network,
    parameters: Mapping[str, Parameters],
    batches: Sequence[Any],
    token_weights: network.TokenWeights | None,
) -> dict[str, Outputs]:
    sums = {v: np.zeros(2) for v in parameters}
    own = net.state(Parameters({}, {}))
    states = {v: net.state(p) for v, p in parameters.items()}
    predictions, classes = 0.0, 0
    for batch in batches:  # one batch of logits at a time: a vocabulary is large
        logits = net.outputs(own, batch)
        classes = logits.shape[-1]
        counted = _prediction_weights(token_weights, batch, logits.shape[:-1])
        predictions += float(counted.sum(dtype=np.float64))
        for v, state in states.items():
            moved = _distance(logits, net.outputs(state, batch), counted)
            sums[v] += np.asarray(moved, np.float64)
    return {
        v: Outputs(
            float(mse / (predictions * classes)),
            float(kl / predictions) if classes > 1 else math.nan,
        )
        for v, (mse, kl) in sums.items()
    }


def _intensity(
    m: Mapping[str, float], c_q: float, curve: tuple[Sequence[float], Sequence[float]] | None
) -> Intensity:
    m = {v: float(value) for v, value in m.items()}
    gap = float(intensity.performance_gap(m["Q"], m["P"]))
    both = {"PQ", "QP"} <= m.keys()
    advantage = float(intensity.order_advantage(m["QP"], m["PQ"])) if both else None
    if curve is None:
        return Intensity(m, gap, advantage, None, None)
    ratios, performances = (np.asarray(values, float) for values in curve)
    star = intensity.equivalent_ratio(m["P"], ratios, performances)
    return Intensity(m, gap, advantage, star, (star.low - c_q, star.high - c_q))


def _reports(reports: Reports) -> dict[str, dict[str, float]]:
    """Layers whose Hessian needed more damping than asked for, or had dead inputs; of [1]."""
    told = {}
    for name, report in jax.device_get(dict(reports)).items():
        if report.retries[0] or report.dead[0]:
            told[name] = {k: float(v[0]) for k, v in report._asdict().items()}
    return told
