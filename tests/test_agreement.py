"""Every compressor against the independent float64 numpy versions in ``reference.py``.

In float64, on random and on adversarial layers: masks identical, weights within 1e-5 relative.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import GPTQ, RTN, GridSpec, Joint, Magnitude, NofM, SparseGPT, Wanda
from perturb.state import fresh
from perturb.types import Grid, Matrix, Moments, Problem, Solved

from . import reference
from .cases import adversarial_layers

CASES = adversarial_layers()
NAMES = sorted(CASES)
# Every setting is tried on these, the defaults on all (each pair of shape and setting compiles).
EVERY_SETTING = {"wide_8x200", "dead_columns", "few_levels", "tiny_scale"}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def stats_of(gram: np.ndarray, count: float) -> Moments:
    return Moments(jnp.asarray(gram), jnp.asarray(count, gram.dtype))


@jax.jit
def run(method: Any, layer: Matrix, stats: Moments) -> Solved:
    return method(layer, Problem(layer.weight, stats), jax.random.key(0))


def ours(method: Any, name: str) -> tuple[np.ndarray, np.ndarray, Grid | None, Solved]:
    w, gram, count = CASES[name]
    result = run(method, fresh(jnp.asarray(w)), stats_of(gram, count))
    layer = result.matrix
    return np.asarray(layer.weight), np.asarray(layer.mask), layer.grid, result


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    scale = np.abs(expected).max() or 1.0
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)


def divides(name: str, group: int) -> bool:
    return CASES[name][0].shape[1] % group == 0


@pytest.mark.parametrize("name", NAMES)
def test_score_pruners(name: str) -> None:
    w, gram, count = CASES[name]
    cells = [(scope, s) for scope in ("layer", "row") for s in (0.0, 0.3, 0.5, 0.7)]
    for scope, s in [*cells, ((2, 4), 0.5)]:
        if scope == (2, 4) and not divides(name, 4):
            continue
        ours_scope: Any = NofM(2, 4) if scope == (2, 4) else scope
        weight, mask, _, _ = ours(Magnitude(s, ours_scope, "index"), name)
        np.testing.assert_array_equal(mask, reference.magnitude(w, s, scope))
        np.testing.assert_array_equal(weight, np.where(mask, w, 0))
        if scope != "layer":
            _, mask, _, _ = ours(Wanda(s, ours_scope, "index"), name)
            np.testing.assert_array_equal(mask, reference.wanda(w, gram, count, s, scope))


@pytest.mark.parametrize("name", NAMES)
def test_rtn(name: str) -> None:
    w, _, _ = CASES[name]
    specs = [GridSpec(), GridSpec(False, "row", "absmax"), GridSpec(convention="full")]
    specs += [GridSpec(convention="midrise")]
    if name in EVERY_SETTING:
        specs += [
            GridSpec(symmetric, per, clip)
            for symmetric in (True, False)
            for per in ("tensor", 8)
            for clip in ("absmax", "mse")
        ]
    for spec, bits in itertools.product(specs, (2, 3, 4, 8)):
        weight, _, grid, _ = ours(RTN(bits, spec), name)
        mse = spec.clip == "mse"
        q, scale, zero = reference.rtn(w, bits, spec.symmetric, spec.convention, spec.per, mse)
        assert grid is not None
        if mse and name == "few_levels":  # several clips do equally well, up to an ulp
            reached, best = (np.sum(np.abs(v - w) ** 2.4) for v in (weight, q))
            assert reached == pytest.approx(best, rel=1e-9, abs=1e-12)
            continue
        assert_close(np.asarray(grid.scale), scale.reshape(grid.scale.shape))
        np.testing.assert_array_equal(grid.zero, zero.reshape(grid.zero.shape))
        assert_close(weight, q)


@pytest.mark.parametrize("name", NAMES)
def test_sparsegpt(name: str) -> None:
    w, gram, count = CASES[name]
    for target in (0.0, 0.5, 0.8, (2, 4), (4, 8)):
        if isinstance(target, float):
            method = SparseGPT(target, tie="index")
        elif divides(name, target[1]) and (target == (2, 4) or name in EVERY_SETTING):
            method = SparseGPT(scope=NofM(*target), tie="index")
        else:
            continue
        weight, mask, _, result = ours(method, name)
        q, keep = reference.sparsegpt(w, gram, count, target)
        np.testing.assert_array_equal(mask, keep)
        assert_close(weight, q)
        assert result.report is not None
        assert int(result.report.retries) == 0
        assert int(result.report.dead) == int(np.sum(np.diag(gram) == 0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("masked", [False, True])
def test_gptq(name: str, masked: bool) -> None:
    w, gram, count = CASES[name]
    keep = reference.magnitude(w, 0.5, "row") if masked else None
    base = fresh(jnp.asarray(w))
    if keep is not None:
        base = base._replace(weight=jnp.where(keep, w, 0), mask=jnp.asarray(keep))
    settings = [(GridSpec(), False, False)]
    if name in EVERY_SETTING:
        settings += [
            (GridSpec(), True, False),
            (GridSpec(False, "row", "absmax"), False, False),
            (GridSpec(True, "tensor", convention="full"), False, False),
            (GridSpec(True, 8), False, False),
            (GridSpec(True, 8), True, True),
            (GridSpec(True, 8, convention="midrise"), False, False),
        ]
    for (spec, act_order, static), bits in itertools.product(settings, (2, 4, 8)):
        method = GPTQ(bits, spec, act_order=act_order, static_groups=static)
        layer = run(method, base, stats_of(gram, count)).matrix
        q, scale, _ = reference.gptq(
            np.asarray(base.weight),
            gram,
            count,
            bits,
            sym=spec.symmetric,
            convention=spec.convention,
            granularity=spec.per,  # type: ignore[arg-type]
            mse=spec.clip == "mse",
            act_order=act_order,
            mask=keep,
            static_groups=static,
        )
        assert layer.grid is not None
        assert_close(np.asarray(layer.grid.scale), scale.reshape(layer.grid.scale.shape))
        assert_close(np.asarray(layer.weight), q)


@pytest.mark.parametrize("name", NAMES)
def test_sparsegpt_after_a_quantizer(name: str) -> None:
    w, gram, count = CASES[name]
    stats = stats_of(gram, count)
    for quantizer in (RTN(4), GPTQ(4))[: 2 if name in EVERY_SETTING else 1]:
        quantized = run(quantizer, fresh(jnp.asarray(w)), stats).matrix
        assert quantized.grid is not None
        grid = (np.asarray(quantized.grid.scale), np.asarray(quantized.grid.zero))
        start = np.asarray(quantized.weight)
        snapped, keep = reference.sparsegpt(start, gram, count, 0.5, grid=(*grid, 4))
        layer = run(SparseGPT(0.5, "block", "index", "snap"), quantized, stats).matrix
        np.testing.assert_array_equal(layer.mask, keep)
        assert_close(np.asarray(layer.weight), snapped)
        assert layer.grid is not None

        released, keep = reference.sparsegpt(start, gram, count, 0.5)
        layer = run(SparseGPT(0.5, "block", "index", "release"), quantized, stats).matrix
        np.testing.assert_array_equal(layer.mask, keep)
        assert_close(np.asarray(layer.weight), released)
        assert layer.grid is None
        assert layer.quantizer is None

        if name not in {*EVERY_SETTING, "odd_17x131", "heavy_tailed"}:
            continue
        layer = run(SparseGPT(0.5, "block", "index"), quantized, stats).matrix
        scale, zero = reference.relaid(released, *grid, 4)
        if isinstance(quantizer, RTN):
            expected = np.where(keep, reference.round_to_grid(released, scale, zero, 4), 0)
        else:  # GPTQ on a given grid: a sweep of SparseGPT that removes nothing
            expected, _ = reference.sparsegpt(
                released, gram, count, 0.0, mask=keep, grid=(scale, zero, 4)
            )
        np.testing.assert_array_equal(layer.mask, keep)
        assert_close(np.asarray(layer.grid.scale), scale)
        assert_close(np.asarray(layer.weight), expected)


@pytest.mark.parametrize("name", NAMES)
def test_joint(name: str) -> None:
    w, gram, count = CASES[name]
    for on_grid in ("refit", "snap"):
        weight, mask, _, _ = ours(Joint(0.5, 4, tie="index", on_grid=on_grid), name)
        q, keep, _, _ = reference.joint(w, gram, count, 0.5, 4, refit=on_grid == "refit")
        np.testing.assert_array_equal(mask, keep)
        assert_close(weight, q)


@pytest.mark.parametrize("group", [32, 48, 64, 128, 192])
def test_gptq_groups_against_blocks(group: int) -> None:
    """Groups finer than, not dividing, equal to and wider than a block of 128."""
    rng = np.random.default_rng(group)
    n = 384
    w = rng.normal(size=(6, n))
    x = rng.normal(size=(2 * n, n)) @ (np.eye(n) + rng.normal(size=(n, n)) / np.sqrt(n))
    gram, count = x.T @ x, float(len(x))
    layer = run(GPTQ(3, GridSpec(per=group)), fresh(jnp.asarray(w)), stats_of(gram, count)).matrix
    q, _, _ = reference.gptq(w, gram, count, 3, granularity=group)
    assert_close(np.asarray(layer.weight), q)


@pytest.mark.parametrize("name", ["random_24x40", "wide_8x200", "odd_17x131", "one_row"])
def test_float32_is_as_good(name: str) -> None:
    """In float32 single roundings may differ; the objective reached must not."""
    w, gram, count = CASES[name]
    with jax.enable_x64(False):
        stats = Moments(jnp.asarray(gram, jnp.float32), jnp.asarray(count, jnp.float32))
        layer = fresh(jnp.asarray(w, jnp.float32))
        for method, expected in (
            (GPTQ(3), reference.gptq(w, gram, count, 3)[0]),
            (SparseGPT(0.5), reference.sparsegpt(w, gram, count, 0.5)[0]),
        ):
            got = np.asarray(run(method, layer, stats).matrix.weight, np.float64)
            assert got.dtype == np.float64
            loss = reference.output_error(got - w, gram, count)
            best = reference.output_error(expected - w, gram, count)
            assert loss == pytest.approx(best, rel=2e-2)


def test_gptq_loses_on_weights_and_wins_on_outputs() -> None:
    w, gram, count = CASES["correlated"]
    rtn, gptq = (ours(m, "correlated")[0] for m in (RTN(3), GPTQ(3)))
    assert np.sum((gptq - w) ** 2) > np.sum((rtn - w) ** 2)
    error = [reference.output_error(q - w, gram, count) for q in (rtn, gptq)]
    assert error[1] < 0.5 * error[0]


def test_an_indefinite_hessian_is_damped_step_by_step_and_reported() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 24))
    v, _ = np.linalg.qr(rng.normal(size=(24, 24)))
    gram = 32 * (v * np.linspace(-0.3, 2, 24)) @ v.T
    result = run(GPTQ(4), fresh(jnp.asarray(w)), stats_of((gram + gram.T) / 2, 32.0))
    assert result.report is not None
    assert int(result.report.retries) == 2  # 0.01 -> 0.1 -> 1
    assert float(result.report.damping) == pytest.approx(1.0)
    assert bool(jnp.all(jnp.isfinite(result.matrix.weight)))


def test_a_family_shares_one_hessian_and_changes_nothing() -> None:
    """vmap over variants (one solve with stacked rows) equals one solve at a time."""
    w, gram, count = CASES["wide_8x200"]
    stats = stats_of(gram, count)
    layer = fresh(jnp.asarray(w))
    for methods in (
        [GPTQ(b) for b in (2, 3, 4, 8)],
        [GPTQ(b, GridSpec(per=20)) for b in (2, 3, 4)],
        [SparseGPT(s) for s in (0.1, 0.5, 0.73)],
        [Joint(s, b) for s, b in ((0.2, 3), (0.6, 5))],
    ):
        stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *methods)
        family = jax.vmap(run, (0, None, None))(stacked, layer, stats)
        layers = jax.tree.map(lambda a: jnp.stack([a, a if a.dtype == bool else 2 * a]), layer)
        nested = jax.vmap(jax.vmap(run, (0, None, None)), (None, 0, None))(stacked, layers, stats)
        for i, method in enumerate(methods):
            alone = run(method, layer, stats).matrix
            np.testing.assert_array_equal(family.matrix.mask[i], alone.mask)
            assert_close(np.asarray(family.matrix.weight[i]), np.asarray(alone.weight))
            assert_close(np.asarray(nested.matrix.weight[0, i]), np.asarray(alone.weight))
            assert_close(np.asarray(nested.matrix.weight[1, i]), 2 * np.asarray(alone.weight))


def test_the_registry_and_the_package_agree() -> None:
    from perturb.registry import methods

    public = {c for c in vars(perturb).values() if dataclasses.is_dataclass(c)}
    assert set(methods().values()) <= public
