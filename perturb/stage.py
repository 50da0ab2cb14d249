"""Stages: what is done to a whole model at once, and how stages compose.

A method on matrices is a stage by :func:`layerwise` (every layer that a pattern matches) or
:func:`per_layer` (patterns with methods of their own). What is no method on matrices (dropping
units, removing blocks, rotating, adapters) is a stage of its own: ``on_state(state, context)``.
Wherever a stage is asked for, a method on matrices may stand.

    start = context.start()                      # the dense model, one version of itself
    pruned = expand(start, [Wanda(0.3), Wanda(0.5)], context, position=0)      # two versions
    both = expand(pruned, [GPTQ(4), GPTQ(3)], context, position=1)             # four

``expand`` is what every chain and every study is made of: F stages on R versions of a model, R F
versions. By law it equals a loop over chains of single stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from perturb import registry
from perturb.architecture import Architecture, architecture_of
from perturb.family import run_family
from perturb.network import Network, call_blocks, fits, get_vectors, has_vector
from perturb.notes import starved_note
from perturb.policy import Policy
from perturb.state import (
    ADAPTER,
    FACTORS,
    Parameters,
    State,
    flatten,
    fresh,
    inputs_of,
    layer_weight,
    parameters_of,
    problem_of,
    stack,
    take,
    uses,
    versions,
)
from perturb.trees import STATIC, register_tree
from perturb.types import Array, MatrixMethod, Moments, Problem, Solved, SolveReport

Reports = Mapping[str, SolveReport]


class Reference:
    """What is approximated: the model before the first stage, up to exact reparametrisations."""

    def __init__(self, network: Network, parameters: Parameters, batches: Any) -> None:
        self.network, self.parameters, self._batches = network, parameters, batches

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the layers' inputs in this very model, over the calibration batches."""
        state = self.network.state(self.parameters)
        assert self._batches is not None, "a stage that needs inputs was not checked"
        return self.network.moments(state, self._batches)

    @property
    def weights(self) -> Mapping[str, Array]:
        return self.parameters.weights


class Versions:
    """A state with an axis of versions, and what a stage sees that is applied to it.

    A single version may be given without the axis (:meth:`alone`), and gets it when it is asked
    for: until then a large model is not held twice.
    """

    def __init__(self, context: Context, state: State, reference: Reference, size: int) -> None:
        self.context, self.reference, self.size = context, reference, size
        self.untouched = False  # whether it is the reference itself
        self._state: State | None = state
        self._alone: State | None = None

    @classmethod
    def alone(cls, context: Context, state: State, reference: Reference) -> Versions:
        """One version, of a state without the axis."""
        made = cls(context, state, reference, 1)
        made._state, made._alone = None, state
        return made

    @property
    def state(self) -> State:
        """All versions, with the axis."""
        if self._state is None:
            self._state, self._alone = versions(self._alone), None
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state, self._alone = state, None

    def one(self, index: int) -> State:
        """A version by itself, without the axis."""
        return take(self.state, np.int32(index)) if self._alone is None else self._alone

    def parameters(self, index: int) -> Parameters:
        """What a model is given to be this version."""
        alone, shapes = self._alone, self.context.shapes
        if alone is None:
            return _parameters(self.state.bare, np.int32(index), shapes)
        return (
            _parameters_of(alone.bare, shapes)
            if alone.terms
            else parameters_of(alone, dict(shapes))
        )

    @property
    def share_moments(self) -> bool:
        """Whether all versions see the reference's."""
        return self.untouched or self.context.policy.calibrate == "dense"

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the layers' inputs that a stage sees: each version's own [R, ...], or
        without the axis where all see the reference's."""
        context = self.context
        if self.share_moments:
            found = self.reference.moments
            context.note(starved_note(found))
            return found
        network = context.network
        each = []
        for r in range(self.size):
            state = network.state(self.parameters(r))
            each.append(network.moments(state, context.batches or ()))
            context.note(starved_note(each[-1]))
        return stack(tuple(each))


@partial(jax.jit, static_argnames=("shapes",))
def _parameters(state: State, index: Array, shapes: Any) -> Parameters:
    return parameters_of(take(state, index), dict(shapes))


@partial(jax.jit, static_argnames=("shapes",))
def _parameters_of(state: State, shapes: Any) -> Parameters:
    return parameters_of(state, dict(shapes))


class Outcome(NamedTuple):
    """What a stage leaves; ``reference``: a new one, where it reparametrised the model exactly."""

    state: State
    reports: Reports = MappingProxyType({})
    reference: Parameters | None = None


@runtime_checkable
class Stage(Protocol):
    """What is done to a model as a whole: an immutable value with a name.

    Laws (tests/test_stages.py): the same key gives the same result; a reparametrisation keeps the
    outputs; what it leaves is storable (:mod:`perturb.storage`).
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_stats(self) -> bool:
        """Whether it looks at calibration data."""
        ...

    def check(self, architecture: Architecture) -> None:
        """Raise ValueError, before any work, for what it cannot do on this model."""
        ...

    def on_state(self, state: State, context: Sight) -> Outcome: ...


def _silent(text: str) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Context:
    """A model, its calibration data, and under which policy stages are run on it.

    notes: what is to be told of the runs is added to it, each line once. tell: is told what is
    being done, in a few words.
    """

    network: Network
    batches: Sequence[Any] | None
    policy: Policy
    key: Array
    notes: list[str] = field(default_factory=list)
    tell: Callable[[str], None] = _silent

    @cached_property
    def architecture(self) -> Architecture:
        network = self.network
        return architecture_of(network.given, network.shapes, network.feature_groups)

    @cached_property
    def shapes(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        return tuple(self.network.shapes.items())

    @cached_property
    def blocks(self) -> list[list[str]]:
        """Layers in call order, grouped as decoder blocks are."""
        assert self.batches is not None
        network = self.network
        return call_blocks(network.given, network.specs, self.batches[0], network.forward)

    def note(self, lines: Iterable[str]) -> None:
        self.notes.extend(line for line in lines if line not in self.notes)

    def note_all_at_once(self, stage: str) -> None:
        """Tell where "sequential" was asked for and a stage sees all layers at once."""
        if self.policy.calibrate == "sequential":
            self.note([f"{stage} sees the inputs of all layers at once, not block after block"])

    @property
    def reestimates(self) -> bool:
        known = self.batches is not None and self.network.has_norms
        return known and self.policy.norms == "reestimate"

    def norms(self, parameters: Parameters) -> dict[str, Array]:
        """The running statistics of the model with these parameters, if they are re-estimated."""
        if not self.reestimates:
            return {}
        return self.network.norms(self.network.state(parameters), self.batches or ())

    def start(self) -> Versions:
        """The dense model as one version of itself, and the reference of all others."""
        weights = self.network.weights
        vectors = self.norms(Parameters({}, {}))
        matrices = {n: fresh(w, self.policy.zeros) for n, w in weights.items()}
        reference = Reference(self.network, Parameters(weights, vectors), self.batches)
        begun = Versions.alone(self, State(matrices, vectors), reference)
        begun.untouched = True
        return begun

    def check(self, stages: Iterable[Any]) -> None:
        """Refuse, before any work, what stages cannot do on this model."""
        for stage in map(as_stage, stages):
            stage.check(self.architecture)
            if stage.needs_stats and self.batches is None:
                raise ValueError(
                    f"{stage.name} looks at the layers' inputs: give calibration data "
                    "(a batch of model inputs, or a list of batches)"
                )


@dataclass(frozen=True)
class Sight:
    """What a stage on a single state may look at: the run's context, its own key, the reference."""

    context: Context
    key: Array
    reference: Reference
    versions: Versions  # among which the state is
    index: int

    @cached_property
    def moments(self) -> Mapping[str, Moments]:
        """Moments of the layers' inputs, computed when they are asked for."""
        self.context.note_all_at_once("a stage of whole models")
        versions = self.versions
        if versions.share_moments:
            return versions.moments
        return take(versions.moments, np.int32(self.index))

    @property
    def network(self) -> Network:
        return self.context.network

    @property
    def architecture(self) -> Architecture:
        return self.context.architecture

    def parameters(self, state: State) -> Parameters:
        return parameters_of(state, dict(self.context.shapes))

    def vectors(self, known: Mapping[str, Array], names: Iterable[str]) -> dict[str, Array]:
        """Vectors by name: those known, else the model's own; without those it does not have."""
        model = self.network.given
        own = [n for n in names if n not in known and has_vector(model, n)]
        return {n: known[n] for n in names if n in known} | get_vectors(model, own)


# ------------------------------------------------------------------------- methods as stages


@register_tree
@dataclass(frozen=True)
class Layerwise:
    """Methods on matrices, each on the layers that its pattern matches: the first match counts.

    Made by :func:`layerwise` and :func:`per_layer`.
    """

    methods: tuple[MatrixMethod, ...]
    patterns: tuple[str, ...] = field(metadata=STATIC)

    @property
    def name(self) -> str:
        return "+".join(m.name for m in self.methods)

    @property
    def needs_stats(self) -> bool:
        return any(m.needs_stats for m in self.methods)

    def assign(self, names: Iterable[str]) -> list[list[str]]:
        """Of every method the matrices it works on. An adapter only where a pattern says so; the
        factors of a layer go by its name, too."""
        found: list[list[str]] = [[] for _ in self.methods]
        for name in names:
            for mine, pattern in zip(found, self.patterns, strict=True):
                plain = ADAPTER not in name or ADAPTER in pattern
                whole = name[:-2] if name.endswith(FACTORS) else name
                if plain and (fits(name, pattern) or fits(whole, pattern)):
                    mine.append(name)
                    break
        return found

    def check(self, architecture: Architecture) -> None:
        assigned = self.assign(architecture.layers)
        for method, pattern, names in zip(self.methods, self.patterns, assigned, strict=True):
            if not names and ADAPTER not in pattern:
                raise ValueError(
                    f"the pattern {pattern!r} of {method.name} has no layer (the first pattern "
                    f"that matches counts); layers are: {', '.join(architecture.layers)}"
                )
            registry.check_layers(method, {n: architecture.layers[n] for n in names})

    def on_state(self, state: State, context: Sight) -> Outcome:
        if self.needs_stats:
            context.context.note_all_at_once(self.name)
        alone = Versions.alone(context.context, state, context.reference)
        state, reports = flatten(_on_versions([self], alone, context.key))
        return Outcome(take(state, np.int32(0)), take(reports, np.int32(0)))


def layerwise(method: MatrixMethod, where: str = "*") -> Layerwise:
    """The method on every layer whose name matches the shell pattern."""
    return per_layer({where: method})


def per_layer(rules: Mapping[str, MatrixMethod]) -> Layerwise:
    """Methods of their own for the layers that match a pattern; the first match counts.

    ``per_layer({"*.down_proj": GPTQ(8), "*": GPTQ(4)})``. Layers without a match are left alone; a
    pattern without a layer is an error.
    """
    if not rules:
        raise ValueError("per_layer needs at least one pattern with a method")
    return Layerwise(tuple(rules.values()), tuple(rules))


def matching(architecture: Architecture, pattern: str, stage: str) -> list[str]:
    """The layers that a stage's pattern names; ValueError if there is none."""
    names = [n for n in architecture.layers if fits(n, pattern)]
    if not names:
        raise ValueError(
            f"the pattern {pattern!r} of {stage} has no layer; layers are: "
            f"{', '.join(architecture.layers)}"
        )
    return names


def check_single(
    state: State, names: Iterable[str], architecture: Architecture, stage: str
) -> None:
    """Refuse layers that are a sum or a product, or that share their matrix with others."""
    places = uses(state, architecture.layers)
    for name in names:
        products = state.products(name)
        if products != ((name,),):
            told = " + ".join(" ".join(p) for p in products) or "nothing"
            raise ValueError(f"{stage}: {name} is made of {told}, no single matrix")
        if len(places[name]) > 1:
            raise ValueError(f"{stage}: {name} shares its matrix with other layers")


def check_undestroyed(stage: str, what: str, names: Sequence[str]) -> None:
    """Refuse to destroy the grids or masks (``what``) of these matrices, if there are any."""
    if names:
        raise ValueError(
            f"{stage} would destroy the {what} of {len(names)} matrices (first: {names[0]}): "
            "put it first, or allow that with release=True"
        )


def as_stage(stage: Any) -> Stage:
    """A stage, or a method on matrices as one on all layers."""
    if isinstance(stage, Stage):
        return stage
    if isinstance(stage, MatrixMethod):
        return layerwise(stage)
    raise ValueError(
        f"{stage!r} is neither a method on matrices (name, needs_stats, "
        "__call__(matrix, problem, key)) nor a stage (name, needs_stats, check, on_state)"
    )


# -------------------------------------------------------------------------------- running


class Expanded(NamedTuple):
    """Versions [R F] with the solvers' reports of the last stage."""

    versions: Versions
    reports: Reports


class _Done(NamedTuple):
    state: State  # [R, F] or, of one version, [F]
    reports: Reports


def is_family(stages: Sequence[Any]) -> bool:
    """Whether these stages differ in amounts only, and are solved as one."""
    return bool(_family([as_stage(s) for s in stages]))


def _family(stages: Sequence[Stage]) -> list[Layerwise]:
    """The stages, if they differ in amounts only; else none."""
    alike = [s for s in stages if isinstance(s, Layerwise) and _like(s, stages[0])]
    return alike if len(alike) == len(stages) else []


def expand(before: Versions, stages: Sequence[Any], context: Context, position: int) -> Expanded:
    """F stages, the ``position``-th of their chains, on each of the R versions: R F versions.

    Version r F + f is stage f on version r. Stages that differ in amounts only (sparsity, bits)
    are solved as one family. What is not finite is for the caller to refuse, version by version.
    """
    family = [as_stage(s) for s in stages]
    key = jax.random.fold_in(context.key, position)
    alike = _family(family)
    blockwise = context.policy.calibrate == "sequential" and family[0].needs_stats
    if alike and not blockwise:
        state, reports = flatten(_on_versions(alike, before, key))
        after = Versions(context, state, before.reference, before.size * len(family))
    else:
        after, reports = _one_by_one(family, before, key)
    if context.reestimates:
        norms = [context.norms(after.parameters(i)) for i in range(after.size)]
        after.state = after.state.with_vectors(stack(tuple(norms)))
    return Expanded(after, reports)


def _like(a: Layerwise, b: Any) -> bool:
    """Whether two stages differ in amounts only. Methods from outside may be trees whose structures
    do not say of which class they are (:mod:`perturb.trees`)."""
    same = bool(jax.tree.structure(a) == jax.tree.structure(b))  # type: ignore[operator]
    return same and [type(m) for m in a.methods] == [type(m) for m in b.methods]


def _on_versions(family: Sequence[Layerwise], before: Versions, key: Array) -> _Done:
    """A family on all versions at once."""
    state = before.state
    solved = _solved(family, state, before.reference, lambda: before.moments, key)
    rest = {n: m for n, m in state.matrices.items() if n not in solved}
    again = _repeated(replace(state, matrices=rest), len(family))
    matrices = {n: solved[n].matrix if n in solved else again.matrices[n] for n in state.matrices}
    return _Done(replace(again, matrices=matrices), _told(solved))


def _solved(
    family: Sequence[Layerwise],
    state: State,
    reference: Reference,
    moments: Callable[[], Mapping[str, Moments]],
    key: Array,
    only: Iterable[str] | None = None,
) -> dict[str, Solved]:
    """A family on the matrices of all versions, or on ``only`` some: results [R, F, ...].

    moments: asked for if there is a method that needs them.
    """
    network = reference.network
    places = uses(state, network.shapes)
    names = [n for n in state.matrices if n in places and (only is None or n in only)]
    solved: dict[str, Solved] = {}
    for i, mine in enumerate(family[0].assign(names)):
        methods = [stage.methods[i] for stage in family]
        if not mine:
            continue
        problems = _problems(
            state,
            {n: tuple(places[n]) for n in mine},
            dict(reference.weights),
            moments() if methods[0].needs_stats else None,
        )
        mine_now = {n: state.matrices[n] for n in mine}
        solved |= run_family(methods, mine_now, problems, key, network.feature_groups)
    return solved


def _told(solved: Mapping[str, Solved]) -> dict[str, SolveReport]:
    return {n: r.report for n, r in solved.items() if r.report is not None}


def _problems(
    state: State,
    places: Mapping[str, tuple[Any, ...]],
    references: Mapping[str, Array],
    moments: Mapping[str, Moments] | None,
) -> dict[str, Problem]:
    found = {}
    for name, where in places.items():
        inputs = None if moments is None else inputs_of(state, where, moments)
        found[name] = problem_of(state.matrices[name], references.get(name), inputs)
    return found


@partial(jax.jit, static_argnames=("times",))
def _repeated(tree: Any, times: int) -> Any:
    """Leaves [R, ...] as [R, times, ...]."""
    return jax.tree.map(
        lambda a: jax.numpy.broadcast_to(a[:, None], (a.shape[0], times, *a.shape[1:])), tree
    )


def _one_by_one(family: Sequence[Stage], before: Versions, key: Array) -> tuple[Versions, Reports]:
    """What is no family: each stage on each version."""
    states, reports = [], []
    reference: Parameters | None = None
    for r in range(before.size):
        one = before.one(r)
        for stage in family:
            outcome = _on_one(stage, one, before, r, key)
            states.append(outcome.state)
            reports.append(dict(outcome.reports))
            if outcome.reference is not None:
                if reference is not None and len(family) > 1:
                    raise ValueError(
                        f"{stage.name} reparametrises the model: it must be an axis of its own, "
                        "with one value"
                    )
                reference = outcome.reference
    if len({(jax.tree.structure(s), tuple(map(np.shape, jax.tree.leaves(s)))) for s in states}) > 1:
        raise ValueError(
            f"{family[0].name}: stages of one axis leave models of different structure; give "
            "each an axis of its own"
        )
    shared = set(reports[0]).intersection(*reports)  # not every method of an axis may report
    told = tuple({n: r for n, r in mine.items() if n in shared} for mine in reports)
    context, known = before.context, before.reference
    if reference is not None:
        known = Reference(context.network, reference, context.batches)
    if len(states) == 1:
        return Versions.alone(context, states[0], known), stack(told)
    return Versions(context, stack(tuple(states)), known, len(states)), stack(told)


def _on_one(stage: Stage, state: State, before: Versions, index: int, key: Array) -> Outcome:
    context = before.context
    if isinstance(stage, Layerwise) and stage.needs_stats:
        return _block_by_block(stage, state, before.reference, context, key)
    return stage.on_state(state, Sight(context, key, before.reference, before, index))


def _block_by_block(
    stage: Layerwise, state: State, reference: Reference, context: Context, key: Array
) -> Outcome:
    """Each block from the inputs that the blocks before it give, as this stage left them.

    A matrix that blocks share is worked on in the last of them, with the inputs that each had.
    """
    network, layers = context.network, dict(context.shapes)
    places = uses(state, layers)
    running = network.state(Versions.alone(context, state, reference).parameters(0))
    passing = network.segments(running, context.batches or (), context.blocks)
    heard: dict[str, Moments] = {}  # by layers that share a matrix with later ones
    done: set[str] = set()
    reports: dict[str, SolveReport] = {}
    for k, names in enumerate(context.blocks):
        context.tell(f"block {k + 1} of {len(context.blocks)}, {names[0]}")
        if passing is None:  # blocks that are no parts of one another's pass: run it all again
            moments = network.moments(running, context.batches or (), names)
        else:
            if k:
                passing.advance(k - 1, running)
            moments = passing.moments(k, running, names)
        context.note(starved_note(moments))
        done |= set(names)
        waiting = {n for n, used in places.items() if not {layer for layer, _ in used} <= done}
        solved = _solved_in(names, waiting, stage, state, reference, heard | moments, key)
        heard |= {n: moments[n] for n in names if any(waiting & set(p) for p in state.products(n))}
        state = state.with_matrices({n: s.matrix for n, s in solved.items()})
        reports |= _told(solved)
        changed = {layer for n in solved for layer, _ in places[n]}
        running = network.exchanged(
            running, {n: layer_weight(state, n, layers[n]) for n in layers if n in changed}
        )
    return Outcome(state, reports)


def _solved_in(
    names: Iterable[str],
    waiting: Collection[str],
    stage: Layerwise,
    state: State,
    reference: Reference,
    moments: Mapping[str, Moments],
    key: Array,
) -> dict[str, Solved]:
    """The stage on the matrices that these layers are made of, but for those ``waiting``.

    They go by place from program to program, not by name: what is compiled for one block serves
    the next.
    """
    touched = {n for layer in names for p in state.products(layer) for n in p}
    mine = [n for n in state.matrices if n in touched]
    held = dict(zip(mine, versions([state.matrices[n] for n in mine]), strict=True))
    ready = touched - set(waiting)
    solved = _solved(
        [stage], State(held, terms=state.terms), reference, lambda: moments, key, ready
    )
    return dict(zip(solved, _the_only([*solved.values()]), strict=True))


@jax.jit
def _the_only(tree: Any) -> Any:
    """Of leaves [1, 1, ...] what they hold."""
    return jax.tree.map(lambda a: a[0, 0], tree)
