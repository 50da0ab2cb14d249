"""What a compression did to a layer: perturbation norms, output error, ownership, interference.

With W the dense matrix [out, in], W' the compressed one, dW = W' - W, and the moments of the
layer's inputs x (mean, and S = scatter, the sum of (x - mean)(x - mean)^T over count tokens):

    fro, fro_rel     ||dW||_F, and relative to ||W||_F
    spec, spec_rel   ||dW||_2, and relative to ||W||_2
    out_err          E||dW x||^2 = tr(dW S dW^T) / count + ||dW mean||^2, exactly
    out_rel          the same relative to E||W x||^2
    snr_db           20 log10(||W||_F / ||dW||_F), in dB; inf if nothing changed

Leading batch axes (variants) are free everywhere. 0/0 is 0, x/0 is inf, and no token is no error.

float32 cannot hold a product of four such numbers (weights of 1e-20 or 1e20, inputs of 1e10), nor
the squares on the way. Device code therefore works on matrices brought to 1 by powers of two,
which is exact, and returns :class:`Scaled`; the host puts the powers back in float64. To measure
many layers, call :func:`raw_measures` inside one ``jit`` a layer and :func:`finish` outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from perturb.types import Array, Matrix, Moments

HIGHEST = jax.lax.Precision.HIGHEST
SQUARINGS = 14  # power iteration to the 16384th power, at most
PURE = 1 - 1e-5  # of the trace's square: what a power's eigenvalues, squared, add up to at its end
ZERO = -(1 << 14)  # exponent of a 0: below every other, and far from overflow in sums of a few


class Scaled(NamedTuple):
    """The numbers ``mantissa * 2**exponent``, out of the range that their dtype has."""

    mantissa: Array  # [...], floating
    exponent: Array  # [...], int32


class Sizes(NamedTuple):
    """How large a matrix is [...]: ||.||_F, ||.||_2, and E||. x||^2."""

    fro: Any  # Scaled; float64 after `value`
    spec: Any
    out: Any


class Raw(NamedTuple):
    """What a device says of variants [...] of one dense matrix []; see :func:`finish`."""

    change: Sizes
    dense: Sizes


# ------------------------------------------------------------------- exact powers of two, in jit


def _float(*arrays: Any) -> Any:
    return jnp.result_type(jnp.float32, *(a.dtype for a in arrays))


def _bits(x: Array) -> tuple[Array, int, int]:
    """|x| as integers of the same order, its bits of mantissa, and its exponent's bias."""
    info = jnp.finfo(x.dtype)
    kind = jnp.dtype(f"int{info.bits}")
    whole = jax.lax.bitcast_convert_type(x, kind) & jnp.asarray(jnp.iinfo(kind).max, kind)
    return whole, info.nmant, 1 - int(info.minexp)


def _exponent(x: Array, axes: tuple[int, ...] = ()) -> Array:
    """The least e with |x| < 2**e over axes (kept), int32; ZERO of zeros.

    By integers: backends may take a subnormal float for 0.
    """
    whole, fraction, bias = _bits(x)
    top = jnp.max(whole, axes, keepdims=True) if axes else whole
    field = top >> fraction
    length = jnp.iinfo(top.dtype).bits - jax.lax.clz(top)
    e = jnp.where(field > 0, field - bias + 1, length - bias - fraction + 1)
    return jnp.where(top == 0, ZERO, e).astype(jnp.int32)


def _scale(x: Array, k: Array) -> Array:
    """x * 2**k, also for subnormal x and for k beyond the dtype's exponents."""
    whole, fraction, bias = _bits(x)

    def power(k: Array) -> Array:
        bits = (jnp.clip(k, 1 - bias, bias) + bias).astype(whole.dtype) << fraction
        return jax.lax.bitcast_convert_type(bits, x.dtype)

    subnormal = (whole >> fraction) == 0
    digits = jnp.where(jnp.signbit(x), -whole, whole).astype(x.dtype)
    x = jnp.where(subnormal, digits, x)
    k = jnp.where(subnormal & (whole > 0), k - (bias + fraction - 1), k)
    half = k >> 1
    return x * power(half) * power(k - half)


def _normal(x: Array) -> tuple[Array, Array]:
    """x [..., out, in] with largest entry in [1/2, 1), and the exponent [..., 1, 1] taken out."""
    e = _exponent(x, (-2, -1))
    return _scale(x, -e), e


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """a - b as :func:`_normal` gives it."""
    e = jnp.maximum(_exponent(a, (-2, -1)), _exponent(b, (-2, -1)))
    change, more = _normal(_scale(a, -e) - _scale(b, -e))
    return change, e + more


def _columns(x: Array, weight: Array) -> tuple[Array, Array]:
    """x [..., out, in] times 2**weight [in], as :func:`_normal` gives it: columns count alike."""
    top = jnp.max(_exponent(x, (-2,)) + weight, -1, keepdims=True)
    return _scale(x, weight - top), top


def _plain(x: Scaled) -> Array:
    return _scale(x.mantissa, x.exponent)


# ------------------------------------------------------------------------------------ the measures


class _Inputs(NamedTuple):
    """:class:`Moments` with features brought to 1: scatter_ij 2**-(d_i + d_j)."""

    scatter: Array  # [in, in], diagonal in [1/4, 1) or 0
    deviation: Array  # [in], the exponents d
    mean: Array | None  # [in]
    offset: Array  # [in], the exponents of the mean
    share: Array  # [], 1/count, 0 without a token


def _inputs(stats: Moments, dtype: Any) -> _Inputs:
    scatter = stats.scatter.astype(dtype)
    e = _exponent(jnp.diagonal(scatter))
    d = jnp.where(e == ZERO, ZERO, (e + 1) >> 1)
    seen = d > ZERO
    step = jnp.where(seen, d, 0)
    scatter = _scale(scatter, -(step[:, None] + step[None, :]))
    scatter = jnp.where(seen[:, None] & seen[None, :], scatter, 0)
    count = jnp.asarray(stats.count, dtype)
    share = jnp.where(count > 0, 1 / jnp.where(count > 0, count, 1), 0)
    if stats.mean is None:
        return _Inputs(scatter, d, None, d, share)
    offset = _exponent(mean := stats.mean.astype(dtype))
    return _Inputs(scatter, d, _scale(mean, -offset), offset, share)


def _output_error(change: Array, e: Array, x: _Inputs) -> Scaled:
    """E||dW x||^2 of dW = change * 2**e."""
    y, top = _columns(change, x.deviation)
    image = jnp.matmul(y, x.scatter, precision=HIGHEST)
    spread = jnp.maximum(jnp.sum(image * y, (-2, -1)), 0) * x.share  # < 0 by rounding only
    power = 2 * (top + e)[..., 0, 0]
    if x.mean is None:
        return Scaled(spread, power)
    y, top = _columns(change, x.offset)
    square = jnp.sum(jnp.matmul(y, x.mean, precision=HIGHEST) ** 2, -1)
    square = jnp.where(x.share > 0, square, 0)
    other = 2 * (top + e)[..., 0, 0]
    common = jnp.maximum(power, other)
    return Scaled(_scale(spread, power - common) + _scale(square, other - common), common)


def _spectral(w: Array) -> Array:
    """||W||_2 of w as :func:`_normal` gives it."""
    w = w if w.shape[-2] <= w.shape[-1] else jnp.swapaxes(w, -2, -1)  # [..., small, large]
    gram = jnp.einsum("...ij,...kj->...ik", w, w, precision=HIGHEST)
    tiny = jnp.finfo(w.dtype).tiny

    def trace(g: Array) -> Array:
        return jnp.trace(g, axis1=-2, axis2=-1)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        number, _, purity = state
        return (number < SQUARINGS) & jnp.any(purity < PURE)

    def square(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, g, _ = state
        g = g / jnp.maximum(trace(g)[..., None, None], tiny)
        g = jnp.matmul(g, g, precision=HIGHEST)
        return number + 1, g, trace(g)  # of eigenvalues of sum 1 the sum of squares

    start = (jnp.asarray(0), gram, jnp.zeros(gram.shape[:-2], gram.dtype))
    _, power, _ = jax.lax.while_loop(unfinished, square, start)
    best = jnp.argmax(jnp.diagonal(power, axis1=-2, axis2=-1), -1)  # the column of least noise
    v = jnp.take_along_axis(power, best[..., None, None], -1)  # [..., small, 1]
    v = v / jnp.maximum(jnp.linalg.norm(v, axis=(-2, -1), keepdims=True), tiny)
    image = jnp.einsum("...ij,...ik->...jk", w, v, precision=HIGHEST)
    return jnp.linalg.norm(image, axis=(-2, -1))


def _sizes(w: Array, e: Array, x: _Inputs) -> Sizes:
    power = e[..., 0, 0]
    fro = Scaled(jnp.sqrt(jnp.sum(w**2, (-2, -1))), power)
    return Sizes(fro, Scaled(_spectral(w), power), _output_error(w, e, x))


def raw_measures(dense: Array, weight: Array, stats: Moments) -> Raw:
    """All that :func:`finish` needs of weight [..., out, in] against dense [out, in]; for a jit."""
    dtype = _float(dense, weight, stats.scatter)
    dense, weight, x = dense.astype(dtype), weight.astype(dtype), _inputs(stats, dtype)
    (own, own_e), (change, e) = _normal(dense), _difference(weight, dense)
    batch = change.shape[:-2]
    every = jnp.concatenate([own[None], change.reshape(-1, *own.shape)])  # compiled once for both
    exponents = jnp.concatenate([own_e[None], e.reshape(-1, 1, 1)])
    # One after the other: equal variants must have equal measures to the last bit, and a batched
    # product rounds by the place in the batch.
    sizes = jax.lax.map(lambda one: _sizes(one[0], one[1], x), (every, exponents))
    return Raw(
        jax.tree.map(lambda a: a[1:].reshape(batch), sizes), jax.tree.map(lambda a: a[0], sizes)
    )


_raw_measures = jax.jit(raw_measures)


def value(tree: Any) -> Any:
    """Any pytree of results with every :class:`Scaled` as numpy float64; on the host."""

    def number(x: Any) -> Any:
        if isinstance(x, Scaled):
            return np.ldexp(np.asarray(x.mantissa, np.float64), x.exponent)
        return np.asarray(x)

    return jax.tree.map(number, jax.device_get(tree), is_leaf=lambda x: isinstance(x, Scaled))


def finish(raw: Raw) -> dict[str, np.ndarray]:
    """The measures [...] in float64, from what :func:`raw_measures` returned; on the host."""
    change, dense = value(raw)
    with np.errstate(divide="ignore", invalid="ignore"):
        changed = change.fro != 0
        snr = 20 * np.log10(np.where(changed, dense.fro / change.fro, np.inf))
        return {
            "fro": change.fro,
            "fro_rel": _ratio(change.fro, dense.fro),
            "spec": change.spec,
            "spec_rel": _ratio(change.spec, dense.spec),
            "out_err": change.out,
            "out_rel": _ratio(change.out, dense.out),
            "snr_db": snr,
        }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.where(a == 0, 0.0, a / b)


def block_diagonal(raw: Raw) -> Raw:
    """Of the blocks [blocks, ...] of a matrix that acts block by block, the whole: ||.||_F and
    E||. x||^2 add up (the first in squares), ||.||_2 is the largest."""

    def sizes(x: Sizes) -> Sizes:
        def aligned(x: Scaled) -> Scaled:
            top = jnp.max(x.exponent, 0)
            return Scaled(_scale(x.mantissa, x.exponent - top), top)

        fro, spec, out = (aligned(s) for s in x)
        return Sizes(
            Scaled(jnp.sqrt(jnp.sum(fro.mantissa**2, 0)), fro.exponent),
            Scaled(jnp.max(spec.mantissa, 0), spec.exponent),
            Scaled(jnp.sum(out.mantissa, 0), out.exponent),
        )

    return Raw(sizes(raw.change), sizes(raw.dense))


def measures(dense: Array, weight: Array, stats: Moments) -> dict[str, Any]:
    """All measures, float64, of weight [..., out, in] against dense [out, in]; on the host."""
    return finish(_raw_measures(dense, weight, stats))


def not_finite(measures: Mapping[str, Any]) -> list[str]:
    """Names of the measures that hold a nan, or an infinity that is no legitimate ``snr_db``.

    measures: numbers or arrays by name; None is no measurement and is passed over.
    """
    found = []
    for name, number in measures.items():
        if number is not None:
            x = np.asarray(number, np.float64)
            bad = np.isnan(x) if name.endswith("snr_db") else ~np.isfinite(x)
            if bad.any():
                found.append(name)
    return found


def output_error(dw: Array, stats: Moments) -> Array:
    """E||dW x||^2 of dw [..., out, in], 0 without a token; in dw's dtype, float32 at least.

    float32 loses about 1e-7 ||dW|| ||mean|| of ||dW mean||. What is beyond the dtype's range is
    inf or 0: use :func:`raw_measures`.
    """
    dtype = _float(dw, stats.scatter)
    return _plain(_output_error(*_normal(dw.astype(dtype)), _inputs(stats, dtype)))


def spectral_norm(w: Array) -> Array:
    """||W||_2 of w [..., out, in], from below: at least (1 - ln(n) / 2^(SQUARINGS + 1)) of it.

    The Gram matrix of the smaller side n is squared SQUARINGS times, to G^K: any column of it is
    2^SQUARINGS = K steps of power iteration, taken is the one of largest diagonal entry, which is
    at least 1/n of the top eigenvalue. With m(t) = sum_i c_i^2 (s_i/s_1)^2t, c that column's unit
    vector in the singular basis, the result is s_1 sqrt(m(2K+1)/m(2K)); m is log-convex, m(0) = 1
    and m(K) >= 1/n, so this ratio is at least m(K)^(1/K) >= n^(-1/K): 2.1e-4 at n = 1024 whatever
    the spectrum. Fewer squarings do where a power has become one direction: its eigenvalues, of
    sum 1, have squares that add up to PURE or more, so the top one is no less. float32 adds a few
    1e-7 in either direction. Matrix products only: batched and fast on every device, where
    LAPACK's eigenvalues serialise on an accelerator.
    """
    w, e = _normal(w.astype(_float(w)))
    return _scale(_spectral(w), e[..., 0, 0])


def cosine(a: Array, b: Array) -> Array:
    """Cosine between two perturbations [..., out, in] as vectors; 0 where one of them is 0."""
    (a, _), (b, _) = (_normal(x.astype(_float(x))) for x in (a, b))
    dot, aa, bb = (jnp.sum(x * y, (-2, -1)) for x, y in ((a, b), (a, a), (b, b)))
    return jnp.where(dot == 0, 0, dot / (jnp.sqrt(aa) * jnp.sqrt(bb)))


def ownership(first: Matrix, second: Matrix) -> dict[str, Array]:
    """Who owns each weight after each order of a pruner and a quantizer, as fractions.

    A pruned weight is the pruner's, any other the quantizer's (disjoint selectivity).
    owned: owned by the pruner in ``first``; changed: owned by another in ``second``.
    """
    return {
        "owned_by_pruner": jnp.mean(~first.mask, (-2, -1)),
        "owner_changed": jnp.mean(first.mask != second.mask, (-2, -1)),
    }


def raw_owned_error(dense: Array, mask: Array, quantized: Array, stats: Moments) -> Scaled:
    """:func:`owned_error` for a jit and any scale; :func:`value` makes it float64."""
    dtype = _float(dense, quantized, stats.scatter)
    dense, quantized = dense.astype(dtype), quantized.astype(dtype)
    energy = stats.energy.astype(dtype)
    e = jnp.maximum(_exponent(dense, (-2, -1)), _exponent(quantized, (-2, -1)))
    w, q = _scale(dense, -e), _scale(quantized, -e)
    of_energy = _exponent(energy)
    d = jnp.where(of_energy == ZERO, ZERO, (of_energy + 1) >> 1)
    y, top = _columns(jnp.where(mask, q - w, w), d)
    power = jnp.broadcast_to(2 * (top + e), (*y.shape[:-2], 1, 1))[..., 0, 0]
    return Scaled(jnp.sum(_scale(energy, -2 * d) * y**2, (-2, -1)), power)


def owned_error(dense: Array, mask: Array, quantized: Array, stats: Moments) -> Array:
    """The output error that ownership alone predicts for a combination.

    ``E = sum_u h_u [owner P] w_u^2 + h_u [owner Q] (Q(w)_u - w_u)^2`` with ``h_u = E x_j^2``:
    every weight has exactly the error that its owner gives it when it acts alone (``quantized``
    is Q alone), and errors add. A by ownership (Theorem 1) is the difference of two such sums;
    interference is what the measured ``out_err`` differs from it.
    """
    return _plain(raw_owned_error(dense, mask, quantized, stats))


def owned_on_host(energy: np.ndarray, dense: np.ndarray, mask: Any, rounding: np.ndarray) -> float:
    """:func:`owned_error` in float64 on the host; energy: ``E x_j^2`` [in] or [out, in];
    rounding: Q alone less the dense matrix."""
    return float(np.sum(energy * np.where(mask, rounding, -dense) ** 2))


def energy_on_host(moments: Moments, rows: int) -> np.ndarray:
    """``E x_j^2`` in float64 on the host, as :attr:`perturb.types.Moments.energy`: [in], or, of a
    convolution in groups, [rows, in], each row with the inputs of its group."""
    count = np.asarray(moments.count, np.float64)[..., None]
    mean = 0.0 if moments.mean is None else np.asarray(moments.mean, np.float64)
    square = np.diagonal(np.asarray(moments.scatter, np.float64), axis1=-2, axis2=-1)
    found = square / np.where(count, count, 1.0) + mean**2
    return found if found.ndim == 1 else np.repeat(found, rows // len(found), 0)


def interference(measured_qp: Any, measured_pq: Any, owned_qp: Any, owned_pq: Any) -> Any:
    """A(Q->P) measured minus A(Q->P) by ownership, with M = -E||dW x||^2 of one layer."""
    return (measured_pq - measured_qp) - (owned_pq - owned_qp)
