"""Closed forms against quadrature and sampling; every statement, and that its checks can fail."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize_scalar

from figures.__main__ import main as draw
from perturb import GPTQ, GridSpec, cli
from perturb.state import fresh
from perturb.types import Moments, Problem
from theory.__main__ import main
from theory.engine import report, search, sweep, verify
from theory.engine.statement import Claim, Family, Proof, Sides
from theory.interrupts import heard
from theory.maths import blocks, closed_forms, densities, elimination, gaussian, grids
from theory.phase import diagrams, findings
from theory.statements import catalogue
from theory.statements.affine import measure as affine_measure
from theory.statements.catalogue import NAMES
from theory.statements.gaussian import measure as printed_table

ROOT = Path(__file__).parent.parent
# THEORY.md, "Closed forms to reproduce"
PRUNE = {5: "41.8", 10: "32.8", 25: "20.8", 40: "14.5", 50: "11.5", 75: "5.58", 87.5: "3.03"}
GRID = {2: "8.26", 3: "13.9", 4: "19.26", 5: "24.5", 6: "29.8", 8: "40.6"}
DENSITIES = {
    "normal": (densities.Normal(), stats.norm()),
    "laplace": (densities.Laplace(), stats.laplace()),
    "student-t 4": (densities.StudentT(4.0), stats.t(4)),
    "student-t 5.5": (densities.StudentT(5.5), stats.t(5.5)),
    "uniform": (densities.Uniform(), stats.uniform(-1, 2)),
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# ------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("percent", "printed"), PRUNE.items())
def test_snr_of_pruning_to_the_last_digit(percent, printed):
    assert printed_table.reproduces(gaussian.prune_snr_db(percent / 100), printed)


@pytest.mark.parametrize(("bits", "printed"), GRID.items())
def test_snr_of_the_best_grid_to_the_last_digit(bits, printed):
    assert printed_table.reproduces(grids.grid_snr_db(bits), printed)


def test_the_verified_table_is_theory_md_s():
    assert {100 * c: text for c, text in printed_table.PRUNE_SNR.items()} == PRUNE
    assert printed_table.GRID_SNR == GRID


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_against_scipy(x64, name):
    ours, theirs = DENSITIES[name]
    assert ours.variance == pytest.approx(theirs.var())
    x = np.array([-2.3, -0.4, 0.0, 0.7, 3.1])
    np.testing.assert_allclose(ours.pdf(jnp.asarray(x)), theirs.pdf(x), rtol=1e-12)
    for p in (1e-3, 0.3, 0.6827, 0.99):
        t = float(ours.threshold(jnp.asarray(p)))
        assert theirs.cdf(t) - theirs.cdf(-t) == pytest.approx(p, rel=1e-9)
    for (a, b), k in itertools.product([(-1.3, 0.2), (0.1, 0.9), (-np.inf, 0.5)], range(3)):
        low = max(a, theirs.ppf(1e-14)) if name != "uniform" else max(a, -1.0)
        if a == -np.inf and name.startswith("student") and k == 2:
            continue  # quad does not settle on so heavy a tail; the finite limits cover it
        true, _ = quad(lambda w, k=k: w**k * theirs.pdf(w), low, b, epsabs=1e-13, limit=400)
        found = float(ours.moment(k, jnp.asarray(a), jnp.asarray(b)))
        assert found == pytest.approx(true, rel=1e-6, abs=1e-9)
    both = float(ours.moment(2, jnp.asarray(-np.inf), jnp.asarray(np.inf)))
    assert both == pytest.approx(theirs.var(), rel=1e-9)


def test_a_real_layer_is_a_density_too(x64):
    values = np.random.default_rng(0).standard_t(4, 999)
    layer = densities.Empirical(jnp.asarray(values))
    for k, a, b in ((0, -1.0, 0.5), (1, 0.2, 3.0), (2, -np.inf, np.inf)):
        inside = (values > a) & (values < b)
        true = np.sum(np.where(inside, values**k, 0)) / values.size
        assert float(layer.moment(k, jnp.asarray(a), jnp.asarray(b))) == pytest.approx(true)
    t = float(layer.threshold(jnp.asarray(0.5)))
    assert np.mean(np.abs(values) <= t) == pytest.approx(0.5, abs=1e-3)
    assert float(densities.prune_error(layer, jnp.asarray(0.5))) == pytest.approx(
        np.sum(np.where(np.abs(values) < t, values**2, 0)) / values.size, rel=0.01
    )
    with pytest.raises(ValueError, match="df must be above 2"):
        densities.StudentT(2.0)


@pytest.mark.parametrize("name", DENSITIES)
def test_rounding_error_against_sampling(x64, name):
    ours, theirs = DENSITIES[name]
    w = theirs.rvs(400_000, random_state=3)
    for step, top in ((0.4, 3), (0.9, 1), (0.1, 7)):
        q = step * np.clip(np.rint(w / step), -top, top)
        error = (w - q) ** 2
        law = float(densities.round_error(ours, jnp.asarray(step), top))
        if name == "student-t 4":  # whose squares have no variance: compare the bulk
            assert law == pytest.approx(error.mean(), rel=0.05)
        else:
            assert abs(error.mean() - law) < 5 * error.std() / np.sqrt(w.size)


def grid_integral(step: float, bits: int) -> float:
    """The integral of the squared distance to the nearest level, cell by cell."""
    levels = step * np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
    edges = [-40.0, *(levels[1:] - step / 2), 40.0]
    return sum(
        quad(
            lambda w, q=q: (w - q) ** 2 * stats.norm.pdf(w),
            *(a, b),
            epsabs=1e-15,
            epsrel=1e-12,
            points=[v for v in (-5.0, 0.0, 5.0) if a < v < b] or None,
        )[0]
        for q, a, b in zip(levels, edges[:-1], edges[1:], strict=True)
    )


@pytest.mark.parametrize(("step", "bits"), [(1.0, 2), (0.3, 2), (0.55, 3), (0.31, 4), (0.05, 5)])
def test_grid_error_is_the_integral(x64, step, bits):
    found = float(grids.grid_error(jnp.float64(step), bits))
    assert found == pytest.approx(grid_integral(step, bits), rel=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_the_step_is_optimal(x64, bits):
    step, error = (float(a) for a in grids.optimal_step(bits))
    found = minimize_scalar(
        lambda d: float(grids.grid_error(jnp.float64(d), bits)),
        bounds=(0.8 * step, 1.2 * step),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert error <= found.fun + 1e-14  # 1 - ... cancels: absolute rounding
    assert step == pytest.approx(found.x, rel=1e-5)  # a minimum: the error is flat there
    wide = jnp.geomspace(step / 20, 20 * step, 300, dtype=jnp.float64)
    assert error <= float(grids.grid_error(wide, bits).min()) + 1e-14


def test_bits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="from 2 to 8, got 1"):
        grids.optimal_step(1)


@pytest.mark.parametrize("name", ["normal", "laplace", "student-t 4", "uniform"])
@pytest.mark.parametrize(("p", "step", "top"), [(0.5, 0.5, 3), (0.8, 0.9, 1), (0.2, 1.2, 3)])
def test_the_exact_advantage_of_rounding_against_sampling(x64, name, p, step, top):
    """Theorem 2a, ties at random, in batches whose spread is the error bar."""
    ours, theirs = DENSITIES[name]
    step *= theirs.std()
    law = float(closed_forms.expected_advantage(ours, jnp.asarray(p), jnp.asarray(step), top))
    rng, found = np.random.default_rng(5), []
    for _ in range(40):
        w = theirs.rvs(20_000, random_state=rng)
        q = step * np.clip(np.rint(w / step), -top, top)
        k = round(p * w.size)
        first, last = (np.lexsort((rng.random(w.size), np.abs(a)))[:k] for a in (w, q))
        saved = w**2 - (w - q) ** 2
        found.append((saved[first].sum() - saved[last].sum()) / w.size)
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - law) <= 5 * error + 1e-12
    free = float(closed_forms.order_free_below(ours, jnp.asarray(step)))
    assert (law == 0) == (p <= free)


def test_the_affine_law_against_sampling(x64):
    p, v = np.array([0.2, 0.6827, 0.9]), np.array([0.01, 0.4])
    mean, error = affine_measure.monte_carlo(11, p, v)
    law = closed_forms.noise_advantage(jnp.asarray(p)[:, None], jnp.asarray(v))
    assert (np.abs(mean - np.asarray(law)) < 5 * error).all()
    assert (mean < 0).all()


@pytest.mark.parametrize("name", ["laplace", "student-t 4", "uniform"])
def test_the_small_noise_law_against_sampling(x64, name):
    ours, theirs = DENSITIES[name]
    rng, v, p, found = np.random.default_rng(2), 4e-3 * theirs.var(), 0.5, []
    for _ in range(60):
        w = theirs.rvs(50_000, random_state=rng)
        e = np.sqrt(v) * rng.normal(size=w.size)
        k = round(p * w.size)
        first, last = (np.argsort(np.abs(a))[:k] for a in (w, w + e))
        gain = w**2 - e**2
        found.append((gain[first].sum() - gain[last].sum()) / w.size)
    law = float(closed_forms.small_noise_advantage(ours, jnp.asarray(p), jnp.asarray(v)))
    assert np.mean(found) == pytest.approx(
        law, rel=0.05, abs=5 * np.std(found) / np.sqrt(len(found))
    )


@pytest.mark.parametrize(("p", "v"), [(0.2, 0.05), (0.5, 0.3), (0.8, 1.0)])
def test_the_aware_gap_against_sampling(x64, p, v):
    law = float(closed_forms.aware_advantage(jnp.asarray(p), jnp.asarray(1.0), jnp.asarray(v)))
    rng, found = np.random.default_rng(7), []
    for _ in range(40):
        w, e = rng.normal(size=20_000), np.sqrt(v) * rng.normal(size=20_000)
        k, d = round(p * w.size), w**2 - e**2
        blind, aware = np.argsort(np.abs(w))[:k], np.argsort(d)[:k]
        found.append((d[blind].sum() - d[aware].sum()) / w.size)
    assert abs(np.mean(found) - law) <= 5 * np.std(found) / np.sqrt(len(found))


@pytest.mark.parametrize(
    ("density", "p"), [(densities.Normal(), 0.682689), (densities.Laplace(), 1 - np.exp(-1))]
)
def test_turning_points(x64, density, p):
    t = densities.turning_threshold(density)
    grid = jnp.linspace(0.3, 0.95, 2000, dtype=jnp.float64)
    a = closed_forms.small_noise_advantage(density, grid, jnp.asarray(1.0))
    assert float(grid[jnp.argmin(a)]) == pytest.approx(p, abs=1e-3)
    assert float(2 * density.moment(0, jnp.zeros(()), jnp.asarray(t))) == pytest.approx(p, abs=1e-6)


# -------------------------------------------------------------------------------- elimination


def test_every_mask_is_the_least_squares_solution(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 5))
    h, w = x.T @ x, rng.normal(size=5)
    kept, values, cost = (
        np.asarray(a) for a in elimination.all_masks(jnp.asarray(w), jnp.asarray(np.linalg.inv(h)))
    )
    assert kept.shape == (32, 5)
    assert len({tuple(m) for m in kept}) == 32
    for mask, value, price in zip(kept, values, cost, strict=True):
        best = np.zeros(5)
        if mask.any():
            best[mask] = np.linalg.solve(h[np.ix_(mask, mask)], (h @ w)[mask])
        np.testing.assert_allclose(value, best, atol=1e-10)
        assert price == pytest.approx((best - w) @ h @ (best - w), abs=1e-9)
    by_size = np.asarray(elimination.best_of_size(jnp.asarray(kept), jnp.asarray(cost)))
    for k, i in enumerate(by_size):
        same = (~kept).sum(1) == k
        assert cost[i] == cost[same].min()


def test_rounding_by_columns_is_perturb_s_gptq(x64):
    """The enumeration's own GPTQ against the solver that scales, without damping."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(40, 6)), rng.normal(size=(1, 6))
    stats_ = Moments(jnp.asarray(x.T @ x), jnp.asarray(40.0))
    method = GPTQ(3, GridSpec(convention="full"), damp=1e-12)
    problem = Problem(jnp.asarray(w), stats_)
    theirs = method(fresh(problem.reference), problem, jax.random.key(0)).matrix
    step = np.abs(w).max() / 3
    ours = elimination.by_columns(
        jnp.asarray(w[0]),
        jnp.ones(6, bool),
        jnp.asarray(np.linalg.inv(x.T @ x)),
        jnp.asarray(step),
        jnp.asarray(3.0),
    )
    np.testing.assert_allclose(theirs.weight[0], ours, atol=1e-5)


def test_phase_diagrams_keep_the_theorems():
    found = diagrams.diagrams(jax.random.key(3), weights=6, rows=24, rho=(0.0, 0.8))
    by = {(x.stage, x.rho): x for x in found}
    assert len(by) == 8
    assert (by["blind", 0.0].advantage <= 1e-12).all()  # 2a
    assert by["aware", 0.0].never.all()  # 2a and 2c meet
    assert (by["aware", 0.8].advantage >= -1e-12).all()  # 2c
    assert by["aware", 0.8].advantage.max() > 0
    assert (by["blind", 0.0].gap[:, -1] > by["blind", 0.0].gap[:, 0]).all()  # more bits, less error
    # a dense target: rows that do not interact are on the grid already, others are rounded again
    twice, once = (by[stage, 0.0].advantage for stage in ("compensated", "dense target"))
    np.testing.assert_array_equal(twice, once)
    twice, once = (by[stage, 0.8] for stage in ("compensated", "dense target"))
    assert twice.advantage.mean() < once.advantage.mean() < 0
    np.testing.assert_array_equal(twice.gap, once.gap)
    rows = findings.findings(found)[0].rows
    assert len(rows) == 8
    assert findings.findings([]) == ()


@pytest.mark.parametrize("m", range(1, 11))
def test_chi_squared_laws_of_few_degrees_against_scipy(x64, m):
    q = np.geomspace(1e-3, blocks.SMALL, 100)
    true = stats.chi2.cdf(q, m)
    found = np.asarray(blocks.chi2_cdf_small(jnp.asarray(float(m)), jnp.asarray(q)))
    np.testing.assert_allclose(found, true, rtol=2e-14)
    p = true[true < 1 - 1e-9]
    back = jax.vmap(lambda p: blocks.chi2_quantile(jnp.asarray(float(m)), p))(jnp.asarray(p))
    np.testing.assert_allclose(stats.chi2.cdf(np.asarray(back), m), p, rtol=5e-14)


# --------------------------------------------------------------------------- sampling, attack


class Point(NamedTuple):
    x: jax.Array


def toy(sides, relation="<=", size=3, **options) -> Family:
    claims = (Claim("toy", "a toy", relation, sides),)
    return Family("toy", "a point", size, lambda u: Point(u), claims, **options)


def test_chunks_count_every_instance_once(monkeypatch):
    monkeypatch.setattr(sweep, "CHUNK", 100)
    family = toy(lambda p: Sides(p.x[0], jnp.asarray(0.9), jnp.ones(())))
    program = sweep.compiled(family)
    done = []
    check = sweep.sweep([family], [program], 250, jax.random.key(0), done.append)
    (claim,) = check.claims
    assert done == [100, 100, 50]
    assert claim.instances == claim.histogram.sum() == 250
    assert 5 < claim.failures < 60
    assert claim.failures == claim.histogram[0]
    assert claim.where.left == pytest.approx(claim.where.point[0])
    assert claim.margin == pytest.approx(0.9 - claim.where.left)
    assert claim.where.instance["x"] == pytest.approx(claim.where.point)


def test_not_a_number_fails_and_0_below_0_is_vacuous():
    nan = toy(lambda p: Sides(p.x[0] / jnp.where(p.x[0] < 0.5, 0.0, 1.0) * 0, p.x[0], jnp.ones(())))
    found = sweep.sweep([nan], [sweep.compiled(nan)], 400, jax.random.key(0)).claims[0]
    assert 100 < found.failures < 300
    assert found.margin == -np.inf
    zero = toy(lambda p: Sides(jnp.zeros(()), jnp.zeros(()), jnp.ones(())))
    found = sweep.sweep([zero], [sweep.compiled(zero)], 50, jax.random.key(0)).claims[0]
    assert (found.failures, found.vacuous) == (0, 50)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sweep.sweep([zero], [sweep.compiled(zero)], 0, jax.random.key(0))


class Cancelling(NamedTuple):
    weight: jax.Array
    change: jax.Array


def test_sides_are_those_of_the_instance_that_is_shown():
    """W + dW where W is a product: were it fused with the sum, it would not be rounded before."""

    def decode(u):
        weight = u[0] * u[1]
        return Cancelling(weight, -weight.astype(jnp.float32).astype(jnp.float64))

    def sides(p):
        return Sides(p.weight + p.change, jnp.zeros(()), jnp.ones(()))

    claims = (Claim("toy", "a toy", "==", sides),)
    program = sweep.compiled(Family("toy", "a point", 2, decode, claims))
    found = program(np.random.default_rng(0).random((sweep.CHUNK, 2)))
    np.testing.assert_array_equal(
        found.left[:, 0], found.instance["weight"] + found.instance["change"]
    )


def test_the_attack_starts_from_known_extremes(monkeypatch):
    """Two claims, each tight in one point of a thousand that no sample and no move finds."""
    monkeypatch.setattr(search, "MOVES", 0)
    monkeypatch.setattr(search, "FEWEST", 0)
    targets = np.array([[0.3, 0.9, 0.123], [0.7, 0.2, 0.456]])

    def near(target):
        def sides(p):
            there = jnp.sum(jnp.abs(p.x - target)) < 1e-6
            return Sides(jnp.where(there, 1.0, 0.5), jnp.ones(()), jnp.ones(()))

        return sides

    claims = tuple(Claim(f"toy {i}", "a toy", "<=", near(t)) for i, t in enumerate(targets))
    family = Family("toy", "a point", 3, lambda u: Point(u), claims, smooth=False)
    program = sweep.compiled(family)
    without = search.search([family], [program], [None], jax.random.key(0))
    assert [c.tightness for c in without.claims] == [0.5, 0.5]
    family = replace(family, known=lambda: targets)
    found = search.search([family], [program], [None], jax.random.key(0))
    assert [c.tightness for c in found.claims] == [1, 1]


def test_the_attack_starts_from_the_worst_samples_and_leaves_vacuous_ones(monkeypatch):
    """A claim that is tight in one point of a thousand, vacuous in half of the others."""
    monkeypatch.setattr(search, "MOVES", 0)
    monkeypatch.setattr(search, "FEWEST", 0)

    def sides(p):
        tight = jnp.where(p.x[0] < 1e-4, 1.0, 0.5)
        empty = p.x[0] > 0.5
        return Sides(jnp.where(empty, 0, tight), jnp.where(empty, 0.0, 1.0), jnp.ones(()))

    family = toy(sides, smooth=False)
    program = sweep.compiled(family)
    check = sweep.sweep([family], [program], 100_000, jax.random.key(1))
    (claim,) = check.claims
    assert (claim.margin, claim.failures) == (0, 0)
    assert 40_000 < claim.vacuous < 60_000
    assert claim.where.left == 1
    without = search.search([family], [program], [None], jax.random.key(3))
    found = search.search([family], [program], [None], jax.random.key(3), check)
    assert (without.margin, found.margin) == (0.5, 0)
    assert found.claims[0].tightness == 1


@pytest.mark.parametrize("smooth", [True, False])
def test_the_attack_finds_what_sampling_misses(smooth):
    """A claim that fails only within 1e-3 of one point of a cube of three dimensions."""
    target = jnp.array([0.3, 0.9, 0.123])

    def sides(p):
        distance = jnp.sum((p.x - target) ** 2)
        return Sides(jnp.asarray(1e-6), distance, jnp.ones(()))

    family = toy(sides, smooth=smooth)
    sampled = sweep.sweep([family], [sweep.compiled(family)], 2000, jax.random.key(0))
    assert sampled.holds
    program, slope = sweep.compiled(family), search.slope(family)
    assert (slope is not None) == smooth
    attack = search.search([family], [program], [slope], jax.random.key(0))
    assert not attack.holds
    assert attack.margin == pytest.approx(-1e-6, rel=0.01)
    assert attack.claims[0].where.instance["x"] == pytest.approx(np.asarray(target), abs=1e-3)


def verified(monkeypatch, **asked):
    """Failures of a statement whose one bound tells in half of the cube and comes to 0.9."""
    monkeypatch.setattr(search, "MOVES", 4)
    monkeypatch.setattr(search, "FEWEST", 4)

    def sides(p):
        telling = (p.x[0] < 0.5).astype(jnp.float64)
        return Sides(0.9 * telling * jnp.ceil(p.x[1]), telling, jnp.ones(()))

    family = toy(sides, smooth=False)
    family = replace(family, claims=(replace(family.claims[0], **asked),))
    s = replace(
        catalogue.statement("ownership"),
        families=(family,),
        exact=lambda: None,
        prove=lambda: Proof((), "a toy"),
        measure=lambda key: (),
    )
    return verify.verify(s, 2000, 0)["failures"]


def test_a_claim_that_seldom_tells_fails(monkeypatch):
    assert verified(monkeypatch, telling=0.45, tight=0.89) == []
    (failure,) = verified(monkeypatch, telling=0.6)
    assert re.fullmatch(r"claim 'toy': (9|10)\d\d? tell", failure)
    (failure,) = verified(monkeypatch, tight=0.91)
    assert failure == "bound 'toy': the attack reaches 0.9"


# ------------------------------------------------------------------------------------ the door


def test_the_door_lists(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert set(NAMES) <= set(out.split())
    assert out.count("source: ") == len(NAMES)


@pytest.mark.slow
def test_the_door_verifies_reports_and_draws(capsys, tmp_path):
    out = tmp_path / "theory"
    assert main(["verify", "ownership", "rounding", "--instances", "2e3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "5,005" in printed
    record = json.loads((out / "verify.json").read_text())
    assert [s["name"] for s in record["statements"]] == ["ownership", "rounding"]
    assert all(s["holds"] for s in record["statements"])
    assert record["settings"] == {"instances": 2000, "seed": 0}
    text = (out / "report.md").read_text()
    for s in record["statements"]:
        assert f"## {s['title']}" in text
        assert all(c["says"].replace("|", "\\|") in text for c in s["claims"])
    assert "PIH, sign" in "\n".join(report.verdict_table(record))
    drawn = sorted(p.name for p in (out / "figures").iterdir())
    # no phase diagram without all statements
    assert drawn == ["affine.png", "laws.png", "margins.png"]
    assert "| rounding | On one symmetric grid prune first" in text.partition("# Statements")[0]
    assert draw(["phase", "--theory", str(out / "verify.json"), "--out", str(out)]) == 0
    assert draw(["nope", "--theory", str(out / "verify.json"), "--out", str(out)]) == 2


def test_the_door_fails_when_a_statement_does(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(printed_table.PRUNE_SNR, 0.5, "11.6")
    monkeypatch.setattr(printed_table, "GRID_SNR", {})
    argv = ["verify", "gaussian", "--instances", "100", "--no-figures", "--out", str(tmp_path)]
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.err == "gaussian does not hold: closed-form SNR table of THEORY.md: false\n"
    assert "FAILS" in captured.out


class Finalized:
    """Ctrl-C, as it is being collected."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the interrupt comes first")


def test_ctrl_c_is_heard_in_a_finalizer():
    """jax compiles with one: dropped there, an interrupt would let hours of work go on."""

    def work(argv):
        found = Finalized()
        del found
        time.sleep(20)

    start = time.perf_counter()
    with heard():
        assert cli.call(work, []) == cli.INTERRUPTED
    assert time.perf_counter() - start < 10


def test_ctrl_c_is_one_line(tmp_path):
    argv = [sys.executable, "-m", "theory", "verify", "--instances", "1e9", "--out", str(tmp_path)]
    with subprocess.Popen(argv, stdout=-1, stderr=-1, text=True, cwd=ROOT) as process:
        time.sleep(8)  # compiling, most likely
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out, err) == (cli.INTERRUPTED, "", "stopped\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_keeps_what_is_finished(capsys, monkeypatch, tmp_path):
    def stop_at_the_second(statement, *rest):
        if statement.name != "ownership":
            raise KeyboardInterrupt
        return real(statement, *rest)

    real = verify.verify
    monkeypatch.setattr(verify, "verify", stop_at_the_second)
    argv = ["verify", "ownership", "rounding", "--instances", "100", "--out", str(tmp_path)]
    assert main(argv) == cli.INTERRUPTED
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "stopped\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.md", "verify.json"]
    record = json.loads((tmp_path / "verify.json").read_text())
    assert [s["name"] for s in record["statements"]] == ["ownership"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["prove"], "no command 'prove'"),
        (["verify", "riemann"], "no statement 'riemann'"),
        (["verify", "--instances", "0"], "--instances 0"),
        (["verify", "--instances", "1.5"], "--instances 1.5"),
        (["verify", "--seed", "-1"], "--seed -1"),
        (["verify", "--instances", "many"], "many"),
        (["verify", "--out", __file__], "is a file"),
        (["models", "no-such-model"], "no-such-model"),
    ],
)
def test_bad_input_is_one_line(argv, says, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
