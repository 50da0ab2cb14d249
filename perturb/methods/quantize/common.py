"""What the quantizers share: checks, the mask policy, where grids come from and who laid them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from perturb.grid import fit_grid, relaid
from perturb.registry import check_bits, check_choice
from perturb.types import Array, Grid, Matrix, Problem


def check_quantizer(quantizer: Any) -> None:
    check_bits(quantizer.bits)
    check_choice("mask", quantizer.mask, ("enforce", "free"))
    check_choice("scale_source", quantizer.scale_source, ("current", "dense"))
    check_choice("on_grid", quantizer.on_grid, ("refit", "snap"))
    check_choice("target", quantizer.target, ("current", "dense"))


def start_weight(matrix: Matrix, problem: Problem, target: str, enforced: bool) -> Array:
    """The weights to quantize: what came in, or the dense ones under the mask."""
    w = problem.reference if target == "dense" else matrix.weight
    return jnp.where(matrix.mask, w, 0) if enforced else w


def lay_grid(quantizer: Any, problem: Problem, w: Array) -> Grid:
    """The grid for the weights w [out, in] that a quantizer is about to round.

    From the dense weights with ``scale_source="dense"``: then a pruner's compensation may have
    pushed w beyond its ends. "snap" clips there, "refit" lays those groups anew.
    """
    current = fit_grid(w, quantizer.bits, quantizer.grid)
    if quantizer.scale_source == "current":
        return current
    dense = fit_grid(problem.reference, quantizer.bits, quantizer.grid)
    if quantizer.on_grid == "snap":
        return dense
    return relaid(dense, current, w, quantizer.grid, fitted_to=problem.reference)


def signed(matrix: Matrix, quantizer: Any) -> Matrix:
    """The matrix with the method that laid its grid, by which a later stage may lay a new one."""
    bits = jnp.asarray(quantizer.bits, jnp.int32)
    return matrix._replace(quantizer=dataclasses.replace(quantizer, bits=bits))
