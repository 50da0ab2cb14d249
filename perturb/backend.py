"""What has to be set before jax starts its CPU backend, for numbers to be right.

jaxlib 0.10.2 fuses some products with the sums over them, batched over more than 16384 float64 or
32768 float32 rows, into code that is silently wrong on CPUs (jax issue 39103), and the same fusion
has been seen to crash or hang there in 0.10.2 and 0.11.0 (jax issues 39257, 40412). It can be
turned off by a flag. The flag is set for these versions only: XLA refuses flags it does not know.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import version as installed

AFFECTED = ("0.10.2", "0.11.0")
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


def turn_off_broken_fusion(
    version: str | None = None, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Add the flag to XLA_FLAGS unless it is there: in time until the first computation."""
    flags = environ.get("XLA_FLAGS", "")
    if (version or installed("jaxlib")) in AFFECTED and FLAG not in flags:
        environ["XLA_FLAGS"] = f"{flags} {FLAG}=".strip()
