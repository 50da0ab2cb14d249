"""What is left out: how much of a model its layers are, and what its user should know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from perturb.network.capture import inputs_report
from perturb.network.layers import KINDS, LayerSpec, compressible, kernel_of, name_of
from perturb.network.order import bound_methods
from perturb.network.refused import some
from perturb.types import Moments

NORMS = (
    nnx.BatchNorm,
    nnx.LayerNorm,
    nnx.RMSNorm,
    nnx.GroupNorm,
    nnx.InstanceNorm,
    nnx.SpectralNorm,
)
COVERED = 0.9  # of the parameters; less is worth a warning


@dataclass(frozen=True)
class Coverage:
    """How much of a model its compressed layers are.

    parameters: floating entries of all nnx.Param, each counted once; covered: those in the layers;
    left: (name, entries, reason) of all others, largest first.
    """

    parameters: int
    covered: int
    left: tuple[tuple[str, int, str], ...]

    @property
    def share(self) -> float:
        return self.covered / self.parameters

    def describe(self, most: int = 5) -> str:
        """``98.4 % of the parameters are in compressed layers; left dense: ...``, in one line."""
        line = f"{100 * self.share:.1f} % of the parameters are in compressed layers"
        told = [f"{n} ({r}) {100 * k / self.parameters:.2g} %" for n, k, r in self.left[:most] if k]
        if rest := sum(k for _, k, _ in self.left[most:]):
            told.append(f"{len(self.left) - most} more {100 * rest / self.parameters:.2g} %")
        return line + ("; left dense: " + ", ".join(told) if told else "")


Holder = tuple[str, Any, str]  # a module's name, the module, its attribute


def _held(model: nnx.Module) -> list[tuple[Any, list[Holder]]]:
    """Every floating nnx.Param once, with all that hold it."""
    found: dict[int, tuple[Any, list[Holder]]] = {}
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Variable):
            continue
        if isinstance(node, Mapping):
            children: Iterable[tuple[Any, Any]] = node.items()
        elif isinstance(node, (list, tuple)):
            children = enumerate(node)
        else:
            children = vars(node).items() if hasattr(node, "__dict__") else ()
        for key, child in children:
            if isinstance(child, nnx.Param) and jnp.issubdtype(child.dtype, jnp.floating):
                holder = (name_of(path, node), node, str(key))
                found.setdefault(id(child), (child, []))[1].append(holder)
    return list(found.values())


def coverage(
    model: nnx.Module, specs: Mapping[str, LayerSpec], skipped: Mapping[str, str]
) -> Coverage:
    """How much of the model's parameters the layers of :func:`find_layers` are, and what is not."""
    modules = dict(compressible(model))
    chosen: Counter[int] = Counter()  # entries of each kernel that are in layers
    for spec in specs.values():
        chosen[id(kernel_of(modules[spec.module]))] += math.prod(spec.shape)
    total = 0
    left: dict[tuple[str, str], int] = {}
    members: dict[tuple[str, str], list[str]] = {}
    for param, holders in _held(model):
        size = math.prod(param.shape)
        total += size
        if rest := size - chosen[id(param)]:
            key, name = _left(holders[0], skipped)
            left[key] = left.get(key, 0) + rest
            members.setdefault(key, []).append(name)
    covered = sum(chosen.values())
    entries = [
        (members[key][0] if len(members[key]) == 1 and not key[0] else key[0] or key[1], n, key[1])
        for key, n in left.items()
    ]
    return Coverage(total, covered, tuple(sorted(entries, key=lambda e: -e[1])))


def _left(holder: Holder, skipped: Mapping[str, str]) -> tuple[tuple[str, str], str]:
    """The group (title, reason) that a parameter outside the layers is told in, and its name."""
    name, module, attribute = holder
    if isinstance(module, nnx.Embed) and attribute == "embedding":
        return (name, skipped.get(name, "nnx.Embed")), name
    if isinstance(module, KINDS) and attribute == "kernel":
        parts = (r for n, r in skipped.items() if n.startswith(f"{name}["))
        return (name, skipped.get(name) or next(parts, "not chosen")), name
    if isinstance(module, KINDS) and attribute == "bias":
        return ("biases", "not matrices"), name
    if isinstance(module, NORMS):
        return ("norms", "not matrices"), name
    return ("", f"{type(module).__name__}.{attribute}, an nnx.Param"), f"{name}.{attribute}"


def notes(
    model: nnx.Module,
    specs: Mapping[str, LayerSpec],
    skipped: Mapping[str, str],
    stats: Mapping[str, Moments] | None = None,
) -> list[str]:
    """What the user of a compressed model should know, one line each; empty if nothing.

    stats: moments of the layers' inputs, if there are any, for :func:`inputs_notes`.
    """
    lines = []
    cover = coverage(model, specs, skipped)
    if cover.share < COVERED:
        lines.append(f"only {cover.describe()}")
    training = [
        f"{name_of(path, m)} ({type(m).__name__})"
        for path, m in nnx.iter_modules(model)
        if (isinstance(m, nnx.BatchNorm) and m.use_running_average is False)
        or (isinstance(m, nnx.Dropout) and m.rate > 0 and m.deterministic is False)
        or (
            isinstance(m, nnx.MultiHeadAttention)
            and m.dropout_rate > 0
            and m.deterministic is False
        )
    ]
    if training:
        lines.append(
            f"the model is in train mode: {some(training)}; call model.eval() before compressing"
        )
    lines += bound_methods(model)
    own = {name for spec in specs.values() for name in spec.names}
    modules = dict(compressible(model))
    kernels = {id(kernel_of(modules[s.module])): s.module for s in specs.values()}
    for param, holders in _held(model):
        others = [
            f"{n}.{a} ({type(m).__name__})"
            for n, m, a in holders
            if not (n in own and isinstance(m, KINDS) and kernel_of(m) is param)
        ]
        if id(param) in kernels and others:
            lines.append(
                f"layer {kernels[id(param)]}: its kernel is also {some(others)}, which changes "
                "with it"
            )
    return lines + inputs_notes(specs, stats or {})


def inputs_notes(specs: Mapping[str, LayerSpec], stats: Mapping[str, Moments]) -> list[str]:
    """What the layers' inputs leave undetermined: fewer tokens than inputs, or dead inputs.

    A layer without any tokens is not told here, see :func:`perturb.network.starved`; nor is an
    embedding that is looked up, whose moments are no token's.
    """
    few, dead = [], []
    for name, (tokens, zeros) in inputs_report(stats).items():
        size = specs[name].shape[1]
        inputs = size * specs[name].feature_groups
        if not tokens > 0 or (specs[name].kind == "embed" and tokens == 1):
            continue
        if tokens < size:
            few.append(f"{name} ({tokens:g} for {size})")
        if 0 < zeros < inputs:
            dead.append(f"{name} ({zeros} of {inputs})")
    lines = []
    if few:
        lines.append(
            f"fewer tokens than inputs, so that their second moment is singular: {some(few)}; "
            "give more calibration data"
        )
    if dead:
        lines.append(f"inputs that are 0 in all calibration data: {some(dead)}")
    return lines
