"""Layers that are several matrices: stacked, batched, grouped and transposed; and embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb.network import (
    LayerSpec,
    blocks_of,
    call_blocks,
    call_order,
    capture,
    coverage,
    find_layers,
    get_weights,
    inputs_notes,
    inputs_report,
    matching,
    moments,
    notes,
    set_weights,
    starved,
    with_weights,
)
from perturb.network.features import features
from perturb.types import Moments

from .conftest import numpy_init

Array = jax.Array
RNG = np.random.default_rng(0)
R: Any = {"rngs": nnx.Rngs(0), "kernel_init": numpy_init}


def normal(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), jnp.float32)


class Model(nnx.Module):
    """One layer, called by whatever function a test gives."""

    def __init__(self, layer: Any, run: Callable[[Any, Any], Any] = lambda f, x: f(x)) -> None:
        self.layer = layer
        self.run = run

    def __call__(self, x: Any) -> Any:
        return self.run(self.layer, x)


def assert_moments(stats: Moments, tokens: Any, weights: Any = None) -> None:
    """The definition of Moments, in float64."""
    tokens = np.asarray(tokens, np.float64).reshape(-1, stats.scatter.shape[0])
    w = np.ones(len(tokens)) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    mean = w @ tokens / w.sum()
    assert float(stats.count) == pytest.approx(w.sum(), rel=1e-6)
    np.testing.assert_allclose(stats.mean, mean, atol=1e-5)
    centred = tokens - mean
    scatter = (w[:, None] * centred).T @ centred
    np.testing.assert_allclose(stats.scatter, scatter, atol=1e-5 * max(10, np.abs(scatter).max()))


# ---------------------------------------------------------------- several matrices in one layer


def conv(n: int, m: int, window: tuple[int, ...], **options: Any) -> nnx.Conv:
    return nnx.Conv(n, m, window, **R, **options)


def up(n: int, m: int, window: tuple[int, ...], **options: Any) -> nnx.ConvTranspose:
    return nnx.ConvTranspose(n, m, window, **R, **options)


Case = tuple[Callable[[], Any], tuple[int, ...], int, str]
# how outputs [own, tokens, out] are read off what the layer gives
LAYERS: dict[str, Case] = {
    "experts": (lambda: nnx.Einsum("ebi,eio->ebo", (3, 4, 5), **R), (3, 7, 4), 3, "ebo->ebo"),
    "experts-bias": (
        lambda: nnx.Einsum("bhi,hio->bho", (2, 4, 5), (2, 5), **R),
        (7, 2, 4),
        2,
        "bho->hbo",
    ),
    "experts-out-first": (
        lambda: nnx.Einsum("...ei,oei->...oe", (5, 3, 4), **R),
        (2, 7, 3, 4),
        3,
        "aboe->eabo",
    ),
    "experts-two": (
        lambda: nnx.Einsum("begi,geio->bgeo", (2, 3, 4, 5), **R),
        (7, 3, 2, 4),
        6,
        "bgeo->gebo",
    ),
    "general": (
        lambda: nnx.LinearGeneral((2, 4), (3, 3), axis=(-2, -1), batch_axis={0: 3}, **R),
        (3, 7, 2, 4),
        3,
        "btxy->btxy",
    ),
    "general-two": (
        lambda: nnx.LinearGeneral(4, 6, batch_axis={0: 3, 1: 2}, **R),
        (3, 2, 7, 4),
        6,
        "abto->abto",
    ),
    "grouped": (
        lambda: conv(6, 8, (3, 2), feature_group_count=2, strides=(2, 1), kernel_dilation=(1, 2)),
        (2, 7, 6, 6),
        2,
        "bhw(go)->gbhwo",
    ),
    "depthwise": (
        lambda: conv(5, 5, (3, 3), feature_group_count=5, strides=2),
        (2, 6, 7, 5),
        5,
        "bhw(go)->gbhwo",
    ),
    "depthwise-multiplied": (
        lambda: conv(3, 9, (3,), feature_group_count=3, padding="CAUSAL"),
        (2, 7, 3),
        3,
        "bt(go)->gbto",
    ),
    "depthwise-circular": (
        lambda: conv(4, 4, (2, 3), feature_group_count=4, padding="CIRCULAR"),
        (2, 5, 4, 4),
        4,
        "bhw(go)->gbhwo",
    ),
    "spread": (
        lambda: conv(3, 4, (3, 2), input_dilation=(2, 3), padding=((1, 2), (0, 1))),
        (2, 4, 5, 3),
        1,
        "bhw(go)->gbhwo",
    ),
    "up-same": (lambda: up(3, 4, (3, 3), strides=2), (2, 4, 5, 3), 1, "bhw(go)->gbhwo"),
    "up-same-wide": (lambda: up(3, 4, (2, 3), strides=(4, 2)), (2, 3, 4, 3), 1, "bhw(go)->gbhwo"),
    "up-valid": (
        lambda: up(3, 4, (3, 2), strides=(1, 3), padding="VALID", kernel_dilation=2),
        (2, 4, 5, 3),
        1,
        "bhw(go)->gbhwo",
    ),
    "up-flipped": (
        lambda: up(3, 4, (3, 2), strides=2, transpose_kernel=True),
        (2, 4, 5, 3),
        1,
        "bhw(go)->gbhwo",
    ),
    "up-explicit": (
        lambda: up(3, 4, (3, 3), strides=2, padding=((2, 1), (0, 2)), transpose_kernel=True),
        (2, 4, 5, 3),
        1,
        "bhw(go)->gbhwo",
    ),
    "up-int": (lambda: up(3, 4, (4,), strides=2, padding=1), (2, 6, 3), 1, "bt(go)->gbto"),
    "up-circular": (
        lambda: up(3, 4, (4, 3), strides=(2, 1), padding="CIRCULAR"),
        (2, 3, 4, 3),
        1,
        "bhw(go)->gbhwo",
    ),
    "up-circular-flipped": (
        lambda: up(3, 4, (5,), strides=2, padding="CIRCULAR", transpose_kernel=True),
        (2, 4, 3),
        1,
        "bt(go)->gbto",
    ),
    "up-unbatched": (lambda: up(3, 4, (3, 3), strides=2), (4, 5, 3), 1, "hw(go)->ghwo"),
    "einsum-summed": (lambda: nnx.Einsum("bti,io->bo", (4, 5), **R), (7, 3, 4), 1, "bo->bo"),
}


def read(y: Array, rule: str, own: int) -> np.ndarray:
    """Outputs as [own, ...]; ``(go)`` is an axis of channels, group by group."""
    a, b = rule.split("->")
    out = np.asarray(y, np.float64)
    if "(go)" in a:
        out = out.reshape(*out.shape[:-1], own, -1)
        a = a.replace("(go)", "go")
    return np.einsum(f"{a}->{b}", out)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_the_matrices_times_what_is_heard(name: str) -> None:
    """The layer's own outputs against features, and captured moments against numpy's of these."""
    make, shape, own, rule = LAYERS[name]
    model = Model(make())
    x = normal(*shape)
    specs, _ = find_layers(model)
    groups = own if isinstance(model.layer, nnx.Conv) else 1  # stretches of rows of one layer
    assert list(specs) == ([f"layer[{i}]" for i in range(own)] if own > groups else ["layer"])
    weights = get_weights(model, specs)
    one = next(iter(specs.values()))
    assert one.feature_groups == groups
    heard = np.asarray(features(model.layer, one.whole, x), np.float64)
    y = read(model(x) - model(0 * x), rule, own).reshape(own, -1, one.shape[0] // groups)
    stats = capture(model, specs, [x, 2 * x])
    for i in range(own):
        layer = f"layer[{i}]" if own > groups else "layer"
        w, seen = np.asarray(weights[layer], np.float64), stats[layer]
        tokens = heard[i].reshape(-1, one.shape[1])
        assert w.shape == specs[layer].shape
        if groups > 1:
            w, seen = np.split(w, groups)[i], jax.tree.map(lambda a, i=i: a[i], seen)
        np.testing.assert_allclose(tokens @ w.T, y[i], atol=1e-5 * np.abs(y).max())
        assert_moments(seen, np.concatenate([tokens, 2 * tokens]))


@pytest.mark.parametrize("name", LAYERS)
def test_matrices_and_kernel_are_one_to_one(name: str) -> None:
    model = Model(LAYERS[name][0]())
    specs, _ = find_layers(model)
    before = np.asarray(model.layer.kernel[...])
    weights = get_weights(model, specs)
    again = with_weights(model, specs, {n: 2 * w for n, w in weights.items()})
    np.testing.assert_array_equal(again.layer.kernel[...], 2 * before)
    last, spec = list(specs.items())[-1]
    np.testing.assert_array_equal(spec.to_matrix(jnp.asarray(before)), weights[last])
    kernel = jax.jit(spec.to_kernel)(0 * weights[last], jnp.asarray(before))
    set_weights(model, specs, {last: 0 * weights[last]})
    np.testing.assert_array_equal(model.layer.kernel[...], kernel)
    assert int(np.sum(np.asarray(kernel) == 0)) == weights[last].size
    for n, w in get_weights(model, specs).items():
        np.testing.assert_array_equal(w, 0 * weights[n] if n == last else weights[n])


# --------------------------------------------------------------------- stacked by a transform


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(4, 6, kernel_init=init, rngs=rngs)
        self.down = nnx.Linear(6, 4, kernel_init=init, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return x + self.down(jnp.tanh(self.up(x)))


init = nnx.initializers.normal(0.5)
L = 3


def stacked(kind: Any = Block, axis: int = 0, size: int = L) -> Any:
    made = nnx.vmap(kind, in_axes=0, out_axes=nnx.StateAxes({nnx.Param: axis, ...: 0}))
    return made(nnx.Rngs(0).split(size) if hasattr(nnx.Rngs, "split") else nnx.Rngs(0))


def copies(layer: Any, axis: int = 0) -> list[Any]:
    """The layers that a stack is of, each by itself."""
    graphdef, state = nnx.split(layer)
    size = jax.tree.leaves(state)[0].shape[axis]
    return [
        nnx.merge(graphdef, jax.tree.map(lambda a: jnp.take(a, i, axis), state))  # noqa: B023
        for i in range(size)
    ]


def scan(layer: Any, x: Array, **options: Any) -> Array:
    def step(x: Array, layer: Any) -> Array:
        return layer(x)

    run = nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, **options)
    return run(x, layer)


def scan_axis(axis: int) -> Callable[[Any, Array], Array]:
    def run(layer: Any, x: Array) -> Array:
        axes = (nnx.Carry, nnx.StateAxes({nnx.Param: axis}))
        return nnx.scan(lambda x, f: f(x), in_axes=axes, out_axes=nnx.Carry)(x, layer)

    return run


def scan_state(layer: Any, x: Array) -> Array:
    graphdef, state = nnx.split(layer)
    return jax.lax.scan(lambda x, s: (nnx.merge(graphdef, s)(x), None), x, state)[0]


def loop(layer: Any, x: Array) -> Array:
    """A Python loop, in an order of its own."""
    graphdef, state = nnx.split(layer)
    for i in (1, 0, 2):
        x = nnx.merge(graphdef, jax.tree.map(lambda a: a[i], state))(x)  # noqa: B023
    return x


def fori(layer: Any, x: Array) -> Array:
    graphdef, state = nnx.split(layer)
    return jax.lax.fori_loop(
        0, L, lambda i, x: nnx.merge(graphdef, jax.tree.map(lambda a: a[i], state))(x), x
    )


CHAINS: dict[str, tuple[Callable[[Any, Array], Array], tuple[int, ...]]] = {
    "nnx.scan": (scan, (0, 1, 2)),
    "nnx.scan-reversed": (lambda f, x: scan(f, x, reverse=True), (2, 1, 0)),
    "lax.scan": (scan_state, (0, 1, 2)),
    "jit": (lambda f, x: nnx.jit(scan)(f, x), (0, 1, 2)),
    "remat": (lambda f, x: scan(f, x) if x.ndim == 9 else nnx.remat(scan)(f, x), (0, 1, 2)),
    "vmap-of-scan": (lambda f, x: jax.vmap(lambda x: scan_state(f, x))(x), (0, 1, 2)),
    "python": (loop, (1, 0, 2)),
    "fori": (fori, (0, 1, 2)),
    "twice": (lambda f, x: scan(f, scan(f, x)), (0, 1, 2, 0, 1, 2)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_each_copy_of_a_chain_hears_its_own_inputs(name: str) -> None:
    run, order = CHAINS[name]
    model = Model(stacked(), run)
    x = normal(2, 5, 4)
    specs, skipped = find_layers(model)
    assert not skipped
    assert list(specs) == [f"layer.{k}[{i}]" for k in ("down", "up") for i in range(L)]
    blocks = copies(model.layer)
    inputs: dict[str, list[Any]] = {n: [] for n in specs}
    h = x
    for i in order:
        inputs[f"layer.up[{i}]"].append(h)
        inputs[f"layer.down[{i}]"].append(jnp.tanh(blocks[i].up(h)))
        h = blocks[i](h)
    np.testing.assert_allclose(model(x), h, rtol=1e-5, atol=1e-5)
    stats = capture(model, specs, x)
    for n, tokens in inputs.items():
        assert_moments(stats[n], jnp.stack(tokens))
    for i, block in enumerate(blocks):
        kernel = get_weights(model, specs)[f"layer.up[{i}]"]
        np.testing.assert_array_equal(kernel.T, block.up.kernel[...])
    assert not hasattr(model.layer.up, "_perturb_lane")


@pytest.mark.parametrize("axis", [1, 2])
def test_a_stack_along_another_axis(axis: int) -> None:
    """Biases have no such axis, so the layers have none."""

    def make(rngs: nnx.Rngs) -> Any:
        return nnx.Linear(4, 4, use_bias=False, kernel_init=init, rngs=rngs)

    model = Model(stacked(make, axis=axis), scan_axis(axis))
    x = normal(2, 5, 4)
    specs, _ = find_layers(model)
    assert next(iter(specs.values())).kernel_shape == tuple(np.insert([4, 4], axis, L))
    stats = capture(model, specs, x)
    h = x
    for i, layer in enumerate(copies(model.layer, axis)):
        assert_moments(stats[f"layer[{i}]"], h)
        np.testing.assert_array_equal(get_weights(model, specs)[f"layer[{i}]"], layer.kernel.T)
        h = layer(h)


def test_vmapped_copies_hear_their_own_lanes() -> None:
    model = Model(stacked(), lambda f, x: nnx.vmap(lambda f, x: f(x))(f, x))
    x = normal(L, 5, 4)
    specs, _ = find_layers(model)
    stats = capture(model, specs, x)
    for i, block in enumerate(copies(model.layer)):
        assert_moments(stats[f"layer.up[{i}]"], x[i])
        assert_moments(stats[f"layer.down[{i}]"], jnp.tanh(block.up(x[i])))


def test_vmapped_copies_of_the_same_inputs() -> None:
    """An ensemble: the inputs have no lanes, the kernels do; and token weights still apply."""
    model = Model(stacked(), lambda f, x: nnx.vmap(lambda f, x: f(x), in_axes=(0, None))(f, x))
    x = normal(2, 5, 4)
    specs, _ = find_layers(model)
    w = RNG.uniform(size=(2, 5))
    stats = capture(model, specs, x, token_weights=lambda b: w)
    for i, block in enumerate(copies(model.layer)):
        assert_moments(stats[f"layer.up[{i}]"], x, w)
        assert_moments(stats[f"layer.down[{i}]"], jnp.tanh(block.up(x)), w)


def test_experts_in_scanned_layers() -> None:
    """Two transforms, and a batched einsum in one: three batch axes."""

    class Experts(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.mix = nnx.Einsum("bgi,gio->bgo", (2, 4, 4), kernel_init=init, rngs=rngs)

        def __call__(self, x: Array) -> Array:
            return jnp.tanh(self.mix(x))

    class Layer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.experts = nnx.vmap(Experts)(rngs.split(5))

        def __call__(self, x: Array) -> Array:
            return nnx.vmap(lambda f, x: f(x))(self.experts, x)

    model = Model(stacked(Layer), scan)
    x = normal(5, 7, 2, 4)  # [expert, tokens, group, in]
    specs, _ = find_layers(model)
    assert len(specs) == L * 5 * 2
    assert next(iter(specs.values())).kernel_shape == (L, 5, 2, 4, 4)
    stats = capture(model, specs, x)
    kernel = np.asarray(model.layer.experts.mix.kernel[...])
    h = np.asarray(x)
    for i in range(L):
        for e in range(5):
            for g in range(2):
                name = f"layer.experts.mix[{(i * 5 + e) * 2 + g}]"
                assert_moments(stats[name], h[e, :, g])
                np.testing.assert_array_equal(get_weights(model, specs)[name].T, kernel[i, e, g])
        h = np.tanh(np.einsum("ebgi,egio->ebgo", h, kernel[i]))
    np.testing.assert_allclose(model(x), h, atol=1e-5)


def test_stacked_convolutions() -> None:
    def make(rngs: nnx.Rngs) -> Any:
        return nnx.Conv(4, 4, (3,), feature_group_count=2, kernel_init=init, rngs=rngs)

    model = Model(stacked(make), scan)
    x = normal(2, 6, 4)
    specs, _ = find_layers(model)
    stats, weights = capture(model, specs, x), get_weights(model, specs)
    h = x
    for i, layer in enumerate(copies(model.layer)):
        (alone, _), y = find_layers(Model(layer)), layer(h)
        own = capture(Model(layer), alone, h)
        assert stats[f"layer[{i}]"].scatter.shape == (2, 6, 6)  # of each group
        np.testing.assert_allclose(stats[f"layer[{i}]"].gram, own["layer"].gram)
        want = get_weights(Model(layer), alone)["layer"]
        np.testing.assert_array_equal(weights[f"layer[{i}]"], want)
        h = y


def test_a_scan_inside_a_branch_that_is_not_taken() -> None:
    model = Model(
        stacked(), lambda f, x: jax.lax.cond(x[0, 0, 0] > 9, lambda: scan_state(f, x), lambda: x)
    )
    specs, _ = find_layers(model)
    x = normal(2, 5, 4)
    assert starved(capture(model, specs, x)) == list(specs)
    assert starved(capture(model, specs, [x, x + 99])) == []


def test_moments_in_the_callers_jit_and_derivatives() -> None:
    energy = jax.grad(lambda x, f: jnp.sum(jax.vmap(lambda s: f(s))(x)), argnums=0)
    model = Model(stacked(), lambda f, x: energy(x, lambda x: loop(f, x)))
    specs, _ = find_layers(model)
    x = normal(2, 5, 4)
    graphdef, state = nnx.split(model)
    found = jax.jit(lambda s, x: moments(graphdef, s, x, tuple(specs.values())))(state, x)
    assert_moments(found["layer.up[1]"], x)
    assert_moments(found["layer.up[0]"], copies(model.layer)[1](x))


def test_what_takes_a_stack_apart_elsewhere_is_told() -> None:
    """A square stack could be along any axis: the first is taken, and the call says otherwise."""

    def make(rngs: nnx.Rngs) -> Any:
        return nnx.Linear(3, 3, use_bias=False, kernel_init=init, rngs=rngs)

    def middle(layer: Any, x: Array) -> Array:
        graphdef, state = nnx.split(layer)
        return nnx.merge(graphdef, jax.tree.map(lambda a: a[:, 0], state))(x)

    model = Model(stacked(make, axis=1), middle)
    with pytest.raises(ValueError, match=r"^layer layer: its kernel \(3, 3, 3\) is a stack") as e:
        capture(model, find_layers(model)[0], normal(2, 3))
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------------------- order and names


class Two(nnx.Module):
    """An encoder and a decoder, both scanned, the second backwards; and a head."""

    def __init__(self) -> None:
        self.encoder, self.decoder = stacked(), stacked(size=2)
        self.head = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def __call__(self, x: Array) -> Array:
        return self.head(scan(self.decoder, scan(self.encoder, x), reverse=True))


def test_the_steps_of_a_scan_are_blocks() -> None:
    model = Two()
    specs, _ = find_layers(model)
    blocks = call_blocks(model, specs, normal(2, 4))
    assert blocks == [
        *([f"encoder.up[{i}]", f"encoder.down[{i}]"] for i in (0, 1, 2)),
        *([f"decoder.up[{i}]", f"decoder.down[{i}]"] for i in (1, 0)),
        ["head"],
    ]
    assert call_order(model, specs, normal(2, 4)) == [n for block in blocks for n in block]
    few, _ = find_layers(model, exclude=["encoder.up", "*.down[1]"])
    assert call_blocks(model, few, normal(2, 4)) == [
        ["encoder.down[0]"],
        ["encoder.down[2]"],
        ["decoder.up[1]"],
        ["decoder.up[0]", "decoder.down[0]"],
        ["head"],
    ]


def test_matrices_of_one_layer_are_in_one_block() -> None:
    assert blocks_of(["a.0.dw[0]", "a.0.dw[1]", "a.0.out", "a.1.dw[0]", "head[0]", "head[1]"]) == [
        ["a.0.dw[0]", "a.0.dw[1]", "a.0.out"],
        ["a.1.dw[0]"],
        ["head[0]", "head[1]"],
    ]


def test_patterns_mean_matrices_and_modules() -> None:
    model = nnx.Dict(
        experts=nnx.Einsum("ebi,eio->ebo", (3, 4, 5), **R), fine=nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    )
    specs, skipped = find_layers(model, exclude=["experts[1]"])
    assert list(specs) == ["experts[0]", "experts[2]", "fine"]
    assert skipped == {"experts[1]": "excluded by 'experts[1]'"}
    cover = coverage(model, specs, skipped)
    assert cover.covered == 40 + 16
    assert cover.left[0] == ("experts", 20, "excluded by 'experts[1]'")
    for pattern in ("experts", "exp*", "experts[[]?]", "experts[*]"):
        specs, skipped = find_layers(model, exclude=[pattern])
        assert list(specs) == ["fine"]
        assert skipped == {"experts": f"excluded by {pattern!r}"}
    assert matching(model, "experts") == [f"experts[{i}]" for i in range(3)]
    assert matching(model, "*[2]") == ["experts[2]"]
    assert matching(model, "head") == []


def test_a_stack_in_two_modules_is_one() -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.a, self.b = stacked(), stacked()
            self.b.up.kernel = self.a.up.kernel

        def __call__(self, x: Array) -> Array:
            return scan(self.b, scan(self.a, x))

    model = Tied()
    specs, _ = find_layers(model)
    assert "b.up[0]" not in specs
    assert specs["a.up[1]"].names == ("a.up", "b.up")
    x = normal(7, 4)
    middle = scan(model.a, x)
    stats = capture(model, specs, x)
    assert_moments(stats["a.up[0]"], jnp.stack([x, middle]))
    assert notes(model, specs, {}) == [] or "its kernel" not in " ".join(notes(model, specs, {}))


# ---------------------------------------------------------------------------------- embeddings


class Language(nnx.Module):
    def __init__(self, tied: bool) -> None:
        self.embed = nnx.Embed(11, 4, rngs=nnx.Rngs(0))
        self.layer = nnx.Linear(4, 4, **R)
        self.tied = tied

    def __call__(self, ids: Array) -> Array:
        h = jnp.tanh(self.layer(self.embed(ids)))
        return self.embed.attend(h) if self.tied else h


IDS = jnp.asarray(RNG.integers(0, 11, (3, 5)))


def test_an_embedding_is_included_by_name() -> None:
    model = Language(tied=True)
    assert list(find_layers(model)[0]) == ["layer"]
    specs, skipped = find_layers(model, include=["emb*"])
    assert list(specs) == ["embed", "layer"]
    assert specs["embed"].shape == (11, 4)
    assert coverage(model, specs, skipped).covered == 44 + 16
    weights = get_weights(model, specs)
    np.testing.assert_array_equal(weights["embed"], model.embed.embedding[...])
    h = jnp.tanh(model.layer(model.embed(IDS)))
    np.testing.assert_allclose(h @ weights["embed"].T, model(IDS), rtol=1e-5, atol=1e-6)
    stats = capture(model, specs, IDS)
    assert_moments(stats["embed"], h)  # where it is applied, and not where it is looked up
    assert_moments(stats["layer"], model.embed(IDS))
    changed = with_weights(model, specs, {"embed": 0 * weights["embed"]})
    np.testing.assert_array_equal(changed.embed.embedding[...], np.zeros((11, 4)))
    assert nnx.Embed.attend.__qualname__ == "Embed.attend"
    assert not hasattr(nnx.Embed.attend, "__wrapped__")


def test_a_lookup_has_white_inputs() -> None:
    model = Language(tied=False)
    specs, _ = find_layers(model, include=["embed"])
    stats = capture(model, specs, [IDS, IDS])
    np.testing.assert_array_equal(stats["embed"].scatter, np.eye(4))
    np.testing.assert_array_equal(stats["embed"].gram, np.eye(4))
    assert float(stats["embed"].count) == 1
    assert float(stats["layer"].count) == 30
    assert call_order(model, specs, IDS) == ["embed", "layer"]
    assert inputs_notes(specs, stats) == []


def test_patterns_of_embeddings() -> None:
    model = Language(tied=True)
    with pytest.raises(ValueError, match=r"include pattern 'layer' matches no embedding; .*embed"):
        find_layers(model, include=["layer"])
    specs, skipped = find_layers(model, include=["*"], exclude=["embed"])
    assert list(specs) == ["layer"]
    assert skipped == {"embed": "excluded by 'embed'"}
    assert list(find_layers(model, exclude=["embed"])[0]) == ["layer"]
    assert matching(model, "e*") == ["embed"]
    with pytest.raises(ValueError, match="exclude pattern 'head' matches no layer"):
        find_layers(model, exclude=["head"])


# ----------------------------------------------------------------------------- what inputs tell


def test_dead_inputs_and_few_tokens_are_told() -> None:
    model = nnx.Dict(a=nnx.Linear(4, 3, **R), b=nnx.Linear(3, 4, **R), c=nnx.Linear(4, 3, **R))
    specs, skipped = find_layers(model)
    x = normal(8, 4).at[:, 1].set(0)
    y = normal(2, 3)

    def forward(model: Any, batch: Any) -> Any:
        x, y = batch
        return (
            model["a"](x),
            model["b"](y),
            jax.lax.cond(x[0, 0] > 9, model["c"], lambda x: x[:, :3], x),
        )

    stats = capture(model, specs, [(x, y)], forward=forward)
    assert inputs_report(stats) == {"a": (8.0, 1), "b": (2.0, 0), "c": (0.0, 4)}
    few, dead = inputs_notes(specs, stats)
    assert few.startswith("fewer tokens than inputs")
    assert "b (2 for 3)" in few
    assert dead == "inputs that are 0 in all calibration data: a (1 of 4)"
    assert notes(model, specs, skipped, stats)[-2:] == [few, dead]
    constant = capture(
        Model(nnx.Linear(2, 2, **R)), find_layers(Model(nnx.Linear(2, 2, **R)))[0], jnp.ones((3, 2))
    )
    assert inputs_report(constant) == {"layer": (3.0, 0)}  # no scatter, but a mean
    assert LayerSpec("a", "linear", (3, 2), (0,), (1,)).module == "a"
