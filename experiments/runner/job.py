"""One trained model under one policy and calibration draw: its cells, and their records."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import perturb
from experiments.axes import Chain
from experiments.evaluate import Evaluation, Evaluator
from experiments.labels import chain_name
from experiments.records import SCHEMA, Record, encode_sums
from experiments.runner.clock import Clock
from experiments.runner.desk import Desk
from experiments.study import Conditions, Study, policy_config
from experiments.task import Task, batches_hash, some
from perturb import network
from perturb.compression import Opened
from perturb.measure import errors
from perturb.policy import Policy
from perturb.registry import to_config
from perturb.state import Parameters
from perturb.storage import Storage

# Packages whose version may change a number; the others only read and draw numbers.
DECISIVE = ("compression-order", "jax", "jaxlib", "flax")


@cache
def commit() -> str:
    """The commit of this code, "unknown" outside of a checkout; "+" where files differ from it."""
    folder = Path(perturb.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.parent.resolve():
            return "unknown"
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass
class Shared:
    """What all jobs of one trained model share: its task, and the evaluator of its test set."""

    study: Study
    model: str
    seed: int
    task: Task
    desk: Desk
    clock: Clock

    @cached_property
    def patterns(self) -> tuple[list[str], ...]:
        """The study's exclude and include patterns that match anything in this model."""
        return self.matching(self.study.exclude), self.matching(self.study.include)

    def matching(self, patterns: Sequence[str]) -> list[str]:
        """Those of the patterns that match anything in this model."""
        return [p for p in patterns if network.matching(self.task.model, p)]

    @property
    def lanes(self) -> int:
        """Several versions in one vmapped pass pay on an accelerator; on a CPU they cost more than
        one after the other (their activations leave the cache)."""
        return 1 if jax.default_backend() == "cpu" else 8

    @cached_property
    def evaluator(self) -> Evaluator:
        exclude, include = self.patterns
        specs, _ = network.find_layers(self.task.model, exclude=exclude, include=include)
        net = network.Network(self.task.model, specs, self.task.forward, self.task.token_weights)
        with self.clock.phase("evaluate"):
            return Evaluator(self.task, net, lanes=self.lanes)


@dataclass(frozen=True)
class Cell:
    """One compressed model: its stages, how to get its parameters, and what its layers are like."""

    chain: Chain
    parameters: Callable[[], Parameters]
    storage: Storage
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    solver: Mapping[str, Any] = field(default_factory=dict)


class Job:
    """The cells of one trained model, calibration draw and policy."""

    def __init__(self, shared: Shared, draw: int, policy: Policy) -> None:
        self.shared, self.draw, self.policy = shared, draw, policy
        task = shared.task
        given = policy if isinstance(policy, Conditions) else Conditions()
        batches = some(task.draw(draw), given.examples)
        with shared.clock.phase("calibrate"):
            self.opened = Opened(
                task.model,
                batches,
                Policy(policy.calibrate, policy.norms, policy.zeros),
                shared.seed,
                exclude=[*shared.patterns[0], *shared.matching(given.exclude)],
                include=shared.patterns[1],
                forward=task.forward,
                token_weights=task.token_weights,
            )
            sizes = [len(jax.tree.leaves(b)[0]) for b in batches]
            self.base = self._provenance(
                {
                    "draw": draw,
                    "examples": sum(sizes),
                    "batch": max(sizes),
                    "hash": batches_hash(batches),
                }
            )

    def _provenance(self, calibration: Record) -> Record:
        task, device = self.shared.task, jax.devices()[0]
        return {
            "schema": SCHEMA,
            "study": self.shared.study.name,
            "model": self.shared.model,
            "kind": task.kind,
            "seed": self.shared.seed,
            "calibration": calibration,
            "policy": policy_config(self.policy),
            "skipped": self.opened.skipped,
            "versions": {
                "python": platform.python_version(),
                "commit": commit(),
                "compression-order": perturb.__version__,
                **{package: version(package) for package in ("jax", "jaxlib", "flax", "numpy")},
            },
            "data": {
                **task.data,
                "test_examples": len(task.test),
                "classes": self.shared.evaluator.classes,
                "measures": sorted(task.measures),
            },
            "device": f"{device.platform} {device.device_kind}",
        }

    # ------------------------------------------------------------------------------- identity

    def cell_id(self, chain: Chain) -> str:
        """A hash of ALL that decides a cell: what else its record holds follows from it."""
        base = self.base
        decisive = {
            **{k: base[k] for k in ("model", "seed", "data", "calibration", "policy", "skipped")},
            "versions": {package: base["versions"][package] for package in DECISIVE},
            "device": base["device"],
            "layers": self.opened.network.shapes,  # with what include and exclude come to
            "stages": [to_config(stage) for stage in chain],
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def label(self, chain: Chain) -> str:
        """The cell's name for people; what the study does not vary is not said."""
        study = self.shared.study
        parts = [self.shared.model, f"s{self.shared.seed}"]
        if study.calibrations != (0,):
            parts.append(f"c{self.draw}")
        if len(study.policies) > 1:
            parts.append(policy_name(self.policy))
        return "/".join([*parts, chain_name(chain)])

    def missing(self, chains: Sequence[Chain]) -> list[Chain]:
        return [c for c in chains if self.cell_id(c) not in self.shared.desk.done]

    # ------------------------------------------------------------------------------- records

    def record(self, cells: Sequence[Cell]) -> None:
        """Evaluate cells and append their records in this order; a failure becomes a record.

        Cells already recorded are skipped. ``lanes`` versions go through one pass.
        """
        shared = self.shared
        todo = [c for c in cells if self.cell_id(c.chain) not in shared.desk.done]
        with shared.clock.phase("evaluate"):
            for i in range(0, len(todo), shared.lanes):
                part = todo[i : i + shared.lanes]
                for cell, (outcome, seconds) in zip(part, self._evaluate(part), strict=True):
                    self._append(cell, outcome, seconds)

    def _evaluate(self, cells: Sequence[Cell]) -> list[tuple[Evaluation | Exception, float]]:
        start = time.perf_counter()

        def attempt(part: Sequence[Cell]) -> list[Evaluation | Exception]:
            try:
                for cell in part:
                    _refuse_not_finite(cell)
                return list(self.shared.evaluator([c.parameters() for c in part]))
            except Exception as error:  # one cell must not stop the others
                if len(part) == 1:
                    return [error]
                return [outcome for c in part for outcome in attempt([c])]

        outcomes = attempt(cells)
        seconds = (time.perf_counter() - start) / len(cells)
        return [(outcome, seconds) for outcome in outcomes]

    def _append(self, cell: Cell, outcome: Evaluation | Exception, seconds: float) -> None:
        if isinstance(outcome, Exception):
            self._fail(cell.chain, outcome)
            return
        layers, storage = cell.layers, cell.storage
        record = self._begun(cell.chain) | {
            "status": "ok",
            "error": None,
            "metrics": outcome.metrics,
            "sums": encode_sums(outcome.sums),
            "storage": asdict(storage) | {"layers_ratio": storage.layers_ratio},
            "ratio": storage.ratio,
            "layers": {n: {k: _short(x) for k, x in m.items()} for n, m in layers.items()},
            "achieved_sparsity": self._total(layers, "pruned"),
            "zero_fraction": self._total(layers, "zero"),
            "solver": cell.solver,
            "seconds": {"evaluate": round(seconds, 4)},
        }
        if not cell.chain:
            record["layer_shapes"] = self.opened.network.shapes
            record["clusters"] = self.shared.evaluator.clusters.tolist()
        self.shared.desk.append(record)

    def fail(self, chains: Sequence[Chain], error: Exception) -> None:
        """Record cells that could not be computed."""
        for chain in self.missing(chains):
            self._fail(chain, error)

    def _fail(self, chain: Chain, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        self.shared.desk.append(self._begun(chain) | {"status": "error", "error": told})

    def _begun(self, chain: Chain) -> Record:
        return self.base | {
            "cell": self.cell_id(chain),
            "label": self.label(chain),
            "stages": [to_config(stage) for stage in chain],
        }

    def _total(self, layers: Mapping[str, Mapping[str, float]], what: str) -> float:
        shapes = self.opened.network.shapes
        sizes = {n: shapes[n][0] * shapes[n][1] for n in layers}
        total = sum(sizes.values()) or 1
        return float(sum(layers[n][what] * s for n, s in sizes.items()) / total)


def policy_name(policy: Policy) -> str:
    """What of a policy is not the default."""
    usual = asdict(Policy())
    changed = {k: v for k, v in policy_config(policy).items() if v != usual.get(k)}
    told = {k: "+".join(v) if isinstance(v, list) else v for k, v in changed.items()}
    return ",".join(f"{k}={v}" for k, v in told.items()) or "default"


def _refuse_not_finite(cell: Cell) -> None:
    for name, measured in cell.layers.items():
        wrong = errors.not_finite(measured)
        if wrong:
            raise FloatingPointError(f"layer {name}: {', '.join(wrong)} not finite")


def _short(value: Any) -> float | None:
    """Six significant digits are more than any of these measures is worth."""
    return float(f"{float(value):.6g}")
