"""What has to be set before jax starts its CPU backend, for numbers to be right.

jaxlib 0.10.2 fuses some products with the sums over them, batched over more than 16384 float64 or
32768 float32 rows, into code that is silently wrong on CPUs (jax issue 39103), and the same fusion
has been seen to crash or hang there in 0.10.2 and 0.11.0 (jax issues 39257, 40412). It can be
turned off by a flag. The flag is set for these versions only: XLA refuses flags it does not know.

What only saves time or memory is no library's to choose for a process: command lines call
:func:`compile_quickly` and :func:`give_back`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import MutableMapping
from importlib.metadata import entry_points
from importlib.metadata import version as installed
from importlib.util import find_spec

AFFECTED = ("0.10.2", "0.11.0")  # and known to take the flags below
FLAG = "--xla_cpu_experimental_ynn_fusion_type"
PARTS = "--xla_cpu_parallel_codegen_split_count"
# LLVM's passes, and loops emitted by the older of two ways: it takes both together
QUICK = {"--xla_backend_optimization_level": "1", "--xla_cpu_use_fusion_emitters": "false"}

LARGE = 1 << 26  # bytes of a model
APART = 1 << 20  # bytes of an array
M_MMAP_THRESHOLD = -3  # of malloc.h


def turn_off_broken_fusion(
    version: str | None = None, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Add the flag to XLA_FLAGS unless it is there: in time until the first computation."""
    flags = environ.get("XLA_FLAGS", "")
    if (version or installed("jaxlib")) in AFFECTED and FLAG not in flags:
        environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()


def compile_quickly(
    version: str | None = None,
    environ: MutableMapping[str, str] = os.environ,
    level: int = 1,
    threads: int | None = None,
) -> None:
    """Have XLA's CPU backend optimise less, where there is no other: before the first computation.

    Compiling, which small models spend much of a run on, takes less time and memory; a solver of a
    large layer is a little slower. ``python -m tests.benchmarks.engine`` measures a run. threads:
    so many parts a program is compiled in (XLA's default: 32), which all together cost more than
    the whole: 1 where other processes keep the cores busy.
    Flags that XLA_FLAGS holds already are left as they are.
    """
    flags = environ.get("XLA_FLAGS", "")
    known = (version or installed("jaxlib")) in AFFECTED
    if not known or any(name in flags for name in QUICK) or _accelerated(environ):
        return
    chosen = QUICK | {"--xla_backend_optimization_level": f"{level}"}
    if threads is not None and PARTS not in flags:
        chosen |= {PARTS: f"{threads}"}
    added = " ".join(f"{name}={value}" for name, value in chosen.items())
    environ["XLA_FLAGS"] = f"{flags} {added}".strip()


def for_many_runs(environ: MutableMapping[str, str] = os.environ) -> dict[str, str | bool] | None:
    """``compiler_options`` for jax.jit of a program that runs so often that its speed is worth
    more than its compiling: what :func:`compile_quickly` has turned down; None if it has not."""
    flags = environ.get("XLA_FLAGS", "").split()
    if not all(f"{name}={value}" in flags for name, value in QUICK.items()):
        return None
    return {"xla_backend_optimization_level": "3", "xla_cpu_use_fusion_emitters": True}


def _accelerated(environ: MutableMapping[str, str]) -> bool:
    """Whether jax may find another backend than the CPU's: the level is not the CPU's alone."""
    if environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return bool(entry_points(group="jax_plugins")) or any(
        find_spec(name) is not None for name in ("jax_plugins", "libtpu")
    )


def give_back() -> None:
    """Hand back to the system what has been freed and the C library keeps (glibc, for one), and
    have it give arrays of ``APART`` bytes and more memory of their own from now on.

    For command lines with large models (from ``LARGE`` bytes on). Else arrays of a few MB lie in
    the library's heap, where others that live longer keep the room between them.
    """
    try:
        libc = ctypes.CDLL(None)
        trim, option = libc.malloc_trim, libc.mallopt
    except (AttributeError, OSError, TypeError):  # another C library; no such handle on Windows
        return
    trim(0)
    option(M_MMAP_THRESHOLD, APART)
