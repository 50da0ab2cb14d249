"""GPTQ and SparseGPT in plain PyTorch, as one would write them from the papers for a CPU.

Peers for speed and accuracy comparisons, not references: float32 in the benchmarks (they compute
in the dtype of ``W``, so tests can run them in float64). Rows are vectorised; inside a block of
128 columns the updates are rank one and in place, between blocks one matrix product.
Sources: Frantar et al., arXiv 2210.17323 (GPTQ), algorithm 1; Frantar, Alistarh,
arXiv 2301.00774 (SparseGPT), algorithm 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BLOCK = 128
DAMP = 0.01


def _inverse_factor(W: Tensor, H: Tensor, damp: float) -> Tensor:
    """Upper ``U`` with ``inv(damped H) = U^T U``; dead inputs are left alone, as ours does."""
    H = H.to(W.dtype, copy=True)
    diagonal = H.diagonal()  # a view
    dead = diagonal == 0
    diagonal[dead] = 1.0
    diagonal += damp * diagonal[~dead].mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True)


@torch.inference_mode()
def gptq(W: Tensor, H: Tensor, bits: int, *, block: int = BLOCK, damp: float = DAMP) -> Tensor:
    """``W [out, in]`` rounded to per-row symmetric grids, ``scale = absmax / (2^(b-1) - 1/2)``."""
    W = W.clone()
    U = _inverse_factor(W, H, damp)
    scale = W.abs().amax(dim=1) / (2 ** (bits - 1) - 0.5)
    scale[scale == 0] = 1.0
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    columns = W.T.contiguous()  # [in, out]: the sweep reads and writes whole columns
    for start in range(0, len(columns), block):
        end = min(start + block, len(columns))
        part, factor = columns[start:end], U[start:end, start:end]
        errors = torch.empty_like(part)
        for i, w in enumerate(part):
            q = (w / scale).round_().clamp_(low, high).mul_(scale)
            torch.sub(w, q, out=errors[i]).div_(factor[i, i])
            part[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
            w.copy_(q)
        columns[end:].addmm_(U[start:end, end:].T, errors, alpha=-1)
    return columns.T.contiguous()


@torch.inference_mode()
def sparsegpt(
    W: Tensor,
    H: Tensor,
    sparsity: float,
    *,
    block: int = BLOCK,
    damp: float = DAMP,
    select: Literal["sort", "kthvalue"] = "sort",
) -> Tensor:
    """``W [out, in]`` with a fraction ``sparsity`` of each block of columns pruned.

    The threshold is the k-th smallest score of the block, ``k = int(sparsity * size)``; ties at
    the threshold are pruned with it. ``select`` is how it is found: the same value, ``sort`` as
    published, ``kthvalue`` in linear time.
    """
    W = W.clone()
    U = _inverse_factor(W, H, damp)
    columns = W.T.contiguous()  # [in, out]
    for start in range(0, len(columns), block):
        end = min(start + block, len(columns))
        part, factor = columns[start:end], U[start:end, start:end]
        errors = torch.empty_like(part)
        score = (part / factor.diagonal()[:, None]).square_()
        score[H.diagonal()[start:end] == 0] = 0.0
        k = int(sparsity * score.numel())
        if k == 0:
            threshold = score.new_tensor(-1.0)
        elif select == "sort":
            threshold = score.flatten().sort().values[k - 1]
        else:
            threshold = score.flatten().kthvalue(k).values
        pruned = score <= threshold
        for i, w in enumerate(part):
            q = w.masked_fill(pruned[i], 0.0)
            torch.sub(w, q, out=errors[i]).div_(factor[i, i])
            part[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
            w.copy_(q)
        columns[end:].addmm_(U[start:end, end:].T, errors, alpha=-1)
    return columns.T.contiguous()
