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


@partial(jax.jit, static_argnames=("shared_stats",))
def _family(methods: Any, layers: Any, stats: Any, keys: Array, shared_stats: bool) -> StageResult:
    """methods [F]; layers [L, R, ...]; stats [L, ...] or [L, R, ...] -> results [L, R, F, ...].

    F is innermost, so everything that depends on a layer and its Hessian alone (factorisation,
    input energies) is computed once and shared by the whole family.
    """
    f = jax.vmap(lambda m, x, s, k: m(x, s, k), (0, None, None, None))
    over_prefixes = jax.vmap(f, (None, 0, None if shared_stats else 0, None))
    return jax.vmap(over_prefixes, (None, 0, 0, 0))(methods, layers, stats, keys)


@jax.jit
def _family_on_model(methods: Any, layers: Any, keys: Any) -> Any:
    on_model = jax.vmap(lambda m, x, k: m.on_model(x, None, k), (0, None, None))
    return jax.vmap(on_model, (None, 0, None))(methods, layers, keys)


def apply_family(
    methods: Sequence[Any],
    layers: Mapping[str, Layer],
    stats: Mapping[str, LayerStats] | None,
    key: Array,
    *,
    shared_stats: bool = True,
) -> dict[str, StageResult]:
    """Apply F methods that differ in sparsity or bits only to R versions of each layer.

    layers: fields [R, out, in]; stats: gram [in, in] shared by the versions, or [R, in, in]
    with ``shared_stats=False``. Returns fields [R, F, ...] by layer. One compilation serves
    every ratio and bit width; rows of all F variants go through one solve per Hessian.
    """
    family = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *methods)
    keys = {n: layer_key(key, n) for n in layers}
    if isinstance(methods[0], ModelCompressor):
        return _family_on_model(family, dict(layers), keys)
    done: dict[str, StageResult] = {}
    for names in _by_shape(layers):
        result = _family(
            family,
            _stack([layers[n] for n in names]),
            None if stats is None else _stack([stats[n] for n in names]),
            jnp.stack([keys[n] for n in names]),
            shared_stats,
        )
        done |= {n: jax.tree.map(lambda a, i=i: a[i], result) for i, n in enumerate(names)}
    return {n: done[n] for n in layers}


def apply(
    method: Any,
    layers: Mapping[str, Layer],
    stats: Mapping[str, LayerStats] | None,
    key: Array,
) -> dict[str, StageResult]:
    """Apply one method to every layer: :func:`apply_family` of one on one version."""
    versions = {n: jax.tree.map(lambda a: jnp.asarray(a)[None], x) for n, x in layers.items()}
    done = apply_family([method], versions, stats, key)
    return {n: jax.tree.map(lambda a: a[0, 0], r) for n, r in done.items()}


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
    reports: list[dict[str, SolveReport]] = []
    groups = None
    dense_stats: dict[str, LayerStats] | None = None
    for i, stage in enumerate(stages_of(method)):
        stage_key = jax.random.fold_in(key, i)
        whole = not stage.needs_stats or isinstance(stage, ModelCompressor)
        if calibrate != "sequential" or whole:
            stats = dense_stats if calibrate == "dense" else None
            if stage.needs_stats and stats is None:
                stats = modules.capture(current, specs, calibration, forward=forward)
                dense_stats = stats
            steps = [(list(specs), stats)]
        else:
            if groups is None:
                batch = modules.batches_of(calibration)[0]
                groups = modules.blocks_of(modules.call_order(model, specs, batch, forward))
            steps = [(names, None) for names in groups]
        report: dict[str, SolveReport] = {}
        for names, stats in steps:
            chosen = {n: specs[n] for n in names}
            if stats is None and stage.needs_stats:
                stats = modules.capture(current, chosen, calibration, forward=forward)
            done = apply(stage, {n: layers[n] for n in names}, stats, stage_key)
            layers |= {n: r.layer for n, r in done.items()}
            report |= {n: r.report for n, r in done.items() if r.report is not None}
            modules.set_weights(current, chosen, {n: layers[n].weight for n in names})
        reports.append(report)
    layers = {n: layers[n] for n in specs}
    return Compression(current, layers, reports, skipped, method.ratio, calibrate)


