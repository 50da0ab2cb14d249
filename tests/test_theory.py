"""Closed forms against quadrature, sampling and THEORY.md's digits; theorem 1 as an identity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from theory import gaussian, ownership
from theory.__main__ import main, reproduces

# THEORY.md, "Closed forms to reproduce"
PRUNE = {5: "41.8", 10: "32.8", 25: "20.8", 40: "14.5", 50: "11.5", 75: "5.58", 87.5: "3.03"}
GRID = {2: "8.26", 3: "13.9", 4: "19.26", 5: "24.5", 6: "29.8", 8: "40.6"}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("percent", "printed"), PRUNE.items())
def test_snr_of_pruning_to_the_last_digit(percent, printed):
    assert reproduces(gaussian.prune_snr_db(percent / 100), printed)


@pytest.mark.parametrize(("bits", "printed"), GRID.items())
def test_snr_of_the_best_grid_to_the_last_digit(bits, printed):
    assert reproduces(gaussian.grid_snr_db(bits), printed)


def test_the_verified_table_is_theory_md_s():
    assert {100 * c: text for c, text in gaussian.PRUNE_SNR.items()} == PRUNE
    assert gaussian.GRID_SNR == GRID


@pytest.mark.parametrize("c", [0.001, 0.05, 0.3, 0.6827, 0.9, 0.999])
def test_prune_error_is_the_integral(x64, c):
    t = norm.ppf((1 + c) / 2)
    integral, _ = quad(lambda w: w**2 * norm.pdf(w), -t, t, epsabs=1e-14, epsrel=1e-13)
    assert float(gaussian.prune_error(jnp.float64(c))) == pytest.approx(integral, rel=1e-9)


def grid_integral(step: float, bits: int) -> float:
    """The integral of the squared distance to the nearest level, cell by cell."""
    levels = step * np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    edges = [-40.0, *(levels[1:] - step / 2), 40.0]
    return sum(
        quad(
            lambda w, q=q: (w - q) ** 2 * norm.pdf(w),
            *(a, b),
            epsabs=1e-15,
            epsrel=1e-12,
            points=[v for v in (-5.0, 0.0, 5.0) if a < v < b] or None,
        )[0]
        for q, a, b in zip(levels, edges[:-1], edges[1:], strict=True)
    )


@pytest.mark.parametrize(("step", "bits"), [(1.0, 2), (0.3, 2), (0.55, 3), (0.31, 4), (0.05, 5)])
def test_grid_error_is_the_integral(x64, step, bits):
    found = float(gaussian.grid_error(jnp.float64(step), bits))
    assert found == pytest.approx(grid_integral(step, bits), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 4])
def test_errors_agree_with_sampling_within_five_standard_errors(x64, bits):
    w = np.random.default_rng(bits).normal(size=400_000)
    step, error = (float(a) for a in gaussian.optimal_step(bits))
    q = step * np.clip(np.rint(w / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    c = 0.5
    pruned = np.where(np.abs(w) < norm.ppf((1 + c) / 2), w**2, 0)
    for sample, value in (((w - q) ** 2, error), (pruned, float(gaussian.prune_error(c)))):
        assert abs(sample.mean() - value) < 5 * sample.std() / np.sqrt(w.size)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_the_step_is_optimal(x64, bits):
    step, error = (float(a) for a in gaussian.optimal_step(bits))
    found = minimize_scalar(
        lambda d: float(gaussian.grid_error(jnp.float64(d), bits)),
        bounds=(0.8 * step, 1.2 * step),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert error <= found.fun + 1e-14  # 1 - ... cancels: absolute rounding
    assert step == pytest.approx(found.x, rel=1e-5)  # a minimum: the error is flat there
    wide = jnp.geomspace(step / 20, 20 * step, 300, dtype=jnp.float64)
    assert error <= float(gaussian.grid_error(wide, bits).min()) + 1e-14


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="from 2 to 12, got 1"):
        gaussian.optimal_step(1)


# ----------------------------------------------------------------------------------- theorem 1


def test_ownership_holds_on_random_instances():
    check = ownership.check_random(5000, 64, seed=1)
    assert check.holds
    assert check.instances == 5000
    assert 0 < check.margin <= 1


@pytest.mark.parametrize("seed", range(3))
def test_ownership_holds_exactly_for_every_pair_of_owner_sets(seed):
    check = ownership.check_exact(4, seed)
    assert check == ownership.Check(256, 0, 1.0, None)


def flipped_sign(e1, e2, s12, s21, kappa):
    return -ownership.advantage_by_ownership(e1, e2, s12, s21, kappa)


def plus_for_minus(e1, e2, s12, s21, kappa):
    gained, lost = s21 * (1 - s12), s12 * (1 - s21)
    return kappa * ((gained * (e1 - e2)).sum(-1) + (lost * (e1 - e2)).sum(-1))


def all_units(e1, e2, s12, s21, kappa):
    return kappa * (s21 * (e1 - e2)).sum(-1)


def slightly_off(e1, e2, s12, s21, kappa):
    return ownership.advantage_by_ownership(e1, e2, s12, s21, kappa) * (1 + 1e-9)


@pytest.mark.parametrize("wrong", [flipped_sign, plus_for_minus, all_units, slightly_off])
def test_a_wrong_formula_is_caught(wrong):
    random = ownership.check_random(500, formula=wrong)
    assert not random.holds
    assert random.margin < 0
    assert "instance" in (random.counterexample or "")
    exact = ownership.check_exact(3, formula=wrong if wrong is not slightly_off else flipped_sign)
    assert not exact.holds
    assert exact.counterexample


def test_nothing_checked_does_not_hold():
    assert not ownership.Check(0, 0, 1.0, None).holds


@given(st.data())
def test_ownership_is_an_identity_in_integers(data):
    n = data.draw(st.integers(1, 12))
    errors = st.lists(st.integers(-(10**9), 10**9), min_size=n, max_size=n)
    owners = st.lists(st.integers(0, 1), min_size=n, max_size=n)
    drawn = [np.array(data.draw(s), object) for s in (errors, errors, owners, owners)]
    kappa = data.draw(st.integers(1, 1000))
    by_definition = ownership.advantage_by_definition(*drawn, kappa)
    assert ownership.advantage_by_ownership(*drawn, kappa) == by_definition


# ------------------------------------------------------------------------------------ the door


def test_the_door_lists_and_verifies(capsys):
    assert main([]) == 0
    assert {"gaussian", "ownership"} <= set(capsys.readouterr().out.split())
    assert main(["verify", "--instances", "200"]) == 0
    out = capsys.readouterr().out
    assert out.count("same digits") == len(PRUNE) + len(GRID)
    assert "200 instances, 0 fail" in out
    assert "256 instances, 0 fail" in out


def test_the_door_fails_when_a_statement_does(capsys, monkeypatch):
    monkeypatch.setitem(gaussian.PRUNE_SNR, 0.5, "11.6")
    monkeypatch.setattr(gaussian, "GRID_SNR", {})
    assert main(["verify", "gaussian"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("DIFFERS") == 1
    assert captured.err == "does not hold: gaussian\n"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["prove"], "no command 'prove'"),
        (["verify", "riemann"], "no statement 'riemann'"),
        (["verify", "--instances", "0"], "--instances 0"),
        (["verify", "--seed", "-1"], "--seed -1"),
        (["verify", "--instances", "many"], "many"),
    ],
)
def test_bad_input_is_one_line(argv, says, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
