"""What a compression did to a layer: perturbation norms, output error, ownership, interference.

With W the dense matrix [out, in], W' the compressed one, dW = W' - W, and the second moment of
the layer's inputs H = E[x x^T] = gram / count:

    fro, fro_rel     ||dW||_F, and relative to ||W||_F
    spec, spec_rel   ||dW||_2, and relative to ||W||_2
    out_err          E||dW x||^2 = tr(dW H dW^T), exactly
    out_rel          the same relative to E||W x||^2
    snr_db           10 log10(||W||_F^2 / ||dW||_F^2), in dB; inf if nothing changed

Leading batch axes (variants) are free everywhere. 0/0 is 0 and x/0 is inf.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perturb.types import Array, Layer, LayerStats

HIGHEST = jax.lax.Precision.HIGHEST
SQUARINGS = 12  # power iteration to the 4096th power


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(a == 0, 0, a / b)


def output_error(dw: Array, stats: LayerStats) -> Array:
    """E||dW x||^2 = tr(dW (gram/count) dW^T); dw [..., out, in]."""
    image = jnp.matmul(dw, stats.gram.astype(dw.dtype), precision=HIGHEST)
    return jnp.sum(image * dw, (-2, -1)) / stats.count


def spectral_norm(w: Array) -> Array:
    """||W||_2 of w [..., out, in], to about 1e-5 relative from below (1e-4 at the very worst).

    The Gram matrix of the smaller side is squared SQUARINGS times: any column of the result is
    the top singular vector v, after 2^SQUARINGS steps of power iteration, and ||W v|| is accurate
    to second order in what v lacks. Matrix products only: batched and fast on every device,
    where LAPACK's eigenvalues serialise on an accelerator and crawl on a busy CPU.
    """
    w = w if w.shape[-2] <= w.shape[-1] else jnp.swapaxes(w, -2, -1)  # [..., small, large]
    size = jnp.max(jnp.abs(w), (-2, -1), keepdims=True)
    w = w / jnp.where(size > 0, size, 1)
    gram = jnp.einsum("...ij,...kj->...ik", w, w, precision=HIGHEST)

    def square(_: int, g: Array) -> Array:
        g = g / jnp.maximum(jnp.trace(g, axis1=-2, axis2=-1)[..., None, None], tiny)
        return jnp.matmul(g, g, precision=HIGHEST)

    tiny = jnp.finfo(w.dtype).tiny
    power = jax.lax.fori_loop(0, SQUARINGS, square, gram)
    best = jnp.argmax(jnp.diagonal(power, axis1=-2, axis2=-1), -1)  # the column of least noise
    v = jnp.take_along_axis(power, best[..., None, None], -1)  # [..., small, 1]
    v = v / jnp.maximum(jnp.linalg.norm(v, axis=(-2, -1), keepdims=True), tiny)
    image = jnp.einsum("...ij,...ik->...jk", w, v, precision=HIGHEST)
    return jnp.linalg.norm(image, axis=(-2, -1)) * size[..., 0, 0]


@jax.jit
def measures(dense: Array, weight: Array, stats: LayerStats) -> dict[str, Array]:
    """All measures of weight [..., out, in] against dense [out, in]."""
    dw = weight - dense
    fro2, dense_fro2 = (jnp.sum(a**2, (-2, -1)) for a in (dw, dense))
    spec, out = spectral_norm(dw), output_error(dw, stats)
    return {
        "fro": jnp.sqrt(fro2),
        "fro_rel": jnp.sqrt(_ratio(fro2, dense_fro2)),
        "spec": spec,
        "spec_rel": _ratio(spec, spectral_norm(dense)),
        "out_err": out,
        "out_rel": _ratio(out, output_error(dense, stats)),
        "snr_db": 10 * jnp.log10(_ratio(dense_fro2, fro2) + jnp.where(fro2 == 0, jnp.inf, 0)),
    }


def cosine(a: Array, b: Array) -> Array:
    """Cosine between two perturbations [..., out, in] as vectors; 0 where one of them is 0."""
    dot, aa, bb = (jnp.sum(x * y, (-2, -1)) for x, y in ((a, b), (a, a), (b, b)))
    return _ratio(dot, jnp.sqrt(aa * bb))


def ownership(first: Layer, second: Layer) -> dict[str, Array]:
    """Who owns each weight after each order of a pruner and a quantizer, as fractions.

    A pruned weight is the pruner's, any other the quantizer's (disjoint selectivity).
    owned: owned by the pruner in ``first``; changed: owned by another in ``second``.
    """
    return {
        "owned_by_pruner": jnp.mean(~first.mask, (-2, -1)),
        "owner_changed": jnp.mean(first.mask != second.mask, (-2, -1)),
    }


def owned_error(dense: Array, mask: Array, quantized: Array, stats: LayerStats) -> Array:
    """The output error that ownership alone predicts for a combination.

    ``E = sum_u h_u [owner P] w_u^2 + h_u [owner Q] (Q(w)_u - w_u)^2`` with ``h_u = E x_j^2``:
    every weight has exactly the error that its owner gives it when it acts alone (``quantized``
    is Q alone), and errors add. A by ownership (Theorem 1) is the difference of two such sums;
    interference is what the measured ``out_err`` differs from it.
    """
    energy = jnp.diagonal(stats.gram) / stats.count
    alone = jnp.where(mask, quantized - dense, dense)
    return jnp.sum(energy * alone**2, (-2, -1))


def interference(measured_qp: Array, measured_pq: Array, owned_qp: Array, owned_pq: Array) -> Array:
    """A(Q->P) measured minus A(Q->P) by ownership, with M = -E||dW x||^2 of one layer."""
    return (measured_pq - measured_qp) - (owned_pq - owned_qp)
