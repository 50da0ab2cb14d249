"""Naive float64 versions of the published algorithms: slow, readable, written to be checked by eye.

Nothing here imports the package under test. A layer is ``W [out, in]`` applied as ``y = W x``;
``gram [in, in]`` is the sum of ``x x^T`` over ``count`` tokens; a ``keep`` mask is True where a
weight survives. Sources of the formulas:

    OBS        Hassibi, Stork: Optimal brain surgeon, NeurIPS 1992
    GPTQ       Frantar et al.: GPTQ, ICLR 2023, arXiv 2210.17323
    SparseGPT  Frantar, Alistarh: SparseGPT, ICML 2023, arXiv 2301.00774
    OBR        Guo, Li, Benini: Optimal brain restoration, ICLR 2026, arXiv 2509.11177
    Wanda      Sun et al.: A simple and effective pruning approach for LLMs, ICLR 2024
    tau-b      Kendall: The treatment of ties in ranking problems, Biometrika 1945
    PAVA       Ayer et al., Ann. Math. Stat. 1955
    bootstrap  Efron 1979; whole clusters: Davison, Hinkley 1997, section 3.8

Conventions shared by every function: N:M keeps N of every M consecutive columns of a row; counts
are exact (see :func:`exact_count`); ties prune the lowest index first; an earlier mask is never
undone; rounding is half to even.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]
NM: TypeAlias = tuple[int, int]
Convention: TypeAlias = Literal["half", "full", "midrise"]
Granularity: TypeAlias = Literal["tensor", "row"] | int

# ------------------------------------------------------------------------------ selection


def exact_count(n: int, s: float) -> int:
    """``floor(n * s)`` in exact arithmetic, ``s`` first rounded to 6 decimals."""
    if not 0.0 <= s <= 1.0:
        raise ValueError(f"sparsity {s} is outside [0, 1]")
    return int(n * Fraction(f"{s:.6f}"))  # int() of a non-negative Fraction is floor


def _keep_flat(score: Floats, k: int, already: Bools) -> Bools:
    """Remove ``already`` first, then the smallest scores, lowest index first among equals."""
    order = sorted(range(score.size), key=lambda i: (not already[i], score[i], i))
    keep = np.ones(score.size, dtype=bool)
    keep[order[: max(k, int(already.sum()))]] = False
    return keep


def prune_smallest(
    score: Floats, k: int, axis: Literal[-1] | None = None, already: Bools | None = None
) -> Bools:
    """Keep mask that removes exactly the ``k`` smallest scores, of all (None) or per row (-1).

    Ties: lowest (row-major) index removed first. ``already`` (True = pruned earlier) entries are
    removed before any other and count towards ``k``; where they are more than ``k``, exactly they
    are removed, so a mask is never undone.
    """
    score = np.asarray(score, dtype=np.float64)
    gone = np.zeros(score.shape, dtype=bool) if already is None else np.asarray(already, dtype=bool)
    if axis is None:
        return _keep_flat(score.ravel(), k, gone.ravel()).reshape(score.shape)
    return np.stack([_keep_flat(row, k, g) for row, g in zip(score, gone, strict=True)])


def _prune_n_of_m(score: Floats, n_m: NM, already: Bools | None) -> Bools:
    n, m = n_m
    columns = score.shape[1]
    if columns % m:
        raise ValueError(f"{columns} columns are not a multiple of M = {m}")
    keep = np.ones(score.shape, dtype=bool)
    for start in range(0, columns, m):
        part = slice(start, start + m)
        gone = None if already is None else already[:, part]
        keep[:, part] = prune_smallest(score[:, part], m - n, axis=-1, already=gone)
    return keep


def prune_by_score(
    score: Floats,
    s: float | None,
    scope: Literal["layer", "row"] | NM,
    already: Bools | None = None,
) -> Bools:
    """Keep mask at sparsity ``s`` in a scope; for ``scope = (N, M)`` ``s`` is not used."""
    if isinstance(scope, tuple):
        return _prune_n_of_m(score, scope, already)
    if s is None:
        raise ValueError(f"scope {scope!r} needs a sparsity")
    if scope == "layer":
        return prune_smallest(score, exact_count(score.size, s), None, already)
    if scope == "row":
        return prune_smallest(score, exact_count(score.shape[1], s), -1, already)
    raise ValueError(f"scope {scope!r} is none of 'layer', 'row', (N, M)")


def magnitude(
    W: Floats,
    s: float | None,
    scope: Literal["layer", "row"] | NM = "layer",
    already: Bools | None = None,
) -> Bools:
    """Keep mask of magnitude pruning: score ``|W|``."""
    return prune_by_score(np.abs(W), s, scope, already)


def wanda(
    W: Floats,
    gram: Floats,
    count: float,
    s: float | None,
    scope: Literal["row"] | NM = "row",
    already: Bools | None = None,
) -> Bools:
    """Keep mask of Wanda: score ``|W_ij| sqrt(E x_j^2)``, compared within a row."""
    return prune_by_score(np.abs(W) * np.sqrt(np.diag(gram) / count), s, scope, already)


# ---------------------------------------------------------------------------------- grids


def grid_from_range(
    lo: float, hi: float, bits: int, sym: bool, convention: Convention = "half"
) -> tuple[float, float]:
    """``(scale, zero)`` of the grid ``w = scale (code - zero)``, code in ``0 .. 2^b - 1``.

    Symmetric: ``scale = absmax / (2^(b-1) - 1/2)`` ('half') or ``absmax / (2^(b-1) - 1)``
    ('full'), ``zero = 2^(b-1)``; 'midrise' has the first scale and ``zero = 2^(b-1) - 1/2``: odd
    multiples of scale / 2 (all-zero: the smallest scale). Asymmetric: the range is widened to
    contain 0, ``scale = (hi - lo) / (2^b - 1)``, ``zero = rint(-lo / scale)``. All-zero: scale 1.
    """
    middle = 2 ** (bits - 1)
    if sym:
        absmax = max(abs(lo), abs(hi))
        steps = {"half": middle - 0.5, "full": middle - 1.0, "midrise": middle - 0.5}[convention]
        none = float(np.finfo(np.float64).tiny) if convention == "midrise" else 1.0
        zero = middle - 0.5 if convention == "midrise" else middle
        return (absmax / steps if absmax > 0 else none), float(zero)
    lo, hi = min(0.0, lo), max(0.0, hi)
    if hi == lo:
        return 1.0, 0.0
    scale = (hi - lo) / (2**bits - 1)
    return scale, float(nearest_code(-lo / scale))


def nearest_code(t: npt.ArrayLike) -> Floats:
    """Half to even, where t within 8 ulp of a half IS that half. With the 'half' convention the
    largest weight of a group is a tie by construction, and an ulp must not decide it."""
    t = np.asarray(t, dtype=np.float64)
    half = np.rint(2 * t) / 2
    return np.rint(np.where(np.abs(t - half) <= 8 * np.finfo(np.float64).eps * np.abs(t), half, t))


def round_to(W: Floats, scale: npt.ArrayLike, zero: npt.ArrayLike, bits: int) -> Floats:
    """Nearest grid value: ``scale (clip(nearest_code(w / scale) + zero, 0, 2^b - 1) - zero)``; of a
    zero that is half a code, the nearest odd multiple of scale / 2."""
    scale, zero = np.asarray(scale, dtype=np.float64), np.asarray(zero, dtype=np.float64)
    odd = zero % 1 == 0.5
    code = np.where(odd, nearest_code(W / scale + 0.5) + zero - 0.5, nearest_code(W / scale) + zero)
    return scale * (np.clip(code, 0, 2**bits - 1) - zero)


def fit_values(
    values: Floats, bits: int, sym: bool, convention: Convention = "half", mse: bool = False
) -> tuple[float, float]:
    """``(scale, zero)`` of the one group ``values``: full range, or the MSE clip search.

    The search tries the ranges ``p [lo, hi]``, ``p = 1 - i/100``, ``i = 0 .. 79``, and keeps the
    first that is strictly better in ``sum |q - w|^2.4``.
    """
    lo, hi = float(values.min()), float(values.max())
    best = grid_from_range(lo, hi, bits, sym, convention)
    if not mse:
        return best
    best_error = np.inf
    for i in range(80):
        p = 1 - i / 100
        grid = grid_from_range(p * lo, p * hi, bits, sym, convention)
        error = float(np.sum(np.abs(round_to(values, *grid, bits) - values) ** 2.4))
        if error < best_error:
            best, best_error = grid, error
    return best


def group_size(granularity: Granularity, columns: int) -> int:
    """Columns that share a scale within a row."""
    if isinstance(granularity, str):
        return columns
    if granularity < 1 or columns % granularity:
        raise ValueError(f"{columns} columns are not a multiple of the group size {granularity}")
    return granularity


def fit_grid(
    W: Floats,
    bits: int,
    sym: bool = True,
    convention: Convention = "half",
    granularity: Granularity = "row",
    mse: bool = False,
) -> tuple[Floats, Floats]:
    """``scale, zero``, each ``[out, groups]`` (one group for 'tensor', repeated, and 'row')."""
    rows, columns = W.shape
    g = group_size(granularity, columns)
    scale, zero = np.empty((rows, columns // g)), np.empty((rows, columns // g))
    if granularity == "tensor":
        scale[:], zero[:] = fit_values(W, bits, sym, convention, mse)
        return scale, zero
    for r in range(rows):
        for k in range(columns // g):
            values = W[r, k * g : (k + 1) * g]
            scale[r, k], zero[r, k] = fit_values(values, bits, sym, convention, mse)
    return scale, zero


def expand(per_group: Floats, columns: int) -> Floats:
    """``[out, groups]`` to ``[out, in]``: column ``j`` is in group ``j // (in / groups)``."""
    return np.repeat(per_group, columns // per_group.shape[1], axis=1)


def round_to_grid(W: Floats, scale: Floats, zero: Floats, bits: int) -> Floats:
    """:func:`round_to` with ``[out, groups]`` scales and zeros."""
    return round_to(W, expand(scale, W.shape[1]), expand(zero, W.shape[1]), bits)


def rtn(
    W: Floats,
    bits: int,
    sym: bool = True,
    convention: Convention = "half",
    granularity: Granularity = "row",
    mse: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Round to nearest: ``(weight, scale, zero)``."""
    scale, zero = fit_grid(W, bits, sym, convention, granularity, mse)
    return round_to_grid(W, scale, zero, bits), scale, zero


# ------------------------------------------------------- second-order methods: GPTQ, SparseGPT


class Hessian(NamedTuple):
    """Second-order information of one layer, as GPTQ and SparseGPT use it."""

    plain: Floats  # (2 / count) gram with H_dd = 1 at dead columns, no damping
    damped: Floats  # plain + damp * (mean of diag plain over the live columns) * I
    U: Floats  # upper triangular, inv(damped) = U^T U
    dead: Bools  # [in], columns whose input was always zero


def hessian(gram: Floats, count: float, damp: float = 0.01) -> Hessian:
    """``H = (2 / count) gram``, dead columns, damping, and the factor of the inverse."""
    H = 2.0 / count * np.asarray(gram, dtype=np.float64)
    dead = np.diag(H) == 0
    H[dead, dead] = 1.0
    damped = H + damp * np.mean(np.diag(H)[~dead]) * np.eye(len(H))
    U = np.linalg.cholesky(np.linalg.inv(damped)).T
    return Hessian(H, damped, U, dead)


def _start(W: Floats, keep: Bools | None) -> Floats:
    """A float64 copy; pruned weights must have arrived as zeros."""
    W = np.array(W, dtype=np.float64)
    if keep is not None and np.any(W[~keep] != 0):
        raise ValueError("a weight that the mask calls pruned is not zero: apply the mask first")
    return W


def gptq(
    W: Floats,
    gram: Floats,
    count: float,
    bits: int,
    sym: bool = True,
    convention: Convention = "half",
    granularity: Granularity = "row",
    mse: bool = False,
    act_order: bool = False,
    damp: float = 0.01,
    block: int = 128,
    mask: Bools | None = None,
    static_groups: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """GPTQ: ``(weight, scale, zero)``, scale and zero ``[out, groups]`` in column order of ``W``.

    For each column i: ``q = round(w)``, ``e = (w - q) / U_ii``, and every later column
    ``W[:, j] -= e U_ij``. ``block`` matters for non-static groups alone: when the sweep reaches
    a group, its scale is fitted to all its weights as they were when the block of that column was
    entered. Scales of rows and of the tensor, static groups, and groups under ``act_order``, come
    from the original ``W``.

    ``mask`` (True = kept): pruned weights are written as exactly 0, and what compensation had
    moved them to is propagated as their error. Scales are fitted to the survivors: a pruned
    weight counts as 0 there, whatever it has drifted to.
    """
    columns = np.shape(W)[1]
    h = hessian(gram, count, damp)
    W = _start(W, mask)
    keep = np.ones(W.shape, dtype=bool) if mask is None else mask
    g = group_size(granularity, columns)
    fit = {"bits": bits, "sym": sym, "convention": convention, "mse": mse}
    scale, zero = fit_grid(W, granularity=granularity, **fit)  # type: ignore[arg-type]
    grouped = not isinstance(granularity, str)
    refit = grouped and not static_groups and not act_order
    order = np.arange(columns)
    U = h.U
    if act_order:
        order = np.argsort(-np.diag(h.plain), kind="stable")
        U = np.linalg.cholesky(np.linalg.inv(h.damped[np.ix_(order, order)])).T

    Q = np.zeros_like(W)
    for i in range(columns):
        if i % block == 0:
            entered = np.where(keep, W, 0.0)
        if refit and i % g == 0:
            part = slice(i // g, i // g + 1)
            scale[:, part], zero[:, part] = fit_grid(entered[:, i : i + g], granularity=g, **fit)  # type: ignore[arg-type]
        c = order[i]
        w = W[:, c].copy()
        q = np.where(keep[:, c], round_to(w, scale[:, c // g], zero[:, c // g], bits), 0.0)
        e = (w - q) / U[i, i]
        for j in range(i + 1, columns):
            W[:, order[j]] -= e * U[i, j]
        Q[:, c] = q
    return Q, scale, zero


def _saliency(W: Floats, h: Hessian) -> Floats:
    """``w^2 / U_jj^2``; below all of them the weights of dead inputs, by size."""
    dead = W**2 - np.max(W**2) - 1
    return np.where(h.dead, dead, W**2 / np.diag(h.U) ** 2)


def sparsegpt(
    W: Floats,
    gram: Floats,
    count: float,
    s: float | NM,
    block: int = 128,
    damp: float = 0.01,
    mask: Bools | None = None,
    grid: tuple[Floats, Floats, int] | None = None,
) -> tuple[Floats, Bools]:
    """SparseGPT: ``(weight, keep)``.

    At the entry of each block of columns ``[start, end)`` the smallest ``w^2 / U_jj^2`` of the
    block, over all rows and from the updated weights, are pruned:
    ``floor(s out end) - floor(s out start)`` of them, so that the layer loses exactly
    ``floor(s out in)``. For ``s = (N, M)`` the M - N smallest of each row and M columns are
    chosen when the sweep reaches them. Column j: ``q = 0`` where pruned, else ``w``, or ``w``
    rounded to ``grid = (scale, zero, bits)``; ``e = (w - q) / U_jj`` goes to the later columns.

    ``mask`` (True = kept) is an earlier mask: its zeros stay, are chosen first, and count; a
    block that arrives with more zeros than its share keeps them all.
    """
    rows, columns = np.shape(W)
    h = hessian(gram, count, damp)
    W = _start(W, mask)
    U = h.U
    gone = np.zeros(W.shape, dtype=bool) if mask is None else ~mask
    if isinstance(s, tuple) and columns % s[1]:
        raise ValueError(f"{columns} columns are not a multiple of M = {s[1]}")

    keep = ~gone
    Q = np.zeros_like(W)
    for i in range(columns):
        if isinstance(s, tuple) and i % s[1] == 0:
            part = slice(i, i + s[1])
            score = _saliency(W, h)[:, part]
            keep[:, part] = prune_smallest(score, s[1] - s[0], -1, gone[:, part])
        elif not isinstance(s, tuple) and i % block == 0:
            part = slice(i, min(i + block, columns))
            score = _saliency(W, h)[:, part]
            k = exact_count(rows * part.stop, s) - exact_count(rows * part.start, s)
            keep[:, part] = prune_smallest(score, k, None, gone[:, part])
        w = W[:, i].copy()
        value = w
        if grid is not None:
            scale, zero, bits = grid
            group = i // (columns // scale.shape[1])
            value = round_to(w, scale[:, group], zero[:, group], bits)
        q = np.where(keep[:, i], value, 0.0)
        e = (w - q) / U[i, i]
        for j in range(i + 1, columns):
            W[:, j] -= e * U[i, j]
        Q[:, i] = q
    return Q, keep


def relaid(
    W: Floats,
    scale: Floats,
    zero: Floats,
    bits: int,
    sym: bool = True,
    convention: Convention = "half",
    granularity: Granularity = "row",
    mse: bool = False,
) -> tuple[Floats, Floats]:
    """The grid, fitted anew to W in the groups where a weight is clipped by 0.51 steps.

    The groups of one tensor are one.
    """
    columns = W.shape[1]
    new = fit_grid(W, bits, sym, convention, granularity, mse)
    s, z = expand(scale, columns), expand(zero, columns)
    clipped = np.maximum(W - s * (2**bits - 1 - z), s * (0 - z) - W) > 0.51 * s
    outgrown = clipped.reshape(*scale.shape, -1).any(-1)
    if granularity == "tensor":
        outgrown[:] = outgrown.any()
    return np.where(outgrown, new[0], scale), np.where(outgrown, new[1], zero)


def joint(
    W: Floats,
    gram: Floats,
    count: float,
    s: float | NM,
    bits: int,
    sym: bool = True,
    convention: Convention = "half",
    mse: bool = False,
    granularity: Granularity = "row",
    block: int = 128,
    damp: float = 0.01,
    mask: Bools | None = None,
    refit: bool = False,
) -> tuple[Floats, Bools, Floats, Floats]:
    """SparseGPT's selection and GPTQ's rounding of the survivors in one sweep.

    This is the joint mode that the SparseGPT paper describes.

    Returns ``(weight, keep, scale, zero)``; the grid comes from the original ``W`` or, ``refit``
    and where those would be clipped by more than 0.51 steps, from the weights that pruning alone
    leaves.
    """
    scale, zero = fit_grid(W, bits, sym, convention, granularity, mse)
    if refit:
        pruned, _ = sparsegpt(W, gram, count, s, block, damp, mask)
        scale, zero = relaid(pruned, scale, zero, bits, sym, convention, granularity, mse)
    weight, keep = sparsegpt(W, gram, count, s, block, damp, mask, (scale, zero, bits))
    return weight, keep, scale, zero


# ------------------------------------------------------------------- oracles for tiny layers


def obr(
    W: Floats,
    gram: Floats,
    count: float,
    s: float | None,
    bits: int,
    scope: Literal["row"] | NM = "row",
    alpha: float = 0.5,
    damp: float = 0.01,
    already: Bools | None = None,
    sym: bool = True,
    granularity: Granularity = "row",
) -> tuple[Floats, Bools, Floats]:
    """Optimal brain restoration: ``(weight, keep, weight before any rounding)``.

    Row by row: what the removed weights were is made up for by the kept ones; then what rounding
    takes from the first ``alpha`` of these, by the others of them. One grid, of the compensated.
    """
    H = hessian(gram, count, damp).damped
    keep = wanda(W, gram, count, s, scope, already)
    restored = np.zeros_like(W)
    for i, row in enumerate(W):
        kept, gone = np.flatnonzero(keep[i]), np.flatnonzero(~keep[i])
        restored[i, kept] = row[kept]
        if len(kept) and len(gone):
            pull = H[np.ix_(kept, gone)] @ row[gone]
            restored[i, kept] += np.linalg.solve(H[np.ix_(kept, kept)], pull)
    scale, zero = fit_grid(restored, bits, sym, "half", granularity, False)
    rounded = round_to_grid(restored, scale, zero, bits)
    final = restored.copy()
    for i in range(len(W)):
        kept = np.flatnonzero(keep[i])
        first, rest = np.split(kept, [int(alpha * len(kept))])
        lost = restored[i, first] - rounded[i, first]
        final[i, first] = rounded[i, first]
        if len(first) and len(rest):
            pull = H[np.ix_(rest, first)] @ lost
            final[i, rest] += np.linalg.solve(H[np.ix_(rest, rest)], pull)
    final = np.where(keep, round_to_grid(final, scale, zero, bits), 0.0)
    return final, keep, restored


def quadratic_loss(w_hat: Floats, w: Floats, H: Floats) -> float:
    """``(w_hat - w) H (w_hat - w)^T`` of one row."""
    d = np.asarray(w_hat) - np.asarray(w)
    return float(d @ H @ d)


def obs_fixed(w: Floats, H: Floats, fixed: Iterable[int], values: npt.ArrayLike) -> Floats:
    """The row closest to ``w`` in ``H`` among those that equal ``values`` on ``fixed``.

    ``values`` follow the ascending order of ``fixed``. With F the fixed set, R the rest and
    ``d_F = values - w_F`` the stationarity condition is ``H_RR d_R = -H_RF d_F`` (least squares
    where ``H_RR`` is singular); the loss is then ``d_F [(H^-1)_FF]^-1 d_F^T`` (OBS).
    """
    w_hat = np.array(w, dtype=np.float64)
    F = np.array(sorted(fixed), dtype=np.int64)
    R = np.setdiff1d(np.arange(w_hat.size), F)
    d = np.asarray(values, dtype=np.float64) - w_hat[F]
    w_hat[F] += d
    if R.size:
        w_hat[R] += np.linalg.lstsq(H[np.ix_(R, R)], -H[np.ix_(R, F)] @ d, rcond=None)[0]
    w_hat[F] = values
    return w_hat


def obs_optimal(W_row: Floats, H: Floats, removed_set: Iterable[int]) -> Floats:
    """The optimal compensation of one row for a fixed set of removed weights (OBS)."""
    removed = sorted(set(removed_set))
    return obs_fixed(W_row, H, removed, np.zeros(len(removed)))


def obs_best_mask(W_row: Floats, H: Floats, k: int) -> tuple[Bools, Floats, float]:
    """Enumeration of all masks of one row with ``k`` removed: ``(keep, weight, loss)``."""
    best: tuple[Bools, Floats, float] | None = None
    for removed in itertools.combinations(range(len(W_row)), k):
        w_hat = obs_optimal(W_row, H, removed)
        loss = quadratic_loss(w_hat, W_row, H)
        if best is None or loss < best[2]:
            keep = np.ones(len(W_row), dtype=bool)
            keep[list(removed)] = False
            best = keep, w_hat, loss
    assert best is not None
    return best


def best_codes(
    W_row: Floats, H: Floats, scale: float, zero: float, bits: int
) -> tuple[Floats, float]:
    """Enumeration of all code vectors of one row on a fixed grid: ``(weight, loss)``."""
    levels = scale * (np.arange(2**bits) - zero)
    candidates = (np.array(c) for c in itertools.product(levels, repeat=len(W_row)))
    best = min(candidates, key=lambda c: quadratic_loss(c, W_row, H))
    return best, quadratic_loss(best, W_row, H)


# ------------------------------------------------------------------------------- measures


def output_error(dW: Floats, gram: Floats, count: float) -> float:
    """``E ||dW x||^2 = tr(dW gram dW^T) / count``."""
    return float(np.trace(dW @ gram @ dW.T) / count)


def _ratio(a: float, b: float) -> float:
    """``a / b`` for sizes of errors: nothing relative to nothing is 0, something is inf."""
    if b == 0:
        return 0.0 if a == 0 else float("inf")
    return a / b


def layer_measures(W: Floats, W_hat: Floats, gram: Floats, count: float) -> dict[str, float]:
    """Sizes of the perturbation ``dW = W_hat - W``: norms (not squared), output error, SNR in dB.

    ``out_err = E ||dW x||^2``, ``out_rel`` divides it by ``E ||W x||^2``, and
    ``snr_db = 10 log10(||W||_F^2 / ||dW||_F^2)`` (inf for ``dW = 0``).
    """
    W, W_hat = np.asarray(W, dtype=np.float64), np.asarray(W_hat, dtype=np.float64)
    dW = W_hat - W
    fro, size = float(np.sqrt(np.sum(dW**2))), float(np.sqrt(np.sum(W**2)))
    spec = float(np.linalg.svd(dW, compute_uv=False).max())
    out_err = output_error(dW, gram, count)
    snr = float("inf") if fro == 0 else (-float("inf") if size == 0 else 20 * np.log10(size / fro))
    return {
        "fro": fro,
        "fro_rel": _ratio(fro, size),
        "spec": spec,
        "spec_rel": _ratio(spec, float(np.linalg.svd(W, compute_uv=False).max())),
        "out_err": out_err,
        "out_rel": _ratio(out_err, output_error(W, gram, count)),
        "snr_db": float(snr),
    }


# ------------------------------------------------------------------------------ statistics


class Interval(NamedTuple):
    estimate: float
    lo: float
    hi: float
    replicates: Floats


def paired_cluster_bootstrap(
    a: Floats,
    b: Floats,
    clusters: npt.ArrayLike,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    picks: Ints | None = None,
) -> Interval:
    """Percentile interval of ``mean(a - b)`` over examples; whole clusters are resampled.

    A replicate draws as many clusters as there are, with replacement, pools all their examples
    (paired: a and b of one example stay together), and takes the mean over the pooled examples.
    ``picks [draws, clusters]`` gives the drawn positions among the sorted distinct cluster labels
    explicitly, so that another implementation can be compared replicate by replicate.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    members = [np.flatnonzero(np.asarray(clusters) == c) for c in np.unique(clusters)]
    if picks is None:
        picks = np.random.default_rng(seed).integers(len(members), size=(draws, len(members)))
    replicates = np.array(
        [np.concatenate([difference[members[c]] for c in row]).mean() for row in picks]
    )
    lo, hi = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(lo), float(hi), replicates)


def kendall_tau_b(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """``(C - D) / sqrt((n0 - ties_x) (n0 - ties_y))`` over all pairs; nan if a side is constant."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    concordance, untied_x, untied_y = 0, 0, 0
    for i in range(len(x)):
        for j in range(i):
            sx, sy = int(np.sign(x[i] - x[j])), int(np.sign(y[i] - y[j]))
            concordance += sx * sy
            untied_x += sx != 0
            untied_y += sy != 0
    if untied_x == 0 or untied_y == 0:
        return float("nan")
    return float(concordance / np.sqrt(untied_x * untied_y))


def isotonic(
    y: npt.ArrayLike, weights: npt.ArrayLike | None = None, increasing: bool = True
) -> Floats:
    """Least-squares monotone fit by pooling adjacent violators, in the order given."""
    y = np.asarray(y, dtype=np.float64)
    if not increasing:
        return -isotonic(-y, weights)
    w = np.ones(y.size) if weights is None else np.asarray(weights, dtype=np.float64)
    pools: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(y, w, strict=True):
        pools.append([float(value), float(weight), 1])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            m2, w2, n2 = pools.pop()
            m1, w1, n1 = pools.pop()
            pools.append([(m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2])
    return np.array([mean for mean, _, n in pools for _ in range(int(n))])


class EquivalentRatio(NamedTuple):
    """C* of a method. Uncensored: ``lo <= value <= hi``, equal unless the curve is flat there."""

    value: float  # the middle of [lo, hi]; at a censored end, the measured end itself
    lo: float  # -inf where censored "below"
    hi: float  # inf where censored "above"
    censored: Literal["no", "below", "above"]  # C* lies below / above every measured ratio
    monotone: bool  # False: the curve was replaced by its isotonic fit


def equivalent_ratio(
    ratios: npt.ArrayLike, performance: npt.ArrayLike, target: float
) -> EquivalentRatio:
    """The quantization ratio C* at which quantization alone performs as well as ``target``.

    ``performance`` (higher is better) is the quantization-only curve M(C), piecewise linear
    through the measured points, after a nonincreasing isotonic fit if it is not monotone. A
    target above the whole curve is censored "below" (C* <= the smallest ratio, an upper bound);
    one under it "above" (C* >= the largest). Nothing is extrapolated.
    """
    order = np.argsort(ratios, kind="stable")
    C = np.asarray(ratios, dtype=np.float64)[order]
    raw = np.asarray(performance, dtype=np.float64)[order]
    if len(C) < 1 or np.any(np.diff(C) == 0):
        raise ValueError(f"ratios must be distinct and at least one, got {C.tolist()}")
    monotone = bool(np.all(np.diff(raw) <= 0))
    M = raw if monotone else isotonic(raw, increasing=False)
    if target > M[0]:
        return EquivalentRatio(float(C[0]), -float("inf"), float(C[0]), "below", monotone)
    if target < M[-1]:
        return EquivalentRatio(float(C[-1]), float(C[-1]), float("inf"), "above", monotone)
    solutions = [float(c) for c, m in zip(C, M, strict=True) if m == target]
    for k in range(len(C) - 1):
        if M[k] > target > M[k + 1]:
            share = (M[k] - target) / (M[k] - M[k + 1])
            solutions.append(float(C[k] + share * (C[k + 1] - C[k])))
    lo, hi = min(solutions), max(solutions)
    return EquivalentRatio((lo + hi) / 2, lo, hi, "no", monotone)
