"""What is said, in one line, when a model or its data cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax


class Refused(ValueError):
    """An error of ours, complete in one line: not to be explained once more."""


@contextmanager
def explained(batch: Any) -> Iterator[None]:
    """Turn what a model raises on a batch into one line, with a hint if the batch is a likely
    reason."""
    try:
        yield
    except (Refused, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")
        shapes = ", ".join(str(getattr(a, "shape", a)) for a in jax.tree.leaves(batch))
        hint = ""
        if isinstance(error, (TypeError, KeyError, AttributeError)):
            if isinstance(batch, Mapping):
                keys = ", ".join(map(str, batch))
                hint = (
                    f"; the batch is a dict ({keys}): say how the model takes it, "
                    "forward=lambda model, batch: model(**batch)"
                )
            elif isinstance(batch, (tuple, list)):
                hint = (
                    f"; the batch is a {type(batch).__name__} of {len(batch)}: say how the model "
                    "takes it, forward=lambda model, batch: model(batch[0])"
                )
        raise Refused(
            f"the model cannot be run on a calibration batch of shape {shapes}: "
            f"{type(error).__name__}: {line}{hint}"
        ) from error


def some(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
