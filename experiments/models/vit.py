"""ViT and DeiT: an image transformer with a class token and, optionally, a distillation token.

Dosovitskiy et al. 2021 (arXiv:2010.11929); Touvron et al. 2021 (DeiT, arXiv:2012.12877). Module
names are timm's, with its fused ``qkv``; ``nnx.Linear`` stores ``kernel [in, out]``, the
transpose of timm's ``weight``, and ``nnx.Conv`` stores ``[height, width, in, out]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.prenorm import Blocks, folded, writing
from experiments.models.wide import wide
from perturb.architecture import Block as Removable
from perturb.architecture import Space, entries

Array = jax.Array


@dataclass(frozen=True)
class ViTConfig:
    """Shapes of a ViT. ``dtype`` is that of the computation; parameters stay float32."""

    image_size: int
    patch_size: int
    channels: int
    num_classes: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    distilled: bool = False
    norm_eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size = {self.image_size} is not a multiple of "
                f"patch_size = {self.patch_size}: patches must tile the image"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_heads = "
                f"{self.num_heads}: every head has equally many channels"
            )

    @property
    def num_tokens(self) -> int:
        """Patches, the class token and, in DeiT's distilled models, the distillation token."""
        return (self.image_size // self.patch_size) ** 2 + 1 + self.distilled

    def build(self, rngs: nnx.Rngs) -> ViT:
        return ViT(self, rngs)


DEIT_BASE = ViTConfig(224, 16, 3, 1000, 768, 12, 12, 3072)
DEIT_BASE_DISTILLED = ViTConfig(224, 16, 3, 1000, 768, 12, 12, 3072, distilled=True)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention without a mask; ``q, k, v [B, T, H, D]`` -> ``[B, T, H, D]``."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k)  # [B,T,H,D],[B,S,H,D] -> [B,H,T,S]
    scores = scores.astype(wide(scores.dtype)) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v)  # [B,H,T,S],[B,S,H,D] -> [B,T,H,D]


class PatchEmbed(nnx.Module):
    """``images [B, H, W, C] -> patches [B, (H/P)(W/P), hidden]``, row by row."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        patch = (config.patch_size, config.patch_size)
        self.proj = nnx.Conv(
            config.channels,
            config.hidden_size,
            kernel_size=patch,
            strides=patch,
            padding="VALID",
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    def __call__(self, images: Array) -> Array:
        patches = self.proj(images)  # [B,H/P,W/P,hidden]
        return patches.reshape(patches.shape[0], -1, patches.shape[-1])


class Attention(nnx.Module):
    """Self-attention ``[B, T, hidden] -> [B, T, hidden]``; ``qkv`` is fused as in timm.

    How many heads there are its matrices say: a smaller model has fewer than the config.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        self.head_size = config.hidden_size // config.num_heads
        self.qkv = _linear(config, config.hidden_size, 3 * config.hidden_size, rngs)
        self.proj = _linear(config, config.hidden_size, config.hidden_size, rngs)

    def __call__(self, x: Array) -> Array:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, -1, self.head_size)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # each [B,T,H,D]
        return self.proj(attention(q, k, v).reshape(batch, length, -1))


class MLP(nnx.Module):
    """``fc2(gelu(fc1(x)))`` with the exact (erf) GELU."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        self.fc1 = _linear(config, config.hidden_size, config.mlp_size, rngs)
        self.fc2 = _linear(config, config.mlp_size, config.hidden_size, rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """One pre-norm encoder layer ``[B, T, hidden] -> [B, T, hidden]``."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        self.norm1 = _norm(config, rngs)
        self.attn = Attention(config, rngs)
        self.norm2 = _norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """``images float [B, H, W, C] -> logits [B, classes]``.

    Logits are float32, or float64 where the model computes in it. A distilled model answers with
    the mean of its two heads, in training as in evaluation: without a teacher there is nothing
    that only the second head should learn.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        init = nnx.initializers.truncated_normal(0.02)
        hidden = config.hidden_size
        self.patch_embed = PatchEmbed(config, rngs)
        # Tokens and positions are vectors that are added, not matrices that multiply.
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, hidden)))
        if config.distilled:
            self.dist_token = nnx.Param(init(rngs.params(), (1, 1, hidden)))
        self.pos_embed = nnx.Param(init(rngs.params(), (1, config.num_tokens, hidden)))
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = _norm(config, rngs)
        self.head = _linear(config, hidden, config.num_classes, rngs)
        if config.distilled:
            self.head_dist = _linear(config, hidden, config.num_classes, rngs)

    def __call__(self, images: Array) -> Array:
        patches = self.patch_embed(images)  # [B,N,hidden]
        tokens = [self.cls_token[...]]
        if self.config.distilled:
            tokens.append(self.dist_token[...])
        prefix = [
            jnp.broadcast_to(token, (patches.shape[0], 1, patches.shape[-1])).astype(patches.dtype)
            for token in tokens
        ]
        x = jnp.concatenate([*prefix, patches], axis=1)  # [B,T,hidden]
        x = x + self.pos_embed[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        logits = self.head(x[:, 0])
        logits = logits.astype(wide(logits.dtype))
        if self.config.distilled:
            logits = (logits + self.head_dist(x[:, 1]).astype(logits.dtype)) / 2
        return logits

    def architecture(self) -> tuple[list[Space], list[Removable]]:
        """MLPs ``blocks.0.mlp``, attention heads ``blocks.0.heads``, the stream ``residual``."""
        config = self.config
        size = config.hidden_size // config.num_heads
        tokens = ["cls_token", "pos_embed", "dist_token"][: 2 + config.distilled]
        heads = ["head", "head_dist"][: 1 + config.distilled]
        blocks = Blocks()
        for i, block in enumerate(self.blocks):
            blocks.add(
                f"blocks.{i}",
                ("attn.qkv", "attn.proj"),
                ("mlp.fc1", "mlp.fc2"),
                ("norm1", "norm2"),
                block.attn.proj.in_features // size,
                size,
                block.mlp.fc2.in_features,
            )
        begun = writing("patch_embed.proj")
        begun += [entries(f"{type(self).__name__}.{n}") for n in tokens]
        norm = folded("norm", *heads)
        stream = blocks.stream(config.hidden_size, begun, tuple(heads), norm)
        return [*blocks.spaces, stream], blocks.removable


def _linear(config: ViTConfig, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dtype=jnp.dtype(config.dtype), rngs=rngs)


def _norm(config: ViTConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.norm_eps, dtype=jnp.dtype(config.dtype), rngs=rngs
    )
