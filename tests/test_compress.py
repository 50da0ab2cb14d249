"""What ``compress`` and ``score`` say of a whole model: storage, coverage, norms, zeros, dtypes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda, chain, compress, score
from perturb.network import capture, find_layers
from perturb.scoring import layers as gauges
from perturb.types import Matrix, Solved

from .conftest import numpy_init

Array = jax.Array
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
R: Any = {"rngs": nnx.Rngs(0), "kernel_init": numpy_init}


class Net(nnx.Module):
    """Two linear layers and an embedding that nothing compresses."""

    def __init__(self, dtype: Any = jnp.float32) -> None:
        self.embed = nnx.Embed(10, 16, rngs=nnx.Rngs(1))
        self.first = nnx.Linear(16, 24, use_bias=False, param_dtype=dtype, **R)
        self.second = nnx.Linear(24, 8, use_bias=False, param_dtype=dtype, **R)

    def __call__(self, tokens: Array) -> Array:
        return self.second(nnx.relu(self.first(self.embed(tokens))))


class Convolutional(nnx.Module):
    def __init__(self) -> None:
        self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, **R)
        self.norm = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(8, 4, **R)

    def __call__(self, x: Array) -> Array:
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 10, (16, 12)))
IMAGES = jnp.asarray(np.random.default_rng(0).normal(1, 2, (32, 6, 6, 3)), jnp.float32)
WEIGHTS, ALL = 16 * 24 + 24 * 8, 16 * 24 + 24 * 8 + 160


def trained_norms() -> Convolutional:
    """In evaluation mode, with the running statistics of its own inputs."""
    model = Convolutional()
    model.train()
    model.norm.momentum = 0.0
    model(IMAGES)
    model.eval()
    return model


# ----------------------------------------------------------------------------- storage, coverage


def test_the_ratio_is_that_of_the_whole_model() -> None:
    done = compress(Net(), chain(Magnitude(0.5), RTN(4)))
    assert (done.storage.parameters, done.storage.weights) == (ALL, WEIGHTS)
    assert done.storage.kept == WEIGHTS // 2
    assert done.ratio == pytest.approx(16 * ALL / (16 * 160 + 4 * WEIGHTS / 2))
    assert done.storage.layers_ratio == 8
    assert done.sparsity == 0.5
    assert done.coverage.share == pytest.approx(WEIGHTS / ALL)
    assert compress(Net(), chain(RTN(8), RTN(4))).storage.layers_ratio == 4
    released = chain(RTN(4), SparseGPT(0.5, on_grid="release"))
    assert compress(Net(), released, TOKENS).storage.layers_ratio == 2


def test_what_stays_out_is_told_under_ninety_per_cent() -> None:
    with pytest.warns(UserWarning, match="embed"):
        done = compress(Net(), RTN(4))
    assert any("embed" in note for note in done.notes)
    model = nnx.Sequential(nnx.Linear(40, 40, **R))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not compress(model, RTN(4)).notes


def test_a_score_tells_ratio_and_coverage_of_every_variant() -> None:
    scores = score(Net(), Wanda(0.5), RTN(4), TOKENS)
    assert scores.storage["PQ"] == scores.storage["QP"]
    assert scores.storage["Q"].layers_ratio == 4
    assert scores.storage["PQ"].ratio == pytest.approx(16 * ALL / (16 * 160 + 4 * WEIGHTS / 2))
    assert scores.coverage.share == pytest.approx(WEIGHTS / ALL)


def test_padding_counts_neither_in_the_layers_nor_in_the_outputs() -> None:
    """Padded batches with their mask are the batches without padding, whatever the padding is."""

    class Tagger(nnx.Module):
        def __init__(self) -> None:
            self.first, self.second = nnx.Linear(8, 12, **R), nnx.Linear(12, 4, **R)

        def __call__(self, x: Array) -> Array:
            return self.second(nnx.relu(self.first(x)))

    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 8)), jnp.float32)
    padded = jnp.concatenate([x, jnp.full((6, 3, 8), 50.0)], 1)
    mask = np.repeat([[1] * 5 + [0] * 3], 6, 0)
    model = Tagger()
    plain = score(model, Wanda(0.5), RTN(3), x)
    weighed = score(model, Wanda(0.5), RTN(3), padded, token_weights=lambda batch: mask)
    counted = score(model, Wanda(0.5), RTN(3), padded)
    for v in plain.outputs:
        assert weighed.outputs[v].kl == pytest.approx(plain.outputs[v].kl, rel=1e-4)
        assert weighed.outputs[v].logit_mse == pytest.approx(plain.outputs[v].logit_mse, rel=1e-4)
        assert counted.outputs[v].logit_mse > 2 * plain.outputs[v].logit_mse
        assert weighed.total[v].out_err == pytest.approx(plain.total[v].out_err, rel=1e-4)


# ------------------------------------------------------------------------------- norm statistics


def running(model: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(model.norm.mean[...]), np.asarray(model.norm.var[...])


@pytest.mark.parametrize("batches", [1, 2])
def test_norms_are_reestimated_on_the_calibration_data(batches: int) -> None:
    model = trained_norms()
    parts = [IMAGES] if batches == 1 else [IMAGES[:8], IMAGES[8:]]
    before = running(model)
    done = compress(model, Magnitude(0.7), parts)
    y = np.asarray(done.model.conv(IMAGES), np.float64)
    expected = y.mean((0, 1, 2)), y.var((0, 1, 2))
    for got, right, old in zip(running(done.model), expected, before, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5)
        assert not np.allclose(got, old, rtol=1e-2)
    for unchanged, old in zip(running(model), before, strict=True):
        np.testing.assert_array_equal(unchanged, old)
    assert done.policy.norms == "reestimate"
    kept = compress(model, Magnitude(0.7), parts, norms="keep")
    for got, old in zip(running(kept.model), before, strict=True):
        np.testing.assert_array_equal(got, old)
    assert any("BatchNorm" in note and "norms='keep'" in note for note in kept.notes)


def test_norms_without_calibration_are_told() -> None:
    done = compress(trained_norms(), Magnitude(0.7))
    assert any("BatchNorm" in note and "no calibration" in note for note in done.notes)


def test_the_second_stage_sees_the_reestimated_model() -> None:
    model = trained_norms()
    first = compress(model, Magnitude(0.7), IMAGES, calibrate="recalibrate")
    specs, _ = find_layers(first.model)
    stats = capture(first.model, specs, IMAGES)
    both = compress(model, chain(Magnitude(0.7), Wanda(0.8)), IMAGES, calibrate="recalibrate")
    energy = np.sqrt(np.asarray(stats["head"].energy))
    cost = np.abs(np.asarray(first.matrices["head"].weight)) * energy
    gone = ~np.asarray(both.matrices["head"].mask)
    order = np.argsort(cost, -1)[:, : int(0.8 * 8)]
    assert np.all(np.take_along_axis(gone, order, -1))


def test_scores_measure_what_compress_returns_with_its_norms() -> None:
    model = trained_norms()
    for norms in ("reestimate", "keep"):
        scores = score(model, Magnitude(0.7, "row"), RTN(3), IMAGES, norms=norms)  # type: ignore[arg-type]
        done = compress(
            model,
            chain(Magnitude(0.7, "row"), RTN(3)),
            IMAGES,
            calibrate="recalibrate",
            norms=norms,  # type: ignore[arg-type]
        )
        mse = float(jnp.mean((done.model(IMAGES) - model(IMAGES)) ** 2))
        assert scores.outputs["PQ"].logit_mse == pytest.approx(mse, rel=1e-4)
        assert scores.policy.norms == norms


def test_an_unknown_policy_is_refused() -> None:
    for option in ("norms", "zeros", "calibrate"):
        with pytest.raises(ValueError, match=f"{option} must be one of .*; got 'perhaps'"):
            compress(Net(), RTN(4), **{option: "perhaps"})  # type: ignore[arg-type]


# --------------------------------------------------------------------------- zeros in a checkpoint


def half_sparse() -> Net:
    model = Net()
    kernel = model.first.kernel[...]
    model.first.kernel[...] = jnp.where(jnp.abs(kernel) < jnp.median(jnp.abs(kernel)), 0, kernel)
    return model


def test_zeros_of_a_checkpoint_are_kept_on_request_and_told_either_way() -> None:
    model = half_sparse()
    zero = np.asarray(model.first.kernel[...]) == 0
    free = compress(model, GPTQ(4), TOKENS)
    returned = np.asarray(free.model.first.kernel[...])[zero]
    assert np.any(returned != 0)
    assert any("192 of 576 weights" in n and "zeros='keep'" in n for n in free.notes)
    kept = compress(model, GPTQ(4), TOKENS, zeros="keep")
    assert np.all(np.asarray(kept.model.first.kernel[...])[zero] == 0)
    assert kept.sparsity == pytest.approx(192 / 576)
    assert any("192 of 576 weights" in n and "stay 0" in n for n in kept.notes)
    assert score(model, Wanda(0.5), GPTQ(4), TOKENS, zeros="keep").total["Q"].pruned == (
        pytest.approx(192 / 576)
    )
    assert not any("0 already" in n for n in compress(Net(), RTN(4)).notes)


# ---------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize(
    ("dtype", "method"),
    [
        (jnp.bfloat16, RTN(4)),
        (jnp.bfloat16, GPTQ(4)),
        (jnp.bfloat16, SparseGPT(0.5)),
        (jnp.float16, RTN(16)),
    ],
)
def test_half_precision_is_solved_in_float32_and_stored_in_its_own_dtype(
    dtype: Any, method: Any
) -> None:
    low, high = Net(dtype), Net()
    for name in ("first", "second"):
        getattr(high, name).kernel[...] = getattr(low, name).kernel[...].astype(jnp.float32)
    a, b = (compress(m, method, TOKENS, calibrate="dense") for m in (low, high))
    for name in ("first", "second"):
        stored = getattr(a.model, name).kernel[...]
        assert stored.dtype == dtype
        assert bool(jnp.all(jnp.isfinite(stored)))
        if name == "first":  # the same inputs in both: the same solution, then rounded to store
            np.testing.assert_allclose(a.matrices[name].weight, b.matrices[name].weight, rtol=1e-5)
            expected = b.matrices[name].weight.T.astype(dtype)
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(expected))


def test_layers_of_one_shape_and_two_dtypes_are_each_solved_alone() -> None:
    class Mixed(nnx.Module):
        def __init__(self) -> None:
            self.a = nnx.Linear(16, 16, use_bias=False, param_dtype=jnp.bfloat16, **R)
            self.b = nnx.Linear(16, 16, use_bias=False, **R)

        def __call__(self, x: Array) -> Array:
            return self.b(self.a(x))

    model = Mixed()
    both = compress(model, RTN(3))
    alone = compress(model, RTN(3), exclude=["a"])
    np.testing.assert_array_equal(both.matrices["b"].weight, alone.matrices["b"].weight)


# ------------------------------------------------------------------------------------ not finite


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Broken:
    """A method of somebody else's, with a bug."""

    bits: int = 4
    name = "broken"
    needs_stats = False

    def __call__(self, layer: Matrix, problem: Any, key: Any) -> Solved:
        return Solved(layer._replace(weight=layer.weight * jnp.nan), None)


def test_a_result_that_is_not_finite_is_an_error_in_one_line() -> None:
    with pytest.raises(ValueError, match="layer first: broken leaves weights that are not finite"):
        compress(Net(), Broken())


def test_a_score_that_is_not_finite_is_never_a_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gauges.errors.finish
    calls = iter(range(2))

    def broken(raw: Any) -> Any:
        """Of the second layer the error of the second variant, P -> Q, is none."""
        done = real(raw)
        if next(calls) == 1:
            done["out_err"] = np.where(np.arange(4) == 1, np.nan, done["out_err"])
        return done

    monkeypatch.setattr(gauges.errors, "finish", broken)
    with pytest.raises(ValueError, match="layer second: out_err of P→Q"):
        score(Net(), Wanda(0.5), RTN(4), TOKENS)
