"""What a model is run on, and how: calibration batches, the default call, one jit."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from flax import nnx

from perturb.network.refused import Refused

Forward = Callable[[Any, Any], Any]
TokenWeights = Callable[[Any], Any]  # batch -> weights >= 0 of its tokens, such as a mask


def call(model: Any, batch: Any) -> Any:
    """The default way to run a model on a batch."""
    return model(batch)


def batches_of(calibration: Any) -> list[Any]:
    """Calibration data as a list of batches, each any pytree.

    An array, a mapping or a named tuple is one batch; a list, tuple, iterator or other iterable
    holds batches. An iterator is used up: call once and pass the list on. Raises ValueError for
    an empty set and for a model in its place.
    """
    empty = "the calibration set is empty: "
    if isinstance(calibration, nnx.Module):
        raise Refused(
            f"the calibration data is a model ({type(calibration).__name__}): give batches of "
            "model inputs (are the model and the calibration data swapped?)"
        )
    if isinstance(calibration, Mapping) or any(
        hasattr(calibration, a) for a in ("shape", "_fields")
    ):
        batches = [calibration]
    elif calibration is None:
        batches = []
    elif isinstance(calibration, Iterable) and not isinstance(calibration, (str, bytes)):
        batches = list(calibration)
    else:
        batches = [calibration]  # a pytree of the user's own
    if not batches:
        raise Refused(empty + "give at least one batch of model inputs")
    # mappings that jax does not know as pytrees, such as a tokenizer's output
    batches = [dict(b) if isinstance(b, Mapping) else b for b in batches]
    for i, batch in enumerate(batches):
        leaves = jax.tree.leaves(batch)
        if not leaves or any(getattr(a, "size", 1) == 0 for a in leaves):
            raise Refused(empty + f"batch {i} has no examples")
    return batches


def weights_of(token_weights: TokenWeights | None, batch: Any, index: int) -> np.ndarray | None:
    """The weights of a batch's tokens, checked; None if there are none."""
    if token_weights is None:
        return None
    weights = np.asarray(token_weights(batch))
    weights = weights.astype(np.float64 if weights.dtype == np.float64 else np.float32)
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise Refused(f"the token weights of batch {index} are not all finite and >= 0")
    return weights


Run = Callable[..., Any]


class Programs:
    """The last so many compiled functions of a model, by what they are compiled for.

    jax keeps what it has compiled, with the functions and models that it was compiled for, for as
    long as the function lives that was given to jit. So every program has a function of its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._known: OrderedDict[Any, Run] = OrderedDict()
        self._odd: list[tuple[Any, Run]] = []  # what cannot be hashed is compared with each

    def get(self, function: Run, graphdef: Any, static: tuple[Any, ...]) -> Run:
        """``run(arguments)`` is ``function(graphdef, *arguments, *static)``, compiled."""
        key = (function, graphdef, static)
        run: Run = jax.jit(lambda *arguments: function(graphdef, *arguments, *static))
        try:
            run = self._known.pop(key, run)
        except TypeError:
            return self._compared(key, run)
        self._known[key] = run
        while len(self._known) > self.size:
            self._known.popitem(last=False)
        return run

    def _compared(self, key: Any, run: Run) -> Run:
        for known, other in self._odd:
            with suppress(Exception):  # what does not compare is something else
                if bool(known == key):
                    return other
        with suppress(Exception):  # what does not copy is compiled anew each time
            # a copy: what cannot be hashed may be changed in place
            self._odd.insert(0, (copy.deepcopy(key), run))
            del self._odd[self.size :]
        return run


PROGRAMS = Programs(256)


def compiled(function: Run, graphdef: Any, *static: Any) -> Run:
    """``run(arguments)`` is ``function(graphdef, *arguments, *static)``, compiled once."""
    return PROGRAMS.get(function, graphdef, static)


ALIKE: OrderedDict[Any, Run] = OrderedDict()  # executables by their text, the last used last


def compiled_alike(function: Run, *arguments: Any) -> Run:
    """The function compiled for these arguments; functions of one and the same program (such as
    the equal blocks of a model) get one executable, though each is traced."""
    # What an argument is for is in the text only where those that are not used are kept in it.
    lowered = jax.jit(function, keep_unused=True).lower(*arguments)
    if getattr(jax.config, "jax_use_simplified_jaxpr_constants", False):
        return lowered.compile()  # constants that its text does not show
    places = tuple(str(getattr(a, "sharding", None)) for a in jax.tree.leaves(arguments))
    text = hashlib.sha256(lowered.as_text().encode()).digest()
    key = (text, lowered.in_tree, lowered.out_tree, places)
    run: Run = ALIKE.pop(key) if key in ALIKE else lowered.compile()
    ALIKE[key] = run
    while len(ALIKE) > PROGRAMS.size:
        ALIKE.popitem(last=False)
    return run


def forget_programs() -> None:
    """Drop all executables: they take memory maps, of which a process has only so many."""
    ALIKE.clear()
    jax.clear_caches()
