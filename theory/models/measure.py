"""Assumption 1 and the noise model of quantization, put to trained models.

[K] (Kim et al., arXiv 2603.18426) assumes (a) that the errors of layers add up and (b) that
M(phi) - M(f(phi)) = kappa E(f) with one kappa; its second theorem that quantization noise is
symmetric, of zero mean, and independent of the weights. Of each layer alone, besides, which order
wins and what two laws say of it (:mod:`theory.models.signs`). Here M = -KL(dense || compressed)
(:mod:`theory.maths.outputs`) and E = E||dW x||^2 = tr(dW H dW^T), H = E[x x^T] of the dense model's
inputs. Layers are compressed one at a time and all together, by rounding to nearest (a scale a
row) and by magnitude pruning (over the layer).

Any model goes through :mod:`perturb.network`; verdicts are in :mod:`theory.models.findings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perturb import RTN, network, sources
from perturb.grid import GridSpec, expand
from perturb.measure import errors
from perturb.measure.outputs import kl_divergence
from perturb.types import Moments
from theory import compressors
from theory.maths import outputs
from theory.models import noise, signs
from theory.models.findings import fits
from theory.models.orders import Record

Progress = Callable[[str, float], None]  # what is being measured, and the fraction done
Batch = Any  # any pytree of arrays, as the model takes it
Weights = dict[str, Array]
Logits = Callable[[Weights, Batch], Array]
Compare = Callable[[Weights, Weights, Batch], dict[str, Array]]
BITS = (2, 3, 4, 6, 8)
SPARSITIES = (0.1, 0.3, 0.5, 0.7)
SETTINGS = compressors.names(BITS, SPARSITIES)
NOISE_BITS = (2, 3, 4, 8)
GRIDS = {  # for _orders
    "row": GridSpec(),
    "row, full": GridSpec(convention="full"),
    "row, no 0": GridSpec(convention="midrise"),
    "tensor": GridSpec(per="tensor"),
}
ORDER_BITS, ORDER_SPARSITIES = (4, 3), (0.05, 0.15, 0.3, 0.5)
KEPT = ("RTN 4", "magnitude 50 %")  # settings whose interaction matrices are recorded
PREDICTIONS = 3072  # at most; so many tell the KL to a few per cent
FLOATS = 2**25  # of all layers' J dW at once; batches are cut to it
DIGITS = 5  # of recorded numbers


def quiet(what: str, done: float) -> None:
    """No progress."""


def measure_named(name: str, seed: int = 0, progress: Progress = quiet) -> Record:
    """:func:`measure_model` of a MODEL as the command line names it (:mod:`perturb.sources`).

    Raises :class:`perturb.sources.BadInput` for what names no model.
    """
    progress(f"{name}: loading", 0.0)
    loaded = sources.load(name, sources.loader(name), seed)
    if loaded.token_weights is not None:
        raise sources.BadInput(
            f"MODEL {name}: every token counts here: return no token_weights, and batches "
            "without padding"
        )
    return measure_model(
        loaded.model,
        loaded.calibration,
        loaded.forward,
        progress=lambda what, done: progress(f"{name}: {what}", done),
    )


def measure_model(
    model: Any,
    calibration: Batch,
    forward: network.Forward = network.call,
    *,
    progress: Progress = quiet,
) -> Record:
    """How far a model keeps the assumptions, on calibration batches; plain numbers and lists.

    calibration: a batch of model inputs or a list of them, examples along the leading axis of
    every array; only the first PREDICTIONS predictions are used. forward(model, batch) gives
    logits [..., classes]. Lists "by setting" have the order of ``settings``; errors E are a
    token of the layer, KL are nats a prediction.
    """
    specs, skipped = network.find_layers(model)
    weights = network.get_weights(model, specs)
    logits, compare = _programs(model, specs, forward)
    batches = _cut(network.batches_of(calibration), weights, logits)
    stats = network.capture(model, specs, batches, forward=forward)
    variants = jax.jit(lambda w: compressors.compressed(w, BITS, SPARSITIES))
    after = {n: variants(w) for n, w in weights.items()}
    measured = []
    for i, setting in enumerate(SETTINGS):
        progress(setting, i / (len(SETTINGS) + 1))
        kept = {n: a[i] for n, a in after.items()}
        parts = [jax.device_get(compare(weights, kept, b)) for b in batches]
        measured.append(_average(parts))
    progress("rounding errors", len(SETTINGS) / (len(SETTINGS) + 1))
    predictions = int(measured[0]["predictions"])
    alone = np.array([m["alone"] for m in measured])  # [settings, layers]
    layers = [
        _layer(n, weights[n], after[n], stats[n], predictions) | {"kl": alone[:, i].tolist()}
        for i, n in enumerate(specs)
    ]
    result = {
        "measure": "KL(dense || compressed), nats a prediction",
        "settings": list(SETTINGS),
        "predictions": predictions,
        "weights": sum(layer["size"] for layer in layers),
        "skipped": skipped,
        "layers": layers,
        "together": _together(measured),
        "interactions": {
            s: m["k"].tolist() for s, m in zip(SETTINGS, measured, strict=True) if s in KEPT
        },
    }
    return tidy(result | fits(result))


def _programs(
    model: Any, specs: Mapping[str, network.LayerSpec], forward: network.Forward
) -> tuple[Logits, Compare]:
    """(logits(weights, batch), and a compiled comparison of two sets of matrices on a batch).

    One program serves every setting, and loops over the layers inside: nothing is compiled a
    layer. The comparison gives all layers ``together``, each ``alone`` [L] and ``k`` [L, L].
    """
    names = list(specs)

    def logits(weights: Weights, batch: Batch) -> Array:
        out = forward(network.with_weights(model, specs, weights), batch)
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def one(choice: Array, chosen: Weights, others: Weights) -> Weights:
        """The chosen layer's matrix [L] of ``chosen``, the rest of ``others``."""
        return {n: jnp.where(choice[i], chosen[n], others[n]) for i, n in enumerate(names)}

    def compare(weights: Weights, after: Weights, batch: Batch) -> dict[str, Array]:
        each = jnp.eye(len(names), dtype=bool)
        z, push = jax.linearize(lambda w: logits(w, batch), weights)
        change = {n: after[n] - weights[n] for n in names}
        zero = jax.tree.map(jnp.zeros_like, change)

        def alone(choice: Array) -> Array:
            return outputs.kl(z, logits(one(choice, after, weights), batch))

        together = kl_divergence(z, logits(after, batch))
        tangents = jax.lax.map(lambda choice: push(one(choice, change, zero)), each)
        return {
            "predictions": jnp.asarray(z[..., 0].size),
            "together": jnp.mean(together),
            "square": jnp.mean(together**2),
            "alone": jax.lax.map(alone, each),
            "k": outputs.interaction_matrix(z, tangents),
        }

    return logits, jax.jit(compare)


def _cut(batches: list[Batch], weights: Weights, logits: Logits) -> list[Batch]:
    """The first PREDICTIONS predictions, in batches whose J dW of all layers fit in FLOATS."""
    shape = jax.eval_shape(logits, weights, batches[0]).shape
    if not shape or shape[-1] < 2:
        raise ValueError("the model has a single output: there is no distribution to compare")
    per_example = max(1, int(np.prod(shape[:-1])) // len(jax.tree.leaves(batches[0])[0]))
    most = max(1, FLOATS // (len(weights) * per_example * shape[-1]))
    left, found = max(1, PREDICTIONS // per_example), []
    for batch in batches:
        total = min(len(jax.tree.leaves(batch)[0]), left)
        left -= total
        for start in range(0, total, most):
            stop = min(start + most, total)
            found.append(jax.tree.map(lambda a, i=start, j=stop: a[i:j], batch))
    return found


def _average(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Means over predictions, from means over the predictions of each batch."""
    count = np.array([p["predictions"] for p in parts], float)
    found = {
        n: np.tensordot(count / count.sum(), np.array([p[n] for p in parts], float), 1)
        for n in ("together", "square", "alone", "k")
    }
    return found | {"predictions": count.sum()}


@jax.jit
def _errors(dense: Array, after: Array, stats: Moments) -> tuple[Array, Array, Array]:
    """E||W x||^2 and, by setting, E||dW x||^2 and ||dW||^2."""
    change = after - dense
    energy = errors.output_error(dense, stats)
    return energy, errors.output_error(change, stats), jnp.sum(change**2, (-2, -1))


@partial(jax.jit, static_argnames=("spec",))
def _rounded(w: Array, bits: Array, spec: GridSpec) -> tuple[Array, Array]:
    """Q(w) and the step of every weight, both [out, in]."""
    layer = compressors.compress(RTN(bits, spec), compressors.start(w), w)
    assert layer.grid is not None
    return layer.weight, expand(layer.grid, w.shape[-1])[0]


def _layer(name: str, w: Array, after: Array, stats: Moments, predictions: int) -> Record:
    energy, error, weight = jax.device_get(_errors(w, after, stats))
    return {
        "name": name,
        "size": w.size,
        "tokens": float(stats.count) / predictions,  # a prediction
        "energy": float(energy),
        "error": error.tolist(),
        "change": weight.tolist(),  # ||dW||^2
        "noise": {
            str(b): noise.describe(*jax.device_get((w, *_rounded(w, jnp.asarray(b), GRIDS["row"]))))
            for b in NOISE_BITS
        },
        "orders": _orders(w),
        "law": noise.two_sided(np.asarray(w, np.float64).ravel()),
    }


def _orders(w: Array) -> dict[str, list[Any]]:
    """Which order of magnitude pruning and rounding wins in this layer alone; columns, a row a
    setting, None where a law says nothing."""
    dense, found = np.asarray(w), []
    for name, spec in GRIDS.items():
        for bits in ORDER_BITS:
            rounded = np.asarray(_rounded(w, jnp.asarray(bits), spec)[0])
            for sparsity in ORDER_SPARSITIES:
                told = signs.order_in_a_layer(dense, rounded, sparsity)
                known = {k: v if np.isfinite(v) else None for k, v in told.items()}
                found.append({"grid": name, "bits": bits, "sparsity": sparsity, **known})
    return {column: [row[column] for row in found] for column in found[0]}


def _together(measured: list[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """By setting: KL of all layers together, the sum of their single KLs, and their Gauss-Newton
    predictions 1/2 sum K and 1/2 trace K; what share of K is off its diagonal; and how many
    predictions carry the KL, (sum KL)^2 / sum KL^2: few where most of them are certain."""
    off = [outputs.off_diagonal(m["k"]) for m in measured]
    return {
        "kl": [float(m["together"]) for m in measured],
        "sum": [float(m["alone"].sum()) for m in measured],
        "kl predicted": [float(m["k"].sum()) / 2 for m in measured],
        "sum predicted": [float(np.trace(m["k"])) / 2 for m in measured],
        "off-diagonal": [signed for signed, _ in off],
        "|off-diagonal|": [absolute for _, absolute in off],
        "effective": [
            float(m["predictions"] * m["together"] ** 2 / m["square"]) if m["square"] else 0.0
            for m in measured
        ],
    }


def tidy(value: Any) -> Any:
    """Floats to DIGITS significant digits, in whatever nest of dicts and lists."""
    if isinstance(value, dict):
        return {k: tidy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(v) for v in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
