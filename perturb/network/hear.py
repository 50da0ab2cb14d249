"""Hearing the layers of a model as it runs: what they are given."""

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
import numpy as np
from flax import nnx

from perturb.network.layers import LayerSpec, by_kernel, kernel_of, name_of
from perturb.network.refused import Refused
from perturb.network.replay import Unheard
from perturb.types import Array

EAR = "_perturb_ear"
LANE = "_perturb_lane"
_lock = threading.RLock()
_open: Counter[tuple[type, str]] = Counter()
_plain: dict[tuple[type, str], Callable[..., Any]] = {}
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
    functions compiled before are traced anew, and heard. Caches keep them for as long as they
    like, so they are deaf afterwards, and hold nothing.

    spec: of a kernel of which every call sees one of several copies, stacked by a transform.
    """

    def __init__(self, around: Around, spec: LayerSpec | None = None) -> None:
        self.around: Around | None = around
        self.spec = spec

    def __deepcopy__(self, memo: Any) -> Ear:
        return self


def _heard(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        ear = vars(self).get(EAR)
        if ear is None or ear.around is None:
            return original(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        return ear.around(original, self, given)

    return __call__


def _methods(kinds: Iterable[type]) -> list[tuple[type, str]]:
    """The methods by which modules of these kinds are called."""
    return [(k, m) for k in kinds for m in ("__call__", "attend") if m in k.__dict__]


@contextmanager
def tapped(model: nnx.Module, ears: Mapping[str, Ear], kinds: tuple[type, ...]) -> Iterator[None]:
    """Let the ears hear every call of the modules of these names, by the kinds' own ``__call__``.

    Of two tappings within one another the outer one's ears come first, and the inner's hear what
    they hand on.

    It is the kind's ``__call__`` that is exchanged, for the time being: what reaches it is what the
    matrix acts on, whatever a subclass did before, and no module changes its class.
    """
    tapped: list[tuple[Any, Ear | None]] = []
    with _lock:
        for method in _methods(kinds):
            if not _open[method]:
                _plain[method] = method[0].__dict__[method[1]]
                type.__setattr__(*method, _heard(_plain[method]))
            _open[method] += 1
    try:
        for path, module in list(nnx.iter_modules(model)):
            ear = ears.get(name_of(path, module))
            if ear is not None and isinstance(module, kinds):
                before = vars(module).get(EAR)
                object.__setattr__(module, EAR, ear if before is None else _both(before, ear))
                if ear.spec is not None and ear.spec.stacked:
                    setattr(module, LANE, _lanes(module, ear.spec))
                tapped.append((module, before))
        yield
    finally:
        for module, before in tapped:
            vars(module).pop(EAR, None)
            if before is not None:
                object.__setattr__(module, EAR, before)
            if hasattr(module, LANE):
                delattr(module, LANE)
        for ear in ears.values():
            ear.around = None
        with _lock:
            for method in _methods(kinds):
                _open[method] -= 1
                if not _open[method]:
                    type.__setattr__(*method, _plain.pop(method))


def _both(outer: Ear, inner: Ear) -> Ear:
    """One that is new to every cache: the outer's ``around``, about the inner's."""

    def around(original: Callable[..., Any], module: Any, given: dict[str, Any]) -> Any:
        def then(**given: Any) -> Any:
            heard = inner.around
            return original(**given) if heard is None else heard(original, module, given)

        return then(**given) if outer.around is None else outer.around(then, module, given)

    return Ear(around)


def _lanes(module: Any, spec: LayerSpec) -> Any:
    """A variable that says of each copy in a stack of kernels which it is.

    It is a kernel of numbers with axes of size 1 for all that the copies share: whatever takes one
    of them, a scan forwards or backwards, a vmap or a plain index, takes its number along.
    """
    kernel = kernel_of(module)
    stack = spec.batch_axes[: spec.stacked]
    shape = [n if a in stack else 1 for a, n in enumerate(spec.kernel_shape)]
    numbers = np.arange(spec.copies, dtype=np.float32).reshape(shape)  # floats have derivatives
    return kernel.replace(jnp.asarray(numbers))


def lane_of(module: Any, spec: LayerSpec) -> Array:
    """The number [] of the copy of the kernel that a module holds in this call."""
    if not spec.stacked:
        return jnp.zeros((), jnp.float32)
    number = getattr(module, LANE, None)
    rank = len(spec.kernel_shape) - spec.stacked
    if number is None or number[...].shape != (1,) * rank:
        raise Refused(
            f"layer {spec.name}: its kernel {spec.kernel_shape} is a stack, and it is called with "
            "what is not one of the copies along "
            f"axes {spec.batch_axes[: spec.stacked]} of all that it holds; exclude it"
        )
    return jax.lax.stop_gradient(number[...]).reshape(())


def ears_of(
    specs: Iterable[LayerSpec], listen: Callable[[LayerSpec, Any, Array | None], None]
) -> dict[str, Ear]:
    """Ears that call ``listen(spec, module, inputs)`` before each call of a layer.

    spec: of the whole kernel; inputs: None where rows of an embedding are looked up.
    """

    def ear(spec: LayerSpec) -> Ear:
        def around(original: Callable[..., Any], module: Any, given: dict[str, Any]) -> Any:
            einsum = given.get("einsum_str")
            if einsum is not None and einsum.replace(" ", "") != module.einsum_str.replace(" ", ""):
                raise Refused(
                    f"layer {spec.name}: it is called with the einsum {einsum!r}, its own is "
                    f"{module.einsum_str!r}; exclude it"
                )
            x = given.get("query") if isinstance(module, nnx.Embed) else given["inputs"]
            listen(spec, module, None if x is None else jnp.asarray(x))
            return original(**given)

        return Ear(around, spec)

    wholes = (group[0].whole for group in by_kernel(specs).values())
    return {name: ear(spec) for spec in wholes for name in spec.names}


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
