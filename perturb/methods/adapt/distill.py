"""Distillation: the kept weights trained to bring the dense model's outputs back.

After a pruner this is sparse fine-tuning, after a quantizer quantization-aware training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from perturb.architecture import Architecture
from perturb.methods.adapt.train import check_training, trained
from perturb.registry import check_choice
from perturb.stage import Outcome, Sight, matching
from perturb.state import State


@dataclass(frozen=True)
class Distill:
    """Objective: ``min over the kept weights`` of the mean KL from the reference's outputs to the
    model's, over the calibration batches.

    Masks stay, and what is pruned stays 0. Adam, ``learning_rate`` falling linearly to 0, a batch
    (or ``examples`` of one) a step in turn; outputs with a single class are compared by squared
    differences. Trained are the matrices of the layers that ``where`` matches, the factors of a
    product among them; adapters, norms, biases and embeddings are not.
    on_grid: weights that lie on a grid stay on it ("through": the outputs are those of the rounded
    weights, gradients pass straight through the rounding, scales stay), or leave it ("release":
    quantize again afterwards).
    Source: Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), at temperature 1, without labels;
    Bengio et al. 2013 (arXiv 1308.3432); Kingma and Ba, ICLR 2015 (arXiv 1412.6980).
    """

    steps: int = 100
    learning_rate: float = 1e-4
    where: str = "*"
    examples: int | None = None
    on_grid: Literal["through", "release"] = "through"

    name: ClassVar[str] = "distill"

    def __post_init__(self) -> None:
        check_training(self, {"steps": 0})
        check_choice("on_grid", self.on_grid, ("through", "release"))

    @property
    def needs_stats(self) -> bool:
        return self.steps > 0

    def check(self, architecture: Architecture) -> None:
        matching(architecture, self.where, self.name)

    def on_state(self, state: State, context: Sight) -> Outcome:
        layers = matching(context.architecture, self.where, self.name)
        # of each layer its first product: what LoRA added beside it stays
        held = [p[0] for n in layers if (p := state.products(n))]
        names = tuple(dict.fromkeys(n for product in held for n in product))
        if self.on_grid == "release":
            free = {n: state.matrices[n]._replace(grid=None, quantizer=None) for n in names}
            state = state.with_matrices(free)
        if not self.steps or not names:
            return Outcome(state)
        done = trained(self, state, names, context)
        return Outcome(
            state.with_matrices({n: state.matrices[n]._replace(weight=w) for n, w in done.items()})
        )
