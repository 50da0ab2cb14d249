"""Models that really are smaller: the outputs of the simulated one, and what storage counts."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import RTN, Drop, Magnitude, RemoveBlocks, chain, compress
from perturb.architecture import ENTRIES, Space, architecture_of, columns, entries, rows
from perturb.compression import Compression
from perturb.network import find_layers, get_vectors

from .test_structure import CONFIGS, Subject, answer, build, inputs_for, of, parameters

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {k: Subject(build(of(c)), inputs_for(k)) for k, c in CONFIGS.items()}


def stored(done: Compression) -> float:
    """Parameters that the compressed model still has."""
    found = done.storage
    assert found.bits == 16 * found.kept
    return found.parameters - found.weights - found.removed + found.kept


def layers(model: Any) -> dict[str, tuple[int, int]]:
    return {n: s.shape for n, s in find_layers(model)[0].items()}


def same_outputs(small: Any, done: Compression, inputs: Any) -> None:
    expected = np.asarray(answer(done.model, inputs))
    np.testing.assert_allclose(answer(small, inputs), expected, rtol=2e-5, atol=2e-5)


DROPPED: dict[str, tuple[Any, dict[str, tuple[int, int]]]] = {
    "llama": (
        chain(Drop("*.heads", 0.5), Drop("layers.[12].mlp", 0.3, "obs")),
        {
            "layers.0.self_attn.q_proj": (12, 16),
            "layers.1.self_attn.v_proj": (6, 16),
            "layers.2.self_attn.o_proj": (16, 12),
            "layers.0.mlp.up_proj": (20, 16),
            "layers.1.mlp.gate_proj": (14, 16),
            "layers.2.mlp.down_proj": (16, 14),
        },
    ),
    "vit": (
        chain(Drop("*.heads", 0.4), Drop("*.mlp", 0.3, "wanda")),
        {
            "blocks.0.attn.qkv": (24, 12),
            "blocks.1.attn.proj": (12, 8),
            "blocks.0.mlp.fc1": (7, 12),
            "blocks.1.mlp.fc2": (12, 7),
        },
    ),
    "resnet": (
        Drop("*.filters", 0.5),
        {"layer1.0.conv1": (2, 36), "layer1.1.conv2": (4, 18), "layer2.0.conv2": (6, 27)},
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_smaller_model_is_the_simulated_one(subjects: dict[str, Subject], kind: str) -> None:
    model, inputs = subjects[kind]
    stages, shapes = DROPPED[kind]
    before = parameters(model)
    done = compress(model, stages, inputs)
    small = done.smaller()
    found = layers(small)
    assert {n: found[n] for n in shapes} == shapes
    same_outputs(small, done, inputs)
    assert parameters(small) == stored(done) < parameters(done.model) == before
    if kind == "resnet":
        norms = get_vectors(small, [f"layer2.0.bn1.{n}" for n in ("scale", "bias", "mean", "var")])
        assert {v.shape for v in norms.values()} == {(3,)}
        assert small.layer2[0].bn1.num_features == small.layer2[0].conv2.in_features == 3
    architecture = architecture_of(small, found)  # it says itself what it is made of
    for space in architecture.spaces.values():
        vectors = get_vectors(small, space.vectors)
        for one in space.axes:
            shape = vectors[one.parameter].shape if one.dim == ENTRIES else found[one.parameter]
            assert shape[one.dim] == space.size * one.per * one.repeats, one


@pytest.mark.parametrize(
    ("kind", "block", "left"),
    [
        ("llama", "layers.1", "layers"),
        ("vit", "blocks.0", "blocks"),
        ("resnet", "layer1.1", "layer1"),
    ],
)
def test_a_removed_block_leaves_its_list(
    subjects: dict[str, Subject], kind: str, block: str, left: str
) -> None:
    model, inputs = subjects[kind]
    done = compress(model, chain(Drop("*", 0.3), RemoveBlocks(1, block)), inputs)
    small = done.smaller()
    assert len(getattr(small, left)) == len(getattr(model, left)) - 1
    same_outputs(small, done, inputs)
    assert parameters(small) == stored(done)


class Gated(nnx.Module):
    """Units of a LinearGeneral's first axis of two; a bias that the space does not name, and
    one that it names but that is not there."""

    def __init__(self) -> None:
        r = nnx.Rngs(0)
        self.a = nnx.LinearGeneral(6, (4, 3), rngs=r)
        self.b = nnx.LinearGeneral((4, 3), 5, axis=(-2, -1), rngs=r)

    def __call__(self, x: Any) -> Any:
        return self.b(nnx.relu(self.a(x)))

    def architecture(self) -> Any:
        size = self.a.out_features[0]
        return [Space("units", size, (rows("a", 3), entries("c.bias")), (columns("b", 3),))], []


GIVEN = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6)), jnp.float32)


def test_kernels_of_many_axes_are_cut_along_the_one_that_has_the_units() -> None:
    model = build(Gated)
    done = compress(model, Drop(ratio=0.5))
    small = done.smaller()
    same_outputs(small, done, GIVEN)
    assert small.a.kernel.shape == (6, 2, 3)
    assert small.b.kernel.shape == (2, 3, 5)
    assert small.a.bias.shape == (2, 3) == small.a.out_features == small.b.in_features
    assert layers(small) == {"a": (6, 6), "b": (5, 6)}
    again = compress(small, Drop(ratio=0.5))
    least = again.smaller()
    same_outputs(least, again, GIVEN)
    assert layers(least) == {"a": (3, 6), "b": (5, 3)}


def test_zeros_within_what_is_left_stay() -> None:
    """Masks and grids are no units: the model computes the same, in its smaller kernels."""
    model = build(Gated)
    done = compress(model, chain(Drop(ratio=0.25), Magnitude(0.5), RTN(4)))
    small = done.smaller()
    same_outputs(small, done, GIVEN)
    assert layers(small) == {"a": (9, 6), "b": (5, 9)}
    kept = np.count_nonzero(done.matrices["a"].mask)
    assert np.count_nonzero(small.a.kernel[...]) <= kept < 54
    whole = compress(model, Magnitude(0.5))
    assert layers(whole.smaller()) == layers(model)


def test_what_cannot_be_made_smaller_is_refused() -> None:
    plain = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    done = compress(plain, Magnitude(0.5))
    with pytest.raises(ValueError, match=r"Sequential declares no spaces and blocks.*architecture"):
        done.smaller()
