"""ResNets of basic blocks (18 and 34) and of bottlenecks (50 and up), images as [C, H, W]."""

from __future__ import annotations

from typing import Any

from experiments.models.resnet import ResNetConfig
from experiments.published.fill import CONV, KERNEL, Plan, Source, source
from experiments.published.keys import Keys
from perturb.checkpoints import Folder

NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def plan(folder: Folder, keys: Keys, kind: str, dtype: str) -> Plan:
    """Raises ValueError for a config that we cannot compute."""
    block = keys.one_of("layer_type", ("basic", "bottleneck"), "bottleneck")
    keys.one_of("hidden_act", ("relu",), "relu")
    keys.one_of("downsample_in_first_stage", (False,), False)
    widths = _wholes(keys, "hidden_sizes", [256, 512, 1024, 2048])
    try:
        config = ResNetConfig(
            channels=keys.whole("num_channels", 3),
            num_classes=keys.classes(),
            stage_blocks=_wholes(keys, "depths", [3, 4, 6, 3]),
            widths=widths,
            stem="7x7",
            dtype=dtype,
            block=block,
            stem_width=keys.whole("embedding_size", 64),
            stride_first=keys.flag("downsample_in_bottleneck", False),
        )
    except ValueError as error:
        raise keys.blamed(error) from error
    return Plan(config, _sources(config), ignored=("*.num_batches_tracked",))


def _wholes(keys: Keys, key: str, default: list[int]) -> tuple[int, ...]:
    values: Any = keys.get(key, default)
    if not isinstance(values, list) or not values or not all(type(v) is int for v in values):
        keys.refuse(key, "it must be a list of whole numbers")
    return tuple(values)


def _sources(config: ResNetConfig) -> dict[str, Source]:
    found = {
        "fc.kernel": source("classifier.1.weight", axes=KERNEL),
        "fc.bias": source("classifier.1.bias"),
    }
    pairs = {("conv1", "bn1"): "resnet.embedder.embedder"}
    before = config.stem_width or config.widths[0]
    convs = 3 if config.block == "bottleneck" else 2
    for s, (count, width) in enumerate(zip(config.stage_blocks, config.widths, strict=True)):
        for i in range(count):
            ours, theirs = f"layer{s + 1}.{i}", f"resnet.encoder.stages.{s}.layers.{i}"
            for n in range(1, convs + 1):
                pairs[f"{ours}.conv{n}", f"{ours}.bn{n}"] = f"{theirs}.layer.{n - 1}"
            if i == 0 and (s > 0 or before != width):
                down = f"{ours}.downsample"
                pairs[f"{down}.conv", f"{down}.bn"] = f"{theirs}.shortcut"
            before = width
    for (conv, norm), theirs in pairs.items():
        found[f"{conv}.kernel"] = source(f"{theirs}.convolution.weight", axes=CONV)
        for mine, name in NORM.items():
            found[f"{norm}.{mine}"] = source(f"{theirs}.normalization.{name}")
    return found
