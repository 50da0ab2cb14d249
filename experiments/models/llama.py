"""Llama: a decoder-only transformer (RMSNorm, RoPE, grouped-query attention, SwiGLU).

Touvron et al. 2023 (arXiv:2302.13971); grouped-query attention: Ainslie et al. 2023
(arXiv:2305.13245); RoPE: Su et al. 2021 (arXiv:2104.09864); long-context frequency scaling:
Llama 3 (arXiv:2407.21783). Its relatives are settings of it: Mistral (arXiv:2310.06825) sees a
window of positions, Qwen2 (arXiv:2407.10671) has biases on queries, keys and values, Qwen3
(arXiv:2505.09388) norms of every head's queries and keys. Module names are those of the published
checkpoints, without their ``model.`` prefix; ``nnx.Linear`` stores ``kernel [in, out]``, the
transpose of their ``weight``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.wide import wide
from perturb.architecture import Axis, Folded, Space, columns, entries, rows
from perturb.architecture import Block as Removable
from perturb.registry import LATER

Array = jax.Array


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling; the defaults are those of Llama 3.1 (3.2 has factor 32)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class LinearScaling:
    """All positions divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True)
class LlamaConfig:
    """Shapes of a Llama. ``dtype`` is that of the computation; parameters stay float32.

    qkv_bias, out_bias: of the attention's projections; qk_norm: an RMS norm over the channels of
    each head's queries and keys, one scale for all heads of a layer; window: how many positions,
    its own included, a token sees (None: all before it).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int | None = None  # None: hidden_size / num_heads
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | LinearScaling | None = None
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    dtype: str = "float32"
    qkv_bias: bool = field(default=False, metadata=LATER)
    out_bias: bool = field(default=False, metadata=LATER)
    qk_norm: bool = field(default=False, metadata=LATER)
    window: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} is not a multiple of "
                f"num_kv_heads = {self.num_kv_heads}: every key head serves equally many queries"
            )
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_heads = "
                f"{self.num_heads}: give head_dim, or change one of them"
            )
        if self.head_size % 2:
            raise ValueError(f"head size {self.head_size} is odd: RoPE rotates pairs of channels")

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    def build(self, rngs: nnx.Rngs) -> Llama:
        return Llama(self, rngs)


LLAMA_3_2_1B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(factor=32.0),
    tie_word_embeddings=True,
    dtype="bfloat16",
)


def rope_frequencies(
    head_size: int, theta: float, scaling: RopeScaling | LinearScaling | None = None
) -> np.ndarray:
    """Angular frequency of every rotated pair, radians a position, float64 ``[head_size / 2]``.

    ``f_i = theta ** (-2 i / head_size)``. With scaling, wavelengths above ``original /
    low_freq_factor`` are stretched by ``factor``, those below ``original / high_freq_factor``
    are left alone, and between them ``f`` is interpolated linearly in ``original / wavelength``;
    linear scaling divides all of them.
    """
    frequency = theta ** (-np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    if scaling is None:
        return frequency
    if isinstance(scaling, LinearScaling):
        return frequency / scaling.factor
    turns = scaling.original_max_position * frequency / (2 * math.pi)  # original / wavelength
    smooth = (turns - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    # 0: stretch fully; 1: leave alone. The clip makes the three published branches one formula.
    smooth = np.clip(smooth, 0.0, 1.0)
    return frequency * (smooth + (1 - smooth) / scaling.factor)


def rope(x: Array, positions: np.ndarray, frequency: np.ndarray) -> Array:
    """Rotate the channel pairs ``(i, i + D/2)`` of ``x [B, T, H, D]`` by ``position * f_i``.

    Half-split as in the published checkpoints (not interleaved as in the RoPE paper); angles in
    float32 at least, because bfloat16 cannot count positions above 256. The angles are known when
    a program is made: XLA, given them as an expression, takes the cosines anew for every head.
    """
    dtype = wide(x.dtype)
    angle = positions[:, None].astype(dtype) * frequency.astype(dtype)  # [T,D/2]
    cos, sin = np.cos(angle)[None, :, None, :], np.sin(angle)[None, :, None, :]  # [1,T,1,D/2]
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)  # 2 x [B,T,H,D/2]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def causal_attention(q: Array, k: Array, v: Array, window: int | None = None) -> Array:
    """Softmax attention, each group of query heads sharing one key/value head.

    ``q [B, T, H, D]``, ``k, v [B, T, K, D]`` with ``H = K G``; returns ``[B, T, H, D]``. Query
    head ``h`` reads key head ``h // G``, of the last ``window`` positions. Softmax in float32 at
    least.
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # the queries of a key head are rows of one matrix: products of whole matrices, nothing copied
    q = q.reshape(batch, length, kv_heads, group, size).transpose(0, 2, 3, 1, 4)  # [B,K,G,T,D]
    q = q.reshape(batch, kv_heads, group * length, size)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B,K,S,D]
    scores = jnp.einsum("bkrd,bksd->bkrs", q, k).reshape(batch, kv_heads, group, length, length)
    scores = scores.astype(wide(scores.dtype)) * size**-0.5
    causal = jnp.tril(jnp.ones((length, length), bool))  # [T,S]
    if window is not None:
        causal &= ~jnp.tril(causal, -window)
    scores = jnp.where(causal, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, kv_heads, group * length, length)
    mixed = jnp.einsum("bkrs,bksd->bkrd", weights, v)
    mixed = mixed.reshape(batch, kv_heads, group, length, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(batch, length, heads, size)


class Attention(nnx.Module):
    """Causal self-attention ``[B, T, hidden] -> [B, T, hidden]``.

    How many heads there are its matrices say: a smaller model has fewer than the config.
    """

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        inner = config.num_heads * config.head_size
        kv_inner = config.num_kv_heads * config.head_size
        self.q_proj = _linear(config, config.hidden_size, inner, rngs, config.qkv_bias)
        self.k_proj = _linear(config, config.hidden_size, kv_inner, rngs, config.qkv_bias)
        self.v_proj = _linear(config, config.hidden_size, kv_inner, rngs, config.qkv_bias)
        self.o_proj = _linear(config, inner, config.hidden_size, rngs, config.out_bias)
        if config.qk_norm:
            self.q_norm = _norm(config, rngs, config.head_size)
            self.k_norm = _norm(config, rngs, config.head_size)

    def __call__(self, x: Array) -> Array:
        config = self.config
        batch, length, _ = x.shape
        frequency = rope_frequencies(config.head_size, config.rope_theta, config.rope_scaling)
        positions = np.arange(length)
        q, k, v = (
            layer(x).reshape(batch, length, -1, config.head_size)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope(q, positions, frequency), rope(k, positions, frequency)
        mixed = causal_attention(q, k, v, config.window)  # [B,T,H,D]
        return self.o_proj(mixed.reshape(batch, length, -1))


class MLP(nnx.Module):
    """SwiGLU, ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.gate_proj = _linear(config, config.hidden_size, config.intermediate_size, rngs)
        self.up_proj = _linear(config, config.hidden_size, config.intermediate_size, rngs)
        self.down_proj = _linear(config, config.intermediate_size, config.hidden_size, rngs)

    def __call__(self, x: Array) -> Array:
        return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """One pre-norm decoder layer ``[B, T, hidden] -> [B, T, hidden]``."""

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.input_layernorm = _norm(config, rngs)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = _norm(config, rngs)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """``tokens int [B, T] -> logits [B, T, vocab]``; position t predicts token t + 1.

    Logits are float32, or float64 where the model computes in it.
    """

    def __init__(self, config: LlamaConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed_tokens = nnx.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=jnp.dtype(config.dtype),
            # As the published models: a tied head then starts with logits of unit order.
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.layers = nnx.List([Block(config, rngs) for _ in range(config.num_layers)])
        self.norm = _norm(config, rngs)
        if not config.tie_word_embeddings:
            self.lm_head = _linear(config, config.hidden_size, config.vocab_size, rngs)

    def __call__(self, tokens: Array) -> Array:
        x = self.embed_tokens(tokens)  # [B,T,hidden]
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        logits = self.embed_tokens.attend(x) if self.config.tie_word_embeddings else self.lm_head(x)
        return logits.astype(wide(logits.dtype))

    def untied(self) -> Llama:
        """A copy whose head is a matrix of its own, equal to the embeddings'.

        What a tied head lacks: it cannot absorb the scale of the final norm (a rotation folds
        norms), nor be pruned apart from the embeddings.
        """
        copy = nnx.clone(self)
        if not self.config.tie_word_embeddings:
            return copy
        copy.config = replace(self.config, tie_word_embeddings=False)
        table = self.embed_tokens.embedding[...]
        vocabulary, hidden = table.shape
        copy.lm_head = _linear(copy.config, hidden, vocabulary, nnx.Rngs(0))
        copy.lm_head.kernel = nnx.Param(table.T)
        return copy

    def architecture(self) -> tuple[list[Space], list[Removable]]:
        """MLPs ``layers.0.mlp``, key-value groups ``layers.0.heads``, the stream ``residual``.

        A unit of ``heads`` is a key-value head with the query heads that read it; one of
        ``values`` a channel of a value head, which all these query heads hand on.
        """
        config = self.config
        size, queries = config.head_size, config.num_heads // config.num_kv_heads
        table = "embed_tokens.embedding"
        spaces: list[Space] = []
        blocks: list[Removable] = []
        writes = [entries(table)]
        reads: list[Axis] = []
        norms: list[Folded] = []
        for i, layer in enumerate(self.layers):
            at = f"layers.{i}"
            attn, mlp = f"{at}.self_attn", f"{at}.mlp"
            q, k, v, o = (f"{attn}.{n}_proj" for n in "qkvo")
            gate, up, down = (f"{mlp}.{n}_proj" for n in ("gate", "up", "down"))
            kv_heads = layer.self_attn.k_proj.out_features // size
            pers = {q: size * queries, k: size, v: size}
            biases = [f"{n}.bias" for n in pers if config.qkv_bias]
            heads = Space(
                f"{at}.heads",
                kv_heads,
                writes=(
                    *(rows(n, per) for n, per in pers.items()),
                    *(entries(f"{n}.bias", per) for n, per in pers.items() if config.qkv_bias),
                ),
                reads=(columns(o, size * queries),),
            )
            values = Space(
                f"{at}.values",
                kv_heads * size,
                writes=(rows(v), *map(entries, biases[2:])),
                reads=(columns(o, repeats=queries, parts=kv_heads),),
                allows=frozenset({"scale"}),
                linear=(v, *biases[2:]),
            )
            hidden = Space(
                mlp,
                layer.mlp.down_proj.in_features,
                writes=(rows(gate), rows(up)),
                reads=(columns(down),),
                allows=frozenset({"drop", "scale"}),
                linear=(up,),
            )
            first, second = f"{at}.input_layernorm.scale", f"{at}.post_attention_layernorm.scale"
            spaces += [heads, values, hidden]
            inner = [f"{attn}.{n}_norm.scale" for n in "qk" if config.qk_norm]
            out = [f"{o}.bias"] if config.out_bias else []
            vectors = (first, second, *inner, *biases, *out)
            blocks.append(Removable(at, (q, k, v, o, gate, up, down), vectors))
            writes += [rows(o), *map(entries, out), rows(down)]
            reads += map(columns, (q, k, v, gate, up))
            norms += [Folded(first, (q, k, v)), Folded(second, (gate, up))]
        head = table if config.tie_word_embeddings else "lm_head"
        norms.append(Folded("norm.scale", (head,)))
        if not config.tie_word_embeddings:
            reads.append(columns(head))
        stream = Space(
            "residual",
            config.hidden_size,
            writes=tuple(writes),
            reads=tuple(reads),
            allows=frozenset({"rotate", "scale"}),
            norms=tuple(norms),
        )
        return [*spaces, stream], blocks


def _linear(
    config: LlamaConfig, inputs: int, outputs: int, rngs: nnx.Rngs, bias: bool = False
) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, use_bias=bias, dtype=jnp.dtype(config.dtype), rngs=rngs)


def _norm(config: LlamaConfig, rngs: nnx.Rngs, size: int | None = None) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        size or config.hidden_size,
        epsilon=config.rms_norm_eps,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )
