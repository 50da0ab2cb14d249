"""Small rotations and shifts of images, bilinear, deterministic."""

from __future__ import annotations

import numpy as np


def warp(images: np.ndarray, degrees: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Rotate about the centre, then shift; zeros come in from outside.

    ``images [N, H, W, C]``, ``degrees [N]`` (counterclockwise as displayed), ``shift [N, 2]`` in
    pixels (down, right); returns ``[N, H, W, C]`` of the same type. Each pixel of the result
    reads the point it comes from, interpolated between the four pixels around it.
    """
    count, height, width, _ = images.shape
    angle = np.deg2rad(degrees)[:, None, None]
    cos, sin = np.cos(angle), np.sin(angle)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    row = rows - (height - 1) / 2 - shift[:, 0, None, None]  # [N,H,W], from the centre
    column = columns - (width - 1) / 2 - shift[:, 1, None, None]
    source_row = cos * row + sin * column + (height - 1) / 2
    source_column = -sin * row + cos * column + (width - 1) / 2

    top, left = np.floor(source_row).astype(int), np.floor(source_column).astype(int)
    down, right = source_row - top, source_column - left  # [N,H,W], in [0, 1)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    index = np.arange(count)[:, None, None]

    def pixel(r: np.ndarray, c: np.ndarray) -> np.ndarray:
        # Anything outside lands in the border of zeros.
        return padded[index, np.clip(r + 1, 0, height + 1), np.clip(c + 1, 0, width + 1)]

    def weigh(weight: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
        return weight[..., None] * pixel(r, c)

    result = (
        weigh((1 - down) * (1 - right), top, left)
        + weigh((1 - down) * right, top, left + 1)
        + weigh(down * (1 - right), top + 1, left)
        + weigh(down * right, top + 1, left + 1)
    )
    return result.astype(images.dtype)


def random_copies(
    images: np.ndarray, copies: int, seed: int, *, degrees: float, shift: float
) -> np.ndarray:
    """``copies`` warped versions of every image, ``[copies, N, H, W, C]``.

    Angles uniform in ``[-degrees, degrees]``, shifts in ``[-shift, shift]`` pixels an axis.
    """
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            warp(
                images,
                rng.uniform(-degrees, degrees, len(images)),
                rng.uniform(-shift, shift, (len(images), 2)),
            )
            for _ in range(copies)
        ]
    )
