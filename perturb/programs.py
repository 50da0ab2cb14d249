"""Compiled programs are kept between runs: compiling is most of what a small model costs.

It is a call, not done on import: it sets options of jax's that belong to the whole process, and
writes to the user's disk. The command lines make it.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax

OPTION = "jax_compilation_cache_dir"
SECONDS = 0.1  # of compiling, that make a program worth a file


def cache_programs(folder: str | os.PathLike[str] | None = None) -> str | None:
    """Keep the programs that jax compiles from now on in a folder, and take them from there.

    Call it once, before the first computation: ``perturb.cache_programs()``. folder: by default
    what $JAX_COMPILATION_CACHE_DIR or jax's own option says, which is left as it is, else ``xla``
    in $PERTURB_CACHE, in $XDG_CACHE_HOME/compression-order or in ~/.cache/compression-order. It
    may be deleted at any time; programs of other versions and devices have other names in it.
    Returns the folder, None where the variable is empty.
    """
    known = os.environ.get("JAX_COMPILATION_CACHE_DIR", getattr(jax.config, OPTION))
    if folder is None and known is not None:
        return known or None
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = Path(os.environ.get("PERTURB_CACHE") or f"{base}/compression-order") / "xla"
    chosen = str(Path(folder).expanduser())
    jax.config.update(OPTION, chosen)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
    return chosen
