"""Finding layers in modules, capturing their inputs, and putting matrices back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import GPTQ, RTN, Magnitude, Wanda, chain, compress
from perturb.family import layer_key
from perturb.network import (
    LayerSpec,
    batches_of,
    blocks_of,
    call_blocks,
    call_order,
    capture,
    find_layers,
    get_weights,
    set_weights,
    with_weights,
)
from perturb.state import fresh
from perturb.types import Matrix, Moments, Problem

from .conftest import ScaledLinear, UserModel, numpy_init

Array = jax.Array


class Only(nnx.Module):
    """A model of one layer."""

    def __init__(self, layer: nnx.Module) -> None:
        self.layer = layer

    def __call__(self, x: Array) -> Array:
        return self.layer(x)  # type: ignore[operator]


def randomize(layer: Any) -> Any:
    """A layer with a random bias, so that a bias counted as an output shows."""
    if getattr(layer, "bias", None) is not None:
        layer.bias[...] = numpy_init(None, layer.bias.shape)
    return layer


# ------------------------------------------------------------------------- what a layer computes

# numpy draws the kernels: jax would compile its generator anew for every shape
R: Any = {"rngs": nnx.Rngs(0), "kernel_init": numpy_init}
ONES = nnx.initializers.ones_init()


def conv(rank: int, channels: int = 3, **options: Any) -> nnx.Conv:
    """More outputs than inputs: then W G W^T determines G."""
    window = options.pop("window", (3,) * rank)
    return nnx.Conv(channels, channels * int(np.prod(window)) + 1, window, **R, **options)


LAYERS: dict[str, tuple[Callable[[], nnx.Module], tuple[int, ...]]] = {
    "linear": (lambda: nnx.Linear(6, 7, **R), (5, 4, 6)),
    "linear-vector": (lambda: nnx.Linear(6, 7, use_bias=False, **R), (9, 6)),
    "general": (lambda: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), **R), (5, 4, 2, 3)),
    "general-axes": (lambda: nnx.LinearGeneral((3, 2), 7, axis=(3, 1), **R), (5, 3, 4, 2)),
    "general-front": (lambda: nnx.LinearGeneral(3, (2, 4), axis=-2, **R), (5, 3, 4)),
    "einsum": (lambda: nnx.Einsum("bti,hio->btho", (2, 6, 4), (2, 4), **R), (5, 4, 6)),
    "einsum-two": (lambda: nnx.Einsum("bthd,hdo->bto", (2, 3, 8), (8,), **R), (5, 4, 2, 3)),
    "einsum-out-first": (lambda: nnx.Einsum("bi,oi->bo", (7, 6), (7,), **R), (9, 6)),
    "einsum-dots": (lambda: nnx.Einsum("...i,io->...o", (6, 7), **R), (5, 2, 6)),
    "einsum-dots-behind": (lambda: nnx.Einsum("i...,oi->...o", (7, 6), **R), (6, 5, 2)),
    "einsum-middle": (lambda: nnx.Einsum("bit,oi->bot", (7, 6), **R), (5, 6, 4)),
    "conv-same": (lambda: conv(2), (4, 8, 7, 3)),
    "conv-1x1": (lambda: conv(2, window=(1, 1)), (4, 8, 7, 3)),
    "conv-same-strided": (lambda: conv(2, strides=2), (4, 8, 7, 3)),
    "conv-strided-unevenly": (lambda: conv(2, strides=(3, 1), padding="VALID"), (4, 8, 7, 3)),
    "conv-valid-dilated": (lambda: conv(2, kernel_dilation=2, padding="VALID"), (4, 8, 7, 3)),
    "conv-same-dilated-strided": (lambda: conv(2, kernel_dilation=(2, 1), strides=2), (4, 8, 7, 3)),
    "conv-same-even": (lambda: conv(2, window=(2, 4), strides=(2, 1)), (4, 8, 7, 3)),
    "conv-same-lower": (lambda: conv(2, window=(2, 2), padding="SAME_LOWER"), (4, 8, 7, 3)),
    "conv-circular": (lambda: conv(2, padding="CIRCULAR"), (4, 8, 7, 3)),
    "conv-circular-even-dilated": (
        lambda: conv(2, window=(2, 3), kernel_dilation=2, strides=2, padding="CIRCULAR"),
        (4, 8, 7, 3),
    ),
    "conv-reflect": (lambda: conv(2, padding="REFLECT", strides=(1, 2)), (4, 8, 7, 3)),
    "conv-explicit": (lambda: conv(2, padding=((1, 0), (2, 3)), strides=(1, 2)), (4, 8, 7, 3)),
    "conv-int": (lambda: conv(2, padding=2, strides=2), (4, 8, 7, 3)),
    "conv-ints": (lambda: conv(2, padding=(2, 0)), (4, 8, 7, 3)),
    "conv-causal": (lambda: conv(1, padding="CAUSAL", kernel_dilation=2), (4, 9, 3)),
    "conv-1d": (lambda: conv(1, strides=2), (4, 9, 3)),
    "conv-3d": (lambda: conv(3, 2, window=(2, 3, 2), padding="VALID"), (2, 4, 5, 4, 2)),
    "conv-unbatched": (lambda: conv(2), (8, 7, 3)),
    "conv-two-batch-axes": (lambda: conv(2, strides=2), (2, 2, 6, 5, 3)),
}


def outputs(layer: Any, x: Array, spec: LayerSpec) -> np.ndarray:
    """What the layer itself computes, less its bias: [tokens, out] in the order of the matrix.

    einsum-middle alone has its output axis elsewhere than last.
    """
    y = np.asarray(jax.jit(lambda x: layer(x) - layer(0 * x))(x), np.float64)  # less the bias
    if getattr(layer, "einsum_str", None) == "bit,oi->bot":
        y = y.transpose(0, 2, 1)
    return y.reshape(-1, spec.shape[0])


@pytest.mark.parametrize("name", LAYERS)
def test_the_matrix_and_the_gram_are_those_of_the_layer(name: str) -> None:
    """Independent of how features are gathered: W G W^T must be the second moment of the outputs
    that the layer computes, for a kernel with at least as many outputs as inputs."""
    make, shape = LAYERS[name]
    model = Only(randomize(make()))
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    specs, _ = find_layers(model)
    (spec,) = specs.values()
    stats = capture(model, specs, x)[spec.name]
    w = np.asarray(get_weights(model, specs)[spec.name], np.float64)
    y = outputs(model.layer, x, spec)
    assert w.shape == spec.shape
    assert float(stats.count) == len(y)
    moment = y.T @ y
    tolerance = 1e-4 * np.abs(moment).max()
    np.testing.assert_allclose(w @ np.asarray(stats.gram) @ w.T, moment, atol=tolerance)
    if spec.shape[0] >= spec.shape[1]:  # the inverse problem: only this G does that
        assert np.linalg.matrix_rank(w) == spec.shape[1]
    if spec.kind == "conv":
        _patches_reproduce_the_output(model.layer, x, w, y)


def _patches_reproduce_the_output(layer: Any, x: Array, w: np.ndarray, y: np.ndarray) -> None:
    """y = patches W^T, token by token."""
    from perturb.network.features import _patches

    patches = np.asarray(jax.jit(lambda x: _patches(layer, x))(x), np.float64).reshape(len(y), -1)
    np.testing.assert_allclose(patches @ w.T, y, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("name", LAYERS)
def test_matrix_and_kernel_are_one_to_one(name: str) -> None:
    model = Only(LAYERS[name][0]())
    specs, _ = find_layers(model)
    (spec,) = specs.values()
    kernel = jnp.arange(np.prod(spec.kernel_shape), dtype=jnp.float32).reshape(spec.kernel_shape)
    matrix = spec.to_matrix(kernel)
    assert matrix.shape == spec.shape
    np.testing.assert_array_equal(spec.to_kernel(matrix), kernel)
    twice = 2 * get_weights(model, specs)[spec.name]
    before = np.asarray(model.layer.kernel[...])  # type: ignore[attr-defined]
    changed = with_weights(model, specs, {spec.name: twice})
    np.testing.assert_array_equal(changed.layer.kernel[...], 2 * before)
    np.testing.assert_array_equal(model.layer.kernel[...], before)  # type: ignore[attr-defined]
    set_weights(model, specs, {spec.name: twice})
    np.testing.assert_array_equal(model.layer.kernel[...], 2 * before)  # type: ignore[attr-defined]


def test_attention_is_four_layers_with_their_own_inputs() -> None:
    attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 5, 6))
    specs, _ = find_layers(attention)
    assert set(specs) == {"query", "key", "value", "out"}
    assert all(s.shape == (6, 6) for s in specs.values())
    stats = capture(attention, specs, x)
    flat = np.asarray(x, np.float64).reshape(-1, 6)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(stats[name].gram, flat.T @ flat, rtol=1e-5, atol=1e-4)
    parts = (attention.query, attention.key, attention.value)
    q, k, v = (np.einsum("bti,ihd->bthd", x, part.kernel[...]) for part in parts)
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(3)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", share, v).reshape(-1, 6)
    np.testing.assert_allclose(stats["out"].gram, mixed.T @ mixed, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------ user models


def test_layers_of_a_user_model_are_found_wherever_they_are(user_model: UserModel) -> None:
    specs, skipped = find_layers(user_model)
    block = ["attention.key", "attention.out", "attention.query", "attention.value", "mix", "out"]
    expected = {f"blocks.{i}.{n}" for i in range(2) for n in block}
    expected |= {f"stems.{i}" for i in range(4)} | {"heads.classes", "heads.again"}
    expected |= {"depthwise"}
    assert set(specs) == expected
    assert not skipped
    assert specs["depthwise"].shape == (12, 9)
    assert specs["depthwise"].feature_groups == 12
    assert list(specs).index("stems.0") > list(specs).index("heads.again")  # sorted by name


def test_capturing_changes_nothing(user_model: UserModel, images: Array) -> None:
    specs, _ = find_layers(user_model)
    before = jax.tree.map(np.asarray, nnx.state(user_model))
    classes = [type(m) for _, m in nnx.iter_modules(user_model)]
    logits = user_model(images)
    capture(user_model, specs, images)
    call_order(user_model, specs, images)
    assert [type(m) for _, m in nnx.iter_modules(user_model)] == classes
    assert type(user_model.heads["classes"]) is ScaledLinear
    jax.tree.map(np.testing.assert_array_equal, nnx.state(user_model), before)
    np.testing.assert_array_equal(user_model(images), logits)


def test_batches_add_up(user_model: UserModel, images: Array) -> None:
    specs, _ = find_layers(user_model)
    whole = capture(user_model, specs, images)
    parts = capture(user_model, specs, [images[:8], images[8:]])
    for name, stats in whole.items():
        np.testing.assert_array_equal(stats.count, parts[name].count)
        np.testing.assert_allclose(parts[name].gram, stats.gram, rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(stats.gram, jnp.swapaxes(stats.gram, -2, -1))


def test_a_subclass_runs_its_own_code_while_it_is_heard() -> None:
    model = Only(ScaledLinear(4, 3, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (10, 4))
    specs, _ = find_layers(model)
    outputs: list[Any] = []

    def forward(model: Any, x: Array) -> Array:
        outputs.append(model(x))
        return outputs[-1]

    assert call_order(model, specs, x, forward) == ["layer"]
    assert outputs[0].shape == (10, 3)
    np.testing.assert_allclose(
        capture(model, specs, x)["layer"].gram, np.asarray(x).T @ np.asarray(x), rtol=1e-5
    )
    plain = x @ model.layer.kernel[...]  # type: ignore[attr-defined]
    np.testing.assert_allclose(model(x), 0.5 * plain, rtol=1e-5, atol=1e-6)


class Shared(nnx.Module):
    """One layer called twice, the second time on its own output."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x: Array) -> Array:
        return self.layer(jnp.tanh(self.layer(x)))


def test_a_layer_called_twice_sums_both_calls() -> None:
    model = Shared()
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    specs, _ = find_layers(model)
    stats = capture(model, specs, x)["layer"]
    second = np.tanh(np.asarray(model.layer(x)))
    assert float(stats.count) == 40
    np.testing.assert_allclose(stats.gram, x.T @ x + second.T @ second, rtol=1e-5, atol=1e-5)


class Tied(nnx.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        self.encode = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.decode = self.encode

    def __call__(self, x: Array) -> Array:
        return self.decode(jnp.tanh(self.encode(x)))


def test_a_layer_with_two_names_is_one_layer() -> None:
    model = Tied()
    specs, _ = find_layers(model)
    assert len(specs) == 1
    done = compress(model, Magnitude(0.5)).model
    assert done.encode is done.decode
    assert int(jnp.sum(done.encode.kernel[...] == 0)) == 8


def reshaped(rngs: nnx.Rngs) -> nnx.Linear:
    layer = nnx.Linear(4, 3, rngs=rngs)
    layer.kernel = nnx.Param(jnp.ones((2, 4, 4)))
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda r: nnx.Conv(4, 4, (3,), mask=jnp.ones((3, 4, 4)), rngs=r), "a masked convolution"),
        (
            lambda r: nnx.ConvTranspose(4, 4, (3,), mask=jnp.ones((3, 4, 4)), rngs=r),
            "a masked convolution",
        ),
        (lambda r: nnx.Einsum("bi,ho->biho", (2, 3), rngs=r), "contracts nothing"),
        (lambda r: nnx.Einsum("bi,eio->bo", (2, 3, 4), rngs=r), "sums its kernel over 'e'"),
        (lambda r: nnx.Einsum("bii,io->bo", (3, 4), rngs=r), "takes a diagonal"),
        (lambda r: nnx.Einsum("bi,i...o->bo", (3, 2, 4), rngs=r), "an ellipsis in the kernel"),
        (reshaped, r"shape \(2, 4, 4\), which is no stack of kernels \(4, 3\)"),
        (lambda r: nnx.Linear(4, 3, param_dtype=jnp.int8, kernel_init=ONES, rngs=r), "int8"),
    ],
)
def test_what_is_left_alone_says_why(make: Callable[[nnx.Rngs], Any], reason: str) -> None:
    rngs = nnx.Rngs(0)
    model = nnx.Dict(odd=make(rngs), fine=nnx.Linear(4, 4, rngs=rngs))
    specs, skipped = find_layers(model)
    assert list(specs) == ["fine"]
    assert re.search(reason, skipped["odd"])


class Unused(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.used, self.spare = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.used(x)


@pytest.mark.parametrize("calibrate", ["sequential", "recalibrate", "dense"])
def test_an_uncalled_layer_is_named(calibrate: Any) -> None:
    x = jnp.ones((8, 4))
    with pytest.raises(ValueError, match="layer spare: the model does not call it"):
        compress(Unused(), Wanda(0.5), x, calibrate=calibrate)
    compress(Unused(), RTN(4))  # no matter to a method that does not look
    done = compress(Unused(), Wanda(0.5), x, calibrate=calibrate, exclude=["spare"])
    assert list(done.matrices) == ["used"]


def test_blocks_of() -> None:
    order = ["embed", "layers.0.q", "layers.0.mlp.up", "layers.1.q", "norm.head", "norm.tail"]
    assert blocks_of(order) == [
        ["embed"],
        ["layers.0.q", "layers.0.mlp.up"],
        ["layers.1.q"],
        ["norm.head"],
        ["norm.tail"],
    ]
    assert blocks_of(["layers.1.a", "layers.10.a", "layers.1.b"]) == [
        ["layers.1.a", "layers.1.b"],
        ["layers.10.a"],
    ]
    assert blocks_of([]) == []


def test_call_order_is_the_order_of_calls(user_model: UserModel, images: Array) -> None:
    specs, _ = find_layers(user_model)
    order = call_order(user_model, specs, images)
    assert sorted(order) == sorted(specs)
    assert order[:4] == [f"stems.{i}" for i in range(4)]
    assert order[4] == "depthwise"
    assert order[-2:] == ["heads.classes", "heads.again"]
    blocks = blocks_of(order)
    assert blocks == call_blocks(user_model, specs, images)
    assert blocks[4] == order[4:5]
    assert [b[0].rsplit(".", 2)[0] for b in blocks][5:7] == ["blocks.0", "blocks.1"]


def test_batches_of() -> None:
    x = np.ones((4, 3))
    assert len(batches_of(x)) == 1
    assert len(batches_of([x, x])) == 2
    assert len(batches_of(iter([x, x, x]))) == 3
    for empty in (None, [], (), iter(()), x[:0], [x, x[:0]]):
        with pytest.raises(ValueError, match="calibration set is empty"):
            batches_of(empty)


# --------------------------------------------------------------------------- calibration policies


class TwoBlocks(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(3)
        self.layers = nnx.List([nnx.Linear(12, 12, use_bias=False, rngs=rngs) for _ in range(2)])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = jnp.tanh(2 * layer(x))
        return x


@jax.jit
def stage(method: Any, matrix: Matrix, problem: Problem, key: Array) -> Matrix:
    return method(matrix, problem, key).matrix


def by_hand(calibrate: str, methods: list[Any], x: np.ndarray) -> list[Matrix]:
    """The two layers of :class:`TwoBlocks`, in numpy but for the method itself."""
    model = TwoBlocks()
    dense = [layer.kernel[...].T for layer in model.layers]
    layers = [fresh(w) for w in dense]

    def inputs(weights: list[Any]) -> list[Moments]:
        second = np.tanh(2 * x @ np.asarray(weights[0]).T)
        grams = [jnp.asarray(a.T @ a) for a in (x, second)]
        return [Moments(g, jnp.float32(len(x))) for g in grams]

    for i, method in enumerate(methods):
        key = jax.random.fold_in(jax.random.key(0), i)
        keys = [layer_key(key, f"layers.{n}") for n in range(2)]
        base = dense if calibrate == "dense" else [x.weight for x in layers]
        first = stage(method, layers[0], Problem(dense[0], inputs(base)[0]), keys[0])
        if calibrate == "sequential":
            base = [first.weight, base[1]]
        second = Problem(dense[1], inputs(base)[1])
        layers = [first, stage(method, layers[1], second, keys[1])]
    return layers


@pytest.mark.parametrize("calibrate", ["sequential", "recalibrate", "dense"])
@pytest.mark.parametrize(
    "methods",
    [[GPTQ(3)], [Wanda(0.5), GPTQ(3)], [RTN(3), Wanda(0.5)]],
    ids=lambda m: chain(*m).name,
)
def test_each_calibration_policy_recomputed_by_hand(calibrate: Any, methods: list[Any]) -> None:
    x = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)
    done = compress(TwoBlocks(), chain(*methods), x, calibrate=calibrate)
    for i, expected in enumerate(by_hand(calibrate, methods, x)):
        got = done.matrices[f"layers.{i}"]
        np.testing.assert_array_equal(got.mask, expected.mask)
        np.testing.assert_allclose(got.weight, expected.weight, rtol=1e-4, atol=1e-5)
        held = done.model.layers[i].kernel[...].T
        np.testing.assert_array_equal(held, got.weight)
    assert done.policy.calibrate == calibrate
    assert len(done.reports) == len(methods)
    assert set(done.reports[-1]) == (set(done.matrices) if isinstance(methods[-1], GPTQ) else set())


def test_the_policies_differ_where_they_should() -> None:
    """One stage: recalibrate = dense. The first block never differs at the first stage."""
    x = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)

    def second(calibrate: Any, *methods: Any) -> np.ndarray:
        done = compress(TwoBlocks(), chain(*methods), x, calibrate=calibrate)
        return np.asarray(done.matrices["layers.1"].weight)

    one = {c: second(c, GPTQ(3)) for c in ("sequential", "recalibrate", "dense")}
    np.testing.assert_array_equal(one["recalibrate"], one["dense"])
    assert not np.array_equal(one["sequential"], one["dense"])
    two = {c: second(c, Wanda(0.5), GPTQ(3)) for c in ("sequential", "recalibrate", "dense")}
    assert not np.array_equal(two["recalibrate"], two["dense"])
    assert not np.array_equal(two["recalibrate"], two["sequential"])


def test_compress_takes_any_module_and_leaves_it_alone(
    user_model: UserModel, images: Array
) -> None:
    before = np.asarray(user_model(images))
    method = chain(Wanda(0.5), RTN(4))
    options = {"calibrate": "dense", "exclude": ["depthwise"]}  # a single run of the model
    done = compress(user_model, method, images, **options)
    np.testing.assert_array_equal(user_model(images), before)
    after = np.asarray(done.model(images))
    assert np.all(np.isfinite(after))
    assert not np.array_equal(after, before)
    assert done.skipped == {"depthwise": "excluded by 'depthwise'"}
    np.testing.assert_array_equal(
        done.model.depthwise.kernel[...], user_model.depthwise.kernel[...]
    )
    stored = done.storage
    assert stored.layers_ratio == 16 * stored.weights / (4 * stored.kept)
    assert 7.5 < stored.layers_ratio <= 8  # odd rows keep one weight more than half
    assert 1 < done.ratio < 8  # the biases and the depthwise kernel are not compressed
    for layer in done.matrices.values():
        assert np.all(np.sum(~np.asarray(layer.mask), 1) == layer.mask.shape[1] // 2)
