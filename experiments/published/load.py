"""From a folder to a model: which family it is of, its weights, a line that describes it.

model, tokenizer, description = load("SmolLM2-135M")
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flax import nnx

from experiments.published import gpt2, llama, mobilenet, resnet, vit
from experiments.published.fill import Plan, filled
from experiments.published.keys import Keys
from perturb.checkpoints import Folder, open_checkpoint

# The class that a config.json names -> what plans its loading: (folder, keys, class, dtype)
FAMILIES: dict[str, Callable[[Folder, Keys, str, str], Plan]] = {
    "LlamaForCausalLM": llama.plan,
    "MistralForCausalLM": llama.plan,
    "Qwen2ForCausalLM": llama.plan,
    "Qwen3ForCausalLM": llama.plan,
    "GPT2LMHeadModel": gpt2.plan,
    "ViTForImageClassification": vit.plan,
    vit.DISTILLED: vit.plan,
    "ResNetForImageClassification": resnet.plan,
    "MobileNetV2ForImageClassification": mobilenet.v2,
    mobilenet.LITE_NAME: mobilenet.lite,
}
DTYPES = ("float32", "bfloat16", "float16")


class Published(NamedTuple):
    """A loaded checkpoint: the model in evaluation mode, the file of its tokenizer, if it has one,
    and a line that says what it is."""

    model: nnx.Module
    tokenizer: Path | None
    description: str


def load(path: str | Path, *, dtype: str = "float32") -> Published:
    """The model of a Hugging Face folder: config.json and safetensors, in shards or not.

    dtype: of the computation; parameters are float32. Tensors are read one after another, so that
    memory is the model's and one tensor's. Raises ValueError, in one line and before memory is
    taken, for a config that asks for what we do not compute, and for a tensor that is missing, has
    another shape, is cut off or has no place.
    """
    folder = open_checkpoint(path)
    plan = plan_of(folder, dtype)
    model = filled(folder, plan)
    size = sum(math.prod(t.shape) for t in folder.tensors.values())
    told = [f"{folder.path.resolve().name}: {kind_of(folder)}, {size:,} parameters"]
    told += [f"stored as {folder.tensors.stored}, computed in {dtype}", *plan.notes]
    return Published(model, folder.tokenizer, ", ".join(told))


def plan_of(folder: Folder, dtype: str = "float32") -> Plan:
    """How a folder's checkpoint is loaded. Raises ValueError for one that cannot be."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    keys, kind = Keys(str(folder.said_in), folder.config), kind_of(folder)
    if kind not in FAMILIES:
        raise ValueError(
            f"{keys.where}: architectures = {kind!r} is not supported: only {', '.join(FAMILIES)}"
        )
    if keys.get("quantization_config") is not None:
        raise ValueError(
            f"{keys.where}: quantization_config: the checkpoint is quantized already; give one "
            "in full precision"
        )
    return FAMILIES[kind](folder, keys, kind, dtype)


def kind_of(folder: Folder) -> str:
    """The class of the checkpoint; "" where its config does not say."""
    named = folder.config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""
