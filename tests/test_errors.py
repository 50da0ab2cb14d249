"""Measures against the numpy versions in ``reference.py``, and the ownership identities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import GPTQ, RTN, GridSpec, Magnitude, Wanda, chain
from perturb.measure import errors
from perturb.measure.errors import (
    cosine,
    interference,
    measures,
    output_error,
    owned_error,
    ownership,
)
from perturb.state import fresh
from perturb.types import Matrix, Moments, Problem

from . import reference
from .cases import adversarial_layers

CASES = adversarial_layers()
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def stats_of(gram: np.ndarray, count: float) -> Moments:
    return Moments(jnp.asarray(gram), jnp.asarray(count, jnp.float64))


@pytest.mark.parametrize("name", sorted(CASES))
def test_measures_agree_with_the_reference(name: str) -> None:
    w, gram, count = CASES[name]
    rng = np.random.default_rng(5)
    halved = np.where(reference.magnitude(w, 0.5), w, 0)
    for changed in (halved, w + 1e-3 * rng.normal(size=w.shape), np.zeros_like(w), w):
        got = measures(jnp.asarray(w), jnp.asarray(changed), stats_of(gram, count))
        expected = reference.layer_measures(w, changed, gram, count)
        assert set(got) == set(expected)
        for what, value in expected.items():
            assert float(got[what]) == pytest.approx(value, rel=1e-7, abs=1e-12), what


def test_measures_of_an_unchanged_and_of_a_zero_layer() -> None:
    w, gram, count = CASES["random_24x40"]
    stats = stats_of(gram, count)
    same = measures(jnp.asarray(w), jnp.asarray(w), stats)
    assert float(same["snr_db"]) == math.inf
    assert all(float(same[k]) == 0 for k in same if k != "snr_db")
    zero = jnp.zeros_like(w)
    changed = measures(zero, jnp.asarray(w), stats)
    assert float(changed["fro_rel"]) == float(changed["out_rel"]) == math.inf
    assert float(changed["snr_db"]) == -math.inf
    assert float(measures(zero, zero, stats)["fro_rel"]) == 0


def test_leading_axes_are_variants() -> None:
    w, gram, count = CASES["random_24x40"]
    stats = stats_of(gram, count)
    variants = jnp.stack([jnp.asarray(w) * s for s in (0.0, 0.5, 0.9, 1.0)]).reshape(2, 2, *w.shape)
    together = measures(jnp.asarray(w), variants, stats)
    for i in np.ndindex(2, 2):
        alone = measures(jnp.asarray(w), variants[i], stats)
        for what, value in alone.items():
            assert float(together[what][i]) == pytest.approx(float(value), rel=1e-12)


def test_output_error_is_the_mean_over_tokens() -> None:
    rng = np.random.default_rng(0)
    x, dw = rng.normal(size=(50, 12)), rng.normal(size=(7, 12))
    got = float(output_error(jnp.asarray(dw), stats_of(x.T @ x, 50.0)))
    assert got == pytest.approx(np.mean(np.sum((x @ dw.T) ** 2, 1)), rel=1e-12)


def test_cosine() -> None:
    a = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    b = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    assert float(cosine(a, 3 * a)) == pytest.approx(1, rel=1e-14)
    assert float(cosine(a, -a)) == pytest.approx(-1, rel=1e-14)
    assert float(cosine(a, 0 * a)) == 0
    x, y = np.ravel(a), np.ravel(b)
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert float(cosine(a, b)) == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(cosine(jnp.stack([a, b]), b), [expected, 1], rtol=1e-14)


# ------------------------------------------------------------------------- float32, at any scale


def moments(x: np.ndarray) -> Moments:
    """What a float32 run keeps of the inputs x [tokens, in]."""
    mean = x.mean(0)
    centred = x - mean
    kept = (centred.T @ centred, np.float64(len(x)), mean)
    return Moments(*(jnp.asarray(a, jnp.float32) for a in kept))


def exact(w: np.ndarray, changed: np.ndarray, x: np.ndarray) -> dict[str, float]:
    """The measures from the tokens themselves, in float64."""
    w, changed = w.astype(np.float64), changed.astype(np.float64)
    return reference.layer_measures(w, changed, x.T @ x, len(x))


@pytest.mark.parametrize("across", [0.0, 1e-3])
def test_output_error_does_not_cancel_where_the_inputs_have_a_large_mean(across: float) -> None:
    rng = np.random.default_rng(0)
    x = 1000 + rng.normal(size=(4096, 64))
    mean = x.mean(0)
    dw = rng.normal(size=(48, 64))
    dw -= np.outer(dw @ mean, mean) / (mean @ mean)
    dw = (dw + across * rng.normal(size=(48, 1)) / 8).astype(np.float32)
    w = np.full(dw.shape, 0.25, np.float32) + dw  # so that w - dw is a float32, too
    expected = np.mean(np.sum((x @ dw.astype(np.float64).T) ** 2, 1))
    change = np.mean(np.sum((x @ (w.astype(np.float64) - 0.25).T) ** 2, 1))
    with jax.enable_x64(False):
        stats = moments(x)
        got = float(jax.jit(output_error)(jnp.asarray(dw), stats))
        measured = measures(jnp.full(dw.shape, 0.25), jnp.asarray(w), stats)
    assert got == pytest.approx(expected, rel=1e-4)
    assert measured["out_err"] == pytest.approx(change, rel=1e-4)


def test_no_token_is_no_error() -> None:
    with jax.enable_x64(False):
        w = jnp.asarray(CASES["random_24x40"][0], jnp.float32)
        for mean in (None, jnp.zeros(40), jnp.ones(40)):
            stats = Moments(jnp.zeros((40, 40)), jnp.zeros(()), mean)
            assert float(output_error(w, stats)) == 0
            got = measures(w, 2 * w, stats)
            assert got["out_err"] == got["out_rel"] == 0
            assert got["fro_rel"] == 1


@pytest.mark.parametrize("inputs", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1.0, 1e20, 1e36])
def test_every_measure_is_right_at_every_scale(size: float, inputs: float) -> None:
    rng = np.random.default_rng(1)
    w = (rng.normal(size=(24, 40)) * size).astype(np.float32)
    p, q = (np.where(rng.random(w.shape) < 0.5, w, x * w).astype(np.float32) for x in (0, 1.03))
    x = (rng.normal(size=(300, 40)) + rng.normal(size=40)) * inputs
    mask = rng.random(w.shape) < 0.5
    wide = [a.astype(np.float64) for a in (w, p, q)]
    dp, dq = wide[1] - wide[0], wide[2] - wide[0]
    owned = np.sum((x**2).mean(0) * np.where(mask, dq, wide[0]) ** 2)
    with jax.enable_x64(False):
        stats = moments(x)
        dense, pruned, quantized = (jnp.asarray(a) for a in (w, p, q))
        got = measures(dense, jnp.stack([pruned, quantized]), stats)
        by_owner = errors.value(jax.jit(errors.raw_owned_error)(dense, mask, quantized, stats))
        angle = float(cosine(*(jnp.asarray(a.astype(np.float32)) for a in (dp, dq))))
    for i, changed in enumerate((p, q)):
        for what, expected in exact(w, changed, x).items():
            assert got[what].dtype == np.float64
            assert got[what][i] == pytest.approx(expected, rel=3e-6, abs=0), what
    assert by_owner == pytest.approx(owned, rel=3e-6, abs=0)
    if size > 1e-38:  # there dp and dq themselves lose digits
        flat = np.sum(dp * dq) / np.linalg.norm(dp) / np.linalg.norm(dq)
        assert angle == pytest.approx(flat, rel=1e-5)


def test_features_and_weights_of_very_different_size() -> None:
    """What changes may be 1e-25 of what does not, in the weights and in the inputs."""
    rng = np.random.default_rng(2)
    size = np.where(np.arange(16) < 8, 1e10, 1e-10)
    x = (rng.normal(size=(200, 16)) + 1) * size
    w = rng.normal(size=(8, 16)).astype(np.float32)
    w[:, 12:] *= np.float32(1e-25)
    for cut in (slice(8, 16), slice(12, 16), slice(15, 16)):  # the large features stay
        changed = w.copy()
        changed[:, cut] = 0
        with jax.enable_x64(False):
            got = measures(jnp.asarray(w), jnp.asarray(changed), moments(x))
        for what, expected in exact(w, changed, x).items():
            assert got[what] == pytest.approx(expected, rel=3e-6, abs=0), what


def test_one_jitted_call_and_one_host_call_are_the_measures() -> None:
    w, gram, count = CASES["random_24x40"]
    stats, weight = stats_of(gram, count), jnp.stack([jnp.asarray(w) * s for s in (0.5, 0.9)])
    raw = jax.jit(errors.raw_measures)(jnp.asarray(w), weight, stats)
    expected = measures(jnp.asarray(w), weight, stats)
    for what, value in errors.finish(jax.device_get(raw)).items():
        np.testing.assert_array_equal(value, expected[what])
    sizes = errors.value(raw.dense)
    assert sizes.fro == pytest.approx(np.linalg.norm(w), rel=1e-14)
    assert sizes.spec == pytest.approx(np.linalg.norm(w, 2), rel=1e-9)
    assert sizes.out == pytest.approx(reference.output_error(w, gram, count), rel=1e-12)


def test_spectral_norm_keeps_its_bound_where_it_is_hardest() -> None:
    """Nearly flat and two close values, in a basis that no column of the power prefers."""
    n = 64
    bound = math.log(n) / 2 ** (errors.SQUARINGS + 1)
    basis = np.ones((1, 1))
    while len(basis) < n:
        basis = np.block([[basis, basis], [basis, -basis]])
    rng = np.random.default_rng(0)
    worst = 0.0
    with jax.enable_x64(False):
        norm = jax.jit(errors.spectral_norm)
        for gap in np.array([0, 0.2, 0.5, 0.8, 1.2, 3]) / 2**errors.SQUARINGS:
            flat = np.where(np.arange(n) == 0, 1, 1 - gap)
            two = np.where(np.arange(n) < 2, flat, rng.random(n) / 2)
            for values in (flat, two):
                w = ((basis * values) @ basis.T / n).astype(np.float32)
                short = 1 - float(norm(jnp.asarray(w))) / np.linalg.norm(w.astype(np.float64), 2)
                assert -1e-6 < short < bound + 1e-6
                worst = max(worst, short)
    assert worst > bound / 6  # these are hard: the bound is not an idle one


@pytest.mark.parametrize("size", [3e-39, 1e-38, 1e-20, 1e20, 1e37])
def test_spectral_norm_of_small_and_large_matrices(size: float) -> None:
    w = (np.random.default_rng(0).normal(size=(20, 12)) * size).astype(np.float32)
    expected = np.linalg.norm(w.astype(np.float64), 2)
    with jax.enable_x64(False):
        got = float(errors.spectral_norm(jnp.asarray(w)))
    assert got == pytest.approx(expected, rel=1e-6, abs=0)


def test_what_is_not_finite_is_named() -> None:
    w, gram, count = CASES["random_24x40"]
    stats, dense = stats_of(gram, count), jnp.asarray(w)
    assert errors.not_finite(measures(dense, dense, stats)) == []  # an infinite SNR is one
    assert errors.not_finite(measures(jnp.zeros_like(dense), dense, stats)) == [
        "fro_rel", "spec_rel", "out_rel",
    ]  # fmt: skip
    for broken in (np.nan, np.inf, -np.inf):
        weight = jnp.stack([dense, dense.at[3, 5].set(broken)])
        named = errors.not_finite(measures(dense, weight, stats))
        assert {"fro", "fro_rel", "spec", "spec_rel", "out_err", "out_rel"} <= set(named)
    assert errors.not_finite({"snr_db": -np.inf, "energy": np.inf, "norm": 1.0, "x": None}) == [
        "energy"
    ]
    assert errors.not_finite({"snr_db": np.nan, "cosine": np.array([0.0, np.nan])}) == [
        "snr_db", "cosine",
    ]  # fmt: skip


# ----------------------------------------------------------------------------------- ownership


def instance(seed: int) -> tuple[Matrix, np.ndarray, Moments]:
    """Weights and inputs that are small dyadic numbers: sums of squares are exact in float64."""
    rng = np.random.default_rng(seed)
    w = jnp.asarray(rng.integers(-64, 65, (6, 16)) / 8)
    q = np.rint(np.asarray(w))  # on the grid of the integers
    energy = rng.integers(1, 16, 16) / 4
    return fresh(w), q, stats_of(np.diag(energy) * 32, 32.0)


@pytest.mark.parametrize("seed", range(10))
def test_theorem_1_ownership_exactly(seed: int) -> None:
    """A(f1 -> f2) = sum over S21 minus S12 of (e1 - e2), minus that over S12 minus S21.

    f1 = Q, f2 = P; S12 the units Q owns after Q -> P, S21 those it owns after P -> Q. For any
    masks; kappa = 1; with equality, every term being a dyadic number.
    """
    layer, q, stats = instance(seed)
    rng = np.random.default_rng(100 + seed)
    s12, s21 = rng.random((2, 6, 16)) < 0.6
    w, energy = np.asarray(layer.weight), np.asarray(jnp.diagonal(stats.gram) / stats.count)
    e_q, e_p = energy * (q - w) ** 2, energy * w**2
    theorem = np.sum((e_q - e_p)[s21 & ~s12]) - np.sum((e_q - e_p)[s12 & ~s21])
    owned_qp, owned_pq = (owned_error(layer.weight, jnp.asarray(m), q, stats) for m in (s12, s21))
    assert float(owned_pq - owned_qp) == theorem


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pruner", [Magnitude(0.5), Wanda(0.5), Magnitude(0.3, "row")])
def test_without_interference_ownership_is_all(pruner: Magnitude | Wanda, seed: int) -> None:
    """Uncorrelated inputs and one grid whatever the order: measured = owned, to the last bit."""
    layer, _, stats = instance(seed)
    spec = GridSpec(per="tensor", convention="full")
    dense = np.asarray(layer.weight).copy()
    dense[0, 0] = 7.0  # the absmax: with 4 bits and the full convention the step is 1
    layer = fresh(jnp.asarray(np.clip(dense, -7, 7)))
    q = RTN(4, spec, scale_source="dense")
    problem = Problem(layer.weight, stats)
    pq, qp = (chain(*c)(layer, problem, KEY).matrix for c in ((pruner, q), (q, pruner)))
    alone = q(layer, problem, KEY).matrix.weight
    measured, owned = [], []
    for x in (qp, pq):
        measured.append(output_error(x.weight - layer.weight, stats))
        owned.append(owned_error(layer.weight, x.mask, alone, stats))
        assert float(measured[-1]) == float(owned[-1])
    assert float(interference(*measured, *owned)) == 0
    shares = ownership(qp, pq)
    a, b = np.asarray(qp.mask), np.asarray(pq.mask)
    assert float(shares["owned_by_pruner"]) == pytest.approx(np.mean(~a), rel=1e-6)
    assert float(shares["owner_changed"]) == pytest.approx(np.mean(a != b), rel=1e-6)


def test_a_changing_scale_and_compensation_interfere() -> None:
    """Where Q does something else to the units it owns, ownership does not explain A."""
    w, gram, count = CASES["correlated"]
    layer, stats = fresh(jnp.asarray(w)), stats_of(gram, count)
    p, q = Wanda(0.5), GPTQ(3)

    @jax.jit
    def run(method: Any, layer: Matrix) -> Matrix:
        return method(layer, Problem(layer.weight, stats), KEY).matrix

    rounded = run(q, layer)
    pq, qp, alone = run(q, run(p, layer)), run(p, rounded), rounded.weight
    measured = [output_error(x.weight - layer.weight, stats) for x in (qp, pq)]
    owned = [owned_error(layer.weight, x.mask, alone, stats) for x in (qp, pq)]
    assert abs(float(interference(*measured, *owned))) > 1e-3 * float(measured[1])
