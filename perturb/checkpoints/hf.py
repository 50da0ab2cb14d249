"""Folders as Hugging Face lays them out: config.json, safetensors in one file or in shards.

folder = open_folder(Path("SmolLM2-135M"))
folder.config["architectures"], folder.tensors["model.norm.weight"].read()
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturb.checkpoints.stream import Tensor, Tensors, as_object, read_header

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
PICKLES = (".bin", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True)
class Folder:
    """A checkpoint: what its config says, where its tensors are, its tokenizer's file if any.

    path: of the folder, or of the one file that says all of this.
    """

    path: Path
    config: dict[str, Any]
    tensors: Tensors
    tokenizer: Path | None

    @property
    def said_in(self) -> Path:
        """The file of the config."""
        return self.path / CONFIG if self.path.is_dir() else self.path


def open_folder(path: str | Path) -> Folder:
    """Everything but the data. Raises ValueError, in one line, for what is missing or damaged."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(
            f"{path}: there is no such folder (with {CONFIG} and {WEIGHTS}), and no such .gguf file"
        )
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path}: has no {CONFIG}: give the folder of a Hugging Face checkpoint")
    config = as_object(path / CONFIG)
    tokenizer = path / TOKENIZER
    found = tokenizer if tokenizer.is_file() else None
    return Folder(path, config, _tensors(path), found)


def _tensors(path: Path) -> Tensors:
    if (path / INDEX).is_file():
        return _sharded(path / INDEX)
    if (path / WEIGHTS).is_file():
        return Tensors(read_header(path / WEIGHTS))
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{path}: {pickles[0]} is a pickle, which can run code when it is read: convert it to "
            "safetensors (model.save_pretrained(FOLDER) with transformers)"
        )
    raise ValueError(f"{path}: has neither {WEIGHTS} nor {INDEX}: download the weights")


def _sharded(index: Path) -> Tensors:
    where = as_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise ValueError(f"{index}: must have a weight_map, tensor -> file")
    held: dict[str, Tensor] = {}
    for name in dict.fromkeys(where.values()):
        shard = index.parent / name
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {name!r} is no safetensors file of this folder")
        if not shard.is_file():
            raise ValueError(f"{index.parent}: the shard {name} is missing: download it")
        inside = read_header(shard)
        twice = next((t for t in inside if t in held), None)
        if twice is not None:
            raise ValueError(f"{shard}: {twice} is in {held[twice].file.name}, too")
        absent = next((t for t, file in where.items() if file == name and t not in inside), None)
        if absent is not None:
            raise ValueError(f"{shard}: {absent} is missing, which {index.name} says is here")
        held |= inside
    unlisted = next((t for t in held if t not in where), None)
    if unlisted is not None:
        raise ValueError(f"{held[unlisted].file}: {unlisted} is not in {index.name}")
    return Tensors(held)
