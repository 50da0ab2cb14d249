"""The score of two to four stages on one model: each alone, and all in every order.

    scores = score(model, Wanda(0.5), GPTQ(4), calibration, heldout=test_inputs)
    scores.total["PQ"].out_rel, scores.total.order.advantage, scores.outputs["QP"].kl
    scores = score(model, [Drop("*.mlp", 0.25), SparseGPT(0.5), GPTQ(4)], calibration)
    scores.best, scores.advantages  # "CAB", and by how much it is better than each other order

Pure measurement: the model is not changed, and nothing is decided. Variants are named by their
stages' letters in the order of application: of a pruner P and a quantizer Q ``PQ`` = P -> Q (prune
first) and ``QP``; of any other stages A, B, C, D as they are given. Definitions:
:mod:`perturb.measure.errors` (measures), Kim et al., arXiv 2603.18426 (advantage, ownership). All
layer measures are against the reference: the dense model's weights, and H = E[x x^T] of its inputs
(where BatchNorms re-estimate their statistics, with those), rotated and scaled as stages rotate
and scale the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from perturb import network
from perturb.composition import Chain
from perturb.compression import Opened
from perturb.measure import intensity
from perturb.notes import check_finite, starved_note
from perturb.policy import Calibrate, Norms, Policy, Zeros
from perturb.registry import to_config
from perturb.scoring.layers import Gauge, layer_scores, pairs, refuse_not_finite
from perturb.scoring.orders import USAGE, Plan, given, plan_of
from perturb.scoring.outputs import Comparison, check_outputs
from perturb.scoring.types import Intensity, Scores, Seen, arrow
from perturb.stage import Context, Reports, Versions, expand
from perturb.state import Parameters
from perturb.storage import Storage
from perturb.types import Array

Curve = tuple[Sequence[float], Sequence[float]]
FEW = 20  # examples; fewer make no interval to be trusted


def score(
    model: Any,
    *stages: Any,
    calibration: Any = None,
    heldout: Any = None,
    order: str = "all",
    calibrate: Calibrate = "recalibrate",
    norms: Norms = "reestimate",
    zeros: Zeros = "free",
    key: Array | int = 0,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    forward: network.Forward = network.call,
    token_weights: network.TokenWeights | None = None,
    performance: Callable[[Any], float] | None = None,
    curve: Curve | None = None,
    tell: Callable[[str], None] | None = None,
) -> Scores:
    """Measure every stage alone and all of them in every order, on one model.

    ``score(model, A, B, calibration)``, ``score(model, [A, B, C], calibration)``, or calibration by
    name: two to four stages, each a method on matrices, a stage of a model or a chain of these.
    The variants are those of :func:`perturb.compress`, of which ``calibrate``, ``norms``,
    ``zeros``, ``key``, ``exclude``, ``include``, ``forward`` and ``token_weights`` are arguments;
    what orders begin with alike is computed once and continued.
    calibration: a batch of model inputs or a list of them. heldout: others, on which the outputs
    ``forward(model, batch)`` (logits [examples, ..., classes]) are compared, with intervals over
    the examples (independent ones: of augmented copies give one); by default those of calibration,
    which stages may have been fitted to.
    order: "all" ("both"), or those to run: "pq", "abc,cba". performance: M of a model, higher is
    better, and curve = (increasing ratios of quantizing alone as ``Scores.storage`` gives them, M
    there): with them come the whole model's intensities. tell: is told what is being done.
    Raises ValueError before any work for what are no stages and what :func:`perturb.compress`
    refuses; afterwards, naming the layer, for a measure that is not finite.
    """
    chosen, calibration = given(stages, calibration)
    plan = plan_of(chosen, order)
    if curve is not None and (performance is None or not plan.roles):
        raise ValueError(
            "a curve is that of a quantizer, and is compared with a performance: give a pruner, "
            "a quantizer and performance as well"
        )
    if calibration is None:
        raise ValueError(f"there is no calibration data: {USAGE}")
    opened = Opened(
        model,
        calibration,
        Policy(calibrate, norms, zeros),
        key,
        exclude=exclude,
        include=include,
        forward=forward,
        token_weights=token_weights,
    )
    run = _Run(opened, plan, heldout, performance, tell or _silent)
    return run.scores(curve)


def _silent(text: str) -> None:
    pass


@dataclass
class _Run:
    """What a score goes through, and what it finds on the way."""

    opened: Opened
    plan: Plan
    heldout: Any
    performance: Callable[[Any], float] | None
    tell: Callable[[str], None]
    done: int = 0  # stages
    storage: dict[str, Storage] = field(default_factory=dict)
    solver: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    compared: dict[str, Versions] = field(default_factory=dict)  # of two stages, all variants

    def __post_init__(self) -> None:
        net = self.opened.network
        self.context: Context = replace(self.opened.context, tell=self._detail)
        self.context.check(s for steps in self.plan.stages.values() for s in steps)
        calibration = self.context.batches or ()
        check_outputs(jax.eval_shape(net.outputs, net.state(Parameters({}, {})), calibration[0]))
        apart = self.heldout is not None
        self.comparison = Comparison(
            net, network.batches_of(self.heldout) if apart else calibration
        )
        self.order = network.call_order(net.given, net.specs, calibration[0], net.forward)
        self.step = ""

    def _detail(self, text: str) -> None:
        self.tell(f"{self.step}: {text}")

    def _begin(self, text: str) -> None:
        self.step = text
        self.tell(text)

    def _walk(self, before: Versions, path: str, position: int) -> None:
        """Everything that continues a beginning of orders, depth first."""
        for letter in self.plan.after(path):
            here, after, at = path + letter, before, position
            self.done += 1
            told: dict[str, dict[str, float]] = {}
            for step in self.plan.stages[letter]:
                self._begin(
                    f"stage {self.done} of {self.plan.runs}, {arrow(here)}: {step.name} on "
                    f"{len(self.order)} layers from {self.order[0]}"
                )
                after, reports = expand(after, [step], self.context, at)
                told |= _reports(reports)
                at += 1
            parameters = after.parameters(0)
            check_finite(arrow(here), parameters.weights)
            if told:
                self.solver[here] = told
            if here in self.plan.variants:
                self._keep(here, after, parameters)
            self._walk(after, here, at)

    def _keep(self, variant: str, version: Versions, parameters: Parameters) -> None:
        self._detail("measuring its layers")
        self.gauge.add(variant, version)
        self.storage[variant] = self.opened.storage(version.one(0))
        self._detail(f"its outputs on {len(self.comparison.batches)} batches")
        self.comparison.add(variant, parameters)
        if self.performance is not None:
            self._detail("its performance")
            self.tried[variant] = float(self.performance(self.opened.network.model(parameters)))
        if len(self.plan.stages) == 2:
            self.compared[variant] = version

    def scores(self, curve: Curve | None) -> Scores:
        opened, plan, context = self.opened, self.plan, self.context
        net = opened.network
        self._begin("calibrating the dense model")
        start = context.start()
        self.gauge = Gauge(net.shapes, start.reference)
        if self.performance is not None:
            self.tried["dense"] = float(self.performance(net.given))
        moments = start.reference.moments
        context.note(starved_note(moments))
        context.note(network.inputs_notes(net.specs, moments))
        self._walk(start, "", 0)
        self._begin("measuring the layers")
        found = {}
        if len(plan.stages) == 2 and self.gauge.alike(*plan.variants):
            both = [self.compared[v] for v in plan.variants]
            both = both if len(plan.orders) == 2 else both[:2]
            found = pairs(both, self.gauge.shapes, plan.roles)
        layers, total = layer_scores(self.gauge, self.order, plan.variants, found)
        refuse_not_finite((*layers, total))
        notes = self._notes()
        outputs = self.comparison.outputs()
        return Scores(
            model=type(net.given).__name__,
            stages={k: _config(steps) for k, steps in plan.stages.items()},
            policy=context.policy,
            layers=layers,
            total=total,
            outputs={v: outputs[v] for v in plan.variants},
            distance=self.comparison.distance,
            examples=len(self.comparison.count),
            heldout=self.heldout is not None,
            advantages=self.comparison.advantages(plan.orders, len(plan.stages) == 2),
            intensity=self._intensity(curve),
            solver=self.solver,
            skipped=opened.skipped,
            inputs={
                n: Seen(tokens, net.specs[n].shape[1], dead)
                for n, (tokens, dead) in network.inputs_report(moments).items()
            },
            storage={v: self.storage[v] for v in plan.variants},
            coverage=opened.coverage,
            notes=notes,
        )

    def _notes(self) -> tuple[str, ...]:
        """What was noted, with what is no news on every call: only the others are warned of."""
        for note in self.context.notes:
            warnings.warn(note, stacklevel=4)
        notes = list(self.context.notes)
        if self.heldout is None:
            notes.append(
                "outputs are compared on the calibration inputs, which stages may have been "
                "fitted to: give heldout= other ones"
            )
        if len(self.comparison.count) < FEW:
            notes.append(
                f"outputs are compared on {len(self.comparison.count)} examples: too few for "
                "intervals to be trusted"
            )
        return tuple(notes)

    def _intensity(self, curve: Curve | None) -> Intensity | None:
        m = self.tried
        if not m:
            return None
        if len(self.plan.stages) != 2:
            return Intensity(m, None, None, None, None)
        first, second = self.plan.stages
        gap = float(intensity.performance_gap(m[second], m[first]))
        orders = (second + first, first + second)
        advantage = None
        if all(o in m for o in orders):
            advantage = float(intensity.order_advantage(*(m[o] for o in orders)))
        if curve is None:
            return Intensity(m, gap, advantage, None, None)
        ratios, performances = (np.asarray(values, float) for values in curve)
        star = intensity.equivalent_ratio(m[first], ratios, performances)
        c_q = self.storage[second].ratio
        return Intensity(m, gap, advantage, star, (star.low - c_q, star.high - c_q))


def _config(steps: Sequence[Any]) -> Mapping[str, Any]:
    if len(steps) == 1:
        return to_config(steps[0])
    return {"name": Chain(tuple(steps)).name, "stages": [to_config(s) for s in steps]}


def _reports(reports: Reports) -> dict[str, dict[str, float]]:
    """Layers whose Hessian needed more damping than asked for, or had dead inputs; of [1]."""
    told = {}
    for name, report in jax.device_get(dict(reports)).items():
        if report.retries[0] or report.dead[0]:
            told[name] = {k: float(v[0]) for k, v in report._asdict().items()}
    return told
