"""What is left out: how much of a model its layers are, and what its user should know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from perturb.network.hear import bound_methods
from perturb.network.layers import KINDS, LayerSpec, compressible, name_of
from perturb.network.refused import some

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
    kernels = {id(modules[n].kernel) for n in specs}
    covered = total = 0
    left: dict[tuple[str, str], int] = {}
    members: dict[tuple[str, str], list[str]] = {}
    for param, holders in _held(model):
        size = math.prod(param.shape)
        total += size
        if id(param) in kernels:
            covered += size
            continue
        key, name = _left(holders[0], skipped)
        left[key] = left.get(key, 0) + size
        members.setdefault(key, []).append(name)
    entries = [
        (members[key][0] if len(members[key]) == 1 and not key[0] else key[0] or key[1], n, key[1])
        for key, n in left.items()
    ]
    return Coverage(total, covered, tuple(sorted(entries, key=lambda e: -e[1])))


def _left(holder: Holder, skipped: Mapping[str, str]) -> tuple[tuple[str, str], str]:
    """The group (title, reason) that a parameter outside the layers is told in, and its name."""
    name, module, attribute = holder
    if isinstance(module, KINDS) and attribute == "kernel":
        return (name, skipped.get(name, "not chosen")), name
    if isinstance(module, nnx.Embed) and attribute == "embedding":
        return (name, "nnx.Embed"), name
    if isinstance(module, nnx.ConvTranspose) and attribute == "kernel":
        return (name, "nnx.ConvTranspose"), name
    if isinstance(module, (*KINDS, nnx.ConvTranspose)) and attribute == "bias":
        return ("biases", "not matrices"), name
    if isinstance(module, NORMS):
        return ("norms", "not matrices"), name
    return ("", f"{type(module).__name__}.{attribute}, an nnx.Param"), f"{name}.{attribute}"


def notes(
    model: nnx.Module, specs: Mapping[str, LayerSpec], skipped: Mapping[str, str]
) -> list[str]:
    """What the user of a compressed model should know, one line each; empty if nothing."""
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
    kernels = {id(modules[n].kernel): n for n in specs}
    for param, holders in _held(model):
        others = [
            f"{n}.{a} ({type(m).__name__})"
            for n, m, a in holders
            if not (n in own and a == "kernel")
        ]
        if id(param) in kernels and others:
            lines.append(
                f"layer {kernels[id(param)]}: its kernel is also {some(others)}, which changes "
                "with it"
            )
    return lines
