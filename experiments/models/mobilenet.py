"""Nets of inverted residuals with depthwise convolutions: MobileNetV2 and EfficientNet-lite.

Sandler et al. 2018 (MobileNetV2, arXiv:1801.04381); Tan and Le 2019 (EfficientNet,
arXiv:1905.11946), of which the lite variants leave out squeeze-and-excitation and have ReLU6. A
block expands its input to ``expand`` times the channels, filters every channel by itself, and
projects back; it adds its input where the shapes allow. Module names are those of EfficientNet's
PyTorch version without their underscores; ``nnx.Conv`` stores ``kernel [height, width, in, out]``,
a depthwise one ``[height, width, 1, channels]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from experiments.models.depthwise import depthwise
from experiments.models.wide import wide
from perturb.architecture import Block, Space, columns, entries, rows

Array = jax.Array


@dataclass(frozen=True)
class InvertedResidual:
    """A block: ``expanded`` channels inside (None: no expansion, those of its input), ``width`` out
    of it. dilation: of the depthwise window."""

    expanded: int | None
    width: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1


@dataclass(frozen=True)
class MobileNetConfig:
    """Shapes of a net of inverted residuals. ``same``: padding as TensorFlow's SAME, which for a
    stride of 2 has more at the right and the bottom; else symmetric, as PyTorch's. ``dtype`` is
    that of the computation; parameters stay float32."""

    channels: int
    num_classes: int
    stem: int
    blocks: tuple[InvertedResidual, ...]
    head: int
    same: bool = True
    norm_eps: float = 1e-3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.blocks:
            raise ValueError("blocks is empty: give at least one InvertedResidual")

    def build(self, rngs: nnx.Rngs) -> MobileNet:
        return MobileNet(self, rngs)


# Of EfficientNet-B0: repeats, kernel, stride, expansion, width (Tan and Le 2019, table 1).
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# Of the lite variants: width and depth coefficients, and the images' size.
LITE = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}


def divisible(channels: float, by: int = 8, least: int | None = None) -> int:
    """The nearest multiple of ``by``, not below 90 % of it: as TensorFlow's models have it."""
    new = max(least or by, int(channels + by / 2) // by * by)
    return new + by if new < 0.9 * channels else new


def efficientnet_lite(
    variant: str, num_classes: int = 1000, channels: int = 3, dtype: str = "float32"
) -> MobileNetConfig:
    """Stem, head, and the depths of the first and last stage are the same for all variants.

    Raises ValueError for a variant that there is not.
    """
    if variant not in LITE:
        raise ValueError(f"variant = {variant!r} is unknown: choose one of {', '.join(LITE)}")
    wider, deeper, _ = LITE[variant]
    blocks, inputs = [], 32
    for i, (repeats, kernel, stride, expansion, width) in enumerate(STAGES):
        depth = repeats if i in (0, len(STAGES) - 1) else math.ceil(deeper * repeats)
        width = divisible(width * wider)
        for j in range(depth):
            step = stride if j == 0 else 1
            inner = None if expansion == 1 else expansion * inputs
            blocks.append(InvertedResidual(inner, width, kernel, step))
            inputs = width
    return MobileNetConfig(channels, num_classes, 32, tuple(blocks), 1280, dtype=dtype)


EFFICIENTNET_LITE0 = efficientnet_lite("lite0")


class MBConv(nnx.Module):
    """``bn2(project(relu6(bn1(depthwise(relu6(bn0(expand(x))))))))``, plus x where it fits."""

    def __init__(
        self, config: MobileNetConfig, inputs: int, block: InvertedResidual, rngs: nnx.Rngs
    ) -> None:
        inner = block.expanded or inputs
        self.has_expansion = block.expanded is not None
        if self.has_expansion:
            self.expand_conv = _conv(config, inputs, inner, rngs)
            self.bn0 = _batch_norm(config, inner, rngs)
        self.depthwise_conv = _conv(
            config, inner, inner, rngs, block.kernel, block.stride, inner, block.dilation
        )
        self.bn1 = _batch_norm(config, inner, rngs)
        self.project_conv = _conv(config, inner, block.width, rngs)
        self.bn2 = _batch_norm(config, block.width, rngs)
        self.has_residual = block.stride == 1 and inputs == block.width

    def __call__(self, x: Array) -> Array:
        y = nnx.relu6(self.bn0(self.expand_conv(x))) if self.has_expansion else x
        y = nnx.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.has_residual else y


class MobileNet(nnx.Module):
    """``images float [B, H, W, C] -> logits [B, classes]``.

    Logits are float32, or float64 where the model computes in it.
    """

    def __init__(self, config: MobileNetConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.conv_stem = _conv(config, config.channels, config.stem, rngs, 3, 2)
        self.bn0 = _batch_norm(config, config.stem, rngs)
        blocks, inputs = [], config.stem
        for block in config.blocks:
            blocks.append(MBConv(config, inputs, block, rngs))
            inputs = block.width
        self.blocks = nnx.List(blocks)
        self.conv_head = _conv(config, inputs, config.head, rngs)
        self.bn1 = _batch_norm(config, config.head, rngs)
        self.fc = nnx.Linear(
            config.head, config.num_classes, dtype=jnp.dtype(config.dtype), rngs=rngs
        )

    def __call__(self, images: Array) -> Array:
        x = nnx.relu6(self.bn0(self.conv_stem(images)))  # [B,H/2,W/2,stem]
        for block in self.blocks:
            x = block(x)
        x = nnx.relu6(self.bn1(self.conv_head(x)))
        logits = self.fc(x.mean(axis=(1, 2)))  # [B,head] -> [B,classes]
        return logits.astype(wide(logits.dtype))

    def architecture(self) -> tuple[list[Space], list[Block]]:
        """The expanded channels of a block, ``blocks.1.channels``, each with its window and norms;
        and the blocks that add to their input.

        A block without an expansion has none: its channels are its input's. ReLU6 hands no factors
        on, so that channels can be dropped and not scaled. Channels between blocks are not a space
        here: those that blocks add to are tied.
        """
        spaces, blocks = [], []
        for i, block in enumerate(self.blocks):
            at = f"blocks.{i}"
            layers = ("expand_conv", "depthwise_conv", "project_conv")
            names = [f"{at}.{n}" for n in layers[not block.has_expansion :]]
            norms = ("bn0", "bn1", "bn2")[not block.has_expansion :]
            if block.has_expansion:
                vectors = [
                    entries(f"{at}.{n}.{kind}")
                    for n in ("bn0", "bn1")
                    for kind in ("scale", "bias", "mean")
                ]
                spaces.append(
                    Space(
                        f"{at}.channels",
                        block.expand_conv.out_features,
                        writes=(rows(names[0]), rows(names[1]), *vectors),
                        reads=(columns(names[2]),),
                    )
                )
            if block.has_residual:
                vectors_of = tuple(f"{at}.{n}.{kind}" for n in norms for kind in ("scale", "bias"))
                blocks.append(Block(at, tuple(names), vectors_of))
        return spaces, blocks


def _conv(
    config: MobileNetConfig,
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    size: int = 1,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
) -> nnx.Conv:
    pad = (size - 1) // 2 * dilation
    return nnx.Conv(
        inputs,
        outputs,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding="SAME" if config.same else ((pad, pad), (pad, pad)),
        kernel_dilation=(dilation, dilation),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=depthwise if groups == outputs > 1 else lax.conv_general_dilated,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def _batch_norm(config: MobileNetConfig, features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        features, momentum=0.99, epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype), rngs=rngs
    )
