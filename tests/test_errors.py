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
from perturb.errors import cosine, interference, measures, output_error, owned_error, ownership
from perturb.lift import fresh
from perturb.types import Layer, LayerStats

from . import reference
from .cases import adversarial_layers

CASES = adversarial_layers()
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def stats_of(gram: np.ndarray, count: float) -> LayerStats:
    return LayerStats(jnp.asarray(gram), jnp.asarray(count, jnp.float64))


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


# ----------------------------------------------------------------------------------- ownership


def instance(seed: int) -> tuple[Layer, np.ndarray, LayerStats]:
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
    w, energy = np.asarray(layer.dense), np.asarray(jnp.diagonal(stats.gram) / stats.count)
    e_q, e_p = energy * (q - w) ** 2, energy * w**2
    theorem = np.sum((e_q - e_p)[s21 & ~s12]) - np.sum((e_q - e_p)[s12 & ~s21])
    owned_qp, owned_pq = (owned_error(layer.dense, jnp.asarray(m), q, stats) for m in (s12, s21))
    assert float(owned_pq - owned_qp) == theorem


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("pruner", [Magnitude(0.5), Wanda(0.5), Magnitude(0.3, "row")])
def test_without_interference_ownership_is_all(pruner: Magnitude | Wanda, seed: int) -> None:
    """Uncorrelated inputs and one grid whatever the order: measured = owned, to the last bit."""
    layer, _, stats = instance(seed)
    spec = GridSpec(per="tensor", convention="full")
    dense = np.asarray(layer.dense).copy()
    dense[0, 0] = 7.0  # the absmax: with 4 bits and the full convention the step is 1
    layer = fresh(jnp.asarray(np.clip(dense, -7, 7)))
    q = RTN(4, spec, scale_source="dense")
    pq, qp = (chain(*c)(layer, stats, KEY).layer for c in ((pruner, q), (q, pruner)))
    alone = q(layer, stats, KEY).layer.weight
    measured, owned = [], []
    for x in (qp, pq):
        measured.append(output_error(x.weight - layer.dense, stats))
        owned.append(owned_error(layer.dense, x.mask, alone, stats))
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
    def run(method: Any, layer: Layer) -> Layer:
        return method(layer, stats, KEY).layer

    rounded = run(q, layer)
    pq, qp, alone = run(q, run(p, layer)), run(p, rounded), rounded.weight
    measured = [output_error(x.weight - layer.dense, stats) for x in (qp, pq)]
    owned = [owned_error(layer.dense, x.mask, alone, stats) for x in (qp, pq)]
    assert abs(float(interference(*measured, *owned))) > 1e-3 * float(measured[1])
