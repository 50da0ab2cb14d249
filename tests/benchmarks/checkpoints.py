"""A published checkpoint: memory to load it, and evaluation against the machine's products.

    python -m tests.benchmarks.checkpoints MODEL --text FILE [--json PATH]

Each is measured in a process of its own. ``load``: peak memory above what Python and jax take, over
the parameters' float32 bytes (1 is the least). ``evaluate``: the arithmetic of a forward pass a
second, 2 operations a parameter of a matrix and token, over that of a product of 2048 x 2048
matrices, interleaved; attention and the losses cost time and count for nothing. ``compress`` and
``sequential``: half of the weights pruned by SparseGPT, all layers at once or block by block: the
memory that takes beyond loading, over the model's size.

The README shows --json figures/records/checkpoints.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from perturb.policy import Calibrate

REPEATS = 5
SIDE = 2048
PRODUCTS = 16  # in a row: one alone, right after a model has run, is slower


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load(model: str, text: Path) -> dict[str, Any]:
    """Peak memory of loading, over the model's size."""
    import jax
    from flax import nnx

    from experiments.published import load as loaded

    jax.block_until_ready(jax.numpy.zeros(1))
    before, start = peak(), time.perf_counter()
    held = loaded(model)
    seconds = time.perf_counter() - start
    size = sum(a.size for a in jax.tree.leaves(nnx.state(held.model))) * 4
    return {
        "model": held.description,
        "bytes": size,
        "peak over size": (peak() - before) / size,
        "seconds": seconds,
    }


def evaluate(model: str, text: Path) -> dict[str, Any]:
    """Of a forward pass: tokens a second, and its arithmetic over that of a bare product."""
    import jax
    import numpy as np
    from flax import nnx

    from experiments.published.task import task_of
    from experiments.study import Checkpoint

    task, _ = task_of(Checkpoint(model, str(text), window=128, tests=16))
    tokens = jax.numpy.asarray(task.test.inputs)
    matrices = sum(a.size for a in jax.tree.leaves(nnx.state(task.model)) if a.ndim == 2)
    square = jax.numpy.asarray(np.random.default_rng(0).normal(size=(SIDE, SIDE)), "float32")
    forward = nnx.jit(lambda m, x: m(x))
    product = jax.jit(lambda a: a @ a)
    ours, bare = [], []
    for _ in range(REPEATS + 1):  # the first compiles
        for run, spent in (
            (lambda: forward(task.model, tokens), ours),
            (lambda: [product(square) for _ in range(PRODUCTS)], bare),
        ):
            start = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(time.perf_counter() - start)
    one, other = median(ours[1:]), median(bare[1:])
    work, least = 2 * matrices * tokens.size / one, 2 * PRODUCTS * SIDE**3 / other
    return {
        "tokens a second": tokens.size / one,
        "GFLOP/s": work / 1e9,
        "product GFLOP/s": least / 1e9,
        "ratio": work / least,
        "product side": SIDE,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def compressed(calibrate: Calibrate, model: str, text: Path) -> dict[str, Any]:
    """Peak memory of compressing, above that of loading, over the model's size."""
    import jax
    from flax import nnx

    from experiments.published.task import task_of
    from experiments.study import Checkpoint
    from perturb import SparseGPT, compress
    from perturb.backend import give_back

    task, _ = task_of(Checkpoint(model, str(text), window=128, tests=16))
    size = sum(a.size for a in jax.tree.leaves(nnx.state(task.model))) * 4
    give_back()  # as the command lines do
    before, start = peak(), time.perf_counter()
    found = compress(task.model, SparseGPT(0.5), task.calibration, calibrate=calibrate)
    jax.block_until_ready(jax.tree.leaves(nnx.state(found.model)))
    return {
        "peak over size": (peak() - before) / size,
        "seconds": time.perf_counter() - start,
        "tokens": sum(batch.size for batch in task.calibration),
    }


PARTS: dict[str, Callable[[str, Path], dict[str, Any]]] = {
    "load": load,
    "evaluate": evaluate,
    "compress": partial(compressed, "recalibrate"),
    "sequential": partial(compressed, "sequential"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(PARTS[given.part](given.model, given.text)))
        return
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    found: dict[str, Any] = {"name": Path(given.model).name, "machine": machine}
    for part in PARTS:
        command = [sys.executable, "-m", __spec__.name, given.model, "--text", str(given.text)]
        told = subprocess.run(
            [*command, "--part", part], check=True, capture_output=True, text=True
        ).stdout
        found[part] = json.loads(told.splitlines()[-1])
        for name, value in found[part].items():
            print(f"{part:11} {name:18} {value if isinstance(value, str) else f'{value:.4g}'}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
