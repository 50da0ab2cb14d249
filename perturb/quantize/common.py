"""What the quantizers share: checks, the mask policy, and where scales come from."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from perturb.registry import check_bits, check_choice
from perturb.types import Array, Layer

BITS_DENSE = 16  # the width that compression ratios are relative to


def check_quantizer(quantizer: Any) -> None:
    check_bits(quantizer.bits)
    check_choice("mask", quantizer.mask, ("enforce", "free"))
    check_choice("scale_source", quantizer.scale_source, ("current", "dense"))
    check_choice("target", quantizer.target, ("current", "dense"))


def start_weight(layer: Layer, target: str, enforced: bool) -> Array:
    """The weights to quantize: what came in, or the dense ones under the mask."""
    w = layer.dense if target == "dense" else layer.weight
    return jnp.where(layer.mask, w, 0) if enforced else w
