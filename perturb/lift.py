"""From layers to models: the one place where layerwise methods meet a whole model.

Three levels, each usable alone:

``apply(method, layers, stats, key)``      a stage on matrices, vmapped over layers of one shape;
``apply_family(methods, layers, ...)``     the same for many ratios or widths at once;
``compress(model, method, calibration)``   an ``nnx.Module`` in, an ``nnx.Module`` out.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from perturb import network, registry
from perturb.chain import stages_of
from perturb.storage import Storage, storage_of
from perturb.types import Array, Matrix, Moments, Solved, SolveReport, WholeModelMethod

Calibrate = Literal["sequential", "recalibrate", "dense"]
CALIBRATE: tuple[Calibrate, ...] = ("sequential", "recalibrate", "dense")
Norms = Literal["reestimate", "keep"]
Zeros = Literal["free", "keep"]


def fresh(weight: Array, zeros: Zeros = "free") -> Matrix:
    """A layer that nothing has been done to yet, in float32 at least.

    zeros: "keep" takes the weights that are 0 already for pruned ones.
    """
    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    mask = weight != 0 if zeros == "keep" else jnp.ones(weight.shape, bool)
    return Matrix(weight, mask, None, weight)


def layer_key(key: Array, name: str) -> Array:
    """A layer's own random key: it does not depend on which other layers there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _by_shape(layers: Mapping[str, Matrix]) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault((layer.dense.shape[-2:], layer.dense.dtype), []).append(name)
    return list(groups.values())


def _stack(trees: Sequence[Any], axis: int = 0) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)


# The dense weight is one for all versions and variants of a layer: it is never batched over them.
_VERSIONS = Matrix(weight=0, mask=0, grid=0, dense=None, quantizer=0)  # type: ignore[arg-type]


def _without_dense(result: Solved) -> Solved:
    return result._replace(layer=result.layer._replace(dense=None))  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("shared_stats",))
def _family(methods: Any, layers: Matrix, stats: Any, keys: Array, shared_stats: bool) -> Solved:
    """methods [F]; layers [L, R, ...]; stats [L, ...] or [L, R, ...] -> results [L, R, F, ...].

    F is innermost, so everything that depends on a layer and its Hessian alone (factorisation,
    input energies) is computed once and shared by the whole family.
    """
    f = jax.vmap(lambda m, x, s, k: _without_dense(m(x, s, k)), (0, None, None, None))
    over_versions = jax.vmap(f, (None, _VERSIONS, None if shared_stats else 0, None))
    return jax.vmap(over_versions, (None, 0, 0, 0))(methods, layers, stats, keys)


@jax.jit
def _family_on_model(methods: Any, layers: dict[str, Matrix], keys: Any) -> Any:
    def on_model(m: Any, x: dict[str, Matrix], k: Any) -> Any:
        return {n: _without_dense(r) for n, r in m.on_model(x, None, k).items()}

    f = jax.vmap(on_model, (0, None, None))
    return jax.vmap(f, (None, dict.fromkeys(layers, _VERSIONS), None))(methods, layers, keys)


def apply_family(
    methods: Sequence[Any],
    layers: Mapping[str, Matrix],
    stats: Mapping[str, Moments] | None,
    key: Array,
    *,
    shared_stats: bool = True,
) -> dict[str, Solved]:
    """Apply F methods that differ in sparsity or bits only to R versions of each layer.

    layers: weight, mask and grid have a leading axis [R], ``dense [out, in]`` has not; stats:
    gram [in, in] shared by the versions, or [R, in, in] with ``shared_stats=False``. Results
    have leading axes [R, F] (dense again none). One compilation serves every ratio and bit
    width; the rows of all F variants go through one solve per Hessian.
    """
    family = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *methods)
    keys = {n: layer_key(key, n) for n in layers}
    done: dict[str, Solved] = {}
    if isinstance(methods[0], WholeModelMethod):
        done = _family_on_model(family, dict(layers), keys)
    else:
        for names in _by_shape(layers):
            result = _family(
                family,
                _stack([layers[n] for n in names]),
                None if stats is None else _stack([stats[n] for n in names]),
                jnp.stack([keys[n] for n in names]),
                shared_stats,
            )
            done |= {n: jax.tree.map(lambda a, i=i: a[i], result) for i, n in enumerate(names)}
    return {
        n: done[n]._replace(layer=done[n].layer._replace(dense=layers[n].dense)) for n in layers
    }


def take(layer: Matrix, index: Any) -> Matrix:
    """Select versions of a layer by its leading axes; the dense weight has none."""
    picked = jax.tree.map(lambda a: a[index], layer._replace(dense=None))  # type: ignore[arg-type]
    return picked._replace(dense=layer.dense)


def versions(layer: Matrix) -> Matrix:
    """A single layer as one version of itself: leading axis [1]."""
    return take(layer, None)


def apply(
    method: Any,
    layers: Mapping[str, Matrix],
    stats: Mapping[str, Moments] | None,
    key: Array,
) -> dict[str, Solved]:
    """Apply one method to every layer: :func:`apply_family` of one on one version."""
    done = apply_family([method], {n: versions(x) for n, x in layers.items()}, stats, key)
    return {
        n: Solved(take(r.layer, (0, 0)), jax.tree.map(lambda a: a[0, 0], r.report))
        for n, r in done.items()
    }


@dataclass(frozen=True)
class Compression:
    """A compressed model with everything that says how it came about.

    layers: the final state of each layer (mask, grid, dense weight); reports: for each stage,
    what its solver did to each layer's Hessian (empty for methods without one); skipped: layers
    left alone, with the reason; storage: weights and bits, the source of ``ratio`` and
    ``sparsity``; coverage: which share of the model's parameters was compressed at all; notes:
    what a reader of these numbers should know (also warned of).
    """

    model: Any
    layers: dict[str, Matrix]
    reports: list[dict[str, SolveReport]]
    skipped: dict[str, str]
    storage: Storage
    coverage: network.Coverage
    calibrate: str
    norms: str
    zeros: str
    notes: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Dense bits over stored bits of the whole model (:mod:`perturb.storage`)."""
        return self.storage.ratio

    @property
    def sparsity(self) -> float:
        """The achieved fraction of pruned weights, of the compressed layers."""
        return self.storage.sparsity


def check(
    method: Any,
    specs: Mapping[str, network.LayerSpec],
    calibration: Any,
    *,
    calibrate: str = "sequential",
    norms: str = "reestimate",
    zeros: str = "free",
) -> None:
    """Refuse, before any work, what a method cannot do on these layers."""
    for what, value, choices in (
        ("calibrate", calibrate, CALIBRATE),
        ("norms", norms, registry.NORMS),
        ("zeros", zeros, registry.ZEROS),
    ):
        registry.check_choice(what, value, choices)
    for stage in stages_of(method):
        registry.check_layers(stage, {n: s.shape for n, s in specs.items()})
        if stage.needs_stats and calibration is None:
            raise ValueError(
                f"{stage.name} looks at the layers' inputs: give calibration data "
                "(a batch of model inputs, or a list of batches)"
            )


@jax.jit
def _finite(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {n: jnp.all(jnp.isfinite(w)) for n, w in weights.items()}


def check_finite(what: str, weights: Mapping[str, Array]) -> None:
    """Refuse matrices that are not finite, by the layer's name."""
    for name, fine in jax.device_get(_finite(dict(weights))).items():
        if not fine:
            raise ValueError(f"layer {name}: {what} leaves weights that are not finite")


def zeros_note(layers: Mapping[str, Matrix], zeros: Zeros) -> list[str]:
    """What is told of weights that were 0 before anything was done."""
    count = {n: int(jnp.sum(x.dense == 0)) for n, x in layers.items()}
    total, size = sum(count.values()), sum(x.dense.size for x in layers.values())
    if not total:
        return []
    where = [n for n, c in count.items() if c]
    told = f"{total} of {size} weights ({total / size:.1%}) are 0 already, in {len(where)} layers"
    if zeros == "keep":
        return [f"{told} (first: {where[0]}): they count as pruned and stay 0"]
    return [
        f"{told} (first: {where[0]}): they count as kept, and a method may change them; "
        "zeros='keep' takes them as pruned"
    ]


def starved_note(stats: Mapping[str, Moments]) -> list[str]:
    """What is told of layers that calibration showed nothing."""
    names = network.starved(stats)
    if not names:
        return []
    return [
        f"{len(names)} layers saw no input but zeros in calibration (first: {names[0]}): they are "
        "compressed as if their inputs were white (magnitude, round-to-nearest)"
    ]


def norms_note(model: Any, calibration: Any, norms: Norms) -> list[str]:
    """What is told of running statistics that stay those of the dense model."""
    names = network.norms_of(model)
    if not names or (norms == "reestimate" and calibration is not None):
        return []
    why = "norms='keep'" if norms == "keep" else "there is no calibration data"
    return [
        f"{len(names)} BatchNorms keep the running statistics of the dense model ({why}): "
        "part of what is lost is theirs, not the weights'"
    ]


def compress(
    model: Any,
    method: Any,
    calibration: Any = None,
    *,
    calibrate: Calibrate = "sequential",
    norms: Norms = "reestimate",
    zeros: Zeros = "free",
    key: Array | int = 0,
    exclude: Sequence[str] = (),
    forward: network.Forward = network.call,
    token_weights: network.TokenWeights | None = None,
) -> Compression:
    """Compress a copy of ``model`` by ``method`` (a chain applies its first stage first).

    calibration: a batch of model inputs, or batches (a list, a generator).
    calibrate: which inputs the stages see.
        "sequential"   block after block, each from the blocks before it as this stage left
                       them; layers of one block in parallel (the reference implementations);
        "recalibrate"  each stage sees the inputs of the model it was handed, all layers at once;
        "dense"        every stage sees the inputs of the uncompressed model.
    norms: BatchNorms re-estimate their running statistics on the calibration data after each
    stage, and before the first, so that a stage that does nothing changes nothing
    ("reestimate"); or "keep" those of the dense model.
    zeros: weights that are 0 already count as pruned ("keep") or as any other ("free").
    token_weights: of a batch, the weights of its tokens, such as a padding mask [batch, length].
    Weights are solved for in float32 at least and stored in the model's own dtype.
    Raises ValueError, before any work, for weights that are not finite, groups that do not
    divide a layer, an empty calibration set, or a model without compressible layers; afterwards,
    naming the layer, for results that are not finite.
    """
    specs, skipped = network.find_layers(model, exclude=exclude)
    weights = network.get_weights(model, specs)
    batches = None if calibration is None else network.batches_of(calibration)
    check(method, specs, batches, calibrate=calibrate, norms=norms, zeros=zeros)
    key = jax.random.key(key) if isinstance(key, int) else key
    layers = {n: fresh(w, zeros) for n, w in weights.items()}
    notes = [*network.notes(model, specs, skipped), *zeros_note(layers, zeros)]
    notes += norms_note(model, batches, norms)
    current = network.with_weights(model, specs, {})
    reestimates = norms == "reestimate" and batches is not None and bool(network.norms_of(model))
    if reestimates:
        network.set_norms(current, network.reestimate(current, batches, forward=forward))
    listen: dict[str, Any] = {"forward": forward, "token_weights": token_weights}
    dense_stats = None
    if calibrate == "dense" and method.needs_stats:
        dense_stats = network.capture(current, specs, batches, **listen)
        notes += starved_note(dense_stats)
    reports: list[dict[str, SolveReport]] = []
    for i, stage in enumerate(stages_of(method)):
        done = run_stage(
            current,
            stage,
            specs,
            layers,
            dense_stats if dense_stats is not None else batches,
            jax.random.fold_in(key, i),
            sequential=calibrate == "sequential",
            notes=notes,
            **listen,
        )
        if reestimates:
            network.set_norms(current, network.reestimate(current, batches, forward=forward))
        layers = {n: r.layer for n, r in done.items()}
        reports.append({n: r.report for n, r in done.items() if r.report is not None})
    coverage = network.coverage(model, specs, skipped)
    told = tuple(dict.fromkeys(notes))
    for note in told:
        warnings.warn(note, stacklevel=2)
    return Compression(
        model=current,
        layers=layers,
        reports=reports,
        skipped=skipped,
        storage=storage_of(layers, coverage.parameters),
        coverage=coverage,
        calibrate=calibrate,
        norms=norms,
        zeros=zeros,
        notes=told,
    )


def run_stage(
    model: Any,
    stage: Any,
    specs: Mapping[str, network.LayerSpec],
    layers: Mapping[str, Matrix],
    inputs: Any,
    key: Array,
    *,
    sequential: bool,
    forward: network.Forward = network.call,
    token_weights: network.TokenWeights | None = None,
    notes: list[str] | None = None,
) -> dict[str, Solved]:
    """One stage on a model that holds ``layers``; the model receives the result, in place.

    inputs: calibration batches, run through this very model; or the layers' statistics, ready.
    sequential: block after block, each block's inputs from the blocks already compressed.
    notes: what is to be told is added to it. Raises ValueError, naming the layer, for a result
    that is not finite.
    """
    notes = [] if notes is None else notes
    ready = isinstance(inputs, dict) and all(isinstance(s, Moments) for s in inputs.values())
    groups = [list(specs)]
    if sequential and stage.needs_stats and not ready and not isinstance(stage, WholeModelMethod):
        batch = network.batches_of(inputs)[0]
        groups = network.blocks_of(network.call_order(model, specs, batch, forward))
    done: dict[str, Solved] = {}
    for names in groups:
        chosen = {n: specs[n] for n in names}
        stats = None
        if stage.needs_stats:
            stats = inputs
            if not ready:
                stats = network.capture(
                    model, chosen, inputs, forward=forward, token_weights=token_weights
                )
                notes += starved_note(stats)
        done |= apply(stage, {n: layers[n] for n in names}, stats, key)
        check_finite(stage.name, {n: done[n].layer.weight for n in names})
        network.set_weights(model, chosen, {n: done[n].layer.weight for n in names})
    return {n: done[n] for n in specs}
