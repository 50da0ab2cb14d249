"""Convolutions in groups: every method on them is what it is on each group's matrix by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.depthwise import depthwise
from perturb import GPTQ, RTN, LoRA, LowRank, Magnitude, SparseGPT, Wanda, chain, compress
from perturb.architecture import Space, architecture_of, columns, entries, rows
from perturb.family import run_family
from perturb.grid import GridSpec
from perturb.measure import errors
from perturb.measure.layers import layer_measures
from perturb.methods.structure.drop import Drop
from perturb.network import capture, find_layers, get_weights
from perturb.state import State, versions
from perturb.types import Matrix, Problem


class Net(nnx.Module):
    """expand, depthwise, project; ``multiplier`` outputs a channel."""

    def __init__(self, channels: int = 6, multiplier: int = 1, groups: int | None = None) -> None:
        r, n = nnx.Rngs(0), channels
        self.expand = nnx.Conv(3, n, (1, 1), rngs=r)
        self.norm = nnx.BatchNorm(n * multiplier, rngs=r)
        groups = groups or n
        self.inner = nnx.Conv(
            n, n * multiplier, (3, 3), feature_group_count=groups, padding=((1, 1), (1, 1)), rngs=r
        )
        self.project = nnx.Conv(n * multiplier, 5, (1, 1), rngs=r)
        self.multiplier = multiplier

    def __call__(self, x: Any) -> Any:
        y = nnx.relu6(self.norm(self.inner(nnx.relu6(self.expand(x)))))
        return self.project(y).mean((1, 2))

    def architecture(self) -> tuple[list[Space], list[Any]]:
        per = self.multiplier
        vectors = [f"norm.{kind}" for kind in ("scale", "bias", "mean")] + ["inner.bias"]
        writes = (
            *(rows("expand"), entries("expand.bias"), rows("inner", per=per)),
            *(entries(v, per=per) for v in vectors),
        )
        return [
            Space("hidden", self.expand.out_features, writes, (columns("project", per=per),))
        ], []


X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6, 6, 3)), jnp.float32)
NETS = {"depthwise": (6, 1, None), "multiplied": (4, 2, None), "groups": (6, 2, 3)}
METHODS = {
    "magnitude": [Magnitude(0.5), Magnitude(0.3)],
    "wanda": [Wanda(0.5), Wanda(0.3)],
    "sparsegpt": [SparseGPT(0.5), SparseGPT(0.3)],
    "rtn": [RTN(4), RTN(3)],
    "rtn-tensor": [RTN(4, grid=GridSpec(per="tensor"))],
    "gptq": [GPTQ(4), GPTQ(3), GPTQ(2)],
}


def made(name: str) -> Net:
    net = Net(*NETS[name])
    net.eval()
    return net


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", METHODS)
def test_each_group_is_a_matrix_of_its_own(net: str, name: str) -> None:
    """A layer in groups, against the same methods on the groups given as matrices of their names:
    no draw of ties and no padding may make a difference."""
    model = made(net)
    specs, _ = find_layers(model)
    spec = specs["inner"]
    groups = spec.feature_groups
    assert groups == (NETS[net][2] or NETS[net][0])
    weight, stats = get_weights(model, specs)["inner"], capture(model, specs, X)["inner"]
    methods = METHODS[name]
    inputs = stats if methods[0].needs_stats else None

    def run(names: list[str], parts: list[Any], moments: list[Any], **how: Any) -> Any:
        matrices = {n: Matrix(w[None], w[None] != 9) for n, w in zip(names, parts, strict=True)}
        problems = {n: Problem(w, m) for n, w, m in zip(names, parts, moments, strict=True)}
        return run_family(methods, matrices, problems, jax.random.key(1), **how)

    whole = run(["inner"], [weight], [inputs], groups_of={"inner": groups})["inner"]
    each = [
        None if inputs is None else jax.tree.map(lambda a, i=i: a[i], inputs) for i in range(groups)
    ]
    names = [f"inner[{i}]" for i in range(groups)]
    apart = run(names, jnp.split(weight, groups), each)
    for field in ("weight", "mask"):
        one = [getattr(apart[n].matrix, field) for n in names]
        got = getattr(whole.matrix, field)
        assert got.shape == (1, len(methods), *spec.shape)
        np.testing.assert_allclose(got, jnp.concatenate(one, -2), atol=1e-6)
    if whole.matrix.grid is not None:
        scales = [apart[n].matrix.grid.scale for n in names]
        np.testing.assert_allclose(whole.matrix.grid.scale, jnp.concatenate(scales, -2), atol=1e-7)
        np.testing.assert_array_equal(whole.matrix.grid.bits[0], [m.bits for m in methods])
    assert not np.allclose(whole.matrix.weight[0, 0], weight)


def naive_gptq(w: np.ndarray, h: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: int) -> Any:
    """Column by column with the inverse of what is left of H, in float64 (Frantar et al. 2023)."""
    w, h = w.astype(np.float64).copy(), h.astype(np.float64)
    h = h / np.mean(np.diag(h)) + 0.01 * np.eye(len(h))
    for j in range(len(h)):
        left = np.linalg.inv(h[j:, j:])
        q = scale * (np.clip(np.round(w[:, j] / scale + zero), 0, top) - zero)
        step = (w[:, j] - q) / left[0, 0]
        w[:, j:] -= step[:, None] * left[0][None]
        w[:, j] = q
    return w


def test_gptq_of_a_depthwise_layer_is_the_formula_channel_by_channel() -> None:
    model = made("depthwise")
    specs, _ = find_layers(model)
    stats = capture(model, specs, X)["inner"]
    grid = GridSpec(convention="full")  # no weight of a row lies between two codes at the outset
    done = compress(model, GPTQ(3, grid=grid), X).matrices["inner"]
    weight = np.asarray(get_weights(model, specs)["inner"])
    rtn = compress(model, RTN(3, grid=grid), X).matrices["inner"].weight
    for c in range(6):
        scale, zero = (np.asarray(a[c]) for a in (done.grid.scale, done.grid.zero))
        gram = np.asarray(stats.gram[c])
        want = naive_gptq(weight[c : c + 1], gram, scale[:1], zero[:1], 7)
        np.testing.assert_allclose(done.weight[c], want[0], atol=1e-5)
    assert not np.allclose(done.weight, rtn)


def test_moments_errors_and_chains_are_those_of_the_channels() -> None:
    """Against patches cut out by hand, one channel at a time."""
    model = made("depthwise")
    specs, _ = find_layers(model)
    done = compress(model, chain(Wanda(0.5), GPTQ(4)), X)
    w = np.asarray(get_weights(model, specs)["inner"], np.float64)
    new = np.asarray(done.matrices["inner"].weight, np.float64)
    hidden = np.pad(np.asarray(nnx.relu6(model.expand(X))), ((0, 0), (1, 1), (1, 1), (0, 0)))
    lost = total = 0.0
    for c in range(6):
        cut = [hidden[:, i : i + 6, j : j + 6, c].reshape(-1) for i in range(3) for j in range(3)]
        x = np.stack(cut, -1).astype(np.float64)  # [tokens, 9]
        np.testing.assert_allclose(capture(model, specs, X)["inner"].gram[c], x.T @ x, rtol=1e-4)
        lost += np.mean((x @ (new - w)[c]) ** 2)
        total += np.mean((x @ w[c]) ** 2)
        kept = np.argsort(np.abs(w[c]) * np.sqrt((x**2).mean(0)))[4:]
        assert set(np.flatnonzero(np.asarray(done.matrices["inner"].mask[c]))) == set(kept)
    weights, stats = get_weights(model, specs), capture(model, specs, X)
    state = versions(State(done.matrices))
    shapes = {n: s.shape for n, s in specs.items()}
    told = layer_measures(state, 1, shapes, weights, stats)["inner"]
    assert float(told["out_rel"][0]) == pytest.approx(lost / total, rel=1e-3)
    assert float(told["fro"][0]) == pytest.approx(np.linalg.norm(new - w), rel=1e-5)
    block = np.max(np.linalg.norm(new - w, axis=1))  # of a block-diagonal matrix of single rows
    assert float(told["spec"][0]) == pytest.approx(block, rel=1e-3)
    h = errors.energy_on_host(jax.device_get(stats["inner"]), 6)
    assert h.shape == (6, 9)
    mask = np.asarray(done.matrices["inner"].mask)
    by_hand = sum(
        float(np.sum((np.diag(stats["inner"].gram[c]) / 288) * np.where(mask[c], 0.1, w[c]) ** 2))
        for c in range(6)
    )
    assert errors.owned_on_host(h, w, mask, 0.1 + 0 * w) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("calibrate", ["sequential", "recalibrate", "dense"])
def test_every_policy_runs_and_a_dead_channel_is_only_rounded(calibrate: Any) -> None:
    model = made("depthwise")
    model.expand.bias[...] = model.expand.bias[...].at[2].set(-99.0)  # relu6: always 0
    done = compress(model, chain(SparseGPT(0.5), GPTQ(4)), X, calibrate=calibrate)
    assert np.asarray(done.matrices["inner"].mask).mean(1).tolist() == [5 / 9] * 6
    assert np.isfinite(np.asarray(done.matrices["inner"].weight)).all()


@pytest.mark.parametrize("net", ["depthwise", "multiplied"])
def test_dropping_channels_takes_their_window_and_the_smaller_model_agrees(net: str) -> None:
    model = made(net)
    model.norm.bias[...] = model.norm.bias[...] + 0.3
    done = compress(model, Drop(ratio=0.5), X, norms="keep")
    small = done.smaller()
    channels, multiplier, _ = NETS[net]
    left = channels // 2
    assert small.inner.kernel.shape == (3, 3, 1, left * multiplier)
    assert small.inner.feature_group_count == left
    np.testing.assert_allclose(small(X), done.model(X), atol=1e-5)


def test_what_knows_no_groups_says_so() -> None:
    model = made("depthwise")
    for stage in (LowRank(0.5), LoRA(2, steps=0)):
        with pytest.raises(ValueError, match=r"inner is a convolution in 6 groups.*exclude them"):
            compress(model, stage, X)

    class Wrong(Net):
        def architecture(self) -> Any:
            return [Space("hidden", 6, (rows("expand"),), (columns("inner"),))], []

    with pytest.raises(ValueError, match="columns of inner, a convolution in groups, are no units"):
        architecture_of(Wrong(), {"inner": (6, 9)}, {"inner": 6})


@pytest.mark.parametrize("padding", ["SAME", ((2, 2), (1, 3))])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_sum_over_the_window_is_the_convolution(padding: Any, stride: int, dilation: int) -> None:
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 9, 12, 4), (3, 5, 1, 4))
    )
    how = {
        "rhs_dilation": (dilation, dilation),
        "lhs_dilation": (1, 1),
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
        "feature_group_count": 4,
        "precision": None,
    }
    strides = (stride, stride)
    want = jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)
    np.testing.assert_allclose(depthwise(x, kernel, strides, padding, **how), want, atol=1e-5)
