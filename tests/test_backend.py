"""The backend computes what it is told to: the fusion that does not is turned off."""

from __future__ import annotations

import os
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import backend
from perturb.backend import AFFECTED, FLAG, QUICK, compile_quickly, turn_off_broken_fusion


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
    for name in QUICK:  # somebody's own choice
        mine = {"XLA_FLAGS": f"{name}=x", "JAX_PLATFORMS": "cpu"}
        compile_quickly(AFFECTED[0], mine)
        assert mine["XLA_FLAGS"] == f"{name}=x"
    other = {"JAX_PLATFORMS": "cpu"}
    compile_quickly("0.99.0", other)
    assert "XLA_FLAGS" not in other


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
