"""What a comparison of orders usually leaves unsaid: what stages see, and what is kept for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Calibrate = Literal["recalibrate", "sequential", "dense"]
Norms = Literal["reestimate", "keep"]
Zeros = Literal["free", "keep"]
CHOICES: dict[str, tuple[str, ...]] = {
    "calibrate": get_args(Calibrate),
    "norms": get_args(Norms),
    "zeros": get_args(Zeros),
}  # the defaults first


@dataclass(frozen=True)
class Policy:
    """How a chain of stages is run; the same defaults everywhere.

    calibrate: which inputs a stage sees.
        "recalibrate"  those of the model it was handed, all layers at once: one calibration and
                       one factorisation serve every stage that may come next;
        "sequential"   block after block, each from the blocks before it as this stage left them;
                       layers of one block in parallel (the reference implementations);
        "dense"        those of the uncompressed model, for every stage.
    norms: BatchNorms re-estimate their running statistics on the calibration data after each
        stage, and before the first, so that a stage that does nothing changes nothing; or "keep"
        those of the dense model.
    zeros: weights that are 0 already count as any other ("free") or as pruned ("keep").
    Raises ValueError naming the field and its choices.
    """

    calibrate: Calibrate = "recalibrate"
    norms: Norms = "reestimate"
    zeros: Zeros = "free"

    def __post_init__(self) -> None:
        for what, choices in CHOICES.items():
            value = getattr(self, what)
            if value not in choices:
                told = ", ".join(map(repr, choices))
                raise ValueError(f"{what} must be one of {told}; got {value!r}")
