"""GPT-2: a decoder-only transformer with LayerNorm, learned positions and biases everywhere.

Radford et al. 2019, "Language models are unsupervised multitask learners". Module names are those
of the published checkpoints, without their ``transformer.`` prefix; they store a matrix
``[in, out]``, as ``nnx.Linear`` does its ``kernel``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.llama import causal_attention
from experiments.models.prenorm import Blocks, folded
from experiments.models.wide import wide
from perturb.architecture import Block as Removable
from perturb.architecture import Space, entries

Array = jax.Array


@dataclass(frozen=True)
class GPT2Config:
    """Shapes of a GPT-2. ``dtype`` is that of the computation; parameters stay float32.

    gelu: "tanh", the approximation that the published models were trained with, or "exact".
    """

    vocab_size: int
    num_positions: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    norm_eps: float = 1e-5
    gelu: Literal["tanh", "exact"] = "tanh"
    tie_word_embeddings: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_heads = "
                f"{self.num_heads}: every head has equally many channels"
            )

    def build(self, rngs: nnx.Rngs) -> GPT2:
        return GPT2(self, rngs)


class Attention(nnx.Module):
    """Causal self-attention ``[B, T, hidden] -> [B, T, hidden]``; queries, keys and values fused.

    How many heads there are its matrices say: a smaller model has fewer than the config.
    """

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs) -> None:
        self.head_size = config.hidden_size // config.num_heads
        self.c_attn = _linear(config, config.hidden_size, 3 * config.hidden_size, rngs)
        self.c_proj = _linear(config, config.hidden_size, config.hidden_size, rngs)

    def __call__(self, x: Array) -> Array:
        batch, length, _ = x.shape
        qkv = self.c_attn(x).reshape(batch, length, 3, -1, self.head_size)
        mixed = causal_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])  # [B,T,H,D]
        return self.c_proj(mixed.reshape(batch, length, -1))


class MLP(nnx.Module):
    """``c_proj(gelu(c_fc(x)))``."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs) -> None:
        self.approximate = config.gelu == "tanh"
        self.c_fc = _linear(config, config.hidden_size, config.mlp_size, rngs)
        self.c_proj = _linear(config, config.mlp_size, config.hidden_size, rngs)

    def __call__(self, x: Array) -> Array:
        return self.c_proj(nnx.gelu(self.c_fc(x), approximate=self.approximate))


class Block(nnx.Module):
    """One pre-norm decoder layer ``[B, T, hidden] -> [B, T, hidden]``."""

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs) -> None:
        self.ln_1 = _norm(config, rngs)
        self.attn = Attention(config, rngs)
        self.ln_2 = _norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nnx.Module):
    """``tokens int [B, T] -> logits [B, T, vocab]``; position t predicts token t + 1.

    Logits are float32, or float64 where the model computes in it. Raises ValueError for more
    tokens than there are positions.
    """

    def __init__(self, config: GPT2Config, rngs: nnx.Rngs) -> None:
        self.config = config
        init = nnx.initializers.normal(0.02)
        self.wte = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=jnp.dtype(config.dtype),
            embedding_init=init,
            rngs=rngs,
        )
        # Positions are vectors that are added, not a matrix that multiplies.
        self.wpe = nnx.Param(init(rngs.params(), (config.num_positions, config.hidden_size)))
        self.h = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.ln_f = _norm(config, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = _linear(config, config.hidden_size, config.vocab_size, rngs)

    def __call__(self, tokens: Array) -> Array:
        length, there = tokens.shape[1], self.config.num_positions
        if length > there:
            raise ValueError(f"{length} tokens are too many: the model knows {there} positions")
        x = self.wte(tokens)  # [B,T,hidden]
        x = x + self.wpe[...][:length].astype(x.dtype)
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        logits = self.wte.attend(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return logits.astype(wide(logits.dtype))

    def untied(self) -> GPT2:
        """A copy whose head is a matrix of its own, equal to the embeddings', with a bias of 0:
        what a rotation needs to fold the scale and the bias of the final norm."""
        copy = nnx.clone(self)
        if not self.config.tie_word_embeddings:
            return copy
        copy.config = replace(self.config, tie_word_embeddings=False)
        table = self.wte.embedding[...]
        vocabulary, hidden = table.shape
        copy.lm_head = _linear(copy.config, hidden, vocabulary, nnx.Rngs(0))
        copy.lm_head.kernel = nnx.Param(table.T)
        return copy

    def architecture(self) -> tuple[list[Space], list[Removable]]:
        """MLPs ``h.0.mlp``, attention heads ``h.0.heads``, the stream ``residual``."""
        config = self.config
        size = config.hidden_size // config.num_heads
        table = "wte.embedding"
        blocks = Blocks()
        for i, block in enumerate(self.h):
            blocks.add(
                f"h.{i}",
                ("attn.c_attn", "attn.c_proj"),
                ("mlp.c_fc", "mlp.c_proj"),
                ("ln_1", "ln_2"),
                block.attn.c_proj.in_features // size,
                size,
                block.mlp.c_proj.in_features,
            )
        begun = [entries(table), entries(f"{type(self).__name__}.wpe")]
        tied = config.tie_word_embeddings
        norm = folded("ln_f", table if tied else "lm_head")
        stream = blocks.stream(config.hidden_size, begun, () if tied else ("lm_head",), norm)
        return [*blocks.spaces, stream], blocks.removable


def _linear(config: GPT2Config, inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dtype=jnp.dtype(config.dtype), rngs=rngs)


def _norm(config: GPT2Config, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.norm_eps,
        dtype=jnp.dtype(config.dtype),
        # The trained models have channels with means far above their deviation.
        use_fast_variance=False,
        rngs=rngs,
    )
