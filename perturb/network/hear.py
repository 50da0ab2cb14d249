"""Hearing the layers of a model as it runs: what they are given, and in which order."""

from __future__ import annotations

import inspect
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from perturb.network.batches import Forward, call
from perturb.network.layers import KINDS, LayerSpec, compressible, name_of
from perturb.network.refused import Refused, explained
from perturb.network.replay import Unheard
from perturb.types import Array

EAR = "_perturb_ear"
_lock = threading.RLock()
_open: Counter[type] = Counter()
_plain: dict[type, Callable[..., Any]] = {}
Around = Callable[[Callable[..., Any], Any, dict[str, Any]], Any]
PLACES = {  # what jax says of effects, as the user knows it
    "vmap-of-cond": "a cond under vmap",
    "while_loop with batched predicate": "a while_loop under vmap",
    "vmap-of-while": "a while_loop under vmap",
    "checkpoint": "the derivative of a checkpoint (remat)",
}


class Ear:
    """What a module carries while it is heard: static to nnx, so whatever nnx.jit and its like make
    of the module carries it, too. Every tapping has ears of its own, which no cache of jax knows:
    functions compiled before are traced anew, and heard."""

    def __init__(self, around: Around) -> None:
        self.around = around

    def __deepcopy__(self, memo: Any) -> Ear:
        return self


def _heard(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        ear = vars(self).get(EAR)
        if ear is None:
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        return ear.around(original, self, given)

    return __call__


@contextmanager
def tapped(model: nnx.Module, ears: Mapping[str, Ear], kinds: tuple[type, ...]) -> Iterator[None]:
    """Let the ears hear every call of the modules of these names, by the kinds' own ``__call__``.

    It is the kind's ``__call__`` that is exchanged, for the time being: what reaches it is what the
    matrix acts on, whatever a subclass did before, and no module changes its class.
    """
    tapped = []
    with _lock:
        for kind in kinds:
            if not _open[kind]:
                _plain[kind] = kind.__dict__["__call__"]
                type.__setattr__(kind, "__call__", _heard(_plain[kind]))
            _open[kind] += 1
    try:
        for path, module in list(nnx.iter_modules(model)):
            ear = ears.get(name_of(path, module))
            if ear is not None and isinstance(module, kinds):
                object.__setattr__(module, EAR, ear)
                tapped.append(module)
        yield
    finally:
        for module in tapped:
            vars(module).pop(EAR, None)
        with _lock:
            for kind in kinds:
                _open[kind] -= 1
                if not _open[kind]:
                    type.__setattr__(kind, "__call__", _plain.pop(kind))


def ears_of(
    specs: Iterable[LayerSpec], listen: Callable[[LayerSpec, Any, Array], None]
) -> dict[str, Ear]:
    """Ears that call ``listen(spec, module, inputs)`` before each call of a layer."""

    def ear(spec: LayerSpec) -> Ear:
        def around(original: Callable[..., Any], module: Any, given: dict[str, Any]) -> Any:
            einsum = given.get("einsum_str")
            if einsum is not None and einsum.replace(" ", "") != module.einsum_str.replace(" ", ""):
                raise Refused(
                    f"layer {spec.name}: it is called with the einsum {einsum!r}, its own is "
                    f"{module.einsum_str!r}; exclude it"
                )
            listen(spec, module, jnp.asarray(given["inputs"]))
            return original(**given)

        return Ear(around)

    return {name: ear(spec) for spec in specs for name in spec.names}


@contextmanager
def placed(what: str, remedy: str, trace: Callable[..., Any], items: Sequence[Any]) -> Iterator:
    """One line for what cannot be heard: which, where, and the remedy.

    jax does not say which; ``trace([item])`` for each tells.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Unheard):
            name, place = error.note.name, error.place
        elif " effect" in str(error).lower() or str(error).lower().startswith("effect"):
            line = str(error).splitlines()[0]
            place = next((p for k, p in PLACES.items() if k in line), f"a transform ({line})")
            name = next((_item_name(i) for i in items if _raises(trace, i)), "?")
        else:
            raise
        raise Refused(
            f"{what} {name}: it is called inside {place}, where its inputs cannot be heard; "
            f"{remedy}"
        ) from error


def _item_name(item: Any) -> str:
    return getattr(item, "name", item)


def _raises(trace: Callable[..., Any], item: Any) -> bool:
    try:
        trace([item])
    except Exception:
        return True
    return False


def check_runs(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """The layers that the model calls on a batch, in the order of first calls (traced, not run).

    Raises a one-line ValueError where it cannot be run.
    """
    order: dict[str, None] = {}
    graphdef, state = nnx.split(model)

    def run(state: Any, batch: Any) -> Any:
        copy = nnx.merge(graphdef, state)
        ears = ears_of(specs.values(), lambda s, m, x: order.setdefault(s.name))
        with tapped(copy, ears, KINDS):
            return jax.tree.leaves(forward(copy, batch))

    with explained(batch):
        jax.eval_shape(run, state, batch)
    return list(order)


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
    missing = [n for n in specs if n not in set(heard)]
    if not missing:
        return
    module = dict(compressible(model))[missing[0]]
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


def call_order(
    model: nnx.Module, specs: Mapping[str, LayerSpec], batch: Any, forward: Forward = call
) -> list[str]:
    """Names of the layers in the order in which they are first called (traced, not run)."""
    order = check_runs(model, specs, batch, forward)
    check_called(model, specs, order)
    return order


def blocks_of(order: Iterable[str]) -> list[list[str]]:
    """Layers in call order, grouped as decoder blocks are: by the name up to its first number.

    ``layers.0.q, layers.0.o, layers.1.q, head`` gives ``[[layers.0.*], [layers.1.*], [head]]``.
    """
    groups: dict[str, list[str]] = {}
    for name in order:
        parts = name.split(".")
        cut = next((i for i, p in enumerate(parts) if p.isdigit()), len(parts) - 1)
        groups.setdefault(".".join(parts[: cut + 1]), []).append(name)
    return list(groups.values())
