"""ResNet with basic or bottleneck blocks: ResNet-18 to -152 and their small relatives.

He et al. 2016 (arXiv:1512.03385), as in torchvision: post-activation blocks, the stride in a
block's first convolution of 3x3, a 1x1 convolution and batch norm on the shortcut where the shape
changes. Module names are torchvision's (its ``downsample.0/.1`` are ``downsample.conv/.bn``);
``nnx.Conv`` stores ``kernel [height, width, in, out]``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.wide import wide
from perturb.architecture import Block, Space, columns, entries, rows

Array = jax.Array


@dataclass(frozen=True)
class ResNetConfig:
    """Shapes of a ResNet: ``stage_blocks[s]`` blocks of ``widths[s]`` channels.

    ``stem='7x7'`` (stride 2, then max-pooling) is for ImageNet, ``'3x3'`` for small images; it has
    ``stem_width`` channels, those of the first stage if that is None. A ``bottleneck`` has a
    quarter of its channels inside; ``stride_first``: its stride is in the 1x1 convolution (He et
    al.), not in the 3x3 (torchvision). ``dtype`` is that of the computation; parameters stay
    float32.
    """

    channels: int
    num_classes: int
    stage_blocks: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: Literal["3x3", "7x7"] = "3x3"
    dtype: str = "float32"
    block: Literal["basic", "bottleneck"] = field(default="basic", metadata={"later": True})
    stem_width: int | None = field(default=None, metadata={"later": True})
    stride_first: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.block not in ("basic", "bottleneck"):
            raise ValueError(f"block = {self.block!r} is unknown: choose 'basic' or 'bottleneck'")
        odd = [w for w in self.widths if w % 4]
        if self.block == "bottleneck" and odd:
            raise ValueError(f"widths = {self.widths}: of bottlenecks they are multiples of 4")
        if len(self.stage_blocks) != len(self.widths):
            raise ValueError(
                f"stage_blocks = {self.stage_blocks} and widths = {self.widths} "
                "differ in length: give one of each a stage"
            )
        if self.stem not in ("3x3", "7x7"):
            raise ValueError(f"stem = {self.stem!r} is unknown: choose '3x3' or '7x7'")

    def build(self, rngs: nnx.Rngs) -> ResNet:
        return ResNet(self, rngs)


RESNET18 = ResNetConfig(channels=3, num_classes=1000, stem="7x7")
RESNET50 = ResNetConfig(
    channels=3,
    num_classes=1000,
    stage_blocks=(3, 4, 6, 3),
    widths=(256, 512, 1024, 2048),
    stem="7x7",
    block="bottleneck",
    stem_width=64,
)


class Downsample(nnx.Module):
    """The projection shortcut ``[B, H, W, in] -> [B, H/s, W/s, out]``."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        self.conv = _conv(config, inputs, outputs, 1, stride, rngs)
        self.bn = _batch_norm(config, outputs, rngs)

    def __call__(self, x: Array) -> Array:
        return self.bn(self.conv(x))


class BasicBlock(nnx.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = _conv(config, inputs, outputs, 3, stride, rngs)
        self.bn1 = _batch_norm(config, outputs, rngs)
        self.conv2 = _conv(config, outputs, outputs, 3, 1, rngs)
        self.bn2 = _batch_norm(config, outputs, rngs)
        self.has_downsample = stride != 1 or inputs != outputs
        if self.has_downsample:
            self.downsample = Downsample(config, inputs, outputs, stride, rngs)

    def __call__(self, x: Array) -> Array:
        shortcut = self.downsample(x) if self.has_downsample else x
        y = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck(nnx.Module):
    """``relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut(x))``."""

    def __init__(
        self, config: ResNetConfig, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        inner = outputs // 4
        first, second = (stride, 1) if config.stride_first else (1, stride)
        self.conv1 = _conv(config, inputs, inner, 1, first, rngs)
        self.bn1 = _batch_norm(config, inner, rngs)
        self.conv2 = _conv(config, inner, inner, 3, second, rngs)
        self.bn2 = _batch_norm(config, inner, rngs)
        self.conv3 = _conv(config, inner, outputs, 1, 1, rngs)
        self.bn3 = _batch_norm(config, outputs, rngs)
        self.has_downsample = stride != 1 or inputs != outputs
        if self.has_downsample:
            self.downsample = Downsample(config, inputs, outputs, stride, rngs)

    def __call__(self, x: Array) -> Array:
        shortcut = self.downsample(x) if self.has_downsample else x
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        return nnx.relu(self.bn3(self.conv3(y)) + shortcut)


BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nnx.Module):
    """``images float [B, H, W, C] -> logits [B, classes]``.

    Logits are float32, or float64 where the model computes in it.
    The stages are the attributes ``layer1, layer2, ...``, lists of blocks, as in torchvision.
    """

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        size, stride = (7, 2) if config.stem == "7x7" else (3, 1)
        inputs = config.stem_width or config.widths[0]
        self.conv1 = _conv(config, config.channels, inputs, size, stride, rngs)
        self.bn1 = _batch_norm(config, inputs, rngs)
        for stage, (count, width) in enumerate(
            zip(config.stage_blocks, config.widths, strict=True), start=1
        ):
            blocks = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(BLOCKS[config.block](config, inputs, width, stride, rngs))
                inputs = width
            setattr(self, f"layer{stage}", nnx.List(blocks))
        self.fc = nnx.Linear(inputs, config.num_classes, dtype=jnp.dtype(config.dtype), rngs=rngs)

    def __call__(self, images: Array) -> Array:
        x = nnx.relu(self.bn1(self.conv1(images)))  # [B,H,W,stem width]
        if self.config.stem == "7x7":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in range(1, len(self.config.widths) + 1):
            for block in getattr(self, f"layer{stage}"):
                x = block(x)
        x = x.mean(axis=(1, 2))  # [B,widths[-1]]
        logits = self.fc(x)
        return logits.astype(wide(logits.dtype))

    def architecture(self) -> tuple[list[Space], list[Block]]:
        """The filters inside of a block, ``layer1.0.filters`` (of a bottleneck ``filters1`` and
        ``filters2``), and blocks with a plain shortcut.

        A ReLU hands factors above 0 on: a filter's value is linear in the scale and bias of its
        norm.

        Channels between blocks are not a space here: a shortcut ties those of a whole stage.
        """
        spaces, blocks = [], []
        for stage in range(1, len(self.config.widths) + 1):
            for i, block in enumerate(getattr(self, f"layer{stage}")):
                at = f"layer{stage}.{i}"
                count = 3 if self.config.block == "bottleneck" else 2
                convs = [f"{at}.conv{n}" for n in range(1, count + 1)]
                vectors = [(f"{at}.bn{n}.scale", f"{at}.bn{n}.bias") for n in range(1, count + 1)]
                for n in range(count - 1):
                    window = 9 if n == 0 else 1  # the reader's columns are [*window, channels]
                    spaces.append(
                        Space(
                            f"{at}.filters{n + 1 if count > 2 else ''}",
                            getattr(block, f"conv{n + 1}").out_features,
                            writes=(
                                rows(convs[n]),
                                *map(entries, [*vectors[n], f"{at}.bn{n + 1}.mean"]),
                            ),
                            reads=(columns(convs[n + 1], repeats=window),),
                            allows=frozenset({"drop", "scale"}),
                            linear=vectors[n],
                        )
                    )
                if not block.has_downsample:
                    named = tuple(v for pair in vectors for v in pair)
                    blocks.append(Block(at, tuple(convs), named))
        return spaces, blocks


def _conv(
    config: ResNetConfig, inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs
) -> nnx.Conv:
    pad = size // 2  # as PyTorch: symmetric; XLA's SAME pads one side only when the stride is 2
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def _batch_norm(config: ResNetConfig, features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        features, momentum=0.9, epsilon=1e-5, dtype=jnp.dtype(config.dtype), rngs=rngs
    )
