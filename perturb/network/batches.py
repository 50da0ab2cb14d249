"""What a model is run on, and how: calibration batches, the default call, one jit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
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


def compiled(jitted: Any, function: Any, graphdef: Any, *static: Any) -> Callable[..., Any]:
    """``run(arguments, static...)`` under the shared jit if all can be hashed, else one for now."""
    try:
        hash((graphdef, static))
    except TypeError:
        return jax.jit(lambda *args: function(graphdef, *args, *static))
    return lambda *args: jitted(graphdef, *args, *static)
