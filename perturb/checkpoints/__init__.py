"""Published checkpoints: what is in their files, read tensor by tensor. No model is built here."""

from __future__ import annotations

from pathlib import Path

from perturb.checkpoints.gguf import is_gguf, open_gguf
from perturb.checkpoints.hf import Folder, open_folder
from perturb.checkpoints.stream import Tensor, Tensors, read_header

__all__ = ["Folder", "Tensor", "Tensors", "is_checkpoint", "open_checkpoint", "read_header"]


def is_checkpoint(path: str | Path) -> bool:
    """Whether a name can be that of a checkpoint: a folder, or a GGUF file."""
    return Path(path).is_dir() or is_gguf(path)


def open_checkpoint(path: str | Path) -> Folder:
    """A Hugging Face folder or a GGUF file, everything but the data.

    Raises ValueError, in one line, for what is missing or damaged.
    """
    return open_gguf(path) if is_gguf(path) else open_folder(path)
