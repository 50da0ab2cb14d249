"""The architectures against formulas written again here, in plain numpy and float64."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import llama, mobilenet, resnet, vit
from experiments.models.presets import PRESETS, find

TINY = llama.LlamaConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rope_theta=500.0,
    rope_scaling=llama.RopeScaling(factor=4.0, original_max_position=64),
)


def parameters(config) -> int:
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def built(config) -> nnx.Module:
    return nnx.jit(lambda: config.build(nnx.Rngs(0)))()


@nnx.jit
def answer(model, inputs):
    """One compilation instead of one an operation."""
    return model(inputs)


# --- rotary embedding


def published_llama3_frequencies(size: int, theta: float, scaling: llama.RopeScaling):
    """The three branches of Llama 3's reference code, one frequency at a time."""
    result = []
    for pair in range(size // 2):
        frequency = 1 / theta ** (2 * pair / size)
        wavelength = 2 * math.pi / frequency
        longest = scaling.original_max_position / scaling.low_freq_factor
        shortest = scaling.original_max_position / scaling.high_freq_factor
        if wavelength < shortest:
            result.append(frequency)
        elif wavelength > longest:
            result.append(frequency / scaling.factor)
        else:
            smooth = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            result.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(result)


def test_llama3_scaling_is_the_published_one_in_all_three_branches():
    scaling = llama.RopeScaling(factor=32.0)
    ours = llama.rope_frequencies(64, 500_000.0, scaling)
    np.testing.assert_allclose(
        ours, published_llama3_frequencies(64, 500_000.0, scaling), rtol=1e-12
    )
    ratio = ours / llama.rope_frequencies(64, 500_000.0)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(1 / 32)
    assert np.any((ratio > 1 / 32 + 1e-6) & (ratio < 1 - 1e-6))  # the branch between


def test_rope_depends_on_relative_position_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 3, 16)), jnp.float32) for _ in range(2))
    frequency = llama.rope_frequencies(16, 10_000.0)

    def score(q_position: int, k_position: int):
        rotated_q = llama.rope(q, np.array([q_position]), frequency)
        rotated_k = llama.rope(k, np.array([k_position]), frequency)
        return jnp.sum(rotated_q * rotated_k, axis=-1)

    np.testing.assert_allclose(score(7, 3), score(107, 103), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(score(0, 0), jnp.sum(q * k, axis=-1), rtol=1e-5)
    assert not np.allclose(score(7, 3), score(7, 4), atol=1e-2)


# --- attention


def test_grouped_queries_equal_full_attention_with_repeated_key_heads():
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.normal(size=(2, 5, 6, 4)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, 5, 2, 4)), jnp.float32) for _ in range(2))
    repeated = llama.causal_attention(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2))
    np.testing.assert_allclose(llama.causal_attention(q, k, v), repeated, rtol=1e-5, atol=1e-6)
    independent = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(repeated, independent, rtol=1e-4, atol=1e-5)


def test_vit_attention_is_the_softmax_of_scaled_products():
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 5, 3, 4)), jnp.float32) for _ in range(3))
    independent = jax.nn.dot_product_attention(q, k, v)
    np.testing.assert_allclose(vit.attention(q, k, v), independent, rtol=1e-4, atol=1e-5)


def test_llama_is_causal():
    model = built(TINY)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 50, (1, 12))
    changed = tokens.copy()
    changed[0, 7] = (changed[0, 7] + 1) % 50
    before, after = answer(model, tokens), answer(model, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert not np.allclose(before[:, 7:], after[:, 7:])


# --- the whole Llama in numpy


def numpy_llama(config: llama.LlamaConfig, weights: dict, tokens: np.ndarray) -> np.ndarray:
    """Logits ``[T, vocab]`` of one sequence: one head, one position at a time, float64."""
    size, group = config.head_size, config.num_heads // config.num_kv_heads
    frequency = published_llama3_frequencies(size, config.rope_theta, config.rope_scaling)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * scale

    def rotate(vector, position):
        pairs = (vector[: size // 2] + 1j * vector[size // 2 :]) * np.exp(1j * position * frequency)
        return np.concatenate([pairs.real, pairs.imag])

    x = weights["embed_tokens.embedding"][tokens]
    for layer in range(config.num_layers):
        w = {
            name.removeprefix(f"layers.{layer}."): array
            for name, array in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        h = norm(x, w["input_layernorm.scale"])
        q, k, v = (h @ w[f"self_attn.{name}_proj.kernel"] for name in "qkv")
        mixed = np.zeros((len(tokens), config.num_heads * size))
        for head in range(config.num_heads):
            own, shared = (slice(i * size, (i + 1) * size) for i in (head, head // group))
            for t in range(len(tokens)):
                query = rotate(q[t, own], t)
                scores = [query @ rotate(k[s, shared], s) / math.sqrt(size) for s in range(t + 1)]
                p = np.exp(scores - np.max(scores))
                mixed[t, own] = (p / p.sum()) @ v[: t + 1, shared]
        x = x + mixed @ w["self_attn.o_proj.kernel"]
        h = norm(x, w["post_attention_layernorm.scale"])
        gate = h @ w["mlp.gate_proj.kernel"]
        up = h @ w["mlp.up_proj.kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.kernel"]
    x = norm(x, weights["norm.scale"])
    if config.tie_word_embeddings:
        return x @ weights["embed_tokens.embedding"].T
    return x @ weights["lm_head.kernel"]


@pytest.mark.parametrize("tied", [True, False])
def test_llama_agrees_with_a_plain_numpy_forward_pass(tied):
    config = replace(TINY, tie_word_embeddings=tied)
    model = built(config)
    rng = np.random.default_rng(4)
    # Gains start at one, where leaving one out would not show.
    state = nnx.state(model)
    nnx.update(
        model, jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32) * 0.2, state)
    )
    weights = {
        ".".join(map(str, path)): np.asarray(leaf[...], np.float64)
        for path, leaf in nnx.to_flat_state(nnx.state(model))
    }
    tokens = rng.integers(0, 50, (2, 9))
    logits = answer(model, tokens)
    assert logits.shape == (2, 9, 50)
    expected = np.stack([numpy_llama(config, weights, row) for row in tokens])
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


# --- sizes and names of the published models


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (vit.DEIT_BASE, 86_567_656),
        (vit.DEIT_BASE_DISTILLED, 87_338_192),
        (resnet.RESNET18, 11_689_512),
        (resnet.RESNET50, 25_557_032),
        (mobilenet.EFFICIENTNET_LITE0, 4_652_008),
        (llama.LLAMA_3_2_1B, 1_235_814_400),
    ],
    ids=[
        "deit-base",
        "deit-base-distilled",
        "resnet-18",
        "resnet-50",
        "efficientnet-lite0",
        "llama-3.2-1b",
    ],
)
def test_published_models_have_their_published_sizes(config, count):
    assert parameters(config) == count


def test_names_are_those_of_the_published_checkpoints():
    def names(config):
        model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
        return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}

    assert {
        "embed_tokens.embedding",
        "layers.1.self_attn.q_proj.kernel",
        "layers.1.mlp.down_proj.kernel",
        "layers.0.post_attention_layernorm.scale",
        "norm.scale",
    } <= names(TINY)
    assert {
        "patch_embed.proj.kernel",
        "blocks.11.attn.qkv.bias",
        "blocks.0.mlp.fc2.kernel",
        "head_dist.kernel",
        "dist_token",
    } <= names(vit.DEIT_BASE_DISTILLED)
    assert {
        "conv1.kernel",
        "layer1.1.bn2.mean",
        "layer4.0.downsample.conv.kernel",
        "fc.bias",
    } <= names(resnet.RESNET18)


# --- images


@pytest.mark.parametrize("distilled", [False, True])
def test_vit_answers_with_the_mean_of_its_heads(distilled):
    config = vit.ViTConfig(8, 4, 3, 7, 12, 1, 3, 24, distilled=distilled)
    assert config.num_tokens == 5 + distilled
    model = built(config)
    images = jnp.ones((2, 8, 8, 3))
    logits = answer(model, images)
    assert logits.shape == (2, 7)
    if distilled:
        bias = jnp.arange(7.0)
        model.head_dist.bias[...] = model.head_dist.bias[...] + bias
        np.testing.assert_allclose(answer(model, images), logits + bias / 2, rtol=1e-5, atol=1e-5)


def test_resnet_stems_reduce_as_published_and_evaluation_ignores_the_batch():
    large = nnx.eval_shape(lambda: resnet.RESNET18.build(nnx.Rngs(0)))
    graph, state = nnx.split(large)

    def features(state, images):
        model = nnx.merge(graph, state)
        model.eval()
        x = nnx.max_pool(model.conv1(images), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x, model(images)

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    stem, logits = jax.eval_shape(features, state, image)
    assert (stem.shape, logits.shape) == ((1, 56, 56, 64), (1, 1000))

    model = built(find("tiny-resnet").config)
    model.eval()
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
    together, alone = answer(model, images), answer(model, images[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(TINY, num_kv_heads=3), "num_kv_heads = 3"),
        (lambda: replace(TINY, head_dim=7), "head size 7 is odd"),
        (lambda: replace(vit.DEIT_BASE, patch_size=15), "patch_size = 15"),
        (lambda: replace(vit.DEIT_BASE, num_heads=5), "num_heads = 5"),
        (lambda: replace(resnet.RESNET18, stage_blocks=(2, 2)), "differ in length"),
        (lambda: replace(resnet.RESNET18, stem="5x5"), "'5x5' is unknown"),
        (lambda: replace(resnet.RESNET18, block="wide"), "'wide' is unknown"),
        (lambda: replace(resnet.RESNET50, widths=(6, 8, 8, 8)), "multiples of 4"),
        (lambda: mobilenet.efficientnet_lite("lite9"), "'lite9' is unknown"),
        (lambda: find("resnet-digit"), "choose one of resnet-digits"),
    ],
)
def test_impossible_shapes_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", PRESETS)
def test_every_matrix_of_a_preset_is_a_layer_that_compressors_find(name):
    """Parameters of two axes and more are kernels, or embeddings that are looked up or added."""
    preset = PRESETS[name]
    assert preset.name == name
    model = nnx.eval_shape(lambda: preset.build(nnx.Rngs(0)))
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if len(leaf.shape) > 1:
            assert path[-1] in ("kernel", "embedding", "pos_embed", "cls_token", "dist_token")


def test_an_untied_preset_is_the_same_model_and_can_be_rotated(monkeypatch):
    from experiments.data.types import Split
    from experiments.models import untied
    from experiments.runner import running
    from experiments.task import TEXT, Task
    from perturb import Rotate, compress

    model = TINY.build(nnx.Rngs(0))
    model.eval()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, TINY.vocab_size, (4, 6)))
    split = Split(np.asarray(tokens), np.asarray(tokens), np.arange(4))
    asked = []

    def load_task(preset, seed):
        asked.append((preset, seed))
        return Task(model, [tokens], split, dict(TEXT), "text"), "a line"

    monkeypatch.setattr(running, "load_task", load_task)
    task = untied.llama_docs_mini(3)
    assert untied.llama_docs(4).test is task.test
    assert asked == [("llama-docs-mini", 3), ("llama-docs", 4)]
    np.testing.assert_allclose(task.model(tokens), model(tokens), atol=1e-6)
    turned = compress(task.model, Rotate(kind="hadamard"), [tokens], exclude=["lm_head"])
    np.testing.assert_allclose(turned.model(tokens), model(tokens), atol=1e-4)
