"""The backend computes what it is told to, and comes to an end."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import backend, linalg
from perturb.backend import (
    AFFECTED,
    FLAG,
    PARTS,
    QUICK,
    compile_quickly,
    for_many_runs,
    turn_off_broken_fusion,
)


@pytest.mark.parametrize(("dtype", "rows"), [(jnp.float64, 16_385), (jnp.float32, 32_769)])
def test_batched_products_and_sums_are_right_at_sizes_that_were_not(dtype, rows):
    with jax.enable_x64(True):
        i = jnp.arange(rows, dtype=dtype)
        x = jnp.stack((i, 0 * i, 0 * i), 1)
        matrix = jnp.eye(3, dtype=dtype)
        found = jax.jit(jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2)))(x)
    np.testing.assert_array_equal(np.asarray(found), np.arange(rows, dtype=dtype) ** 2)


def test_the_flag_is_added_once_and_only_where_it_is_known():
    for affected in AFFECTED:
        environ = {"XLA_FLAGS": "--xla_dump_to=x"}
        turn_off_broken_fusion(affected, environ)
        turn_off_broken_fusion(affected, environ)
        assert environ["XLA_FLAGS"] == f"--xla_dump_to=x {FLAG}="
    mine = {"XLA_FLAGS": f"{FLAG}=-reduce"}
    turn_off_broken_fusion(AFFECTED[0], mine)
    assert mine["XLA_FLAGS"] == f"{FLAG}=-reduce"
    other: dict[str, str] = {}
    turn_off_broken_fusion("0.99.0", other)
    assert other == {}


def test_importing_perturb_sets_it_here():
    assert version("jaxlib") not in AFFECTED or FLAG in os.environ["XLA_FLAGS"]


def test_quick_compiling_is_asked_for_once_and_only_of_a_cpu_that_knows_it():
    environ = {"XLA_FLAGS": "--xla_dump_to=x", "JAX_PLATFORMS": "cpu"}
    compile_quickly(AFFECTED[0], environ)
    compile_quickly(AFFECTED[0], environ, level=0)
    asked = " ".join(f"{name}={value}" for name, value in QUICK.items())
    assert environ["XLA_FLAGS"] == f"--xla_dump_to=x {asked}"
    environ = {"JAX_PLATFORMS": "cpu"}
    compile_quickly(AFFECTED[0], environ, threads=3)
    assert environ["XLA_FLAGS"] == f"{asked} {PARTS}=3"
    for name in QUICK:  # somebody's own choice
        mine = {"XLA_FLAGS": f"{name}=x", "JAX_PLATFORMS": "cpu"}
        compile_quickly(AFFECTED[0], mine)
        assert mine["XLA_FLAGS"] == f"{name}=x"
    other = {"JAX_PLATFORMS": "cpu"}
    compile_quickly("0.99.0", other)
    assert "XLA_FLAGS" not in other


def test_a_program_that_runs_often_is_compiled_well_whatever_the_others_are():
    quick = {"JAX_PLATFORMS": "cpu"}
    assert for_many_runs(quick) is None
    compile_quickly(AFFECTED[0], quick)
    well = for_many_runs(quick)
    assert well is not None
    assert {f"--{name}" for name in well} == QUICK.keys()
    assert not {f"{value}".lower() for value in well.values()} & set(QUICK.values())
    assert for_many_runs({"XLA_FLAGS": "--xla_backend_optimization_level=1"}) is None  # not ours
    if version("jaxlib") in AFFECTED:
        assert float(jax.jit(jnp.exp, compiler_options=well)(0.0)) == 1


def test_freed_memory_is_handed_back_where_the_c_library_can(monkeypatch):
    called = []

    class Glibc:
        def malloc_trim(self, pad):
            called.append(("trim", pad))

        def mallopt(self, option, value):
            called.append((option, value))

    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: Glibc())
    backend.give_back()
    assert called == [("trim", 0), (backend.M_MMAP_THRESHOLD, backend.APART)]
    monkeypatch.setattr(backend.ctypes, "CDLL", lambda name: object())
    backend.give_back()  # another library: nothing to do, nothing said
    assert len(called) == 2


@pytest.mark.parametrize("installed", ["plugin", "libtpu"])
def test_where_there_is_an_accelerator_nothing_is_changed(monkeypatch, installed):
    def entry_points(group):
        assert group == "jax_plugins"
        return ["cuda"] if installed == "plugin" else []

    monkeypatch.setattr(backend, "entry_points", entry_points)
    monkeypatch.setattr(backend, "find_spec", lambda name: name if name == installed else None)
    environ: dict[str, str] = {}
    compile_quickly(AFFECTED[0], environ)
    assert environ == {}
    environ = {"JAX_PLATFORMS": "cpu"}
    compile_quickly(AFFECTED[0], environ)
    assert "XLA_FLAGS" in environ


SIDE_BY_SIDE = """
import jax, jax.numpy as jnp
from perturb.linalg import cholesky, solve_upper
many = [jnp.broadcast_to(2.0 * jnp.eye(n), (m, n, n)) for m, n in ((128, 64), (64, 128)) * 4]
both = lambda h: solve_upper(cholesky(h), jnp.eye(len(h)))
factors = jax.jit(lambda given: [jax.vmap(both)(h) for h in given])
for _ in range(20):
    jax.block_until_ready(factors(many))
"""


@pytest.mark.slow
def test_factorisations_side_by_side_come_to_an_end():
    """With ``jnp.linalg.cholesky`` they stood still for ever on two cores, in six runs of six."""
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], check=True, timeout=300)


def test_factorisations_are_lapacks_however_they_are_batched():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 4, 5, 5))
    h, right = (a @ a.swapaxes(-1, -2) + np.eye(5)).astype(np.float32), rng.normal(size=(4, 5, 2))
    lower = jax.vmap(jax.vmap(linalg.cholesky))(h)
    np.testing.assert_allclose(lower, np.linalg.cholesky(h), rtol=1e-4, atol=1e-5)
    right = jnp.asarray(right, jnp.float32)
    for solve, factor in (
        (linalg.solve_lower, lower),
        (linalg.solve_lower_transposed, lower),
        (linalg.solve_upper, lower.swapaxes(-1, -2)),
    ):
        found = jax.vmap(jax.vmap(solve), (0, None))(factor, right)  # one of the two is shared
        a = factor.swapaxes(-1, -2) if solve is linalg.solve_lower_transposed else factor
        np.testing.assert_allclose(a @ found, np.broadcast_to(right, found.shape), atol=1e-4)
