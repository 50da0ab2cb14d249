"""Checkpoints that transformers itself wrote, loaded by us: the same logits, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.published import load
from perturb.checkpoints.hf import INDEX

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, a key head a query head": ("Llama", {"num_key_value_heads": 4}),
    "llama with biases": ("Llama", {"attention_bias": True}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA3}),
    "llama, linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, a window that matters": ("Mistral", {"sliding_window": 7, "head_dim": 10}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 10}),
    "qwen3 with biases": ("Qwen3", {"head_dim": 10, "attention_bias": True}),
}


def written(folder: Path, name: str, settings: dict[str, Any], **how: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **settings})
    made = drawn(getattr(transformers, f"{name}ForCausalLM")(config))
    made.save_pretrained(folder, **how)
    return made


def drawn(model: Any) -> Any:
    """With norms and biases that are not the ones and zeros they start as."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            about = 1.0 if "norm" in name or "ln_" in name else 0.0
            tensor.copy_(about * name.endswith("weight") + 0.2 * noise)
    return model.eval()


def agrees(model: Any, folder: Path, inputs: np.ndarray, theirs: Any) -> None:
    with torch.no_grad():
        wanted = model(torch.tensor(theirs)).logits.numpy()
    ours, _, _ = load(folder)
    got = np.asarray(nnx.jit(lambda m, x: m(x))(ours, jnp.asarray(inputs)))
    assert np.abs(wanted).max() > 0.5, "logits too small to tell anything"
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


def tokens(length: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, SMALL["vocab_size"], (2, length))


@pytest.mark.parametrize("case", TEXTS)
def test_texts(case: str, tmp_path: Path) -> None:
    name, settings = TEXTS[case]
    model = written(tmp_path, name, settings)
    agrees(model, tmp_path, tokens(), tokens())


def test_shards_and_half_precision(tmp_path: Path) -> None:
    """bfloat16 in the file: our float32 computation is theirs of the same rounded weights."""
    model = written(tmp_path / "whole", "Llama", {}).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half", max_shard_size="5KB")
    assert len(set(json.loads((tmp_path / "half" / INDEX).read_text())["weight_map"].values())) > 2
    _, _, told = load(tmp_path / "half")
    assert "stored as BF16, computed in float32" in told
    model.half().save_pretrained(tmp_path / "fp16")
    for folder in ("half", "fp16"):  # as it reads them: a model turned has lost its rope's angles
        read = transformers.LlamaForCausalLM.from_pretrained(
            tmp_path / folder, dtype=torch.float32, attn_implementation="eager"
        )
        agrees(read.eval(), tmp_path / folder, tokens(), tokens())


def test_the_keys_of_older_configs(tmp_path: Path) -> None:
    """rope_theta and rope_scaling stood at the top, the type was called ``type``."""
    model = written(tmp_path, "Llama", {"rope_parameters": LLAMA3})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta")}
    config |= {"rope_scaling": {"type": scaling.pop("rope_type"), **scaling}}
    path.write_text(json.dumps(config))
    agrees(model, tmp_path, tokens(), tokens())


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_gpt2(tmp_path: Path, activation: str) -> None:
    config = transformers.GPT2Config(
        vocab_size=50,
        n_positions=64,
        n_embd=24,
        n_layer=2,
        n_head=4,
        activation_function=activation,
        attn_implementation="eager",
    )
    model = drawn(transformers.GPT2LMHeadModel(config))
    model.save_pretrained(tmp_path)
    agrees(model, tmp_path, tokens(), tokens())


def images(size: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, H, W, C] and, for them, [N, C, H, W]."""
    ours = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    return ours, np.ascontiguousarray(ours.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ViT", "ForImageClassification"), ("DeiT", "ForImageClassificationWithTeacher")],
)
def test_vit(tmp_path: Path, name: str, kind: str) -> None:
    config = getattr(transformers, f"{name}Config")(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        image_size=16,
        patch_size=4,
        num_labels=7,
        attn_implementation="eager",
    )
    model = drawn(getattr(transformers, f"{name}{kind}")(config))
    model.save_pretrained(tmp_path)
    ours, theirs = images(16)
    agrees(model, tmp_path, ours, theirs)


def test_resnet(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[2, 1], layer_type="basic", num_labels=5
    )
    model = drawn(transformers.ResNetForImageClassification(config))
    with torch.no_grad():
        for name, statistic in model.named_buffers():
            if statistic.is_floating_point():
                statistic.copy_(torch.rand(statistic.shape) + ("var" in name))
    model.save_pretrained(tmp_path)
    ours, theirs = images(32)
    agrees(model, tmp_path, ours, theirs)
