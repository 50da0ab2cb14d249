"""Published checkpoints: what is in their files, read tensor by tensor. No model is built here."""

from perturb.checkpoints.hf import Folder, open_folder
from perturb.checkpoints.stream import Tensor, Tensors, read_header

__all__ = ["Folder", "Tensor", "Tensors", "open_folder", "read_header"]
