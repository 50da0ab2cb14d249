"""Sequential calibration: a pass in parts gives what whole passes for each block give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.llama import LlamaConfig
from experiments.models.resnet import ResNetConfig
from perturb import SparseGPT, Wanda, compress, network, stage
from perturb.network.batches import ALIKE, compiled_alike
from perturb.state import Parameters
from tests.conftest import UserModel

TOKENS = jax.random.randint(jax.random.key(0), (6, 12), 0, 64)
PIXELS = jax.random.normal(jax.random.key(1), (6, 8, 8, 1))


def llama() -> Any:
    config = LlamaConfig(64, 16, 24, num_layers=3, num_heads=2, num_kv_heads=1)
    return config.build(nnx.Rngs(0))


def resnet() -> Any:
    model = ResNetConfig(1, 10, stage_blocks=(1, 1), widths=(4, 8)).build(nnx.Rngs(0))
    model.eval()
    return model


class Scanned(nnx.Module):
    """Blocks in one nnx.scan: no pass can be cut between them."""

    def __init__(self) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs: nnx.Rngs) -> nnx.Linear:
            return nnx.Linear(8, 8, rngs=rngs)

        self.layers = make(nnx.Rngs(0))
        self.head = nnx.Linear(8, 4, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: nnx.Linear, x: jax.Array) -> jax.Array:
            return jnp.tanh(layer(x))

        return self.head(run(self.layers, x))


def parts(model: Any, batches: list[Any]) -> tuple[Any, list[list[str]]]:
    specs, _ = network.find_layers(model)
    net = network.Network(model, specs)
    blocks = network.call_blocks(model, specs, batches[0])
    state = net.state(Parameters({}, {}))
    return net.segments(state, batches, blocks), blocks


@pytest.mark.parametrize(
    ("make", "batches"),
    [(llama, [TOKENS, TOKENS[:2]]), (resnet, [PIXELS])],
    ids=["llama", "resnet"],
)
def test_a_pass_in_parts_hears_what_whole_passes_hear(
    make: Any, batches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    passing, blocks = parts(model, batches)
    assert passing is not None
    assert len(blocks) > 2
    whole: list[int] = []
    real = network.Network.moments
    monkeypatch.setattr(
        network.Network, "moments", lambda *a, **k: whole.append(1) or real(*a, **k)
    )
    in_parts = compress(model, Wanda(0.5), batches, calibrate="sequential")
    assert not whole  # no pass through the whole model was made
    monkeypatch.setattr(network.Network, "segments", lambda *_: None)
    anew = compress(model, Wanda(0.5), batches, calibrate="sequential")
    assert len(whole) == len(blocks)
    for name, matrix in anew.matrices.items():
        np.testing.assert_array_equal(in_parts.matrices[name].mask, matrix.mask)
        np.testing.assert_array_equal(in_parts.matrices[name].weight, matrix.weight)
    other = compress(model, Wanda(0.5), batches)  # not the inputs of the incoming model
    same = [np.array_equal(in_parts.matrices[n].mask, m.mask) for n, m in other.matrices.items()]
    assert not all(same)


def test_an_unknown_model_is_cut_where_it_can_be(user_model: UserModel, images: Any) -> None:
    passing, _ = parts(user_model, [images])
    assert passing is not None
    done = compress(user_model, Wanda(0.5), images, calibrate="sequential")
    assert all(float(np.mean(~np.asarray(m.mask))) > 0.3 for m in done.matrices.values())


def test_blocks_inside_one_scan_are_run_anew() -> None:
    model, x = Scanned(), jax.random.normal(jax.random.key(2), (16, 8))
    passing, blocks = parts(model, [x])
    assert passing is None
    assert len(blocks) == 4
    done = compress(model, Wanda(0.5), x, calibrate="sequential")
    assert set(done.matrices) == {"layers[0]", "layers[1]", "layers[2]", "head"}


class Narrow(nnx.Module):
    """Blocks whose layers' moments are several times the size of their weights."""

    def __init__(self, depth: int) -> None:
        rngs = nnx.Rngs(0)

        def block() -> nnx.Module:
            up, down = nnx.Linear(8, 128, rngs=rngs), nnx.Linear(128, 8, rngs=rngs)
            return nnx.Sequential(up, jnp.tanh, down)

        self.layers = nnx.List([block() for _ in range(depth)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = x + layer(x)
        return x


def live() -> int:
    """Bytes of all arrays that anyone holds."""
    return sum({id(a): a.nbytes for a in jax.live_arrays()}.values())


def test_moments_of_one_block_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 12
    model, x = Narrow(depth), [jax.random.normal(jax.random.key(2), (16, 8))]
    size = sum(a.nbytes for a in jax.tree.leaves(nnx.state(model)))
    held: list[int] = []

    def follow(calibrate: Any) -> int:
        held.clear()
        before = live()
        compress(model, SparseGPT(0.5), x, calibrate=calibrate)
        return max(held) - before

    solve = stage.run_family  # where a stage begins to solve, with what it needs in memory
    monkeypatch.setattr(stage, "run_family", lambda *a, **k: held.append(live()) or solve(*a, **k))
    all_at_once, one_by_one = follow("recalibrate"), follow("sequential")
    assert len(held) == depth
    moments = 4 * (128 * 128 + 8 * 8) * depth
    assert moments > 6 * size
    assert all_at_once > moments
    # the matrices and their masks, what has become of them, and the kernels they are run as
    assert one_by_one < 4 * size + 2 * moments / depth


def test_equal_blocks_are_compiled_once() -> None:
    x = [jax.random.normal(jax.random.key(2), (16, 8))]

    def compiled(depth: int) -> int:
        network.forget_programs()
        compress(Narrow(depth), Wanda(0.5), x, calibrate="sequential")
        return len(ALIKE)

    assert compiled(5) == compiled(3)


def test_programs_are_alike_only_where_all_their_arguments_are() -> None:
    network.forget_programs()
    a, b, c = jnp.ones(3), 2 * jnp.ones(3), jnp.ones(4)
    first, second = (compiled_alike(lambda x, i=i: x[i] + 1, [a, b]) for i in (0, 1))
    assert first is not second  # which of the arguments they do not use, their text alone shows
    np.testing.assert_array_equal(second([a, b]), b + 1)
    assert compiled_alike(lambda x: x[0] + 1, [b, a]) is first
    np.testing.assert_array_equal(compiled_alike(lambda x: x[0] + 1, [a, c])([b, c]), b + 1)
    x = np.arange(100, dtype=np.float32)
    other = [compiled_alike(lambda v, k=k: v + k * x, jnp.zeros(100)) for k in (1, 2)]
    np.testing.assert_array_equal(other[1](jnp.zeros(100)), 2 * x)


@pytest.mark.parametrize("make", [llama, resnet, Scanned], ids=["llama", "resnet", "scanned"])
def test_exchanging_some_matrices_leaves_the_others_as_they_are(make: Any) -> None:
    model = make()
    specs, _ = network.find_layers(model)
    net = network.Network(model, specs)
    state = net.state(Parameters({}, {}))
    before = [np.asarray(a) for a in jax.tree.leaves(state)]
    some = {n: 2 * net.weights[n] for n in [*specs][1:3]}
    made = net.exchanged(state, some)
    whole = net.state(Parameters({**net.weights, **some}, {}))
    jax.tree.map(np.testing.assert_array_equal, made, whole)
    shared = [a is b for a, b in zip(*map(jax.tree.leaves, (made, state)), strict=True)]
    modules = {specs[n].module for n in some}
    assert shared.count(False) == len(modules)
    for a, b in zip(before, jax.tree.leaves(state), strict=True):  # the one given has not changed
        np.testing.assert_array_equal(a, b)
