"""In which order a model calls its layers, and which of them are a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from perturb.network.batches import Forward, call
from perturb.network.hear import ears_of, tapped
from perturb.network.layers import KINDS, LayerSpec, by_kernel, compressible, name_of
from perturb.network.refused import Refused, explained
from perturb.network.replay import Note, called, tell


def check_runs(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """The layers that the model calls on a batch, in the order of first calls (traced, not run).

    The copies that an nnx.scan goes through are called in its order, all layers of a step after
    one another. Raises a one-line ValueError where the model cannot be run.
    """
    return [name for block in _blocks(model, specs, batch, forward) for name in block]


def call_order(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """Names of the layers in the order in which they are first called (traced, not run)."""
    order = check_runs(model, specs, batch, forward)
    check_called(model, specs, order)
    return order


def call_blocks(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[list[str]]:
    """Layers in call order, grouped as decoder blocks are: see :func:`blocks_of`.

    A step of a scan over stacked layers is a block, too, which names alone do not tell.
    """
    blocks = _blocks(model, specs, batch, forward)
    check_called(model, specs, [name for block in blocks for name in block])
    return blocks


def blocks_of(order: Iterable[str]) -> list[list[str]]:
    """Layers in call order, grouped as decoder blocks are: by the name up to its first number.

    ``layers.0.q, layers.0.o, layers.1.q, head`` gives ``[[layers.0.*], [layers.1.*], [head]]``.
    All matrices of one kernel, ``experts[0], experts[1]``, are in one block.
    """
    groups: dict[str, list[str]] = {}
    for name in order:
        groups.setdefault(_block(name), []).append(name)
    return list(groups.values())


def _block(name: str) -> str:
    parts = name.split("[")[0].split(".")
    cut = next((i for i, p in enumerate(parts) if p.isdigit()), len(parts) - 1)
    return ".".join(parts[: cut + 1])


class _Loop(NamedTuple):
    """Layers that the steps of a scan call, each step a copy of every one."""

    modules: tuple[str, ...]
    steps: range


def _blocks(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward
) -> list[list[str]]:
    kernels = by_kernel(specs.values())
    order: dict[str, None] = {}
    graphdef, state = nnx.split(model)

    def run(marked: bool, state: Any, batch: Any) -> Any:
        copy = nnx.merge(graphdef, state)

        def listen(spec: LayerSpec, module: Any, x: Any) -> None:
            order.setdefault(spec.name)
            if marked:
                tell(Note(spec.name), jnp.zeros(()))

        with tapped(copy, ears_of(specs.values(), listen), KINDS):
            return jax.tree.leaves(forward(copy, batch))

    with explained(batch):
        jax.eval_shape(lambda *a: run(False, *a), state, batch)
    calls: list[str | _Loop] = list(order)
    copies = {n: group[0].copies for n, group in kernels.items() if group[0].stacked}
    if any(name in copies for name in order):
        try:
            closed = jax.make_jaxpr(lambda *a: run(True, *a))(state, batch)
            calls = list(_loops(called(closed), copies))
        except Exception:  # where marks cannot be, each layer has all of its copies at once
            calls = list(order)
    groups: dict[Any, list[str]] = {}
    seen: set[str] = set()
    for item in calls:
        if isinstance(item, str):
            if item not in seen:
                groups.setdefault(_block(item), []).extend(s.name for s in kernels[item])
            seen.add(item)
            continue
        modules = [m for m in item.modules if m not in seen]
        for step in item.steps if modules else ():
            own = [s.name for m in modules for s in kernels[m] if _copy(s) == step]
            groups[(tuple(modules), step)] = own
        seen.update(modules)
    return [block for block in groups.values() if block]


def _copy(spec: LayerSpec) -> int:
    """Which of the stacked copies a matrix belongs to."""
    return (spec.index or 0) // (spec.matrices // spec.copies)


def _loops(calls: Sequence[Any], copies: Mapping[str, int]) -> Iterator[str | _Loop]:
    """Calls as :func:`perturb.network.replay.called` has them: the innermost scan that goes
    through all copies of a layer is the loop of its steps."""
    for item in calls:
        if isinstance(item, str):
            yield item
            continue
        inner = list(_loops(item.calls, copies))
        mine = tuple(
            dict.fromkeys(i for i in inner if isinstance(i, str) and copies.get(i) == item.length)
        )
        done = False
        for i in inner:
            if i not in mine:
                yield i
            elif not done:
                steps = range(item.length)
                yield _Loop(mine, steps[::-1] if item.reverse else steps)
                done = True


def bound_methods(model: nnx.Module) -> list[str]:
    """Attributes that hold a method of the model itself, which a copy shares with the original."""
    modules = [(name_of(path, m), m) for path, m in nnx.iter_modules(model)]
    own = {id(m) for _, m in modules}
    lines = []
    for name, module in modules:
        for key, value in vars(module).items():
            method = getattr(value, "__wrapped__", getattr(value, "func", value))
            if id(getattr(method, "__self__", None)) in own and callable(value):
                lines.append(
                    f"{name}.{key} is bound to this very model, whose weights a copy would call: "
                    "decorate the method itself, @nnx.jit"
                )
    return lines


def check_called(model: Any, specs: Mapping[str, LayerSpec], heard: Iterable[str]) -> None:
    heard = set(heard)
    missing = [n for n in specs if n not in heard]
    if not missing:
        return
    module = dict(compressible(model))[specs[missing[0]].module]
    kind = next(k for k in KINDS if isinstance(module, k))
    if type(module).__call__ is not kind.__call__:
        raise Refused(
            f"layer {missing[0]}: nothing reaches nnx.{kind.__name__}.__call__ on the calibration "
            f"data, where its inputs are heard: {type(module).__name__} overrides it without "
            f"super().__call__(...), or the model does not call it ({len(missing)} such); "
            "exclude it"
        )
    bound = "".join(f" ({line})" for line in bound_methods(model))
    raise Refused(
        f"layer {missing[0]}: the model does not call it on the calibration data "
        f"({len(missing)} such){bound}; exclude it"
    )
