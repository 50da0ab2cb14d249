"""MobileNetV2 and EfficientNet-lite: depthwise kernels are stored [channels, 1, height, width]."""

from __future__ import annotations

from typing import Any

from experiments.models.mobilenet import (
    LITE,
    InvertedResidual,
    MobileNetConfig,
    divisible,
    efficientnet_lite,
)
from experiments.published.fill import CONV, KERNEL, Plan, Source, source
from experiments.published.keys import Keys
from experiments.published.resnet import NORM
from perturb.checkpoints import Folder

LITE_NAME = "EfficientNetLiteForImageClassification"  # no library's: convert.py writes it
V2_WIDTHS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
V2_STRIDES = (2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
BUFFERS = ("*.num_batches_tracked",)


def lite(folder: Folder, keys: Keys, kind: str, dtype: str) -> Plan:
    """EfficientNet-lite. Raises ValueError for a config that we cannot compute."""
    variant = keys.one_of("variant", tuple(LITE), "")
    classes, channels = keys.classes(), keys.whole("num_channels", 3)
    config = efficientnet_lite(variant, classes, channels, dtype)
    names = {"conv_stem": "_conv_stem", "bn0": "_bn0", "conv_head": "_conv_head", "bn1": "_bn1"}
    for i, block in enumerate(config.blocks):
        pairs = [("depthwise_conv", "bn1"), ("project_conv", "bn2")]
        if block.expanded is not None:
            pairs.append(("expand_conv", "bn0"))
        for name in (n for pair in pairs for n in pair):
            names[f"blocks.{i}.{name}"] = f"_blocks.{i}._{name}"
    found = _named(names)
    found |= {"fc.kernel": source("_fc.weight", axes=KERNEL), "fc.bias": source("_fc.bias")}
    return Plan(config, found, ignored=BUFFERS)


def v2(folder: Folder, keys: Keys, kind: str, dtype: str) -> Plan:
    """MobileNetV2. Raises ValueError for a config that we cannot compute."""
    keys.one_of("hidden_act", ("relu6",), "relu6")
    keys.one_of("first_layer_is_expansion", (True,), True)
    by, least = keys.whole("depth_divisible_by", 8), keys.whole("min_depth", 8)
    wider, expansion = keys.number("depth_multiplier", 1.0), keys.number("expand_ratio", 6.0)
    last_stride = keys.one_of("output_stride", (8, 16, 32), 32)

    def width(channels: float) -> int:
        return divisible(round(channels), by, least)

    widths = [width(n * wider) for n in V2_WIDTHS]
    stem = width(32 * wider)
    blocks = [InvertedResidual(None, widths[0])]
    stride, dilation = 2, 1
    for inputs, outputs, step in zip(widths[:-1], widths[1:], V2_STRIDES, strict=True):
        inner = width(inputs * expansion)
        if stride == last_stride:  # from here on windows are wider in place of maps smaller
            blocks.append(InvertedResidual(inner, outputs, dilation=dilation))
            dilation *= step
        else:
            blocks.append(InvertedResidual(inner, outputs, stride=step))
            stride *= step
    fine = keys.flag("finegrained_output", True) and wider < 1
    config = MobileNetConfig(
        channels=keys.whole("num_channels", 3),
        num_classes=keys.classes(),
        stem=stem,
        blocks=tuple(blocks),
        head=1280 if fine else width(1280 * wider),
        same=keys.flag("tf_padding", True),
        norm_eps=keys.number("layer_norm_eps", 1e-3),
        dtype=dtype,
    )
    return Plan(config, _v2_sources(config), ignored=BUFFERS)


def _v2_sources(config: MobileNetConfig) -> dict[str, Source]:
    root = "mobilenet_v2"
    stem = f"{root}.conv_stem"
    pairs: dict[tuple[str, str], str] = {
        ("conv_stem", "bn0"): f"{stem}.first_conv",
        ("conv_head", "bn1"): f"{root}.conv_1x1",
    }
    for i, block in enumerate(config.blocks):
        ours, theirs = f"blocks.{i}", stem if i == 0 else f"{root}.layer.{i - 1}"
        if block.expanded is not None:
            pairs[f"{ours}.expand_conv", f"{ours}.bn0"] = f"{theirs}.expand_1x1"
        pairs[f"{ours}.depthwise_conv", f"{ours}.bn1"] = f"{theirs}.conv_3x3"
        pairs[f"{ours}.project_conv", f"{ours}.bn2"] = f"{theirs}.reduce_1x1"
    names: dict[str, str] = {}
    for (conv, norm), their in pairs.items():
        names |= {conv: f"{their}.convolution", norm: f"{their}.normalization"}
    head = {"fc.kernel": source("classifier.weight", axes=KERNEL)}
    return _named(names) | head | {"fc.bias": source("classifier.bias")}


def _named(names: dict[str, str]) -> dict[str, Source]:
    """Convolutions and norms, ours by theirs."""
    found: dict[str, Any] = {}
    for ours, theirs in names.items():
        if ours.rpartition(".")[2].startswith("bn"):
            for mine, name in NORM.items():
                found[f"{ours}.{mine}"] = source(f"{theirs}.{name}")
        else:
            found[f"{ours}.kernel"] = source(f"{theirs}.weight", axes=CONV)
    return found
