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
    model = with_statistics(drawn(transformers.ResNetForImageClassification(config)))
    model.save_pretrained(tmp_path)
    ours, theirs = images(32)
    agrees(model, tmp_path, ours, theirs)


def with_statistics(model: Any) -> Any:
    """Running statistics of batch norms that are not the zeros and ones they start as."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, statistic in model.named_buffers():
            if statistic.is_floating_point():
                statistic.copy_(torch.rand(statistic.shape, generator=generator) + ("var" in name))
    return model


@pytest.mark.parametrize("first", [False, True])
def test_resnet_of_bottlenecks(tmp_path: Path, first: bool) -> None:
    config = transformers.ResNetConfig(
        embedding_size=6,
        hidden_sizes=[8, 12],
        depths=[2, 2],
        layer_type="bottleneck",
        downsample_in_bottleneck=first,
        num_labels=5,
    )
    model = with_statistics(drawn(transformers.ResNetForImageClassification(config)))
    model.save_pretrained(tmp_path)
    ours, theirs = images(36)
    agrees(model, tmp_path, ours, theirs)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 64),
        ({}, 45),  # an odd size: SAME pads both sides alike
        ({"tf_padding": False, "depth_multiplier": 0.5}, 64),
        ({"output_stride": 8, "finegrained_output": False, "depth_multiplier": 0.35}, 48),
        ({"expand_ratio": 1.0, "depth_divisible_by": 4, "min_depth": 12}, 32),
    ],
)
def test_mobilenet_v2(tmp_path: Path, settings: dict[str, Any], size: int) -> None:
    config = transformers.MobileNetV2Config(
        **{"depth_multiplier": 0.25, "num_labels": 5, **settings}
    )
    model = with_statistics(drawn(transformers.MobileNetV2ForImageClassification(config)))
    with torch.no_grad():  # 52 layers of small weights leave nothing of an image
        for name, tensor in model.named_parameters():
            if name.endswith("convolution.weight"):
                tensor.mul_(5 / tensor[0].numel() ** 0.5)
    model.save_pretrained(tmp_path)
    ours, theirs = images(size)
    agrees(model, tmp_path, ours, theirs)


# ---------------------------------------------------------------- EfficientNet-lite, no library's


def lite_forward(held: dict[str, Any], x: Any, variant: tuple[Any, ...]) -> Any:
    """The net again, of torch's functions and the published table; x [N, C, H, W].

    variant: (kernel, stride) of each block, which a state dict does not say.
    """
    f = torch.nn.functional

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        w = held[f"{name}.weight"]
        size = w.shape[-1]
        pads = []
        for n in (x.shape[-1], x.shape[-2]):
            total = max((-(-n // stride) - 1) * stride + size - n, 0)
            pads += [total // 2, total - total // 2]
        return f.conv2d(f.pad(x, pads), w, stride=stride, groups=x.shape[1] // w.shape[1])

    def norm(x: Any, name: str) -> Any:
        keys = ("running_mean", "running_var", "weight", "bias")
        return f.batch_norm(x, *(held[f"{name}.{k}"] for k in keys), eps=1e-3)

    x = f.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    for i, (kernel, stride) in enumerate(variant):
        y, at = x, f"_blocks.{i}"
        if f"{at}._expand_conv.weight" in held:
            y = f.relu6(norm(conv(y, f"{at}._expand_conv"), f"{at}._bn0"))
        assert held[f"{at}._depthwise_conv.weight"].shape[-1] == kernel
        y = f.relu6(norm(conv(y, f"{at}._depthwise_conv", stride), f"{at}._bn1"))
        y = norm(conv(y, f"{at}._project_conv"), f"{at}._bn2")
        x = x + y if y.shape == x.shape else y
    x = f.relu6(norm(conv(x, "_conv_head"), "_bn1")).mean((2, 3))
    return f.linear(x, held["_fc.weight"], held["_fc.bias"])


LITE0 = ((3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (3, 2), (3, 1), (3, 1), (5, 1), (5, 1), (5, 1))
LITE0 += ((5, 2), (5, 1), (5, 1), (5, 1), (3, 1))


def lite0() -> dict[str, Any]:
    """Random weights by the names of the published file."""
    widths = (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320)
    shapes: dict[str, tuple[int, ...]] = {"_conv_stem": (32, 3, 3, 3), "_bn0": (32,)}
    inputs = 32
    for i, ((kernel, _), width) in enumerate(zip(LITE0, widths, strict=True)):
        at, inner = f"_blocks.{i}", inputs if i == 0 else 6 * inputs
        if i:
            shapes |= {f"{at}._expand_conv": (inner, inputs, 1, 1), f"{at}._bn0": (inner,)}
        shapes |= {f"{at}._depthwise_conv": (inner, 1, kernel, kernel), f"{at}._bn1": (inner,)}
        shapes |= {f"{at}._project_conv": (width, inner, 1, 1), f"{at}._bn2": (width,)}
        inputs = width
    shapes |= {"_conv_head": (1280, 320, 1, 1), "_bn1": (1280,), "_fc": (7, 1280)}
    g = torch.Generator().manual_seed(0)
    held: dict[str, Any] = {"_fc.bias": torch.randn(7, generator=g)}
    for name, shape in shapes.items():
        if len(shape) == 1:
            held[f"{name}.weight"] = 1 + 0.2 * torch.randn(shape, generator=g)
            held[f"{name}.bias"] = 0.2 * torch.randn(shape, generator=g)
            held[f"{name}.running_mean"] = 0.1 * torch.randn(shape, generator=g)
            held[f"{name}.running_var"] = 0.5 + torch.rand(shape, generator=g)
            held[f"{name}.num_batches_tracked"] = torch.tensor(3)
        else:
            fan = int(np.prod(shape[1:]))
            held[f"{name}.weight"] = torch.randn(shape, generator=g) * (2 / fan) ** 0.5
    return held


def test_efficientnet_lite_converted_from_a_state_dict(tmp_path: Path, capsys: Any) -> None:
    from experiments.published.convert import run

    held = lite0()
    torch.save(held, tmp_path / "x.pth")
    run([str(tmp_path / "x.pth"), str(tmp_path / "made")])
    assert "EfficientNet-lite0" in capsys.readouterr().out
    for size in (64, 49):
        ours, theirs = images(size)
        wanted = lite_forward(held, torch.tensor(theirs), LITE0).numpy()
        model = load(tmp_path / "made").model
        got = np.asarray(nnx.jit(lambda m, x: m(x))(model, jnp.asarray(ours)))
        assert np.abs(wanted).max() > 0.5
        np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


def test_what_is_no_state_dict_is_not_opened(tmp_path: Path) -> None:
    import pickle

    from experiments.published.convert import read, run
    from perturb.cli import BadInput

    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(ValueError, match="is no file of tensors alone"):
        read(path)
    assert not (tmp_path / "ran").exists()
    for held, says in (
        ({"a": 3}, "'a' is no tensor"),
        ([torch.ones(1)], "must hold a state dict, got list"),
        ({"a": torch.ones(1)}, "only EfficientNet-lite can be converted"),
    ):
        torch.save(held, path)
        with pytest.raises(BadInput, match=says):
            run([str(path), str(tmp_path / "out")])
    torch.save({k: v for k, v in lite0().items() if "_blocks.15" not in k}, path)
    with pytest.raises(BadInput, match="its 15 depthwise convolutions are not those of any of"):
        run([str(path), str(tmp_path / "out")])
    with pytest.raises(BadInput, match="there is no such file"):
        run([str(tmp_path / "none.pth"), str(tmp_path / "out")])
