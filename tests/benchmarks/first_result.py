"""How long the families of OBS methods take before their first result, and once compiled.

    python -m tests.benchmarks.first_result [--repeats 5] [--json PATH]

The layers are those of a small ResNet; the families are the four of a study of one pruner and one
quantizer in both orders, every version with inputs of its own. Programs are what XLA compiled for
it (``/jax/core/compile/backend_compile_duration``), not read from a cache.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from perturb import GPTQ, SparseGPT
from perturb.family import run_family
from perturb.state import fresh, stack
from perturb.types import Moments, Problem

SHAPES = ((16, 9), (16, 144), (32, 144), (32, 288), (32, 16), (64, 288), (64, 576), (64, 32))
SHAPES += ((10, 64),)
PRUNERS = [SparseGPT(s) for s in (0.3, 0.4, 0.5, 0.6, 0.7)]
QUANTIZERS = [GPTQ(b) for b in (8, 6, 5, 4, 3, 2)]
jax.config.update("jax_cpu_enable_async_dispatch", False)  # one program at a time, to be timed

KEY = jax.random.key(0)
COMPILED = "/jax/core/compile/backend_compile_duration"


def instances(versions: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Fresh matrices, and problems with shared inputs and with inputs of every version's own."""
    rng = np.random.default_rng(0)
    matrices, shared, own = {}, {}, {}
    for i, (out, n) in enumerate(SHAPES):
        w = jnp.asarray(rng.normal(size=(out, n)), jnp.float32)
        x = rng.normal(size=(2 * n + 16, n)) @ (np.eye(n) + rng.normal(size=(n, n)) / np.sqrt(n))
        gram = (x.T @ x).astype(np.float32)
        matrices[str(i)] = stack((fresh(w),))
        shared[str(i)] = Problem(w, Moments(jnp.asarray(gram), jnp.float32(len(x))))
        grams = np.stack([gram * np.float32(1 + 0.1 * r) for r in range(versions)])
        counts = jnp.full(versions, len(x), jnp.float32)
        own[str(i)] = Problem(w, Moments(jnp.asarray(grams), counts))
    return matrices, shared, own


def versions_of(done: dict[str, Any]) -> dict[str, Any]:
    """Results [1, F, ...] as versions [F, ...], through numpy: no program."""
    return {
        n: jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[0]), r.matrix) for n, r in done.items()
    }


def measure(repeats: int) -> list[dict[str, Any]]:
    events = {"count": 0, "seconds": 0.0}

    def listen(name: str, seconds: float, **_: Any) -> None:
        if name == COMPILED:
            events["count"] += 1
            events["seconds"] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    matrices, shared, after_q = instances(len(QUANTIZERS))
    _, _, after_p = instances(len(PRUNERS))
    rows: list[dict[str, Any]] = []

    def family(label: str, methods: Any, matrices: Any, problems: Any) -> Any:
        jax.block_until_ready((matrices, problems))
        events.update(count=0, seconds=0.0)
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            done = jax.block_until_ready(run_family(methods, matrices, problems, KEY))
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "family": label,
                "programs": events["count"],
                "compile": events["seconds"],
                "first": seconds[0],
                "later": median(seconds[1:]),
            }
        )
        print(rows[-1], flush=True)
        return done

    pruned = versions_of(family("SparseGPT", PRUNERS, matrices, shared))
    quantized = versions_of(family("GPTQ", QUANTIZERS, matrices, shared))
    family("SparseGPT after GPTQ", PRUNERS, quantized, after_q)
    family("GPTQ after SparseGPT", QUANTIZERS, pruned, after_p)
    total = {k: sum(r[k] for r in rows) for k in ("programs", "compile", "first", "later")}
    return [*rows, {"family": "all four", **total}]


def table(rows: list[dict[str, Any]]) -> Table:
    out = Table(title="seconds of a family on the layers of a small ResNet")
    for column in ("family", "programs", "compiling", "first result", "once compiled"):
        out.add_column(column, justify="left" if column == "family" else "right")
    for row in rows:
        seconds = (row["compile"], row["first"], row["later"])
        out.add_row(row["family"], str(row["programs"]), *(f"{s:.3f}" for s in seconds))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.first_result",
        description=__doc__.splitlines()[0],  # type: ignore[union-attr]
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="R")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers there")
    options = parser.parse_args()
    rows = measure(options.repeats)
    Console().print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
