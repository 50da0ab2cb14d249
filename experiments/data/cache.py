"""Where computed files are kept.

The folder is ``$PERTURB_CACHE``, else ``$XDG_CACHE_HOME/compression-order``, else
``~/.cache/compression-order``. Everything in it can be deleted: it is computed again.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The cache folder; it is made when something is first written to it."""
    if chosen := os.environ.get("PERTURB_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "compression-order"
