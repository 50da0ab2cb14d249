"""What the tests run over.

Part A: :func:`adversarial_layers`, small layers on which compressors tend to go wrong.
Part B: :func:`compressors`, every registered method in its variants, for the laws to run over.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from perturb import (
    GPTQ,
    OBR,
    RTN,
    GlobalMagnitude,
    GridSpec,
    Joint,
    Magnitude,
    NofM,
    SparseGPT,
    Wanda,
    chain,
)

Floats: TypeAlias = npt.NDArray[np.float64]
Case: TypeAlias = tuple[Floats, Floats, float]  # W [out, in], gram [in, in], count

# -------------------------------------------------------------------------------- part A


def _gram(x: Floats) -> tuple[Floats, float]:
    """Sum of ``x x^T`` over the tokens ``x [tokens, in]``, exactly symmetric, and their number."""
    gram = x.T @ x
    return (gram + gram.T) / 2, float(len(x))


def _with_spectrum(rng: np.random.Generator, eigenvalues: Floats, count: float) -> Floats:
    """A gram matrix ``count * V diag(eigenvalues) V^T`` with random eigenvectors."""
    V, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    gram = count * (V * eigenvalues) @ V.T
    return (gram + gram.T) / 2


def adversarial_layers() -> dict[str, Case]:
    """Name -> ``(W, gram, count)``, float64, the same on every call.

    Widths that 2:4 and groups of 8 divide: all but ``odd_17x131``, ``odd_5x129``, ``one_column``.
    """
    cases: dict[str, Case] = {}

    def add(name: str, W: Floats, x: Floats) -> None:
        gram, count = _gram(x)
        cases[name] = (W, gram, count)

    def draw(seed: int, rows: int, columns: int, tokens: int) -> tuple[Floats, Floats]:
        """Normal weights; inputs with unequal variances and mild correlations."""
        rng = np.random.default_rng(seed)
        mixing = np.eye(columns) + 0.3 * rng.normal(size=(columns, columns)) / np.sqrt(columns)
        x = rng.normal(size=(tokens, columns)) @ mixing * np.exp(0.5 * rng.normal(size=columns))
        return rng.normal(size=(rows, columns)), x

    shapes = {
        "random_24x40": (24, 40),
        "wide_8x200": (8, 200),
        "tall_96x16": (96, 16),
        "odd_17x131": (17, 131),  # three columns more than a block of 128
        "odd_5x129": (5, 129),  # a last block of one column
        "one_row": (1, 48),
        "one_column": (24, 1),
    }
    for seed, (name, (rows, columns)) in enumerate(shapes.items()):
        add(name, *draw(seed, rows, columns, 3 * columns + 40))

    W, x = draw(20, 16, 40, 160)
    x[:, [0, 7, 8, 23, 39]] = 0.0  # their weights are not zero: dead, not pruned
    add("dead_columns", W, x)

    W, x = draw(21, 16, 64, 20)
    add("rank_deficient", W, x)

    W, _ = draw(22, 16, 48, 1)
    spectrum = np.logspace(0, -8, 48)
    cases["ill_conditioned"] = (W, _with_spectrum(np.random.default_rng(122), spectrum, 256), 256.0)

    W, x = draw(23, 16, 48, 200)
    add("correlated", W, 0.05 * x + np.random.default_rng(123).normal(size=(200, 1)))

    W, x = draw(24, 16, 48, 200)
    add("heavy_tailed", np.random.default_rng(124).standard_t(1.5, size=W.shape), x)

    W, x = draw(25, 16, 48, 200)
    add("constant", np.full_like(W, 0.5), x)

    # Every score of every criterion ties, exactly: the inputs are white.
    cases["constant_white"] = (np.full((8, 32), -0.25), 64.0 * np.eye(32), 64.0)

    W, x = draw(26, 16, 48, 200)
    add("few_levels", np.clip(np.rint(W), -2, 1) / 2, x)  # as after 2-bit rounding

    W, x = draw(27, 16, 48, 200)
    W[5] = 0.0
    add("zero_row", W, x)

    W, x = draw(28, 16, 48, 200)
    add("huge_scale", 1e4 * W, x)

    W, x = draw(29, 16, 48, 200)
    add("tiny_scale", 1e-6 * W, x)
    return cases


# -------------------------------------------------------------------------------- part B

BLOCK = 16  # narrower than the layers of the laws: several blocks, the last one padded


def compressors() -> dict[str, Any]:
    """Label -> compressor: at least one of every registered method, and chains.

    ``test_laws`` fails when a method of the registry is missing here: a new method is one file
    in the package and one line in this table.
    """
    dense_scale = {"scale_source": "dense"}
    b = {"block": BLOCK}
    return {
        "magnitude": Magnitude(0.5),
        "magnitude-row": Magnitude(0.37, "row"),
        "magnitude-2:4": Magnitude(scope=NofM(2, 4)),
        "magnitude-index-ties": Magnitude(0.37, tie="index"),
        "magnitude-dense-ties": Magnitude(0.37, "row", tie="dense"),
        "magnitude-reference-aware": Magnitude(0.5, target="dense"),
        "global-magnitude": GlobalMagnitude(0.37),
        "global-magnitude-index-ties": GlobalMagnitude(0.5, tie="index"),
        "wanda": Wanda(0.37),
        "wanda-layer": Wanda(0.5, "layer"),
        "wanda-1:4": Wanda(scope=NofM(1, 4)),
        "wanda-2:4-index-ties": Wanda(scope=NofM(2, 4), tie="index"),
        "wanda-reference-aware": Wanda(0.5, target="dense", tie="dense"),
        "sparsegpt": SparseGPT(0.37, **b),
        "sparsegpt-snap": SparseGPT(0.5, on_grid="snap", **b),
        "sparsegpt-release": SparseGPT(0.5, on_grid="release", **b),
        "sparsegpt-2:4": SparseGPT(scope=NofM(2, 4), **b),
        "sparsegpt-index-ties": SparseGPT(0.5, tie="index", **b),
        "sparsegpt-reference-aware": SparseGPT(0.5, target="dense", tie="dense", **b),
        "rtn": RTN(3),
        "rtn-full": RTN(2, GridSpec(convention="full")),
        "rtn-midrise": RTN(3, GridSpec(convention="midrise")),
        "rtn-asymmetric": RTN(4, GridSpec(symmetric=False)),
        "rtn-tensor": RTN(3, GridSpec(per="tensor")),
        "rtn-group-mse": RTN(3, GridSpec(per=8, clip="mse")),
        "rtn-dense-scale": RTN(4, **dense_scale),
        "rtn-free": RTN(4, mask="free", target="dense"),
        "gptq": GPTQ(3, **b),
        "gptq-asymmetric-tensor": GPTQ(4, GridSpec(symmetric=False, per="tensor"), **b),
        "gptq-group": GPTQ(3, GridSpec(per=8), **b),
        "gptq-group-midrise": GPTQ(3, GridSpec(per=8, convention="midrise"), **b),
        "gptq-act-order": GPTQ(4, GridSpec(per=8), act_order=True, static_groups=True, **b),
        "gptq-dense-scale-mse": GPTQ(2, GridSpec(clip="mse"), **dense_scale, **b),
        "gptq-dense-scale-snap": GPTQ(4, on_grid="snap", **dense_scale, **b),
        "gptq-group-odd": GPTQ(3, GridSpec(per=10), **b),
        "gptq-free": GPTQ(4, mask="free", **b),
        "gptq-reference-aware": GPTQ(4, target="dense", **b),
        "joint": Joint(0.37, 3, **b),
        "joint-snap": Joint(0.5, 4, on_grid="snap", **b),
        "joint-2:4-group": Joint(bits=4, scope=NofM(2, 4), grid=GridSpec(False, 8), **b),
        "obr": OBR(0.37, 3),
        "obr-2:4-group": OBR(bits=4, scope=NofM(2, 4), grid=GridSpec(False, 8)),
        "obr-index-ties-tensor": OBR(0.5, 2, grid=GridSpec(per="tensor"), tie="index", alpha=0.25),
        "chain-pq": chain(Wanda(0.5), RTN(4)),
        "chain-qp": chain(RTN(3), SparseGPT(0.5, **b)),
        "chain-pqp": chain(
            Magnitude(0.3, tie="index"), chain(GPTQ(4, **b), Magnitude(0.5, "row", "index"))
        ),
    }
