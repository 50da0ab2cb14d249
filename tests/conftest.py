"""What several test files share: a model such as a user would write, and its inputs."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import perturb  # noqa: F401  first of all: it sets what the backend needs
from experiments.runner.clock import drop_programs_if_many
from perturb.backend import compile_quickly

Array = jax.Array

# Compiling is most of what the tests do; their programs run for milliseconds.
compile_quickly(level=0, threads=1)
# One program at a time: see theory.commands._prepare.
jax.config.update("jax_cpu_enable_async_dispatch", False)


# A shell that starts the tests in the background has them, and whom they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that comes last keeps one process of two waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


EVERY = 20  # tests between two looks at the memory maps
_seen = itertools.count(1)


@pytest.fixture(autouse=True)
def _few_programs() -> Iterator[None]:
    """Linux allows a process 65530 memory maps, and LLVM dies of the next one."""
    yield
    if next(_seen) % EVERY == 0:
        drop_programs_if_many(30_000)


def numpy_init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal weights drawn by numpy: jax would compile its generator anew for every shape."""
    seed = 0 if key is None else np.asarray(jax.random.key_data(key))
    draws = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(draws / np.sqrt(np.prod(shape[:-1])), dtype)


class ScaledLinear(nnx.Linear):
    """A user's own subclass of a layer, with its own ``__call__``."""

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        return 0.5 * super().__call__(inputs)


class Block(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            2, width, decode=False, kernel_init=numpy_init, rngs=rngs
        )
        self.mix = nnx.Einsum(
            "bti,hio->btho", (2, width, 3), (2, 3), kernel_init=numpy_init, rngs=rngs
        )
        self.out = nnx.LinearGeneral(
            (2, 3), width, axis=(-2, -1), kernel_init=numpy_init, rngs=rngs
        )

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(x)
        return x + self.out(nnx.relu(self.mix(x)))


class UserModel(nnx.Module):
    """Images [batch, 8, 8, 3] -> logits [batch, 5]; layers in lists, dicts and a subclass."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        def conv(window: tuple[int, int], **options: Any) -> nnx.Conv:
            return nnx.Conv(3, 12, window, kernel_init=numpy_init, rngs=rngs, **options)

        self.stems = nnx.List(
            [
                conv((3, 3), strides=2),
                conv((3, 3), kernel_dilation=2, padding="VALID"),
                conv((3, 2), padding="CIRCULAR"),
                conv((2, 3), strides=(1, 2), padding=((1, 0), (2, 1))),
            ]
        )
        self.depthwise = nnx.Conv(12, 12, (3, 3), feature_group_count=12, rngs=rngs)
        self.blocks = nnx.List([Block(12, rngs=rngs) for _ in range(2)])
        self.heads = nnx.Dict(
            classes=ScaledLinear(12, 5, rngs=rngs), again=nnx.Linear(12, 5, rngs=rngs)
        )

    def __call__(self, x: Array) -> Array:
        maps = [nnx.relu(stem(x)) for stem in self.stems]
        maps[0] = self.depthwise(maps[0])
        tokens = jnp.stack([m.mean((1, 2)) for m in maps], 1)  # [batch, 4, 12]
        for block in self.blocks:
            tokens = block(tokens)
        pooled = tokens.mean(1)
        return self.heads["classes"](pooled) + self.heads["again"](jnp.tanh(pooled))


@pytest.fixture(scope="session")
def user_model() -> UserModel:
    """Shared by the whole session: nothing may change it."""
    return UserModel(nnx.Rngs(0))


@pytest.fixture(scope="session")
def images() -> Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(16, 8, 8, 3)), jnp.float32)
