"""Low rank: numpy's truncation, the norm it is the nearest in, what is stored, what is refused."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import GPTQ, RTN, Drop, LoRA, LowRank, Magnitude, chain, compress, per_layer
from perturb.compression import Opened
from perturb.naming import parse
from perturb.policy import Policy
from perturb.stage import expand

from .conftest import numpy_init

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WIDTHS = (20, 32, 12)


class Net(nnx.Module):
    def __init__(self) -> None:
        options: Any = {"kernel_init": numpy_init, "rngs": nnx.Rngs(0)}
        self.first = nnx.Linear(WIDTHS[0], WIDTHS[1], **options)
        self.last = nnx.Linear(WIDTHS[1], WIDTHS[2], **options)

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.first(x)))


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def inputs() -> Any:
    """Correlated, some directions loud."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(400, WIDTHS[0])) @ rng.normal(size=(WIDTHS[0], WIDTHS[0]))
    return jnp.asarray(mixed * np.geomspace(10, 0.1, WIDTHS[0]), jnp.float32)


def weight_of(model: Net, name: str) -> np.ndarray:
    return np.asarray(getattr(model, name).kernel[...], np.float64).T


def truncated(w: np.ndarray, rank: int) -> np.ndarray:
    a, s, b = np.linalg.svd(w)
    return (a[:, :rank] * s[:rank]) @ b[:rank]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_it_is_numpys_truncation_and_stores_its_factors(net: Net, ratio: float) -> None:
    stage = LowRank(ratio)
    done = compress(net, stage)
    kept = 0
    for name in ("first", "last"):
        w = weight_of(net, name)
        rank = max(1, int((1 - ratio) * w.size / sum(w.shape)))
        assert stage.rank(w.shape) == rank
        assert rank == 1 or rank * sum(w.shape) <= (1 - ratio) * w.size
        np.testing.assert_allclose(weight_of(done.model, name), truncated(w, rank), atol=1e-5)
        u, v = done.matrices[f"{name}.u"].weight, done.matrices[f"{name}.v"].weight
        assert (u.shape, v.shape) == ((w.shape[0], rank), (rank, w.shape[1]))
        assert name not in done.matrices
        kept += rank * sum(w.shape)
    assert done.storage.kept == kept


def test_whitened_is_the_nearest_on_the_inputs_and_plain_the_nearest_in_the_weights(
    net: Net, inputs: Any
) -> None:
    """Each in its own norm: what is cut is numpy's tail, and no product of that rank is nearer."""
    plain, white = (
        compress(net, LowRank(0.6, whiten, where="first"), inputs) for whiten in (False, True)
    )
    w, x = weight_of(net, "first"), np.asarray(inputs, np.float64)
    h = x.T @ x / len(x)
    h += 0.01 * np.trace(h) / len(h) * np.eye(len(h))

    def norms(found: np.ndarray) -> tuple[float, float]:
        change = found - w
        return float((change**2).sum()), float(np.trace(change @ h @ change.T))

    own = [norms(weight_of(done.model, "first")) for done in (plain, white)]
    assert own[0][0] < own[1][0]
    assert own[1][1] < 0.7 * own[0][1]
    values, vectors = np.linalg.eigh(h)
    root = (vectors * np.sqrt(values)) @ vectors.T
    rank = LowRank(0.6).rank(w.shape)
    cut = np.linalg.svd(w @ root, compute_uv=False)[rank:]
    assert own[1][1] == pytest.approx((cut**2).sum(), rel=1e-3)
    rng = np.random.default_rng(1)
    u, v = (np.asarray(white.matrices[f"first.{part}"].weight, np.float64) for part in "uv")
    for size in (1e-3, 1e-2, 1e-1):
        for _ in range(50):
            near = (u + size * rng.normal(size=u.shape)) @ (v + size * rng.normal(size=v.shape))
            assert norms(near)[1] >= own[1][1] * (1 - 1e-6)


def test_later_stages_work_on_the_factors(net: Net, inputs: Any) -> None:
    done = compress(net, chain(LowRank(0.2), RTN(8)), inputs)
    assert {n for n, m in done.matrices.items() if m.grid is not None} == {
        f"{name}.{part}" for name in ("first", "last") for part in "uv"
    }
    assert done.storage.bits == 8 * done.storage.kept
    by_name = compress(net, chain(LowRank(0.2), per_layer({"first": GPTQ(4)})), inputs)
    assert {n for n, m in by_name.matrices.items() if m.grid is not None} == {"first.u", "first.v"}
    both = compress(net, chain(LowRank(0.2), LoRA(1, 0)), inputs)
    assert both.state.products("first")[0] == ("first.u", "first.v")
    for name in ("first", "last"):
        product = by_name.matrices[f"{name}.u"].weight @ by_name.matrices[f"{name}.v"].weight
        np.testing.assert_allclose(weight_of(by_name.model, name), product, atol=1e-5)


@pytest.mark.parametrize("first", [Magnitude(0.5), RTN(4)], ids=["mask", "grid"])
def test_what_it_would_destroy_is_refused_unless_released(
    net: Net, inputs: Any, first: Any
) -> None:
    what = "mask" if first.name == "magnitude" else "grid"
    with pytest.raises(ValueError, match=rf"would destroy the {what} of 2 matrices \(first, last"):
        compress(net, chain(first, LowRank(0.2)), inputs)
    done = compress(net, chain(first, LowRank(0.2, release=True)), inputs)
    before = compress(net, first, inputs)
    rank = LowRank(0.2).rank((WIDTHS[1], WIDTHS[0]))
    expected = truncated(weight_of(before.model, "first"), rank)
    np.testing.assert_allclose(weight_of(done.model, "first"), expected, atol=1e-5)
    assert all(m.grid is None for m in done.matrices.values())


def test_what_was_dropped_stays_dropped() -> None:
    from experiments.models.vit import ViTConfig

    config = ViTConfig(
        image_size=4, patch_size=2, channels=1, num_classes=3, hidden_size=16, num_layers=1,
        num_heads=2, mlp_size=24,
    )  # fmt: skip
    model = config.build(nnx.Rngs(0))
    model.eval()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4, 4, 1)), jnp.float32)
    first = compress(model, Drop("*mlp*", 0.5), x)
    done = compress(model, chain(Drop("*mlp*", 0.5), LowRank(0.1)), x)
    (name,) = (n for n in first.matrices if n.endswith("fc1"))
    gone = ~np.asarray(first.matrices[name].mask).any(1)
    assert gone.sum() == 12
    assert not np.asarray(done.matrices[f"{name}.u"].mask)[gone].any()
    assert not np.asarray(done.matrices[f"{name}.u"].weight)[gone].any()


def test_wrong_settings_are_refused(net: Net, inputs: Any) -> None:
    assert parse("lowrank:0.3,whiten=true") == LowRank(0.3, whiten=True)
    for ratio in (1.0, -0.1, True, "x"):
        with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\)"):
            LowRank(ratio)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pattern 'x' of lowrank has no layer"):
        compress(net, LowRank(where="x"))
    with pytest.raises(ValueError, match="lowrank looks at the layers' inputs"):
        compress(net, LowRank(whiten=True))
    run = Opened(net, [inputs], Policy())
    once = expand(run.context.start(), [LowRank(0.2)], run.context, 0).versions
    told = r"lowrank: first is made of first\.u first\.v, no single matrix"
    with pytest.raises(ValueError, match=told):
        expand(once, [LowRank(0.2)], run.context, 1)
