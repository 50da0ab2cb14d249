"""From layers to models: the one place where layerwise methods meet a whole model.

Three levels, each usable alone:

``apply(method, layers, stats, key)``      a stage on matrices, vmapped over layers of one shape;
``apply_family(methods, layers, ...)``     the same for many ratios or widths at once;
``compress(model, method, calibration)``   an ``nnx.Module`` in, an ``nnx.Module`` out.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from perturb import modules
from perturb.chain import stages_of
from perturb.registry import check_layer
from perturb.types import Array, Layer, LayerStats, ModelCompressor, SolveReport, StageResult

Calibrate = Literal["sequential", "recalibrate", "dense"]
CALIBRATE: tuple[Calibrate, ...] = ("sequential", "recalibrate", "dense")


def fresh(weight: Array) -> Layer:
    """A layer that nothing has been done to yet."""
    return Layer(weight, jnp.ones(weight.shape, bool), None, weight)


def layer_key(key: Array, name: str) -> Array:
    """A layer's own random key: it does not depend on which other layers there are."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _by_shape(layers: Mapping[str, Layer]) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(layer.dense.shape[-2:], []).append(name)
    return list(groups.values())


def _stack(trees: Sequence[Any], axis: int = 0) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)


# The dense weight is one for all versions and variants of a layer: it is never batched over them.
_VERSIONS = Layer(weight=0, mask=0, grid=0, dense=None)  # type: ignore[arg-type]


def _without_dense(result: StageResult) -> StageResult:
    return result._replace(layer=result.layer._replace(dense=None))  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("shared_stats",))
def _family(
    methods: Any, layers: Layer, stats: Any, keys: Array, shared_stats: bool
) -> StageResult:
    """methods [F]; layers [L, R, ...]; stats [L, ...] or [L, R, ...] -> results [L, R, F, ...].

    F is innermost, so everything that depends on a layer and its Hessian alone (factorisation,
    input energies) is computed once and shared by the whole family.
    """
    f = jax.vmap(lambda m, x, s, k: _without_dense(m(x, s, k)), (0, None, None, None))
    over_versions = jax.vmap(f, (None, _VERSIONS, None if shared_stats else 0, None))
    return jax.vmap(over_versions, (None, 0, 0, 0))(methods, layers, stats, keys)


@jax.jit
def _family_on_model(methods: Any, layers: dict[str, Layer], keys: Any) -> Any:
    def on_model(m: Any, x: dict[str, Layer], k: Any) -> Any:
        return {n: _without_dense(r) for n, r in m.on_model(x, None, k).items()}

    f = jax.vmap(on_model, (0, None, None))
    return jax.vmap(f, (None, dict.fromkeys(layers, _VERSIONS), None))(methods, layers, keys)


def apply_family(
    methods: Sequence[Any],
    layers: Mapping[str, Layer],
    stats: Mapping[str, LayerStats] | None,
    key: Array,
    *,
    shared_stats: bool = True,
) -> dict[str, StageResult]:
    """Apply F methods that differ in sparsity or bits only to R versions of each layer.

    layers: weight, mask and grid have a leading axis [R], ``dense [out, in]`` has not; stats:
    gram [in, in] shared by the versions, or [R, in, in] with ``shared_stats=False``. Results
    have leading axes [R, F] (dense again none). One compilation serves every ratio and bit
    width; the rows of all F variants go through one solve per Hessian.
    """
    family = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *methods)
    keys = {n: layer_key(key, n) for n in layers}
    done: dict[str, StageResult] = {}
    if isinstance(methods[0], ModelCompressor):
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


def take(layer: Layer, index: Any) -> Layer:
    """Select versions of a layer by its leading axes; the dense weight has none."""
    picked = jax.tree.map(lambda a: a[index], layer._replace(dense=None))  # type: ignore[arg-type]
    return picked._replace(dense=layer.dense)


def versions(layer: Layer) -> Layer:
    """A single layer as one version of itself: leading axis [1]."""
    return take(layer, None)


def apply(
    method: Any,
    layers: Mapping[str, Layer],
    stats: Mapping[str, LayerStats] | None,
    key: Array,
) -> dict[str, StageResult]:
    """Apply one method to every layer: :func:`apply_family` of one on one version."""
    done = apply_family([method], {n: versions(x) for n, x in layers.items()}, stats, key)
    return {
        n: StageResult(take(r.layer, (0, 0)), jax.tree.map(lambda a: a[0, 0], r.report))
        for n, r in done.items()
    }


@dataclass(frozen=True)
class Compression:
    """A compressed model with everything that says how it came about.

    layers: the final state of each layer (mask, grid, dense weight); reports: for each stage,
    what its solver did to each layer's Hessian (empty for methods without one); skipped: layers
    left alone, with the reason.
    """

    model: Any
    layers: dict[str, Layer]
    reports: list[dict[str, SolveReport]]
    skipped: dict[str, str]
    ratio: float
    calibrate: str

    @property
    def sparsity(self) -> float:
        """The achieved fraction of pruned weights."""
        kept = sum(int(jnp.sum(x.mask)) for x in self.layers.values())
        return 1 - kept / sum(x.mask.size for x in self.layers.values())


def check(
    method: Any, specs: Mapping[str, modules.LayerSpec], calibration: Any, calibrate: str
) -> None:
    """Refuse, before any work, what a method cannot do on these layers."""
    if calibrate not in CALIBRATE:
        raise ValueError(f"calibrate must be one of {', '.join(CALIBRATE)}; got {calibrate!r}")
    for stage in stages_of(method):
        for name, spec in specs.items():
            check_layer(stage, name, spec.shape)
        if stage.needs_stats and calibration is None:
            raise ValueError(
                f"{stage.name} looks at the layers' inputs: give calibration data "
                "(a batch of model inputs, or a list of batches)"
            )
    if calibration is not None:
        modules.batches_of(calibration)


def compress(
    model: Any,
    method: Any,
    calibration: Any = None,
    *,
    calibrate: Calibrate = "sequential",
    key: Array | int = 0,
    exclude: Sequence[str] = (),
    forward: modules.Forward = modules.call,
) -> Compression:
    """Compress a copy of ``model`` by ``method`` (a chain applies its first stage first).

    calibrate: which inputs the stages see.
        "sequential"   block after block, each from the blocks before it as this stage left
                       them; layers of one block in parallel (the reference implementations);
        "recalibrate"  each stage sees the inputs of the model it was handed, all layers at once;
        "dense"        every stage sees the inputs of the uncompressed model.
    Raises ValueError, before any work, for weights that are not finite, groups that do not
    divide a layer, an empty calibration set, or a model without compressible layers.
    """
    specs, skipped = modules.find_layers(model, exclude=exclude)
    weights = modules.get_weights(model, specs)
    check(method, specs, calibration, calibrate)
    key = jax.random.key(key) if isinstance(key, int) else key
    layers = {n: fresh(w) for n, w in weights.items()}
    current = modules.with_weights(model, specs, {})
    dense_stats = None
    if calibrate == "dense" and method.needs_stats:
        dense_stats = modules.capture(model, specs, calibration, forward=forward)
    reports: list[dict[str, SolveReport]] = []
    for i, stage in enumerate(stages_of(method)):
        done = run_stage(
            current,
            stage,
            specs,
            layers,
            dense_stats if dense_stats is not None else calibration,
            jax.random.fold_in(key, i),
            sequential=calibrate == "sequential",
            forward=forward,
        )
        layers = {n: r.layer for n, r in done.items()}
        reports.append({n: r.report for n, r in done.items() if r.report is not None})
    return Compression(current, layers, reports, skipped, method.ratio, calibrate)


def run_stage(
    model: Any,
    stage: Any,
    specs: Mapping[str, modules.LayerSpec],
    layers: Mapping[str, Layer],
    inputs: Any,
    key: Array,
    *,
    sequential: bool,
    forward: modules.Forward = modules.call,
) -> dict[str, StageResult]:
    """One stage on a model that holds ``layers``; the model receives the result, in place.

    inputs: calibration batches, run through this very model; or the layers' statistics, ready.
    sequential: block after block, each block's inputs from the blocks already compressed.
    """
    ready = isinstance(inputs, dict) and all(isinstance(s, LayerStats) for s in inputs.values())
    groups = [list(specs)]
    if sequential and stage.needs_stats and not ready and not isinstance(stage, ModelCompressor):
        batch = modules.batches_of(inputs)[0]
        groups = modules.blocks_of(modules.call_order(model, specs, batch, forward))
    done: dict[str, StageResult] = {}
    for names in groups:
        chosen = {n: specs[n] for n in names}
        stats = None
        if stage.needs_stats:
            stats = inputs if ready else modules.capture(model, chosen, inputs, forward=forward)
        done |= apply(stage, {n: layers[n] for n in names}, stats, key)
        modules.set_weights(model, chosen, {n: done[n].layer.weight for n in names})
    return {n: done[n] for n in specs}
