"""Models as users write them: layers under transforms, tied, overridden, masked, left out."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import warnings
from collections import Counter, UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import RTN, Magnitude, Wanda, compress, network
from perturb.network import batches as batches_module
from perturb.network import (
    batches_of,
    call_order,
    capture,
    check_runs,
    coverage,
    find_layers,
    get_weights,
    moments,
    norm_moments,
    norms_of,
    notes,
    reestimate,
    set_norms,
    set_weights,
    starved,
    with_weights,
)
from perturb.network.hear import Ear
from perturb.types import Moments

from .conftest import numpy_init

Array = jax.Array
ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(4, 5, 3)), jnp.float32)  # [batch, seq, features]


def linear(n: int = 3, m: int = 3, kind: Any = nnx.Linear, **options: Any) -> Any:
    options = {"kernel_init": numpy_init, "rngs": nnx.Rngs(0)} | options
    return kind(n, m, **options)


class Model(nnx.Module):
    """One layer, called by whatever function a test gives."""

    def __init__(self, run: Callable[[Any, Array], Any], layer: Any = None) -> None:
        self.layer = linear() if layer is None else layer
        self.run = run

    def __call__(self, x: Array) -> Any:
        return self.run(self.layer, x)


def told(model: nnx.Module, x: Any = X, **options: Any) -> dict[str, Moments]:
    return capture(model, find_layers(model)[0], x, **options)


def assert_moments(stats: Moments, tokens: Any, weights: Any = None) -> None:
    """The definition of Moments, in float64."""
    tokens = np.asarray(tokens, np.float64).reshape(-1, stats.scatter.shape[0])
    w = np.ones(len(tokens)) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    mean = w @ tokens / w.sum()
    assert float(stats.count) == pytest.approx(w.sum(), rel=1e-6)
    np.testing.assert_allclose(stats.mean, mean, atol=1e-5)
    centred = tokens - mean
    np.testing.assert_allclose(stats.scatter, (w[:, None] * centred).T @ centred, atol=1e-4)


# ------------------------------------------------------------------------------- under transforms


def scan_steps(layer: Any, x: Array) -> Any:
    """Three calls of a layer on its own output."""
    return jax.lax.scan(lambda h, _: (jnp.tanh(layer(h)), None), x, length=3)[0]


def scan_tokens(layer: Any, x: Array) -> Any:
    return jax.lax.scan(lambda c, t: (c, layer(t)), 0, jnp.moveaxis(x, 1, 0))[1]


def nnx_scan_tokens(layer: Any, x: Array) -> Any:
    def step(layer: Any, c: Array, t: Array) -> Any:
        return c, layer(t)

    return nnx.scan(step, in_axes=(None, nnx.Carry, 1), out_axes=(nnx.Carry, 1))(layer, 0.0, x)


def fori(layer: Any, x: Array) -> Any:
    return jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(layer(h)), x)


def while_loop(layer: Any, x: Array) -> Any:
    return jax.lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(layer(c[1]))), (0, x)
    )[1]


def cond(layer: Any, x: Array) -> Any:
    return jax.lax.cond(x.sum() < 1e9, layer, lambda x: x, x)


def energy_gradient(layer: Any, x: Array) -> Any:
    return jax.grad(lambda x: jnp.sum(jnp.tanh(layer(x))))(x)


def custom_jvp(layer: Any, x: Array) -> Any:
    f = jax.custom_jvp(lambda x: layer(x))
    f.defjvps(lambda t, y, x: t)
    return jax.grad(lambda x: f(x).sum())(x)


def custom_vjp(layer: Any, x: Array) -> Any:
    f = jax.custom_vjp(lambda x: layer(x))
    f.defvjp(lambda x: (layer(x), None), lambda _, t: (t,))
    return f(x), jax.eval_shape(lambda x: x, x)


ONCE: dict[str, Callable[[Any, Array], Any]] = {
    "nnx.jit": lambda layer, x: nnx.jit(lambda f, x: f(x))(layer, x),
    "jax.jit": lambda layer, x: jax.jit(lambda f, x: f(x))(layer, x),
    "jit-closure": lambda layer, x: jax.jit(lambda x: layer(x))(x),
    "nnx.remat": lambda layer, x: nnx.remat(lambda f, x: f(x))(layer, x),
    "jax.checkpoint": lambda layer, x: jax.checkpoint(lambda x: layer(x))(x),
    "jax.vmap": lambda layer, x: jax.vmap(layer)(x),
    "jax.vmap-twice": lambda layer, x: jax.vmap(jax.vmap(layer))(x),
    "vmap-of-jit": lambda layer, x: jax.vmap(jax.jit(lambda x: layer(x)))(x),
    "vmap-of-scan": lambda layer, x: jax.vmap(
        lambda x: jax.lax.scan(lambda c, t: (c, layer(t)), 0, x)[1]
    )(x),
    "nnx.vmap": lambda layer, x: nnx.vmap(lambda f, x: f(x), in_axes=(None, 0))(layer, x),
    "scan": scan_tokens,
    "nnx.scan": nnx_scan_tokens,
    "map": lambda layer, x: jax.lax.map(layer, x, batch_size=2),
    "cond": cond,
    "nnx.cond": lambda layer, x: nnx.cond(
        x[0, 0, 0] < 9, lambda f, x: f(x), lambda f, x: x, layer, x
    ),
    "grad": energy_gradient,
    "custom_jvp": custom_jvp,
    "custom_vjp": custom_vjp,
    "jit-of-scan-of-jit": lambda layer, x: jax.jit(
        lambda x: jax.lax.scan(lambda c, t: (c, jax.jit(lambda t: layer(t))(t)), 0, x)[1]
    )(x),
}


@pytest.mark.parametrize("name", ONCE)
def test_a_layer_under_a_transform_is_heard(name: str) -> None:
    assert_moments(told(Model(ONCE[name]))["layer"], X)


@pytest.mark.parametrize("loop", [scan_steps, fori, while_loop])
def test_a_loop_counts_every_round(loop: Any) -> None:
    model = Model(loop)
    rounds = [X]
    for _ in range(2):
        rounds.append(jnp.tanh(model.layer(rounds[-1])))
    assert_moments(told(model)["layer"], jnp.stack(rounds))
    np.testing.assert_allclose(model(X), jnp.tanh(model.layer(rounds[-1])), rtol=1e-5)


def test_every_call_of_a_cached_function_is_heard() -> None:
    """jax traces it once; and never again for a second capture of the same model."""
    inner = jax.jit(lambda f, x: jnp.tanh(f(x)))
    model = Model(lambda layer, x: inner(layer, inner(layer, x)))
    expected = jnp.stack([X, jnp.tanh(model.layer(X))])
    model(X)  # the caches of jax know it before it is listened to
    for _ in range(2):
        assert_moments(told(model)["layer"], expected)
        assert call_order(model, find_layers(model)[0], X) == ["layer"]
    assert_moments(told(model, [X[:2], X[2:]])["layer"], expected)


def test_one_compiled_function_for_two_layers_tells_them_apart() -> None:
    inner = nnx.jit(lambda f, x: f(x))

    class Two(nnx.Module):
        def __init__(self) -> None:
            self.a, self.b = linear(), linear()

        def __call__(self, x: Array) -> Array:
            return inner(self.b, 2 * jnp.tanh(inner(self.a, x)))

    model = Two()
    stats = told(model)
    assert_moments(stats["a"], X)
    assert_moments(stats["b"], 2 * jnp.tanh(model.a(X)))


@pytest.mark.parametrize("jit", [nnx.jit, jax.jit])
def test_forward_may_be_compiled(jit: Any) -> None:
    model = Model(lambda layer, x: layer(x))
    specs, _ = find_layers(model)
    forward = jit(lambda model, x: model(2 * x))
    assert call_order(model, specs, X, forward) == ["layer"]
    assert_moments(capture(model, specs, X, forward=forward)["layer"], 2 * X)


def test_recurrent_layers_count_every_step() -> None:
    rnn = nnx.RNN(nnx.LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    stats = told(rnn)
    inputs = [n for n in stats if stats[n].scatter.shape == (3, 3)]
    assert len(inputs) == 4
    for name in inputs:
        assert_moments(stats[name], X)
    assert all(float(s.count) == 20 for s in stats.values())
    compress(rnn, Wanda(0.5), X, calibrate="sequential")


def test_large_moments_in_a_loop() -> None:
    """4 MB a layer and round: nothing may wait for a thread that is busy with the program."""
    layers = nnx.List(
        [linear(1024, 1024, kernel_init=nnx.initializers.zeros_init()) for _ in range(2)]
    )

    def run(layers: Any, x: Array) -> Any:
        return jax.lax.scan(lambda h, _: (h + layers[1](layers[0](h)), None), x, length=2)[0]

    stats = told(Model(run, layers), jnp.ones((4, 1024)))
    assert float(stats["layer.0"].count) == 8
    np.testing.assert_array_equal(stats["layer.0"].mean, np.ones(1024))


def test_moments_stay_pure_under_the_callers_jit() -> None:
    model = Model(scan_steps)
    specs, _ = find_layers(model)
    graphdef, state = nnx.split(model)
    f = jax.jit(lambda state, x: moments(graphdef, state, x, tuple(specs.values())))
    expected = told(model)["layer"]
    for got, want in zip(f(state, X)["layer"], expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


UNHEARD: dict[str, tuple[Callable[[Any, Array], Any], str]] = {
    "cond": (
        lambda f, x: jax.vmap(lambda x: jax.lax.cond(x.sum() > 0, f, lambda x: x, x))(x),
        "a cond under vmap",
    ),
    "while": (
        lambda f, x: jax.vmap(lambda x: jax.lax.while_loop(lambda h: h.sum() > 9, f, x))(x),
        "a while_loop under vmap",
    ),
    "test": (
        lambda f, x: jax.lax.while_loop(lambda h: f(h).sum() > 9, lambda h: 0 * h, x),
        "the condition of a while_loop",
    ),
    "shard_map": (
        lambda f, x: jax.shard_map(
            lambda x: f(x),
            mesh=jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,)),
            in_specs=jax.P("d"),
            out_specs=jax.P("d"),
        )(x),
        "shard_map",
    ),
    "remat": (
        lambda f, x: jax.grad(jax.checkpoint(lambda x: f(x).sum()))(x),
        "the derivative of a checkpoint",
    ),
    "scan": (
        lambda f, x: jax.grad(
            lambda x: jax.lax.scan(lambda c, t: (c + jnp.tanh(f(t)).sum(), None), 0.0, x)[0]
        )(x),
        "the derivative of a loop",
    ),
}


@pytest.mark.parametrize("name", UNHEARD)
def test_what_cannot_be_heard_is_named_with_its_place(name: str) -> None:
    run, place = UNHEARD[name]
    layers = nnx.List([linear(), linear()])
    model = Model(lambda f, x: run(f[1], f[0](x)), layers)
    with pytest.raises(
        ValueError, match=rf"^layer layer\.1: it is called inside {place}.*exclude"
    ) as e:
        told(model)
    assert "\n" not in str(e.value)
    compress(model, Wanda(0.4), X, exclude=["layer.1"], calibrate="dense")  # the remedy
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"
    assert not hasattr(nnx.Linear.__call__, "__wrapped__")


class Experts(nnx.Module):
    def __init__(self) -> None:
        self.experts = nnx.List([linear(), linear()])

    def __call__(self, x: Array, which: Any = 0) -> Array:
        return jax.lax.switch(which, list(self.experts), x)


def test_an_expert_without_tokens_has_moments_of_zero() -> None:
    model = Experts()
    specs, _ = find_layers(model)
    stats = told(model)
    assert_moments(stats["experts.0"], X)
    assert all(not np.any(np.asarray(a)) for a in stats["experts.1"])
    assert starved(stats) == ["experts.1"]
    both = capture(model, specs, [0, 1], forward=lambda model, i: model(X, i))
    assert starved(both) == []
    assert_moments(both["experts.1"], X)
    assert starved(told(Model(lambda f, x: f(x)), 0 * X)) == ["layer"]
    assert starved(told(Model(lambda f, x: f(x)), 0 * X + 1)) == []  # no scatter, but a mean


# --------------------------------------------------------------------------- subclasses and calls


class Doubled(nnx.Linear):
    def __call__(self, x: Array) -> Array:  # type: ignore[override]
        assert type(self) is Doubled
        return super().__call__(2 * x)


class Explicit(nnx.Linear):
    def __call__(self, h: Array) -> Array:  # type: ignore[override]
        return nnx.Linear.__call__(self, inputs=3 * h)


class Bypass(nnx.Linear):
    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        return inputs @ self.kernel[...]


@pytest.mark.parametrize(
    ("kind", "call", "factor"),
    [
        (Doubled, lambda f, x: f(x), 2),
        (Doubled, lambda f, x: f(x=x), 2),
        (Doubled, lambda f, x: nnx.jit(lambda f, x: f(x=x))(f, x), 2),
        (Explicit, lambda f, x: f(h=x), 3),
        (nnx.Linear, lambda f, x: f(inputs=x), 1),
    ],
)
def test_what_the_matrix_acts_on_is_heard(kind: Any, call: Any, factor: float) -> None:
    model = Model(call, linear(kind=kind))
    assert_moments(told(model)["layer"], factor * X)
    assert type(model.layer) is kind


def test_lora_layers_are_heard() -> None:
    layer = nnx.LoRALinear(3, 3, lora_rank=2, rngs=nnx.Rngs(0))
    assert_moments(told(Model(lambda f, x: f(x), layer))["layer"], X)


def test_a_class_that_goes_round_its_kind_is_told() -> None:
    model = Model(lambda f, x: f(x), linear(kind=Bypass))
    message = r"layer layer: nothing reaches nnx\.Linear\.__call__ .* Bypass overrides it"
    for calibrate in ("sequential", "dense"):
        with pytest.raises(ValueError, match=message):
            compress(model, Wanda(0.4), X, calibrate=calibrate)
    compress(model, Magnitude(0.5))


def test_an_einsum_of_the_call_is_refused_unless_it_is_the_layers_own() -> None:
    layer = nnx.Einsum("bti,io->bto", (3, 3), rngs=nnx.Rngs(0))
    assert_moments(told(Model(lambda f, x: f(x, "bti, io -> bto"), layer))["layer"], X)
    with pytest.raises(ValueError, match="layer layer: it is called with the einsum 'bti,oi->bto'"):
        told(Model(lambda f, x: f(x, "bti,oi->bto"), layer))


def test_modules_stay_themselves_after_an_error() -> None:
    def broken(layer: Any, x: Array) -> Any:
        layer(x)
        raise KeyError("mine")

    model = Model(broken)
    with pytest.raises(ValueError, match="KeyError: 'mine'"):
        told(model)
    assert not hasattr(nnx.Linear.__call__, "__wrapped__")
    assert set(vars(model.layer)) == set(vars(linear()))
    pickle.loads(pickle.dumps(nnx.split(model.layer)))


class Odd(nnx.Module):
    """An attribute that cannot be hashed, as configurations are."""

    def __init__(self) -> None:
        self.layer = linear()
        self.config = {"sizes": [3, 3]}

    def __call__(self, x: Array) -> Array:
        return self.layer(x)


def test_attributes_that_cannot_be_hashed_do_not_matter() -> None:
    model = Odd()
    with pytest.raises(TypeError):
        hash(nnx.graphdef(model))
    assert_moments(told(model, [X, X])["layer"], jnp.stack([X, X]))
    done = compress(model, Wanda(0.4), X).model
    assert int(jnp.sum(done.layer.kernel[...] == 0)) == 3


def test_an_attribute_that_is_changed_in_place_is_seen() -> None:
    """What cannot be hashed is compared with a copy, so that it is compiled once, and anew."""

    class Scaled(Odd):
        def __call__(self, x: Array) -> Array:
            traced.append(self.config["sizes"][0])
            return self.layer(self.config["sizes"][0] * x)

    traced: list[int] = []
    model = Scaled()
    for _ in range(3):
        assert_moments(told(model)["layer"], 3 * X)
    assert traced == [3]
    model.config["sizes"][0] = 5
    assert_moments(told(model)["layer"], 5 * X)
    assert traced == [3, 5]


def live() -> Counter[Any]:
    """The objects that there are, by type."""
    gc.collect()
    return Counter(type(o) for o in gc.get_objects())


@pytest.mark.parametrize("kind", ["same", "odd", "forward", "inner"])
def test_capture_in_a_loop_leaves_nothing_behind(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs are dropped one by one, and what a user's own jit keeps hears nothing."""
    monkeypatch.setattr(batches_module, "PROGRAMS", batches_module.Programs(2))
    inner = nnx.jit(lambda f, x: f(x))
    model = Odd() if kind == "odd" else Model(inner if kind == "inner" else lambda f, x: f(x))
    specs, _ = find_layers(model)

    def once() -> None:
        fresh = {"forward": lambda model, x: model(x)} if kind in ("forward", "inner") else {}
        capture(model, specs, X, **fresh)

    for _ in range(3):
        once()
    before = live()
    for _ in range(4):
        once()
    after = live()
    assert after[type] == before[type]
    ears = [o for o in gc.get_objects() if isinstance(o, Ear)]
    assert all(ear.around is None for ear in ears)
    if kind == "inner":  # its cache of jax holds what was traced, for as long as it lives itself
        after[FunctionType] -= 4 * 2  # the mark of a value, and what it does under vmap
    assert after[FunctionType] <= before[FunctionType] + 3
    assert after[type(jax.jit(len))] <= before[type(jax.jit(len))]
    assert nnx.Linear.__call__.__qualname__ == "Linear.__call__"
    assert not hasattr(nnx.Linear.__call__, "__wrapped__")


# -------------------------------------------------------------------------------- shared kernels


class TiedKernels(nnx.Module):
    """Two modules with one kernel Param; the second sees other inputs."""

    def __init__(self, second: Any = None) -> None:
        self.first = linear()
        self.second = linear() if second is None else second
        self.second.kernel = self.first.kernel

    def __call__(self, x: Array) -> Array:
        return self.second(jnp.tanh(self.first(x)))


def test_one_kernel_in_two_modules_is_one_layer() -> None:
    model = TiedKernels()
    specs, skipped = find_layers(model)
    assert list(specs) == ["first"]
    assert specs["first"].aliases == ("second",)
    assert not skipped
    hidden = jnp.tanh(model.first(X))
    assert_moments(told(model)["first"], jnp.stack([X, hidden]))
    assert call_order(model, specs, X) == ["first"]
    done = compress(model, Magnitude(0.5))
    assert list(done.matrices) == ["first"]
    assert done.model.first.kernel is done.model.second.kernel
    np.testing.assert_array_equal(done.model.second.kernel[...].T, done.matrices["first"].weight)
    assert bool(jnp.any(done.model.second.kernel[...] == 0))
    cover = coverage(model, specs, skipped)
    assert (cover.parameters, cover.covered) == (9 + 3 + 3, 9)


def test_a_kernel_read_along_other_axes_is_left_alone() -> None:
    back = nnx.Einsum("bti,oi->bto", (3, 3), rngs=nnx.Rngs(0))
    model = nnx.Dict(tied=TiedKernels(back), fine=linear())
    specs, skipped = find_layers(model)
    assert list(specs) == ["fine"]
    assert "also that of tied.second, which reads it along other axes" in skipped["tied.first"]
    assert "also that of tied.first" in skipped["tied.second"]


def test_an_excluded_module_keeps_its_kernel_from_all() -> None:
    model = nnx.Dict(tied=TiedKernels(), fine=linear())
    specs, skipped = find_layers(model, exclude=["tied.second"])
    assert list(specs) == ["fine"]
    assert skipped["tied.first"].endswith("tied.second, which is left alone")


class TiedEmbedding(nnx.Module):
    def __init__(self) -> None:
        self.embed = nnx.Embed(3, 3, rngs=nnx.Rngs(0))
        self.head = linear(use_bias=False)
        self.head.kernel = self.embed.embedding

    def __call__(self, x: Array) -> Array:
        return self.head(self.embed(x))


def test_a_kernel_that_is_an_embedding_too_is_told() -> None:
    model = TiedEmbedding()
    found = find_layers(model)
    assert list(found[0]) == ["head"]
    assert coverage(model, *found).share == 1
    assert notes(model, *found) == [
        "layer head: its kernel is also embed.embedding (Embed), which changes with it"
    ]


# --------------------------------------------------------------------------- what is left out


class Mixed(nnx.Module):
    def __init__(self) -> None:
        r = nnx.Rngs(0)
        self.embed = nnx.Embed(50, 4, rngs=r)
        self.norm = nnx.BatchNorm(4, rngs=r)
        self.drop = nnx.Dropout(0.5, rngs=r)
        self.masked = nnx.ConvTranspose(4, 4, (3,), mask=jnp.ones((3, 4, 4)), rngs=r)
        self.pair = nnx.Einsum("...gi,gio->...go", (2, 3, 4), rngs=r)
        self.layer = linear(4, 4)
        self.spare = linear(4, 4, use_bias=False)
        self.scale = nnx.Param(jnp.ones(7))
        self.parts = nnx.data({"a": [nnx.Param(jnp.ones(2))]})
        self.table = nnx.Param(jnp.ones(100, jnp.int32))


def test_coverage_accounts_for_every_parameter() -> None:
    model = Mixed()
    specs, skipped = find_layers(model, exclude=["spare", "pair[1]"])
    cover = coverage(model, specs, skipped)
    left = {name: (size, reason) for name, size, reason in cover.left}
    assert left == {
        "embed": (200, "nnx.Embed"),
        "masked": (48, "it is a masked convolution"),
        "pair": (12, "excluded by 'pair[1]'"),
        "spare": (16, "excluded by 'spare'"),
        "norms": (8, "not matrices"),
        "biases": (8, "not matrices"),
        "Mixed.scale": (7, "Mixed.scale, an nnx.Param"),
        "parts.a.0": (2, "list.0, an nnx.Param"),
    }
    assert cover.covered == 16 + 12
    assert cover.parameters == 28 + sum(size for size, _ in left.values())
    assert cover.share == pytest.approx(28 / 329)
    line = cover.describe()
    assert line.startswith(
        "8.5 % of the parameters are in compressed layers; left dense: embed (nnx"
    )
    assert line.endswith("3 more 5.2 %")
    bare = nnx.Dict(a=linear(use_bias=False))
    assert coverage(bare, *find_layers(bare)).describe() == (
        "100.0 % of the parameters are in compressed layers"
    )


def test_notes_tell_of_train_mode_and_low_coverage() -> None:
    model = Mixed()
    found = find_layers(model)
    low, train = notes(model, *found)
    assert low.startswith("only 17.0 % of the parameters")
    assert (
        "norm (BatchNorm), drop (Dropout)" in train or "drop (Dropout), norm (BatchNorm)" in train
    )
    assert "model.eval()" in train
    model.eval()
    assert notes(model, *found) == [low]
    bare = nnx.Dict(a=linear(20, 20))
    assert notes(bare, *find_layers(bare)) == []


def not_a_model(batch: Any) -> Any:
    return batch


def fake(module: str) -> Any:
    return type("Net", (type("Module", (), {"__module__": module}),), {"__module__": "mine"})()


def linen_module() -> Any:
    from flax import linen

    return linen.Dense(3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (linen_module, r"^Dense is a Linen module.*nnx\.Linear for nn\.Dense"),
        (lambda: fake("equinox._module"), "^Net is an Equinox module"),
        (lambda: fake("torch.nn.modules.module"), "^Net is a torch module"),
        (lambda: {"w": X}, "^dict is a pytree without code"),
        (lambda: nnx.state(linear()), "^State is a pytree without code"),
        (lambda: X, "is an array, not a model: are the model and the calibration data swapped"),
        (lambda: np.ones(3), "is an array, not a model"),
        (lambda: Mixed, r"^Mixed is a class: give an instance, Mixed\(\.\.\.\)"),
        (lambda: not_a_model, "^not_a_model is a function.*forward="),
        (lambda: fake("keras"), "^Net has no compressible layer: it is no flax.nnx.Module"),
    ],
)
def test_what_is_no_model_is_told_what_to_give(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        compress(model(), RTN(4), X)
    assert "\n" not in str(error.value)


def test_a_wrapped_linen_module_stays_linen() -> None:
    model = nnx.bridge.ToNNX(linen_module(), rngs=nnx.Rngs(0)).lazy_init(X)
    with pytest.raises(ValueError, match=r"no compressible layer .* wraps stays Linen"):
        find_layers(model)


class Bound(nnx.Module):
    def __init__(self) -> None:
        self.layer = linear(9, 9)
        self.fast = jax.jit(self.inner)

    def inner(self, x: Array) -> Array:
        return self.layer(x)

    def __call__(self, x: Array) -> Array:
        return self.fast(x)


def test_a_model_that_holds_a_method_of_itself_is_told() -> None:
    """A copy would run the original's weights."""
    message = "Bound.fast is bound to this very model"
    model = Bound()
    (line,) = notes(model, *find_layers(model))
    assert line.startswith(message)
    with pytest.raises(ValueError, match=f"layer layer: the model does not call it .*{message}"):
        told(model, jnp.ones((2, 9)))


def test_model_and_calibration_swapped() -> None:
    with pytest.raises(ValueError, match=r"the calibration data is a model \(Linear\).*swapped"):
        capture(linear(), find_layers(linear())[0], linear())


# ---------------------------------------------------------------------------------- narrow dtypes

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_narrow_weights_are_computed_with_in_float32(dtype: Any) -> None:
    model = Model(lambda f, x: x @ f.kernel[...].astype(x.dtype), linear(param_dtype=dtype))
    specs, _ = find_layers(model)
    weights = get_weights(model, specs)
    assert weights["layer"].dtype == jnp.float32
    done = with_weights(model, specs, weights)
    assert done.layer.kernel[...].dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(done.layer.kernel[...], np.float32), np.asarray(weights["layer"]).T
    )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_a_weight_beyond_the_range_of_the_kernel_is_refused(dtype: Any) -> None:
    model = nnx.Dict(layer=linear(param_dtype=dtype))
    specs, _ = find_layers(model)
    large = get_weights(model, specs)["layer"].at[0, 1].set(1e6)
    with pytest.raises(
        ValueError, match=r"layer layer: 1 of its weights, up to 1e\+06, are beyond"
    ):
        set_weights(model, specs, {"layer": large})
    assert bool(jnp.all(jnp.isfinite(model.layer.kernel[...].astype(jnp.float32))))
    jax.eval_shape(lambda w: with_weights(model, specs, {"layer": w}), large)  # not under a trace


def test_float64_stays_float64() -> None:
    with jax.enable_x64(True):
        model = Model(lambda f, x: f(x), linear(param_dtype=jnp.float64, dtype=jnp.float64))
        specs, _ = find_layers(model)
        assert get_weights(model, specs)["layer"].dtype == jnp.float64
        assert (
            told(model, jnp.asarray(np.asarray(X), jnp.float64))["layer"].scatter.dtype
            == jnp.float64
        )


# -------------------------------------------------------------------------------------- batches


class Pair(NamedTuple):
    x: Any
    y: Any


def test_one_batch_or_many() -> None:
    x = np.ones((4, 3))
    assert [list(b) for b in batches_of({"x": x, "y": x})] == [["x", "y"]]
    assert len(batches_of([{"x": x}, {"x": x}])) == 2
    assert len(batches_of([(x, x)])) == 1
    assert len(batches_of((x, x, x))) == 3
    assert len(batches_of(Pair(x, x))) == 1
    (batch,) = batches_of(UserDict(x=x))
    assert type(batch) is dict
    assert [type(b) for b in batches_of([UserDict(x=x)])] == [dict]
    with pytest.raises(ValueError, match="calibration set is empty"):
        batches_of({})


def test_a_generator_is_listed_once() -> None:
    def batches() -> Iterator[Array]:
        yield X
        yield 2 * X

    assert_moments(told(Model(lambda f, x: f(x)), batches())["layer"], jnp.stack([X, 2 * X]))


class Named(nnx.Module):
    def __init__(self) -> None:
        self.layer = linear()

    def __call__(self, ids: Array, mask: Array) -> Array:
        return self.layer(ids) * mask


@pytest.mark.parametrize(
    ("batch", "hint"),
    [
        ({"ids": X, "mask": X}, r"the batch is a dict \(ids, mask\).*model\(\*\*batch\)"),
        ((X, X), r"the batch is a tuple of 2.*model\(batch\[0\]\)"),
    ],
)
def test_a_batch_of_several_arrays_gets_a_hint(batch: Any, hint: str) -> None:
    model = Named()
    specs, _ = find_layers(model)
    for run in (check_runs, call_order, lambda m, s, b: capture(m, s, [b])):
        with pytest.raises(
            ValueError, match=rf"the model cannot be run on .*TypeError.*{hint}"
        ) as e:
            run(model, specs, batch)
        assert "\n" not in str(e.value)


def test_a_dict_batch_runs_with_forward() -> None:
    batch = {"ids": X, "mask": X}
    stats = told(Named(), batch, forward=lambda model, batch: model(**batch))
    assert_moments(stats["layer"], X)


# --------------------------------------------------------------------------------- token weights

MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


class Tokens(nnx.Module):
    def __init__(self) -> None:
        self.token, self.heads, self.pooled = linear(), linear(2, 2), linear()

    def __call__(self, batch: Any) -> Array:
        x = self.token(batch["x"])
        self.heads(jnp.stack([x[..., :2], x[..., 1:]], 2))  # [batch, seq, 2, 2]
        return self.pooled(x.mean(1))


@pytest.mark.parametrize("weights", [MASK, MASK != 0, RNG.uniform(size=MASK.shape)], ids=str)
def test_tokens_are_weighed(weights: np.ndarray) -> None:
    model = Tokens()
    x = jnp.where(jnp.asarray(weights)[..., None] > 0, X, jnp.nan)  # padding may hold anything
    with pytest.warns(UserWarning, match="do not apply to the inputs of pooled:"):
        stats = told(
            model, {"x": X, "m": jnp.asarray(weights)}, token_weights=lambda b: np.asarray(b["m"])
        )
    y = model.token(X)
    assert_moments(stats["token"], X, weights)
    heads = jnp.stack([y[..., :2], y[..., 1:]], 2)
    assert_moments(stats["heads"], heads, np.repeat(weights[..., None], 2, -1))
    assert_moments(stats["pooled"], y.mean(1))
    single = Model(lambda f, x: f(x))
    assert_moments(told(single, x, token_weights=lambda b: weights)["layer"], X, weights)


@pytest.mark.parametrize(
    "name", ["jax.vmap", "nnx.vmap", "vmap-of-jit", "nnx.jit", "jax.checkpoint"]
)
def test_tokens_are_weighed_under_transforms(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        stats = told(Model(ONCE[name]), token_weights=lambda b: MASK)
    assert_moments(stats["layer"], X, MASK)


def test_weights_in_the_callers_jit() -> None:
    model = Model(lambda f, x: f(x))
    specs, _ = find_layers(model)
    graphdef, state = nnx.split(model)
    f = jax.jit(
        lambda s, x: moments(
            graphdef, s, x, tuple(specs.values()), token_weights=lambda x: x[..., 0] > 0
        )
    )
    assert_moments(f(state, X)["layer"], X, X[..., 0] > 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((5, 4)), r"weights of shape \(5, 4\), but the inputs of no layer"),
        (-MASK, "token weights of batch 0 are not all finite and >= 0"),
        (MASK * np.nan, "token weights of batch 0 are not all finite"),
        (0 * MASK, "all its token weights are 0"),
    ],
)
def test_weights_that_mean_nothing(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        told(Model(lambda f, x: f(x)), token_weights=lambda b: weights)


def test_counting_does_not_stop_at_2_to_the_24() -> None:
    big = np.zeros(5)
    big[0] = 2**24
    ones = np.eye(5)[0]
    stats = told(
        Model(lambda f, x: f(x)),
        [(X[0], w) for w in (big, *[ones] * 6)],
        forward=lambda model, b: model(b[0]),
        token_weights=lambda b: b[1],
    )["layer"]
    assert float(stats.count) == 2**24 + 6


def test_moments_are_about_the_mean() -> None:
    """A mean of 1000 and a deviation of 1e-2: sums of x x^T in float32 would not see it."""
    x = 1000 + np.round(RNG.normal(size=(4, 5, 3)) * 64) / 4096
    stats = told(
        Model(lambda f, x: f(x)), [jnp.asarray(x[:1], jnp.float32), jnp.asarray(x[1:], jnp.float32)]
    )
    tokens = x.reshape(-1, 3)
    expected = np.cov(tokens.T, bias=True) * 20
    np.testing.assert_allclose(stats["layer"].scatter, expected, atol=1e-2 * expected.max())
    np.testing.assert_array_equal(stats["layer"].scatter, stats["layer"].scatter.T)


# -------------------------------------------------------------------------------- batch norms


class Net(nnx.Module):
    def __init__(self, wrap: Any = lambda norm, x: norm(x)) -> None:
        r = nnx.Rngs(0)
        self.a = nnx.Conv(2, 3, (3, 3), kernel_init=numpy_init, rngs=r)
        self.n1 = nnx.BatchNorm(3, rngs=r)
        self.drop = nnx.Dropout(0.5, rngs=r)
        self.b = nnx.Conv(3, 4, (3, 3), kernel_init=numpy_init, rngs=r)
        self.n2 = nnx.BatchNorm(4, use_scale=False, rngs=r)
        self.wrap = wrap
        self.n1.scale[...] = jnp.asarray([1.0, 2.0, 0.5])

    def __call__(self, x: Array) -> Array:
        x = self.drop(nnx.relu(self.wrap(self.n1, self.a(x))))
        return self.wrap(self.n2, self.b(x))


IMAGES = jnp.asarray(RNG.normal(size=(6, 5, 5, 2)) + 1, jnp.float32)


def by_hand(model: Net, x: Array) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer by layer: what enters each norm once the norms before it are re-estimated."""
    h = np.asarray(model.a(x), np.float64)
    first = h.mean((0, 1, 2)), h.var((0, 1, 2))
    h = (h - first[0]) / np.sqrt(first[1] + 1e-5) * np.asarray(model.n1.scale[...])
    h = np.asarray(model.b(jnp.asarray(np.maximum(h, 0), jnp.float32)), np.float64)
    return {"n1": first, "n2": (h.mean((0, 1, 2)), h.var((0, 1, 2)))}


def assert_norms(got: Any, want: Any) -> None:
    assert set(got) == set(want)
    for name, pair in want.items():
        for a, b in zip(got[name], pair, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


WRAPS: dict[str, Any] = {
    "plain": lambda norm, x: norm(x),
    "nnx.jit": lambda norm, x: nnx.jit(lambda f, x: f(x))(norm, x),
    "jax.jit": lambda norm, x: jax.jit(lambda x: norm(x))(x),
    "remat": lambda norm, x: nnx.remat(lambda f, x: f(x))(norm, x),
    "argument": lambda norm, x: norm(x, use_running_average=True),
    "cond": lambda norm, x: jax.lax.cond(x.sum() < 1e9, norm, lambda x: x, x),
}


@pytest.mark.parametrize("name", WRAPS)
def test_norms_are_re_estimated_one_after_the_other(name: str) -> None:
    model = Net(WRAPS[name])
    model.eval()
    assert norms_of(model) == ["n1", "n2"]
    before = jax.tree.map(np.asarray, nnx.state(model, nnx.Not(nnx.RngState)))
    found = reestimate(model, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Not(nnx.RngState)), before)
    assert_norms(found, by_hand(model, IMAGES))
    params = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    set_norms(model, found)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Param), params)
    y = np.asarray(model(IMAGES))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-3)
    assert "__wrapped__" not in vars(nnx.BatchNorm.__call__)


def test_batches_are_mixed_by_the_law_of_total_variance() -> None:
    model = Net()
    model.eval()
    parts = [IMAGES[:1], IMAGES[1:]]
    found = reestimate(model, parts)
    whole = np.asarray(model.a(IMAGES), np.float64)
    np.testing.assert_allclose(found["n1"][0], whole.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["n1"][1], whole.var((0, 1, 2)), rtol=1e-4)
    one, five = (by_hand(model, x)["n2"] for x in parts)
    mean = (one[0] + 5 * five[0]) / 6
    var = (one[1] + one[0] ** 2 + 5 * (five[1] + five[0] ** 2)) / 6 - mean**2
    np.testing.assert_allclose(found["n2"][0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["n2"][1], var, rtol=1e-4)


def test_dropout_keeps_its_mode_while_norms_are_re_estimated() -> None:
    model = Net()
    model.eval()
    quiet = reestimate(model, IMAGES)
    model.drop.deterministic = False
    noisy = reestimate(model, IMAGES)
    assert_norms({"n1": noisy["n1"]}, {"n1": quiet["n1"]})
    assert not np.allclose(noisy["n2"][1], quiet["n2"][1], rtol=1e-2)


def test_norm_statistics_inside_the_callers_jit() -> None:
    model = Net()
    model.eval()
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: Array) -> Any:
        copy = nnx.merge(graphdef, state)
        set_norms(copy, norm_moments(graphdef, state, x))
        return copy(x)

    y = np.asarray(run(state, IMAGES))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)


def test_norms_that_cannot_be_re_estimated() -> None:
    assert reestimate(Model(lambda f, x: f(x)), X) == {}
    model = Net(lambda norm, x: jax.vmap(norm)(x))
    model.eval()
    with pytest.raises(ValueError, match=r"norm n1: it is called inside vmap.*axis_name"):
        reestimate(model, IMAGES)
    untaken = Net(lambda norm, x: jax.lax.cond(x.sum() > 1e9, norm, lambda x: x, x))
    untaken.eval()
    np.testing.assert_array_equal(reestimate(untaken, IMAGES)["n1"][1], np.ones(3))


def test_a_norm_called_twice_sees_both() -> None:
    norm = nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0))
    model = Model(lambda f, x: (norm_twice := f(x), f(5 + norm_twice))[1], norm)
    mean, var = reestimate(model, X)["layer"]
    x = np.asarray(X, np.float64)
    second = 5 + (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)
    both = np.concatenate([x, second])
    np.testing.assert_allclose(mean, both.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(var, both.var((0, 1)), rtol=1e-4)


class Text(nnx.Module):
    """One norm of tokens, and one of what is pooled of them."""

    def __init__(self, wrap: Any = lambda norm, x: norm(x)) -> None:
        self.token, self.pooled = (
            nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0)) for _ in range(2)
        )
        self.wrap = wrap

    def __call__(self, batch: Any) -> Array:
        x = self.wrap(self.token, batch["x"])
        return self.pooled(jnp.where(batch["m"][..., None] > 0, x, 0).sum(1))


@pytest.mark.parametrize("wrap", ["plain", "nnx.jit", "cond"])
@pytest.mark.parametrize("weights", [MASK, RNG.uniform(size=MASK.shape)], ids=["mask", "reals"])
def test_norms_weigh_tokens(weights: np.ndarray, wrap: str) -> None:
    model = Text(WRAPS[wrap])
    w = np.asarray(weights, np.float64)
    x = np.asarray(X, np.float64) + 1
    padded = np.where(w[..., None] > 0, x, 1e6)  # padding may hold anything
    batch = {"x": jnp.asarray(padded, jnp.float32), "m": jnp.asarray(weights, jnp.float32)}
    parts = [{k: v[i : i + 2] for k, v in batch.items()} for i in (0, 2)]
    found = reestimate(model, parts, token_weights=lambda b: b["m"])
    share = w / w.sum()
    mean = np.einsum("bt,btf->f", share, x)
    var = np.einsum("bt,btf->f", share, (x - mean) ** 2)
    np.testing.assert_allclose(found["token"][0], mean, rtol=1e-4)
    np.testing.assert_allclose(found["token"][1], var, rtol=1e-4)
    norms = [reestimate(model, p, token_weights=lambda b: b["m"]) for p in parts]
    a, b = (n["pooled"][0] for n in norms)  # which counts by examples
    np.testing.assert_allclose(found["pooled"][0], (a + b) / 2, rtol=1e-4, atol=1e-5)
    whole = norm_moments(*nnx.split(model), batch, token_weights=lambda b: b["m"])
    np.testing.assert_allclose(whole["token"][1], var, rtol=1e-4)


def test_batches_without_tokens_do_not_count() -> None:
    model = Text()
    batches = [{"x": X + i, "m": jnp.full(X.shape[:2], float(i == 0))} for i in range(2)]
    found = reestimate(model, batches, token_weights=lambda b: b["m"])
    np.testing.assert_allclose(found["token"][0], np.asarray(X).mean((0, 1)), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="token weights of batch 0 are not all finite and >= 0"):
        reestimate(model, batches, token_weights=lambda b: -b["m"])


# ------------------------------------------------------------------------------ explicit axes

EXPLICIT = """
import perturb, jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from perturb import Wanda, compress, network

model = nnx.List([nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Conv(2, 4, (3,), rngs=nnx.Rngs(1))])
forward = lambda m, x: m[0](jax.jit(lambda x: jnp.tanh(m[1](x)))(x))
x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 2)), jnp.float32)
specs, _ = network.find_layers(model)
want = network.capture(model, specs, x, forward=forward)
alone = compress(model, Wanda(0.5), x, forward=forward, calibrate="sequential").model
mesh = jax.make_mesh((2, 1), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
with jax.set_mesh(mesh):
    spread = jax.device_put(x, NamedSharding(mesh, P("d")))
    model[0].kernel.set_value(
        jax.device_put(model[0].kernel[...], NamedSharding(mesh, P(None, "m")))
    )
    got = network.capture(model, specs, spread, forward=forward)
    done = compress(model, Wanda(0.5), spread, forward=forward).model
    assert done[0].kernel[...].sharding.spec == P(None, "m"), done[0].kernel[...].sharding
    blocks = compress(model, Wanda(0.5), spread, forward=forward, calibrate="sequential").model
    assert blocks[0].kernel[...].sharding.spec == P(None, "m"), blocks[0].kernel[...].sharding
np.testing.assert_array_equal(blocks[0].kernel[...], alone[0].kernel[...])
for name in specs:
    for a, b in zip(got[name], want[name]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
assert int(np.sum(np.asarray(done[0].kernel[...]) == 0)) == 12
"""


@pytest.mark.slow
def test_a_mesh_with_explicit_axes() -> None:
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", EXPLICIT], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_names_of_the_door() -> None:
    assert network.LayerSpec("a", "linear", (3, 2), (0,), (1,), ("b",)).names == ("a", "b")
