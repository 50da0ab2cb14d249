"""Frozen dataclasses as trees of arrays, whose structures jax tells apart by their class.

``jax.tree_util.register_dataclass`` does not: in jax 0.10 the structures of two classes compare
EQUAL where the static fields do, and only their hashes differ. A table of traced programs compares
seven bits of a hash before it asks for equality, so that in about one process of a hundred a method
ran as another one with settings of the same values (Wanda as Magnitude): no error, other numbers.
Structures of nodes that are registered by functions compare their classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.tree_util import GetAttrKey, register_pytree_with_keys

T = TypeVar("T")

STATIC = {"static": True}  # metadata of a field that is part of the structure: hashable


def register_tree(cls: type[T], leaves: tuple[str, ...] | None = None) -> type[T]:
    """Make a dataclass a tree of arrays; a decorator.

    leaves: the fields that are its children; by default those that are not :data:`STATIC`. A tree
    is put together by the class itself, with its checks.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if leaves is None:
        inner = [f.name for f in fields if not f.metadata.get("static", False)]
    else:
        inner = [f.name for f in fields if f.name in leaves]
    outer = [f.name for f in fields if f.name not in inner]
    keys = [GetAttrKey(name) for name in inner]

    def flatten(tree: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple([getattr(tree, n) for n in inner]), tuple([getattr(tree, n) for n in outer])

    def with_keys(tree: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, settings = flatten(tree)
        return tuple(zip(keys, children, strict=True)), settings

    def unflatten(settings: tuple[Any, ...], children: Any) -> Any:
        found = dict(zip(outer, settings, strict=True))
        return cls(**found, **dict(zip(inner, children, strict=True)))

    register_pytree_with_keys(cls, with_keys, unflatten, flatten)
    return cls


@register_tree
@dataclasses.dataclass(frozen=True)
class Family:
    """F methods that differ in their amounts only, as one method whose amounts are arrays [F].

    kind: their class, which the structure of a method from outside may not tell.
    """

    methods: Any
    size: int = dataclasses.field(metadata=STATIC)
    kind: type = dataclasses.field(metadata=STATIC)

    @property
    def axis(self) -> int | None:
        """Of ``jax.vmap`` over the methods: None where no method has an amount."""
        return 0 if jax.tree.leaves(self.methods) else None


def family_of(methods: Sequence[Any]) -> Family:
    """Methods of one class, as one."""
    stacked = jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *methods)
    return Family(stacked, len(methods), type(methods[0]))
