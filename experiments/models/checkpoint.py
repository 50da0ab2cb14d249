"""A model's weights in one safetensors file, with what is known about them in its header.

One file and not two, so that weights and metadata cannot come apart; written atomically; and
its weights' hash is checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save

from experiments.models.presets import Preset
from perturb.files import write_atomic


class CorruptCheckpoint(Exception):
    """The file exists but is not what was written."""


def tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """Every array of the model by its path, ``layers.0.self_attn.q_proj.kernel`` for one."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def weights_hash(weights: dict[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(path: Path, model: nnx.Module, metadata: dict[str, Any]) -> None:
    """``metadata`` holds plain JSON values."""
    weights = tensors(model)
    header = {"hash": weights_hash(weights), "metadata": json.dumps(metadata)}
    write_atomic(path, save(weights, header))


def read(path: Path, preset: Preset) -> tuple[nnx.Module, dict[str, Any]] | None:
    """The model and its metadata; None without a file; CorruptCheckpoint if it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(header["metadata"])
        intact = header["hash"] == weights_hash(weights)
    except Exception as error:  # safetensors, JSON, missing keys: all mean one thing here
        raise CorruptCheckpoint(f"{path}: {error}") from error
    if not intact:
        raise CorruptCheckpoint(f"{path}: the weights do not have the hash written with them")
    return restore(preset, weights), metadata


def restore(preset: Preset, weights: dict[str, np.ndarray]) -> nnx.Module:
    """The preset's model with these weights, in evaluation mode; nothing is initialised."""
    graph, state = nnx.split(nnx.eval_shape(lambda: preset.build(nnx.Rngs(0))))
    flat = nnx.to_flat_state(state)
    names = {".".join(map(str, path)): leaf for path, leaf in flat}
    if names.keys() != weights.keys():
        odd = sorted(names.keys() ^ weights.keys())
        raise CorruptCheckpoint(f"{preset.name}: tensors that do not match the model: {odd[:3]}")
    for name, leaf in names.items():
        if leaf.shape != weights[name].shape:
            raise CorruptCheckpoint(
                f"{preset.name}: {name} has shape {weights[name].shape}, expected {leaf.shape}"
            )
        leaf.set_value(jnp.asarray(weights[name]))
    model = nnx.merge(graph, state)
    model.eval()
    return model
