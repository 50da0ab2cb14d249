"""What target="dense" of a last stage is worth, for the library's own compressors.

A layer of normal weights, inputs with AR(1) correlation and energies over two decades; error
tr((W' - W) H (W' - W)^T) to the dense layer, gain = (error with the current weights as target -
error with the dense ones) / the former, after the same first stage.

For a quantizer ``target="dense"`` means the dense weights under the mask, not the row that comes
nearest to the dense outputs (Pi_S w of :mod:`.quantizer`): after a pruner that compensates, it
undoes the compensation. A pruner starts from the dense weights, and on one grid ends where it does
when it goes first (Wanda, whose scores tell the two apart, elsewhere). Structured pruning has no
such target here: what it would gain is what units do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perturb import GPTQ, RTN, GridSpec, Magnitude, SparseGPT, Wanda
from perturb.types import Matrix, Moments
from theory.compressors import compress, start
from theory.engine import instances
from theory.engine.statement import Finding
from theory.thresholds import ZERO

ROWS, COLUMNS, RHO = 64, 32, 0.5
ENERGY = (0.1, 10.0)  # E x_j^2 of the first input to the last
ONE_GRID = GridSpec(per="tensor")  # fitted to the dense layer: the order is all that differs
MAGNITUDE, WANDA = (method(0.5, tie="index") for method in (Magnitude, Wanda))
SPARSEGPT = SparseGPT(0.5, tie="index", on_grid="snap")
ROUND, COLUMNWISE = (
    method(3, ONE_GRID, scale_source="dense", on_grid="snap") for method in (RTN, GPTQ)
)
PAIRS: tuple[tuple[Any, Any], ...] = (
    (MAGNITUDE, ROUND),
    (MAGNITUDE, COLUMNWISE),
    (SPARSEGPT, ROUND),
    (SPARSEGPT, COLUMNWISE),
    (ROUND, MAGNITUDE),
    (ROUND, WANDA),
    (COLUMNWISE, SPARSEGPT),
)
PRUNERS = (Magnitude, Wanda, SparseGPT)
NAME = "2c: what target='dense' of the last stage is worth, by the library's compressors"


class Worth(NamedTuple):
    """gain: as above; advantage: A of ``last`` going last, aware, over the same, for pruners."""

    first: str
    last: str
    gain: float
    advantage: float


@jax.jit
def _after(method: Any, matrix: Matrix, w: Array, inputs: Moments) -> Matrix:
    return compress(method, matrix, w, inputs)


def worth(key: Array) -> tuple[Worth, ...]:
    """By PAIRS."""
    with jax.enable_x64(True):
        w = jnp.asarray(instances.generator(key).normal(size=(ROWS, COLUMNS)))
        root = jnp.sqrt(jnp.geomspace(*ENERGY, COLUMNS))
        h = RHO ** jnp.abs(jnp.arange(COLUMNS)[:, None] - jnp.arange(COLUMNS) * 1.0)
        inputs = Moments(root[:, None] * h * root, jnp.ones(()))

        def error(*methods: Any) -> float:
            matrix = start(w)
            for method in methods:
                matrix = _after(method, matrix, w, inputs)
            off = np.asarray(matrix.weight - w)
            return float(np.sum((off @ np.asarray(inputs.gram)) * off))

        found = []
        for first, last in PAIRS:
            blind, aware = (error(first, replace(last, target=t)) for t in ("current", "dense"))
            other = error(last, first) if isinstance(last, PRUNERS) else np.nan
            gain, advantage = (blind - aware) / blind, (other - aware) / blind
            found.append(Worth(first.name, last.name, gain, advantage))
        return tuple(found)


def findings(key: Array) -> tuple[Finding, ...]:
    found = worth(key)
    by = {f"{x.last} after {x.first}": x for x in found}
    numbers = {name: x.gain for name, x in by.items()}
    nothing = [x for x in found if x.first == "magnitude"]
    undone = [x for x in found if x.first == "sparsegpt"]
    same = [by["magnitude after rtn"], by["sparsegpt after gptq"]]
    held = all(x.gain == 0 for x in nothing) and all(abs(x.advantage) <= ZERO for x in same)
    return (
        Finding(
            "2c, last stage by last stage: what the dense weights make of the order, on one grid",
            "holds" if held else "false",
            "to a quantizer after a plain pruner they are worth 0; with them magnitude pruning and "
            "SparseGPT, going last, end where they do going first: A = 0 exactly, and they are "
            f"worth all that the blind order loses ({same[0].gain:+.0%} of its error) or gains "
            f"({same[1].gain:+.0%})",
            {f"A, {x.last} last": x.advantage for x in same},
            required=True,
        ),
        Finding(
            NAME,
            "measured",
            f"to a quantizer after SparseGPT {undone[0].gain:+.1%} (rounding to nearest) and "
            f"{undone[1].gain:+.1%} (GPTQ) of the error: the dense weights under the mask are not "
            "the dense outputs, and the compensation is lost",
            numbers,
            ("last", "after", "error less by", "A with the last stage aware"),
            tuple(
                (
                    x.last,
                    x.first,
                    f"{x.gain:+.1%}" if x.gain else "0",
                    "–" if np.isnan(x.advantage) else f"{x.advantage:+.1%}" if x.advantage else "0",
                )
                for x in found
            ),
        ),
    )
