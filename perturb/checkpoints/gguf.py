"""GGUF files of the Llama family, read as the Hugging Face folder they were made from.

folder = open_gguf(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
folder.config["num_hidden_layers"], folder.tensors["model.norm.weight"].read()

Weights in blocks (Q8_0, Q4_0, Q4_1, Q4_K, Q6_K and the other types of the package ``gguf``) become
float32, tensor by tensor; the file is mapped, not read. Its format, and the names of its keys:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from perturb.checkpoints.hf import TOKENIZER, Folder
from perturb.checkpoints.stream import Tensor, Tensors
from perturb.extras import how_to_install

SUFFIX = ".gguf"
# Architectures, the class that its config.json would name, and whether the rows of queries and keys
# are stored in the order of interleaved rotary pairs (2 i, 2 i + 1), instead of (i, i + D / 2).
FAMILIES = {
    "llama": ("LlamaForCausalLM", True),
    "qwen2": ("Qwen2ForCausalLM", False),
    "qwen3": ("Qwen3ForCausalLM", False),
}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by, of Llama 3.1 and later
POSITIONS = 8192  # that Llama 3 was trained on
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": POSITIONS}


@dataclass(frozen=True)
class Block(Tensor):
    """A tensor of a GGUF file; ``heads``: of rotary rows to be put back, 0 for others."""

    heads: int = 0

    @property
    def floating(self) -> bool:
        return self.stored not in ("I8", "I16", "I32", "I64")

    def read(self) -> np.ndarray:
        """Its values as float32 in a new array [out, in]."""
        gguf = _package(self.file)
        held = next(t for t in _reader(self.file).tensors if t.data_offset == self.start)
        try:
            values = np.array(gguf.dequantize(held.data, held.tensor_type), np.float32)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.file}: {self.name} is stored as {self.stored}, which gguf cannot read"
            ) from error
        values = values.reshape(self.shape)
        if self.heads:
            pairs = values.reshape(self.heads, -1, 2, *self.shape[1:])
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(self.shape)
        return values


def is_gguf(path: str | Path) -> bool:
    """Whether there is a file of that name, which says that it is one."""
    return str(path).endswith(SUFFIX) and Path(path).is_file()


def open_gguf(path: str | Path) -> Folder:
    """Everything but the weights. The tokenizer is a tokenizer.json beside the file, or else the
    file's own vocabulary.

    Raises ValueError, in one line, for what is missing, damaged, or of an architecture that we do
    not know.
    """
    path = Path(path)
    said = metadata(path)
    kind = said.get("general.architecture")
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{path}: general.architecture = {kind!r}: only {known} can be read")
    name, interleaved = FAMILIES[kind]
    config = _config(path, kind, name, said)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, Tensor] = {}
    for held in _reader(path).tensors:
        if held.name == FACTORS:
            continue
        part = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", held.name)
        ours = held.name
        if part and part[2] in NAMES:
            layer = f"model.layers.{part[1]}." if part[1] else ""
            ours = f"{layer}{NAMES[part[2]]}.{part[3]}"
        shape = tuple(int(n) for n in reversed(held.shape))
        rotary = heads.get(part[2], 0) if part and interleaved else 0
        stored = held.tensor_type.name
        tensors[ours] = Block(ours, path, stored, shape, int(held.data_offset), rotary)
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    config["attention_bias"] = "model.layers.0.self_attn.o_proj.bias" in tensors
    beside = path.parent / TOKENIZER
    return Folder(path, config, Tensors(tensors), beside if beside.is_file() else path)


def metadata(path: Path) -> dict[str, Any]:
    """All keys of a file with their values; arrays as lists."""
    return _held_metadata(path, *_stamp(path))


def _config(path: Path, kind: str, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json. Raises ValueError for one that is missing."""

    def get(key: str, default: Any = None) -> Any:
        value = said.get(f"{kind}.{key}", default)
        if value is None:
            raise ValueError(f"{path}: {kind}.{key} is missing from its metadata")
        return value

    heads = get("attention.head_count")
    hidden = get("embedding_length")
    config = {
        "architectures": [name],
        "vocab_size": said.get(f"{kind}.vocab_size", len(said.get("tokenizer.ggml.tokens", ()))),
        "hidden_size": hidden,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", hidden // heads),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10_000.0),
        "max_position_embeddings": get("context_length"),
    }
    turned = get("rope.dimension_count", config["head_dim"])
    config["partial_rotary_factor"] = turned / config["head_dim"]
    if f"{kind}.attention.sliding_window" in said:
        raise ValueError(
            f"{path}: {kind}.attention.sliding_window: only attention to all positions is supported"
        )
    scaling = get("rope.scaling.type", "none")
    if scaling != "none":
        factor = get("rope.scaling.factor")
        config["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    elif any(t.name == FACTORS for t in _reader(path).tensors):
        config["rope_scaling"] = _llama3(path, config["head_dim"], config["rope_theta"])
    return config


def _llama3(path: Path, size: int, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, of which the file keeps the outcome only: the largest divisor is its
    factor. Raises ValueError for divisors that it does not give."""
    held = next(t for t in _reader(path).tensors if t.name == FACTORS)
    divisors = np.array(held.data, np.float64).ravel()
    factor = float(divisors.max())
    turns = POSITIONS / (2 * math.pi) * theta ** (-np.arange(0, size, 2) / size)
    smooth = np.clip((turns - 1.0) / (4.0 - 1.0), 0, 1)
    if len(divisors) != len(turns) or not np.allclose(
        1 / divisors, smooth + (1 - smooth) / factor, rtol=1e-4
    ):
        raise ValueError(f"{path}: {FACTORS}: only Llama 3's scaling of frequencies is supported")
    return LLAMA3 | {"factor": factor}


def _package(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"{path}: to read it takes the package gguf: {how_to_install('gguf', 'hub')}"
        ) from error
    return gguf


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    return found.st_size, found.st_mtime_ns


def _reader(path: Path) -> Any:
    return _held_reader(path, *_stamp(path))


@lru_cache(maxsize=2)  # to parse a vocabulary takes seconds
def _held_reader(path: Path, size: int, changed: int) -> Any:
    gguf = _package(path)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the library raises what its slices and reshapes do
        raise ValueError(
            f"{path}: is no whole GGUF file of {size} bytes ({error}): download it again"
        ) from error


@lru_cache(maxsize=2)
def _held_metadata(path: Path, size: int, changed: int) -> dict[str, Any]:
    return {name: field.contents() for name, field in _reader(path).fields.items()}
