"""Run a study: every cell once, whatever interrupts.

For each model and training seed the work is a tree: the dense model, each compressor alone (a
family of ratios or widths in one vmapped solve), and on each of those the second stage (again a
family). Prefixes are computed once, calibration statistics once per prefix. Cells are evaluated
and recorded one by one, so a killed run loses the cell it was at.

A run that resumes recomputes the *compression* of unfinished families in the same shapes as
before, so that its records are the same to the bit, and evaluates only the missing cells.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from experiments.evaluate import Evaluation, Evaluator, Parameters
from experiments.records import SCHEMA, Record, RecordLog, latest, load
from experiments.study import Study, cell_name, cells
from experiments.train import Trained
from perturb import network
from perturb.lift import apply_family, fresh, run_stage, take, versions
from perturb.measure import errors
from perturb.registry import check_layers, to_config
from perturb.storage import BITS_DENSE, Storage
from perturb.types import Array, Matrix, Moments, Solved

Layers = dict[str, Matrix]
CALIBRATION_BATCH = 64  # examples
# Packages whose version may change a number; the others only read and draw numbers.
DECISIVE = ("compression-order", "jax", "jaxlib", "flax")


@dataclass
class Clock:
    """Where the time goes, in seconds; compilation is taken out of the phase it happened in."""

    spent: dict[str, float] = field(default_factory=dict)
    compiling: float = 0.0

    def __post_init__(self) -> None:
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compiling += duration_secs

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start, compiled = time.perf_counter(), self.compiling
        try:
            yield
        finally:
            compile_time = self.compiling - compiled
            own = time.perf_counter() - start - compile_time
            self.spent[name] = self.spent.get(name, 0.0) + own
            self.spent["compile"] = self.spent.get("compile", 0.0) + compile_time


@dataclass(frozen=True)
class Variant:
    """One compressed model to evaluate: a cell, its matrices, and what is known of its layers."""

    order: str
    p: Any  # the pruner, or None
    q: Any  # the quantizer, or None
    weight: Callable[[str], Array]
    layers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reports: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """One model and seed of a study, with everything its cells share."""

    study: Study
    trained: Trained
    log: RecordLog
    done: set[str]
    clock: Clock
    tick: Callable[[], None]  # called after every record

    def __post_init__(self) -> None:
        # Several variants in one vmapped pass pay on an accelerator; on a CPU they cost more
        # than one after the other (their activations leave the cache).
        self.lanes = 1 if jax.default_backend() == "cpu" else 8
        self.model = self.trained.model
        data = self.trained.dataset
        exclude = [p for p in self.study.exclude if _matches(self.model, p)]
        self.specs, self.skipped = network.find_layers(self.model, exclude=exclude)
        weights = network.get_weights(self.model, self.specs)
        self.calibration = [
            jnp.asarray(data.calibration.inputs[i : i + CALIBRATION_BATCH])
            for i in range(0, len(data.calibration), CALIBRATION_BATCH)
        ]
        self.dense = {n: fresh(w, self.study.zeros) for n, w in weights.items()}
        self.weights = weights
        self.coverage = network.coverage(self.model, self.specs, self.skipped)
        self.key = jax.random.key(self.trained.seed)
        with self.clock.phase("evaluate"):
            self.evaluator = Evaluator(
                self.model, self.specs, data.test, data.kind, lanes=self.lanes
            )
        with self.clock.phase("calibrate"):
            start = Parameters(weights, self.norms(weights))
            self.stats = self.evaluator.stats(start, self.calibration)
            _check_stats(self.stats)
        self.base = self._provenance()
        self._refuse_to_mix()

    # ------------------------------------------------------------------ what every record holds

    def _provenance(self) -> Record:
        data = self.trained.dataset
        device = jax.devices()[0]
        return {
            "schema": SCHEMA,
            "study": self.study.name,
            "model": self.trained.preset,
            "kind": data.kind,
            "seed": self.trained.seed,
            "policies": {
                "calibrate": self.study.calibrate,
                "norms": self.study.norms,
                "zeros": self.study.zeros,
                "calibration_examples": len(data.calibration),
                "calibration_batch": CALIBRATION_BATCH,
                "skipped": self.skipped,
            },
            "versions": {
                "python": platform.python_version(),
                "compression-order": perturb.__version__,
                **{package: version(package) for package in ("jax", "jaxlib", "flax", "numpy")},
            },
            "data": {
                "name": data.name,
                "hash": data.hash,
                "weights": self.trained.weights_hash,
                "test_examples": len(data.test),
                "classes": self.evaluator.classes,
            },
            "device": f"{device.platform} {device.device_kind}",
        }

    def identity(self, order: str, p: Any, q: Any) -> str:
        """A hash of ALL that decides a cell: what must be the same for its record to be kept."""
        base = self.base
        decisive = {
            "data": base["data"],
            "policies": base["policies"],
            "versions": {package: base["versions"][package] for package in DECISIVE},
            "device": base["device"],
            "order": order,
            "methods": [None if m is None else to_config(m) for m in (p, q)],
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def _refuse_to_mix(self) -> None:
        """Records of one study must come from the same weights, data, policies and versions."""
        now = {self.cell_id(*c): self.identity(*c) for c in cells(self.study)}
        for record in load(self.log.path):
            if (record["model"], record["seed"]) != (self.base["model"], self.base["seed"]):
                continue
            differs = {
                key: (record.get(key), self.base[key])
                for key in ("study", "data", "policies", "device")
                if record.get(key) != self.base[key]
            }
            for package in DECISIVE:
                held, here = (r["versions"].get(package) for r in (record, self.base))
                if held != here:
                    differs.setdefault(f"version of {package}", (held, here))
            if not differs and record.get("identity") != now.get(
                record["cell"], record["identity"]
            ):
                differs["settings of its methods"] = (record["pruner"], record["quantizer"])
            for what, (held, here) in differs.items():
                if isinstance(held, dict) and isinstance(here, dict):
                    changed = [k for k in {**held, **here} if held.get(k) != here.get(k)]
                    held, here = ({k: x.get(k) for k in changed} for x in (held, here))
                raise ValueError(
                    f"{self.log.path} holds {record['cell']} with another {what} "
                    f"({held}, now {here}): choose another --out, or remove that file"
                )

    def cell_id(self, order: str, p: Any, q: Any) -> str:
        return cell_name(self.trained.preset, self.trained.seed, order, p, q)

    def missing(self, order: str, ps: Sequence[Any], qs: Sequence[Any]) -> bool:
        return any(self.cell_id(order, p, q) not in self.done for p in ps for q in qs)

    # ------------------------------------------------------------------------------ the stages

    def alone(self, methods: Sequence[Any]) -> dict[str, Solved]:
        """Each method alone on the dense model: results [1, F, ...]."""
        base = {n: versions(x) for n, x in self.dense.items()}
        stats = {n: jax.tree.map(lambda a: a[None], s) for n, s in self.stats.items()}
        return self._stage(methods, base, stats, "alone")

    def after(self, methods: Sequence[Any], prefix: Layers, stats: Any) -> dict[str, Solved]:
        """The family as second stage on R prefixes: results [R, F, ...]."""
        return self._stage(methods, prefix, stats, "after")

    def _stage(
        self, methods: Sequence[Any], layers: Layers, stats: Any, place: str
    ) -> dict[str, Solved]:
        drop_programs_if_many()
        key = jax.random.fold_in(self.key, zlib.crc32(place.encode()))
        needs = methods[0].needs_stats
        with self.clock.phase("compress"):
            if self.study.calibrate == "sequential" and needs:
                done = self._sequentially(methods, layers, key)
            else:
                shared = self.study.calibrate == "dense"
                if needs and shared:
                    stats = self.stats
                done = apply_family(
                    methods, layers, stats if needs else None, key, shared_stats=shared
                )
            return jax.block_until_ready(done)

    def norms(self, weights: Mapping[str, Array]) -> dict[str, Any]:
        """What a stage leaves in, or finds in, the BatchNorms of the model with these matrices."""
        if self.study.norms == "keep":
            return {}
        return self.evaluator.norms(weights, self.calibration)

    def _sequentially(
        self, methods: Sequence[Any], layers: Layers, key: Array
    ) -> dict[str, Solved]:
        """Block by block: every variant has its own inputs, so there is no family to share."""
        versions_of = next(iter(layers.values())).weight.shape[0]
        rows = []
        for r in range(versions_of):
            one = {n: take(x, r) for n, x in layers.items()}
            start = {n: x.weight for n, x in one.items()}
            norms = self.norms(start)
            row = []
            for method in methods:
                model = network.with_weights(self.model, self.specs, start)
                network.set_norms(model, norms)
                done = run_stage(
                    model, method, self.specs, one, self.calibration, key, sequential=True
                )
                row.append({n: _drop_dense(x) for n, x in done.items()})
            rows.append(jax.tree.map(lambda *a: jnp.stack(a), *row))
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *rows)
        return {
            n: r._replace(layer=r.layer._replace(dense=layers[n].dense)) for n, r in stacked.items()
        }

    def prefixes(self, alone: dict[str, Solved], used: bool) -> tuple[Layers, Any]:
        """The variants of a method alone as versions [R], and the statistics each one has."""
        layers = {n: take(r.layer, 0) for n, r in alone.items()}
        if not used or self.study.calibrate != "recalibrate":
            return layers, None
        count = next(iter(layers.values())).weight.shape[0]
        with self.clock.phase("calibrate"):
            each = []
            for r in range(count):
                weights = {n: x.weight[r] for n, x in layers.items()}
                parameters = Parameters(weights, self.norms(weights))
                each.append(self.evaluator.stats(parameters, self.calibration))
            stats = jax.block_until_ready(jax.tree.map(lambda *a: jnp.stack(a), *each))
        return layers, stats

    # ----------------------------------------------------------------------------- the records

    def measure(self, results: Mapping[str, Solved]) -> dict[str, dict[str, np.ndarray]]:
        with self.clock.phase("measure"):
            done = {n: _layer_measures(r.layer, self.stats[n]) for n, r in results.items()}
            return {n: errors.finish(raw) | errors.value(rest) for n, (raw, rest) in done.items()}

    def record(self, variants: Iterable[Variant]) -> None:
        """Evaluate variants and append their records in this order; a failure becomes a record.

        Cells already recorded are skipped. ``lanes`` variants go through one pass.
        """
        todo = [v for v in variants if self.cell_id(v.order, v.p, v.q) not in self.done]
        chunks = [todo[i : i + self.lanes] for i in range(0, len(todo), self.lanes)]
        with self.clock.phase("evaluate"):
            for chunk, outcomes in ((c, self._evaluate(c)) for c in chunks):
                for variant, outcome in zip(chunk, outcomes, strict=True):
                    self._append(variant, *outcome)

    def _evaluate(self, chunk: Sequence[Variant]) -> list[tuple[Evaluation | Exception, float]]:
        start = time.perf_counter()

        def attempt(part: Sequence[Variant]) -> list[Evaluation | Exception]:
            try:
                return list(self.evaluator([self._parameters(v) for v in part]))
            except Exception as error:  # one cell must not stop the others
                if len(part) == 1:
                    return [error]
                return [outcome for v in part for outcome in attempt([v])]

        outcomes = attempt(chunk)
        seconds = (time.perf_counter() - start) / len(chunk)
        return [(outcome, seconds) for outcome in outcomes]

    def _parameters(self, v: Variant) -> Parameters:
        for name, measured in v.layers.items():
            wrong = errors.not_finite(measured)
            if wrong:
                raise FloatingPointError(f"layer {name}: {', '.join(wrong)} not finite")
        weights = {n: v.weight(n) for n in self.specs}
        return Parameters(weights, {} if v.order == "dense" else self.norms(weights))

    def _append(self, v: Variant, outcome: Evaluation | Exception, seconds: float) -> None:
        cell = self.cell_id(v.order, v.p, v.q)
        record = self.base | {
            "cell": cell,
            "order": v.order,
            "pruner": None if v.p is None else to_config(v.p),
            "quantizer": None if v.q is None else to_config(v.q),
            "sparsity": None if v.p is None else v.p.sparsity,
            "bits": None if v.q is None else v.q.bits,
            "identity": self.identity(v.order, v.p, v.q),
        }
        if isinstance(outcome, Exception):
            record |= {"status": "error", "error": f"{type(outcome).__name__}: {outcome}"}
        else:
            layers = v.layers
            storage = self._storage(layers)
            record |= {
                "status": "ok",
                "error": None,
                "metrics": outcome.metrics,
                "examples": outcome.examples,
                "storage": asdict(storage) | {"layers_ratio": storage.layers_ratio},
                "ratio": storage.ratio,
                "layers": {
                    n: {k: _short(x) for k, x in m.items() if k not in STORED}
                    for n, m in layers.items()
                },
                "achieved_sparsity": self._total(layers, "pruned"),
                "zero_fraction": self._total(layers, "zero"),
                "solver": v.reports,
            }
        record["seconds"] = {"evaluate": round(seconds, 4)}
        self.log.append(record)
        self.done.add(cell)
        self.tick()

    def _storage(self, layers: Mapping[str, Mapping[str, Any]]) -> Storage:
        weights = sum(w.size for w in self.weights.values())
        kept = {n: int(m["kept"]) for n, m in layers.items()}
        bits = sum(kept[n] * int(m["bits"]) for n, m in layers.items())
        return Storage(self.coverage.parameters, weights, sum(kept.values()), float(bits))

    def _total(self, layers: Mapping[str, Mapping[str, Any]], what: str) -> float:
        sizes = {n: self.weights[n].size for n in layers}
        return float(sum(layers[n][what] * s for n, s in sizes.items()) / sum(sizes.values()))

    def fail(self, order: str, ps: Sequence[Any], qs: Sequence[Any], error: Exception) -> None:
        """Record every cell of a family that could not be computed."""

        def broken(_: str) -> Array:
            raise error

        self.record(Variant(order, p, q, broken) for p in ps for q in qs)


def _drop_dense(result: Solved) -> Solved:
    return result._replace(layer=result.layer._replace(dense=None))  # type: ignore[arg-type]


def drop_programs_if_many(limit: int = 40_000, maps: Path = Path("/proc/self/maps")) -> bool:
    """Forget the compiled programs if they take more than ``limit`` memory maps; whether so.

    A program for a CPU takes dozens. Linux allows a process 65530, and LLVM dies of the next one.
    """
    if not maps.exists() or maps.read_bytes().count(b"\n") <= limit:
        return False
    jax.clear_caches()
    return True


def _matches(model: Any, pattern: str) -> bool:
    try:
        network.find_layers(model, exclude=[pattern])
    except ValueError:
        return False
    return True


def _check_stats(stats: Mapping[str, Moments]) -> None:
    for name, s in stats.items():
        if not bool(jnp.all(jnp.isfinite(s.gram))):
            raise ValueError(f"layer {name}: its inputs on the calibration data are not finite")


def _short(value: Any) -> float | None:
    """Six significant digits are more than any of these measures is worth."""
    return float(f"{float(value):.6g}")


STORED = ("kept", "bits")  # of a layer's measures: go into the model's storage


@jax.jit
def _layer_measures(layer: Matrix, stats: Moments) -> tuple[errors.Raw, dict[str, Array]]:
    """Measures [R, F] of the variants of one layer, by the dense model's input moments."""
    kept = jnp.sum(layer.mask, (-2, -1), dtype=jnp.int32)
    width = BITS_DENSE if layer.grid is None else layer.grid.bits
    return errors.raw_measures(layer.dense, layer.weight, stats), {
        "pruned": jnp.mean(~layer.mask, (-2, -1)),
        "zero": jnp.mean(layer.weight == 0, (-2, -1)),
        "kept": kept,
        "bits": jnp.broadcast_to(width, kept.shape),
    }


@jax.jit
def _pair_measures(
    pq: Matrix, qp: Matrix, p_alone: Array, q_alone: Array, stats: Moments
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both orders of a pair share, and who owns what: [S, B] for PQ and for QP.

    pq, qp: layers [S, B, out, in]; p_alone [S, out, in]; q_alone [B, out, in].
    """
    dense = pq.dense
    owners = errors.ownership(pq, qp)
    shared = {
        "cosine": errors.cosine(p_alone[:, None] - dense, q_alone[None] - dense),
        "owner_changed": owners["owner_changed"],
    }

    def owned(layer: Matrix) -> dict[str, Any]:
        owned_err = errors.raw_owned_error(dense, layer.mask, q_alone[None], stats)
        return shared | {"owned_err": owned_err}

    return owned(pq), owned(qp)


def _transpose(result: Solved) -> Matrix:
    layer = result.layer
    swapped = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), _drop_dense(result).layer)
    return swapped._replace(dense=layer.dense)


def check_study(study: Study, model: Any) -> None:
    """Refuse, before any work, methods that do not fit a model's layers (may be abstract)."""
    exclude = [p for p in study.exclude if _matches(model, p)]
    specs, _ = network.find_layers(model, exclude=exclude)
    for template, amounts in (
        *((p, study.sparsities) for p in study.pruners),
        *((q, study.bits) for q in study.quantizers),
    ):
        for amount in amounts:
            check_layers(template(amount), {n: s.shape for n, s in specs.items()})


def run_model(run: Run, after_alone: Callable[[], None] = lambda: None) -> None:
    """All cells of one model and seed; ``after_alone`` is called when the prefixes are done."""
    study = run.study
    untouched = {
        n: {
            "pruned": np.mean(~np.asarray(x.mask)),
            "zero": np.mean(np.asarray(x.weight) == 0),
            "kept": np.sum(np.asarray(x.mask)),
            "bits": BITS_DENSE,
        }
        for n, x in run.dense.items()
    }
    run.record([Variant("dense", None, None, run.weights.__getitem__, untouched)])
    pruners = [[t(s) for s in study.sparsities] for t in study.pruners]
    quantizers = [[t(b) for b in study.bits] for t in study.quantizers]

    def families(groups: list[list[Any]], order: str) -> Iterator[tuple[list[Any], Any]]:
        for methods in groups:
            try:
                results = run.alone(methods)
                _record_alone(run, order, methods, results)
                yield methods, results
            except Exception as error:
                none = [None]
                ps, qs = (methods, none) if order == "P" else (none, methods)
                run.fail(order, ps, qs, error)
                yield methods, error

    alone_p, alone_q = list(families(pruners, "P")), list(families(quantizers, "Q"))
    after_alone()
    needs_q = any(q[0].needs_stats for q in quantizers)
    needs_p = any(p[0].needs_stats for p in pruners)
    prefix_p = [_prefix(run, ps, r, "PQ", quantizers, needs_q) for ps, r in alone_p]
    prefix_q = [_prefix(run, qs, r, "QP", pruners, needs_p) for qs, r in alone_q]
    for (ps, p_results), p_prefix in zip(alone_p, prefix_p, strict=True):
        for (qs, q_results), q_prefix in zip(alone_q, prefix_q, strict=True):
            if not (run.missing("PQ", ps, qs) or run.missing("QP", ps, qs)):
                continue
            try:
                for outcome in (p_results, q_results):
                    if isinstance(outcome, Exception):
                        raise outcome
                _record_pair(run, ps, qs, p_prefix, q_prefix)
            except Exception as error:
                for order in ("PQ", "QP"):
                    run.fail(order, ps, qs, error)


def _prefix(
    run: Run, methods: list[Any], results: Any, order: str, others: list[list[Any]], used: bool
) -> Any:
    """The prefixes of a family, unless it failed or none of its cells is missing."""
    if isinstance(results, Exception):
        return None
    pairs = [(methods, o) if order == "PQ" else (o, methods) for o in others]
    if not any(run.missing(o, ps, qs) for ps, qs in pairs for o in ("PQ", "QP")):
        return None
    return run.prefixes(results, used)


def _record_alone(
    run: Run, order: str, methods: Sequence[Any], results: Mapping[str, Solved]
) -> None:
    measured = run.measure(results)
    run.record(
        Variant(
            order,
            method if order == "P" else None,
            method if order == "Q" else None,
            partial(_weight, results, 0, f),
            {n: {k: v[0, f] for k, v in m.items()} for n, m in measured.items()},
            _reports(results, 0, f),
        )
        for f, method in enumerate(methods)
    )


def _weight(results: Mapping[str, Solved], r: int, f: int, name: str) -> Array:
    return results[name].layer.weight[r, f]


def _reports(results: Mapping[str, Solved], r: int, f: int) -> dict[str, Any]:
    """Layers whose Hessian needed more damping than asked for, or had dead inputs."""
    told = {}
    for name, result in results.items():
        if result.report is not None:
            report = jax.tree.map(lambda a: a[r, f].item(), result.report)
            if report.retries or report.dead:
                told[name] = report._asdict()
    return told


def _record_pair(
    run: Run, ps: Sequence[Any], qs: Sequence[Any], p_prefix: Any, q_prefix: Any
) -> None:
    """Both orders of a pruner and a quantizer, over sparsities [S] x bits [B]."""
    pq = run.after(qs, *p_prefix)  # [S, B]
    qp = run.after(ps, *q_prefix)  # [B, S]
    measured = {"PQ": run.measure(pq), "QP": run.measure(qp)}
    with run.clock.phase("measure"):
        shared = {
            n: errors.value(
                _pair_measures(
                    pq[n].layer,
                    _transpose(qp[n]),
                    p_prefix[0][n].weight,
                    q_prefix[0][n].weight,
                    run.stats[n],
                ),
            )
            for n in run.specs
        }

    def variants() -> Iterator[Variant]:
        for (s, p), (b, q) in itertools.product(enumerate(ps), enumerate(qs)):
            for i, (order, results, r, f) in enumerate((("PQ", pq, s, b), ("QP", qp, b, s))):
                layers = {
                    n: {k: v[r, f] for k, v in measured[order][n].items()}
                    | {k: v[s, b] for k, v in shared[n][i].items()}
                    for n in run.specs
                }
                weight = partial(_weight, results, r, f)
                yield Variant(order, p, q, weight, layers, _reports(results, r, f))

    run.record(variants())


def finished(path: Path) -> set[str]:
    """Cells that need not run again: those recorded as ok."""
    if not path.exists():
        return set()
    return {cell for cell, r in latest(load(path)).items() if r["status"] == "ok"}


__all__ = ["Clock", "Run", "check_study", "finished", "run_model"]
