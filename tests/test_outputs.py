"""The KL divergence against long arithmetic, where float32 has little left."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from perturb.measure.outputs import distances, kl_divergence


def exact(z: np.ndarray, y: np.ndarray) -> float:
    """Of one prediction, with 60 digits."""
    with mpmath.workdps(60):
        p, q = ([mpmath.exp(mpmath.mpf(float(v))) for v in x] for x in (z, y))
        a, b = mpmath.fsum(p), mpmath.fsum(q)
        terms = (u / a * mpmath.log((u / a) / (v / b)) for u, v in zip(p, q, strict=True) if u)
        return float(mpmath.fsum(terms))


def logits(rows: int, classes: int, spread: float = 3.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (spread * rng.normal(size=(rows, classes))).astype(np.float32)


@pytest.mark.parametrize("relative", [1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_it_is_accurate_however_near_the_logits_are(relative, classes):
    z = logits(6, classes)
    y = (z * (1 + relative * logits(6, classes, 1.0, seed=1))).astype(np.float32)
    expected = np.array([exact(*pair) for pair in zip(z, y, strict=True)])
    found = np.asarray(jax.jit(kl_divergence)(z, y))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("shift", [-16.0, 0.5, 64.0])
def test_a_common_shift_changes_nothing_but_the_rounding_of_the_logits(shift):
    z = logits(4, 50)
    y = (z * np.float32(1.001) + np.float32(shift)).astype(np.float32)
    expected = np.array([exact(*pair) for pair in zip(z, y, strict=True)])
    np.testing.assert_allclose(kl_divergence(z, y), expected, rtol=1e-3)


def test_a_tail_that_moves_far_does_not_drown_a_head_that_does_not():
    z = np.array([[5.0, 4.0, -16.0]], np.float32)
    y = np.array([[5.0001, 4.0, -13.0]], np.float32)
    np.testing.assert_allclose(kl_divergence(z, y), [exact(z[0], y[0])], rtol=1e-4)


def test_it_is_zero_of_equal_logits_and_never_negative():
    z = logits(200, 30, 20.0)
    assert not np.any(np.asarray(kl_divergence(z, z)))
    assert np.all(np.asarray(kl_divergence(z, z + logits(200, 30, 1e-6, seed=1))) >= 0)


def test_classes_that_neither_has_are_none_and_one_that_is_lost_is_infinite():
    inf = np.inf
    z, y = np.array([1.0, 2.0, -inf], np.float32), np.array([1.5, 2.0, -inf], np.float32)
    np.testing.assert_allclose(kl_divergence(z, y), exact(z[:2], y[:2]), rtol=1e-5)
    assert kl_divergence(z, np.float32([1, -inf, -inf])) == inf
    gained = kl_divergence(z, np.float32([1.5, 2.0, 3.0]))
    p = np.exp([1.0, 2.0]) / np.exp([1.0, 2.0]).sum()
    q = np.exp([1.5, 2.0, 3.0]) / np.exp([1.5, 2.0, 3.0]).sum()
    np.testing.assert_allclose(gained, (p * np.log(p / q[:2])).sum(), rtol=1e-5)


def test_half_precision_is_compared_in_float32():
    z, y = (jnp.asarray(logits(3, 8, seed=s), jnp.bfloat16) for s in (0, 1))
    expected = [exact(*pair) for pair in zip(np.float32(z), np.float32(y), strict=True)]
    np.testing.assert_allclose(kl_divergence(z, y), expected, rtol=1e-5)


def test_its_gradient_is_the_difference_of_the_probabilities():
    z, y = jnp.asarray(logits(1, 12)[0]), jnp.asarray(logits(1, 12, seed=1)[0])
    for other in (z, z * 1.0001, y, 5 * y):
        found = jax.grad(kl_divergence, 1)(z, other)
        np.testing.assert_allclose(found, jax.nn.softmax(other) - jax.nn.softmax(z), atol=1e-6)


def test_distances_are_sums_over_an_example_and_what_weighs_nothing_may_hold_anything():
    z, y = (jnp.asarray(logits(6, 5, seed=s)).reshape(2, 3, 5) for s in (0, 1))
    weights = np.array([[1, 1, 0], [0.5, 0, 0]], np.float32)
    square, kl = distances(z.at[0, 2].set(np.nan), y, weights)
    each = ((np.asarray(y, np.float64) - np.asarray(z, np.float64)) ** 2).sum(-1)
    np.testing.assert_allclose(square, [each[0, 0] + each[0, 1], each[1, 0] / 2], rtol=1e-5)
    parts = np.asarray(kl_divergence(z, y))
    np.testing.assert_allclose(kl, [parts[0, 0] + parts[0, 1], parts[1, 0] / 2], rtol=1e-5)
