"""Small linear maps and shifts of images, bilinear, deterministic."""

from __future__ import annotations

import numpy as np


def warp(images: np.ndarray, linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The image seen through a linear map about its centre, then shifted; zeros come in.

    ``images [N, H, W, C]``, ``shift [N, 2]`` in pixels (down, right); returns ``[N, H, W, C]`` of
    the same type. ``linear [N, 2, 2]`` is the inverse map: the pixel at (row, column) ``p`` from
    the centre reads the point ``linear @ (p - shift)``, interpolated between four pixels.
    """
    count, height, width, _ = images.shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    row = rows - (height - 1) / 2 - shift[:, 0, None, None]  # [N,H,W], from the centre
    column = columns - (width - 1) / 2 - shift[:, 1, None, None]
    entry = linear[:, :, :, None, None]  # [N,2,2,1,1]
    source_row = entry[:, 0, 0] * row + entry[:, 0, 1] * column + (height - 1) / 2
    source_column = entry[:, 1, 0] * row + entry[:, 1, 1] * column + (width - 1) / 2

    top, left = np.floor(source_row).astype(int), np.floor(source_column).astype(int)
    down, right = source_row - top, source_column - left  # [N,H,W], in [0, 1)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    index = np.arange(count)[:, None, None]

    def weigh(weight: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
        # Anything outside lands in the border of zeros.
        r, c = np.clip(r + 1, 0, height + 1), np.clip(c + 1, 0, width + 1)
        return weight[..., None] * padded[index, r, c]

    result = (
        weigh((1 - down) * (1 - right), top, left)
        + weigh((1 - down) * right, top, left + 1)
        + weigh(down * (1 - right), top + 1, left)
        + weigh(down * right, top + 1, left + 1)
    )
    return result.astype(images.dtype)


def rotation(degrees: np.ndarray) -> np.ndarray:
    """``linear`` of :func:`warp` for turns counterclockwise as displayed, ``[N, 2, 2]``."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=-2)


def random_rotations(
    images: np.ndarray, copies: int, seed: int, *, degrees: float, shift: float
) -> np.ndarray:
    """``copies`` versions of every image, ``[copies, N, H, W, C]``.

    Angles uniform in ``[-degrees, degrees]``, shifts in ``[-shift, shift]`` pixels an axis.
    """
    rng = np.random.default_rng(seed)
    count = len(images)

    def version() -> np.ndarray:
        linear = rotation(rng.uniform(-degrees, degrees, count))
        return warp(images, linear, rng.uniform(-shift, shift, (count, 2)))

    return np.stack([version() for _ in range(copies)])


def random_distortions(
    images: np.ndarray, copies: int, seed: int, *, spread: float, shift: float
) -> np.ndarray:
    """``copies`` versions of every image, ``[copies, N, H, W, C]``.

    Seen through the identity plus a matrix of normal entries of deviation ``spread``: turned,
    slanted, stretched. Shifts are uniform in ``[-shift, shift]`` pixels an axis.
    """
    rng = np.random.default_rng(seed)
    count = len(images)

    def version() -> np.ndarray:
        linear = np.eye(2) + rng.normal(0.0, spread, (count, 2, 2))
        return warp(images, linear, rng.uniform(-shift, shift, (count, 2)))

    return np.stack([version() for _ in range(copies)])
