"""Our GPTQ and SparseGPT against the same algorithms in plain PyTorch, side by side in one run.

    python -m tests.benchmarks.solvers [--sizes 256 1024 576x1536 4096] [--repeats 5] [--json PATH]

Both start from a weight [out, in] and a gram matrix [in, in] in float32 and end with the compressed
weight, factorisation included; repeats are interleaved, medians reported, compilation apart. A
family is all its members in one call of ours, and the peer called once per member. ``peer/ours``
above 1 means that ours is faster. Needs the extra ``peers`` (torch, CPU). About a minute on two
cores at the default sizes, three times that on busy ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from perturb import GPTQ, SparseGPT
from perturb.state import fresh
from perturb.types import Moments, Problem

from . import torch_peers

BITS = (8, 6, 5, 4, 3, 2)
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7)
FAMILIES_TO = 2048  # columns: above, a family takes minutes a repeat
KEY = jax.random.key(0)
DEFAULT = [(256, 256), (1024, 1024), (2048, 2048)]


@jax.jit
def solve(method: Any, weight: jax.Array, gram: jax.Array, count: jax.Array) -> jax.Array:
    return method(fresh(weight), Problem(weight, Moments(gram, count)), KEY).matrix.weight


solve_family = jax.jit(jax.vmap(solve, (0, None, None, None)))


Size = tuple[int, int]  # rows, columns


def size_of(text: str) -> Size:
    """ "1024" or "576x1536"."""
    out, _, n = text.partition("x")
    return int(out), int(n or out)


def told(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def instance(size: Size) -> tuple[np.ndarray, np.ndarray, float]:
    """Normal weights; inputs with unequal variances and mild correlations."""
    out, n = size
    rng = np.random.default_rng(n)
    mixing = np.eye(n) + rng.normal(size=(n, n)) / np.sqrt(n)
    x = rng.normal(size=(2 * n, n)) @ mixing * np.exp(0.3 * rng.normal(size=n))
    return rng.normal(size=(out, n)).astype(np.float32), (x.T @ x).astype(np.float32), 2.0 * n


def rivals(size: Size) -> list[tuple[str, dict[str, Callable[[], Any]]]]:
    """Contest -> contender -> what to time; ours first."""
    w, gram, count = instance(size)
    ours_args = (jnp.asarray(w), jnp.asarray(gram), jnp.float32(count))
    W, H = torch.from_numpy(w), torch.from_numpy(gram * np.float32(2 / count))

    def ours(methods: Sequence[Any]) -> Callable[[], Any]:
        if len(methods) == 1:
            return lambda: jax.block_until_ready(solve(methods[0], *ours_args))
        family = jax.tree.map(lambda *v: jnp.stack([jnp.asarray(x) for x in v]), *methods)
        return lambda: jax.block_until_ready(solve_family(family, *ours_args))

    def gptq(bits: Sequence[int]) -> dict[str, Callable[[], Any]]:
        return {
            "ours": ours([GPTQ(b) for b in bits]),
            "torch": lambda: [torch_peers.gptq(W, H, b) for b in bits][-1],
        }

    def sparsegpt(ratios: Sequence[float]) -> dict[str, Callable[[], Any]]:
        return {
            "ours": ours([SparseGPT(s) for s in ratios]),
            "torch": lambda: [torch_peers.sparsegpt(W, H, s) for s in ratios][-1],
            "torch, kthvalue": lambda: [
                torch_peers.sparsegpt(W, H, s, select="kthvalue") for s in ratios
            ][-1],
        }

    single = [("GPTQ 4 bit", gptq([4])), ("SparseGPT 50 %", sparsegpt([0.5]))]
    if max(size) > FAMILIES_TO:
        return single
    return [
        *single,
        (f"GPTQ, {len(BITS)} widths", gptq(BITS)),
        (f"SparseGPT, {len(SPARSITIES)} ratios", sparsegpt(SPARSITIES)),
    ]


def clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(size: Size, repeats: int) -> list[dict[str, Any]]:
    """One row a contest: median seconds of each contender, and the ratios."""
    rows = []
    for contest, contenders in rivals(size):
        first = {name: clock(run) for name, run in contenders.items()}  # compiles; warms up
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, run in contenders.items():
                seconds[name].append(clock(run))
        medians = {name: median(s) for name, s in seconds.items()}
        rows.append(
            {
                "size": told(size),
                "contest": contest,
                "compile": max(0.0, first["ours"] - medians["ours"]),
                "seconds": medians,
                "spread": {name: [min(s), max(s)] for name, s in seconds.items()},
                "ratio": {
                    name: m / medians["ours"] for name, m in medians.items() if name != "ours"
                },
            }
        )
    return rows


def agree(size: Size) -> dict[str, float]:
    """Output error of ours relative to the peer's: a fast wrong answer is no answer."""
    w, gram, count = instance(size)
    args = (jnp.asarray(w), jnp.asarray(gram), jnp.float32(count))
    W, H = torch.from_numpy(w), torch.from_numpy(gram * np.float32(2 / count))
    pairs = {
        "gptq": (solve(GPTQ(4), *args), torch_peers.gptq(W, H, 4)),
        "sparsegpt": (solve(SparseGPT(0.5), *args), torch_peers.sparsegpt(W, H, 0.5)),
    }

    def loss(q: Any) -> float:
        d = np.asarray(q, np.float64) - w
        return float(np.sum((d @ gram) * d))

    return {name: loss(a) / loss(b.numpy()) for name, (a, b) in pairs.items()}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    out = Table(title="weight and gram to compressed weight, medians (ms); peer / ours")
    for column in ("size", "contest", "ours", "torch", "kthvalue", "compile s", "ratio", "kthv."):
        out.add_column(column, justify="left" if column == "contest" else "right")
    last = {row["size"]: row for row in rows}
    for row in rows:
        s, r, k = row["seconds"], row["ratio"], "torch, kthvalue"
        aim = 3.0 if "," in row["contest"] else 1.3
        cells = [str(row["size"]), row["contest"], f"{1e3 * s['ours']:.1f}"]
        cells += [f"{1e3 * s['torch']:.1f}", f"{1e3 * s[k]:.1f}" if k in s else ""]
        cells += [f"{row['compile']:.1f}"]
        for name in ("torch", k):
            style = "green" if r.get(name, 0) >= aim else "red"
            cells.append(f"[{style}]{r[name]:.2f}[/]" if name in r else "")
        out.add_row(*cells, end_section=row is last[row["size"]])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.solvers",
        description=__doc__.splitlines()[0],  # type: ignore[union-attr]
    )
    parser.add_argument("--sizes", type=size_of, nargs="+", default=DEFAULT, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="R")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers there")
    options = parser.parse_args()
    console = Console()
    setting = {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load_before": os.getloadavg()[0],
        "repeats": options.repeats,
    }
    console.print(setting)
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        with console.status(f"size {told(size)}"):
            rows += measure(size, options.repeats)
    quality = agree(min(options.sizes))
    console.print(table(rows))
    console.print(
        f"output error, ours / torch at {told(min(options.sizes))}: "
        + ", ".join(f"{k} {v:.4f}" for k, v in quality.items())
    )
    if options.json is not None:
        report = {"setting": setting | {"load_after": os.getloadavg()[0]}, "rows": rows}
        options.json.write_text(json.dumps(report | {"agreement": quality}, indent=1))


if __name__ == "__main__":
    main()
