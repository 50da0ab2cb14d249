"""Shared programs: padding, stacking and cutting coroutines change no result."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import GPTQ, RTN, GridSpec, Joint, NofM, SparseGPT, Wanda
from perturb import family as families
from perturb.family import layer_key, run_family
from perturb.masks import tie_key
from perturb.measure import layers
from perturb.obs import family as shared
from perturb.state import State, fresh, stack
from perturb.types import Matrix, Moments, Problem, Solved

SHAPES = {"a": (12, 24), "b": (12, 24), "wide": (6, 144)}
VERSIONS = 2
KEY = jax.random.key(3)


def case(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    out, n = SHAPES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    x = rng.normal(size=(3 * n, n)) @ (np.eye(n) + rng.normal(size=(n, n)) / np.sqrt(n))
    x[:, n // 3] = 0  # a dead input
    return rng.normal(size=(out, n)).astype(np.float32), (x.T @ x).astype(np.float32), float(3 * n)


def problems(own: bool) -> dict[str, Problem]:
    made = {}
    for name in SHAPES:
        grams = [case(name, r)[1] for r in range(VERSIONS if own else 1)]
        counts = np.full(len(grams), case(name, 0)[2], np.float32)
        moments = Moments(jnp.asarray(np.stack(grams)), jnp.asarray(counts))
        if not own:
            moments = jax.tree.map(lambda a: a[0], moments)
        made[name] = Problem(jnp.asarray(case(name, 0)[0]), moments)
    return made


def matrices(quantizer: Any = None) -> dict[str, Matrix]:
    """Versions of each matrix; laid on a grid, if there is a quantizer."""
    made = {}
    for name in SHAPES:
        each = [fresh(jnp.asarray(case(name, r)[0])) for r in range(VERSIONS)]
        if quantizer is not None:
            given = problems(False)[name]
            each = [quantizer(m, given, KEY).matrix for m in each]
        made[name] = stack(tuple(each))
    return made


@jax.jit
def alone(method: Any, matrix: Matrix, problem: Problem, key: jax.Array) -> Solved:
    return method(matrix, problem, key)


GROUPS = GridSpec(per=8)
FAMILIES: dict[str, tuple[list[Any], Any]] = {
    "sparsegpt": ([SparseGPT(s) for s in (0.0, 0.3, 0.71)], None),
    "sparsegpt-small-blocks": ([SparseGPT(s, block=16) for s in (0.4, 0.6)], None),
    "sparsegpt-2:4": ([SparseGPT(scope=NofM(2, 4), tie="index")] * 2, None),
    "sparsegpt-dense-ties": ([SparseGPT(s, tie="dense") for s in (0.5, 0.6)], None),
    "gptq": ([GPTQ(b) for b in (2, 5)], None),
    "gptq-groups": ([GPTQ(b, GROUPS, block=12) for b in (2, 4)], None),
    "gptq-act-order": ([GPTQ(b, GROUPS, act_order=True, static_groups=True) for b in (3, 4)], None),
    "joint": ([Joint(s, b) for s, b in ((0.3, 4), (0.6, 2))], None),
    "sparsegpt-refit": ([SparseGPT(s) for s in (0.3, 0.6)], GPTQ(3)),
    "sparsegpt-refit-groups": ([SparseGPT(s) for s in (0.3, 0.6)], GPTQ(3, GROUPS)),
    "sparsegpt-refit-rtn": ([SparseGPT(s) for s in (0.3, 0.6)], RTN(3)),
    "sparsegpt-snap": ([SparseGPT(s, on_grid="snap") for s in (0.3, 0.6)], GPTQ(3, GROUPS)),
}


@pytest.mark.parametrize(
    ("name", "own"), [(n, i % 2 == 1) for i, n in enumerate(FAMILIES)] + [("joint", False)]
)
def test_a_family_is_its_members_one_matrix_at_a_time(name: str, own: bool) -> None:
    members, before = FAMILIES[name]
    given, asked = matrices(before), problems(own)
    done = run_family(members, given, asked, KEY)
    for n in SHAPES:
        for r in range(VERSIONS):
            moments = asked[n].inputs
            if own:
                moments = jax.tree.map(lambda a, r=r: a[r], moments)
            problem = asked[n]._replace(inputs=moments)
            version = jax.tree.map(lambda a, r=r: a[r], given[n])
            for f, member in enumerate(members):
                expected = alone(member, version, problem, layer_key(KEY, n))
                got = jax.tree.map(lambda a, r=r, f=f: a[r, f], done[n])
                assert jax.tree.structure(got) == jax.tree.structure(expected)
                np.testing.assert_array_equal(got.matrix.mask, expected.matrix.mask)
                for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                    assert a.shape == b.shape
                    assert a.dtype == b.dtype
                    size = max(1.0, float(np.abs(b).max()))
                    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * size)


def test_padding_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tasks in larger shapes: masks are identical, weights equal up to the last bits."""
    members = [Joint(s, b) for s, b in ((0.3, 4), (0.6, 2))]
    given, asked = matrices(), problems(True)
    one = run_family(members, given, asked, KEY)
    monkeypatch.setattr(shared, "COLUMNS", 256)
    monkeypatch.setattr(shared, "ROWS", 768)
    other = run_family(members, given, asked, KEY)
    for n in SHAPES:
        np.testing.assert_array_equal(one[n].matrix.mask, other[n].matrix.mask)
        np.testing.assert_allclose(
            one[n].matrix.weight, other[n].matrix.weight, rtol=1e-5, atol=1e-5
        )
        assert int(np.max(one[n].report.dead)) == int(np.max(other[n].report.dead)) == 1


@pytest.mark.parametrize("members", [[GPTQ(b) for b in (3, 4)], [Wanda(s) for s in (0.3, 0.6)]])
def test_a_large_model_is_solved_in_parts(
    members: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve matrices of one shape in parts of five, and of two: every one as among all, and
    parts of one length are compiled once."""
    (kind, *_) = SHAPES
    one, asked = matrices()[kind], problems(False)[kind]
    many = {f"layer{i}": one for i in range(12)}
    whole = run_family(members, many, dict.fromkeys(many, asked), KEY)
    weights = one.weight.size * len(members)
    assert [*map(len, families._parts([*many], many, len(members)))] == [12]
    monkeypatch.setattr(families, "BATCH", 5 * weights)
    assert [*map(len, families._parts([*many], many, len(members)))] == [4, 4, 4]
    monkeypatch.setattr(families, "PROGRAM", 1)
    families._family.clear_cache()
    shared._advance.clear_cache()
    parts = run_family(members, many, dict.fromkeys(many, asked), KEY)
    assert families._family._cache_size() + shared._advance._cache_size() <= 2
    assert [*parts] == [*whole]
    for name, solved in whole.items():
        for a, b in zip(jax.tree.leaves(parts[name]), jax.tree.leaves(solved), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_of_a_large_model_few_versions_are_measured_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = problems(False)
    dense = {n: p.reference for n, p in asked.items()}
    moments = {n: p.inputs for n, p in asked.items() if p.inputs is not None}
    size, given = VERSIONS, (State(matrices()), VERSIONS, SHAPES, dense, moments)
    whole = layers.layer_measures(*given)
    weights = sum(out * n for out, n in SHAPES.values())
    for limit in (1, weights, 3 * weights):  # one at a time, and never more than there are
        monkeypatch.setattr(layers, "WEIGHTS", limit)
        parts = layers.layer_measures(*given)
        for name, measured in whole.items():
            for what, values in measured.items():
                assert values.shape == parts[name][what].shape == (size,)
                np.testing.assert_allclose(parts[name][what], values, rtol=1e-5)


def test_methods_and_stages_share_programs() -> None:
    """After SparseGPT, GPTQ and Joint need no program of their own to be solved; nor do versions,
    shapes or amounts."""
    shared._sweeps.clear_cache()
    shared._factors.clear_cache()
    given, asked = matrices(), problems(False)
    run_family([SparseGPT(s) for s in (0.3, 0.5)], given, asked, KEY)
    sizes = shared._sweeps._cache_size(), shared._factors._cache_size()
    assert sizes == (2, 2)  # up to 128 inputs, and up to 256
    run_family([GPTQ(b) for b in (2, 3, 4)], given, asked, KEY)
    run_family([Joint(0.5, 3)], given, problems(True), KEY)
    run_family([SparseGPT(0.5)], matrices(GPTQ(4)), asked, KEY)
    assert (shared._sweeps._cache_size(), shared._factors._cache_size()) == sizes


@pytest.mark.parametrize("shape", [(1, 8), (12, 24), (7, 31)])
def test_bits_are_drawn_by_position(shape: tuple[int, int]) -> None:
    """What one program draws for all shapes is what a matrix by itself would get."""
    keys = jax.random.split(KEY, 3)
    for i in range(3):
        expected = tie_key("random", jnp.zeros(shape), keys[i])
        np.testing.assert_array_equal(shared._random_tie(keys, i, *shape), expected)


@pytest.mark.parametrize("x", [1, 4, 5, 9, 37, 128, 129, 576, 11008])
def test_the_ladder_wastes_a_quarter_at_most(x: int) -> None:
    assert x <= shared.ladder(x) <= 1.25 * x
    assert shared.ladder(shared.ladder(x)) == shared.ladder(x)
