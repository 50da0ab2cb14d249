"""Parameters and statistics that are no matrices: read and put back by ``path.attribute``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
from flax import nnx

from perturb.network.layers import name_of
from perturb.network.refused import Refused
from perturb.types import Array


def _holders(model: nnx.Module) -> dict[str, Any]:
    return {name_of(path, module): module for path, module in nnx.iter_modules(model)}


def _held(holders: Mapping[str, Any], name: str) -> Any:
    """The variable of that name, or None."""
    path, _, attribute = name.rpartition(".")
    variable = getattr(holders.get(path), attribute, None)
    return variable if isinstance(variable, nnx.Variable) else None


def _find(holders: Mapping[str, Any], name: str) -> Any:
    variable = _held(holders, name)
    if variable is None:
        raise Refused(f"the model has no parameter {name!r}")
    return variable


def has_vector(model: nnx.Module, name: str) -> bool:
    """Whether a parameter or statistic of that name is there (a bias may be left out)."""
    return _held(_holders(model), name) is not None


def trained(model: nnx.Module, names: Iterable[str]) -> list[str]:
    """Those of the names that are parameters (nnx.Param), not statistics or anything else."""
    holders = _holders(model)
    return [name for name in names if isinstance(_find(holders, name), nnx.Param)]


def get_vectors(model: nnx.Module, names: Iterable[str]) -> dict[str, Array]:
    """Values by ``path.attribute``, such as ``layers.0.norm.scale`` (the root goes by its type).

    Raises ValueError for a name that the model does not have.
    """
    holders = _holders(model)
    return {name: _find(holders, name)[...] for name in names}


def set_vectors(model: nnx.Module, vectors: Mapping[str, Array]) -> None:
    """Put values back, in place (works on a merged model inside jit), in the model's dtypes."""
    holders = _holders(model) if vectors else {}
    for name, value in vectors.items():
        variable = _find(holders, name)
        variable[...] = jax.numpy.asarray(value, variable.dtype)
