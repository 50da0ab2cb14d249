"""What a score says: of every layer, of the model's outputs, of the orders."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from perturb.measure.intensity import EquivalentRatio
from perturb.network import Coverage
from perturb.plain import plain, to_json
from perturb.policy import Policy
from perturb.storage import Storage

RESOLUTION = 1e-5  # relative; float32 sums do not resolve a smaller difference of two errors
EQUAL = "equal"  # in the place of an order, where the orders differ by no more than that


def arrow(variant: str) -> str:
    """``P→Q`` for PQ, which applies P first."""
    return variant if variant == EQUAL else "→".join(variant)


@dataclass(frozen=True)
class Perturbation:
    """What one variant did to a layer: :func:`perturb.measure.errors.measures`, and

    pruned: fraction of weights that are pruned, the achieved sparsity; zero: fraction that is
    exactly 0, whoever made it so (a quantizer rounds to 0, too).
    """

    fro: float
    fro_rel: float
    spec: float
    spec_rel: float
    out_err: float
    out_rel: float
    snr_db: float
    pruned: float
    zero: float


@dataclass(frozen=True)
class OrderEffect:
    """What changes in a layer with the order of two stages, with M = -E||dW x||^2 of that layer.

    owner_changed  fraction of weights that only one of the orders prunes
    advantage      A(Q->P) = out_err(PQ) - out_err(QP); > 0: quantize first is better
    advantage_rel  the same over E||W x||^2
    by_ownership   A(Q->P) from ownership alone (Theorem 1;
                   :func:`perturb.measure.errors.owned_error`)
    interference   advantage - by_ownership: what a method does to weights it does not own
    prefers        "PQ", "QP", or "equal" where the two errors agree to float32 rounding

    P stands for the first stage, Q for the second; ownership is that of a pruner and a quantizer,
    by_ownership and interference of others are None.
    """

    owner_changed: float
    advantage: float
    advantage_rel: float
    by_ownership: float | None
    interference: float | None
    prefers: str


@dataclass(frozen=True)
class LayerScore:
    """One layer, or (``total``) all layers as the blocks of one block-diagonal matrix.

    norm, spectral, energy: ||W||_F, ||W||_2 and E||W x||^2 of the dense layer. The relative
    measures are relative to those of the reference, which is the dense layer unless a stage
    reparametrised the model. cosine: between the perturbations of two stages alone; None for more
    stages, and where they are perturbations of different references.
    """

    name: str
    size: int
    norm: float
    spectral: float
    energy: float
    variants: Mapping[str, Perturbation]
    cosine: float | None
    order: OrderEffect | None  # of two stages whose orders were both run

    def __getitem__(self, variant: str) -> Perturbation:
        return self.variants[variant]

    @property
    def errors(self) -> dict[str, float]:
        """``out_err`` of the complete orders."""
        return {v: x.out_err for v, x in self.variants.items() if len(v) > 1}

    @property
    def prefers(self) -> str:
        """The order of least ``out_err``, or "equal" where all agree to float32 rounding."""
        return nearest(self.errors)


def nearest(distances: Mapping[str, float]) -> str:
    """The order of least distance, the first of equal ones; "equal" if all are."""
    least, most = min(distances.values()), max(distances.values())
    if len(distances) > 1 and most - least <= RESOLUTION * most:
        return EQUAL
    return min(distances, key=lambda v: distances[v])


@dataclass(frozen=True)
class Outputs:
    """Distance of a variant's outputs from the dense model's, over the held-out inputs.

    logit_mse: mean of (z' - z)^2 over examples and classes; kl: mean over predictions of
    KL(softmax z || softmax z'), in nats; nan where the model has a single output. Token weights
    weigh the predictions, too, where each is a token's.
    """

    logit_mse: float
    kl: float


@dataclass(frozen=True)
class Advantage:
    """How much nearer to the dense model's outputs one order is than another.

    value = d(over) - d(order), d = :attr:`Scores.distance`; > 0: ``order`` is better. low, high:
    95 % interval of the paired bootstrap over the examples, nan for a single example (of this pair
    of orders: that the nearest of many was chosen by the same examples is not corrected for). sign:
    of value where the interval excludes 0 and rounding does not explain it, else 0.
    """

    order: str
    over: str
    value: float
    low: float
    high: float
    sign: int

    @property
    def turned(self) -> Advantage:
        """The same said of the other order."""
        return Advantage(self.over, self.order, -self.value, -self.high, -self.low, -self.sign)


@dataclass(frozen=True)
class Intensity:
    """Whole-model intensities from the caller's performance M (higher is better).

    Of two stages: gap = G(Q,P) = M(Q) - M(P), > 0: P is the stronger; advantage = A(Q->P) =
    M(QP) - M(PQ). equivalent = C*_P on the caller's quantization curve, ratio_gap = (low, high) of
    C*_P - C_Q; None without a curve. Source: Kim et al.; see :mod:`perturb.measure.intensity`.
    """

    performance: Mapping[str, float]
    gap: float | None
    advantage: float | None
    equivalent: EquivalentRatio | None
    ratio_gap: tuple[float, float] | None


@dataclass(frozen=True)
class Seen:
    """What calibration showed a layer: tokens (or the sum of their weights), its inputs, and how
    many of these were 0 in all tokens."""

    tokens: float
    inputs: int
    dead: int


@dataclass(frozen=True)
class Scores:
    """Everything :func:`perturb.score` measured. Variants are named by the letters of their
    stages in the order of application.

    stages: each letter's configuration; layers: in the order of calls. distance: what d of the
    orders is, "kl" or (of models with a single output) "logit_mse"; examples: over how many;
    heldout: whether these are apart from calibration. advantages: of two stages A(Q->P), of more
    those of the nearest order over each other one. solver: of each variant, and of the beginnings
    of orders, the layers whose Hessian needed more damping than asked for or had dead inputs.
    skipped: layers left alone; inputs: what calibration showed the others; storage: each
    variant's, with its ratio; coverage: what share of the model's parameters the layers are;
    notes: what a reader of these numbers should know.
    """

    model: str
    stages: Mapping[str, Mapping[str, Any]]
    policy: Policy
    layers: tuple[LayerScore, ...]
    total: LayerScore
    outputs: Mapping[str, Outputs]
    distance: str
    examples: int
    heldout: bool
    advantages: tuple[Advantage, ...]
    intensity: Intensity | None
    solver: Mapping[str, Mapping[str, Mapping[str, float]]]
    skipped: Mapping[str, str]
    inputs: Mapping[str, Seen]
    storage: Mapping[str, Storage]
    coverage: Coverage
    notes: tuple[str, ...]

    @property
    def distances(self) -> dict[str, float]:
        """d of every variant."""
        return {v: getattr(x, self.distance) for v, x in self.outputs.items()}

    @property
    def orders(self) -> dict[str, float]:
        """d of the complete orders, the nearest first."""
        d = {v: x for v, x in self.distances.items() if len(v) > 1}
        return dict(sorted(d.items(), key=lambda item: item[1]))

    @property
    def best(self) -> str:
        """The order whose outputs are nearest to the dense model's, or "equal" if all are."""
        return nearest(self.orders)

    def to_rows(self) -> list[dict[str, Any]]:
        """Flat rows with the same keys, a layer each and the total last.

        ``pq_out_rel`` is the field ``out_rel`` of variant PQ; ``pq_kl`` and ``pq_logit_mse``
        are the model's outputs and stand in the total row only. Of more than two stages there is
        no ``cosine`` and nothing of :class:`OrderEffect`.
        """
        rows = []
        for layer in (*self.layers, self.total):
            row: dict[str, Any] = {"layer": layer.name, "size": layer.size}
            row |= {"norm": layer.norm, "spectral": layer.spectral, "energy": layer.energy}
            for variant, done in layer.variants.items():
                out = asdict(self.outputs[variant])
                whole = out if layer is self.total else dict.fromkeys(out)
                row |= {f"{variant.lower()}_{k}": v for k, v in (asdict(done) | whole).items()}
            if len(self.stages) == 2:
                row["cosine"] = layer.cosine
                effect = layer.order and asdict(layer.order)
                row |= effect or dict.fromkeys(f.name for f in fields(OrderEffect))
            else:
                row["prefers"] = layer.prefers
            rows.append(row)
        return rows

    def to_json(self) -> str:
        """One JSON object; what JSON cannot say (nan, infinities) is null."""
        told = plain(self)
        told["coverage"]["share"] = self.coverage.share
        told["best"] = self.best
        for variant, storage in self.storage.items():
            told["storage"][variant]["ratio"] = storage.ratio
        return to_json(told)

    def to_csv(self) -> str:
        """:meth:`to_rows` with a header; None is empty, an infinite SNR is ``inf``."""
        rows, text = self.to_rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
