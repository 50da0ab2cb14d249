"""OBR against a loop over rows in numpy, and its two steps against least squares."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import OBR, RTN, GridSpec, NofM, SparseGPT, Wanda
from perturb.family import run_family
from perturb.methods.quantize.obr import moved
from perturb.naming import parse
from perturb.registry import to_config
from perturb.state import fresh, versions
from perturb.types import Matrix, Moments, Problem, Solved

from . import reference
from .cases import adversarial_layers

CASES = adversarial_layers()
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # ours, and the reference's
    "row": ({}, {}),
    "early": ({"alpha": 0.2}, {"alpha": 0.2}),
    "late": ({"alpha": 1.0}, {"alpha": 1.0}),
    "2:4": ({"sparsity": None, "scope": NofM(2, 4)}, {"s": None, "scope": (2, 4)}),
    "group": ({"grid": GridSpec(False, 8)}, {"sym": False, "granularity": 8}),
    "tensor": ({"grid": GridSpec(per="tensor")}, {"granularity": "tensor"}),
}


@jax.jit
def run(method: Any, layer: Matrix, stats: Moments, dense: jax.Array) -> Solved:
    return method(layer, Problem(dense, stats), jax.random.key(0))


def moments(gram: np.ndarray, count: float) -> Moments:
    return Moments(jnp.asarray(gram), jnp.asarray(count, gram.dtype))


def close(actual: Any, expected: np.ndarray, tolerance: float = 1e-7) -> None:
    scale = np.abs(expected).max() or 1.0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("shape", sorted({CASES[n][0].shape for n in CASES} - {(8, 200)}))
def test_it_is_a_loop_over_rows(shape: tuple[int, int]) -> None:
    for w, gram, count in CASES.values():
        if w.shape != shape:
            continue
        with jax.enable_x64(True):
            found = run(OBR(0.4, 3, tie="index"), fresh(jnp.asarray(w)), moments(gram, count), w)
            q, keep, _ = reference.obr(w, gram, count, 0.4, 3)
            np.testing.assert_array_equal(found.matrix.mask, keep)
            close(found.matrix.weight, q)


@pytest.mark.parametrize("setting", SETTINGS)
def test_its_settings_are_the_loops(setting: str) -> None:
    """On a layer that is pruned already, too."""
    w, gram, count = CASES["random_24x40"]
    ours, theirs = SETTINGS[setting]
    before = np.ones(w.shape, bool)
    before[::2, 3:14] = False  # 11 of 40 weights of every other row
    before[5] = False  # and all of one
    with jax.enable_x64(True):
        method = OBR(**{"sparsity": 0.5, "bits": 2, "tie": "index", **ours})
        for already in (np.ones(w.shape, bool), before):
            start = np.where(already, w, 0)
            layer = Matrix(jnp.asarray(start), jnp.asarray(already))
            found = run(method, layer, moments(gram, count), w)
            how = {"s": 0.5, "bits": 2, "already": ~already, **theirs}
            q, keep, _ = reference.obr(start, gram, count, **how)
            np.testing.assert_array_equal(found.matrix.mask, keep)
            close(found.matrix.weight, q)
            assert not np.asarray(found.matrix.weight)[~keep].any()


def test_what_the_mask_takes_is_made_up_for_as_least_squares_do() -> None:
    """At many bits, the kept weights are the regression of the row's outputs on their inputs."""
    draws = np.random.default_rng(2)
    x = draws.normal(size=(300, 24)) @ (np.eye(24) + 0.3 * draws.normal(size=(24, 24)))
    w, damp = draws.normal(size=(9, 24)), 0.05
    gram = x.T @ x
    ridge = np.sqrt(damp * np.trace(gram) / 24) * np.eye(24)
    rows = np.concatenate([x, ridge])  # the damping, as tokens of its own
    with jax.enable_x64(True):
        method = OBR(0.5, 16, tie="index", damp=damp, alpha=0.0)
        found = run(method, fresh(jnp.asarray(w)), moments(gram, 300.0), w).matrix
        for row, mask, mine in zip(w, np.asarray(found.mask), found.weight, strict=True):
            best = np.linalg.lstsq(rows[:, mask], rows @ row, rcond=None)[0]
            step = np.abs(best).max() / (2**15 - 0.5)
            assert np.abs(np.asarray(mine)[mask] - best).max() <= 0.51 * step
        # the step by itself, to rounding
        keep = np.asarray(found.mask)
        h = (gram + ridge @ ridge) / np.trace(gram) * 24
        delta = np.asarray(moved(jnp.asarray(h), jnp.where(keep, 0, w), jnp.asarray(keep)))
        for row, mask, mine in zip(w, keep, np.where(keep, w, 0) + delta, strict=True):
            best = np.linalg.lstsq(rows[:, mask], rows @ row, rcond=None)[0]
            np.testing.assert_allclose(mine[mask], best, rtol=1e-9, atol=1e-12)


def test_chunks_of_rows_are_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(3)
    h = jnp.asarray(np.cov(draws.normal(size=(8, 50))), jnp.float32)
    keep = jnp.asarray(draws.random((7, 8)) < 0.5)
    lost = jnp.where(keep, 0, jnp.asarray(draws.normal(size=(7, 8)), jnp.float32))
    whole = moved(h, lost, keep)
    monkeypatch.setattr("perturb.methods.quantize.obr.CHUNK", 3 * 64)
    np.testing.assert_allclose(moved(h, lost, keep), whole, rtol=1e-5, atol=1e-6)


def test_each_step_gains_on_correlated_inputs() -> None:
    w, gram, count = CASES["correlated"]
    with jax.enable_x64(True):

        def loss(*methods: Any) -> float:
            layer = fresh(jnp.asarray(w))
            for method in methods:
                layer = run(method, layer, moments(gram, count), w).matrix
            return reference.output_error(np.asarray(layer.weight) - w, gram, count)

        plain = loss(Wanda(0.5, tie="index"), RTN(3))
        one_step, both = (loss(OBR(0.5, 3, tie="index", alpha=a)) for a in (0.0, 0.5))
        assert both < one_step < plain


def test_a_singular_hessian_is_damped_until_it_is_not_and_reported() -> None:
    w, gram, count = CASES["rank_deficient"]
    found = run(
        OBR(0.5, 4, damp=0.0),
        fresh(jnp.asarray(w, jnp.float32)),
        moments(np.asarray(gram, np.float32), np.float32(count)),
        w,
    )
    assert found.report is not None
    assert np.isfinite(np.asarray(found.matrix.weight)).all()
    assert float(found.report.damping) > 0


def test_a_family_is_its_members_and_sparsegpt_relays_by_its_quantizer() -> None:
    w, gram, count = CASES["random_24x40"]
    layer = fresh(jnp.asarray(w, jnp.float32))
    problem = Problem(layer.weight, moments(np.asarray(gram, np.float32), np.float32(count)))
    members = [OBR(s, b, tie="index") for s, b in ((0.3, 3), (0.6, 4))]
    key = jax.random.key(0)
    both = run_family(members, {"a": versions(layer)}, {"a": problem}, key)["a"].matrix
    for f, member in enumerate(members):
        alone = run(member, layer, problem.inputs, layer.weight).matrix
        np.testing.assert_array_equal(both.mask[0, f], alone.mask)
        close(both.weight[0, f], np.asarray(alone.weight), 1e-5)
    after = SparseGPT(0.7, block=16)(alone, problem, key).matrix
    assert isinstance(after.quantizer, RTN)
    assert after.grid is not None
    assert int(after.mask.sum()) == 24 * 40 - int(24 * 40 * 0.7)


def test_wrong_settings_are_refused() -> None:
    assert parse("obr:3,sparsity=0.5,alpha=0.25,per=8") == OBR(
        0.5, 3, grid=GridSpec(per=8), alpha=0.25
    )
    assert parse("obr:2:4").scope == NofM(2, 4)
    assert to_config(OBR(0.5))["name"] == "obr"
    for alpha in (-0.1, 1.5, True, "x"):
        with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
            OBR(0.5, alpha=alpha)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scope must be one of 'row'; got 'layer'"):
        OBR(0.5, scope="layer")
    with pytest.raises(ValueError, match="damp must be a finite number"):
        OBR(0.5, damp=-1.0)
    with pytest.raises(ValueError, match="obr needs a sparsity"):
        OBR()
