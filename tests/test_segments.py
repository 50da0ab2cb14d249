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
from perturb import Wanda, compress, network
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
