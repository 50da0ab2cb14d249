"""Trees of different classes have different structures: programs are kept by structure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Magnitude, Wanda, chain, layerwise
from perturb.compression import Opened
from perturb.policy import Policy
from perturb.registry import methods
from perturb.stage import expand
from perturb.trees import STATIC, family_of, register_tree
from perturb.types import Matrix, Solved

ROOT = Path(__file__).parent.parent
structure: Any = jax.tree.structure


@register_tree
@dataclass(frozen=True)
class Pair:
    inner: Any
    outer: str = field(metadata=STATIC)
    last: Any = None


@register_tree
@dataclass(frozen=True)
class Twin(Pair):
    pass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Half:
    """A method of somebody else's, made a tree in jax's own way."""

    bits: float = 2.0
    name = "half"
    needs_stats = False

    def __call__(self, matrix: Matrix, problem: Any, key: Any) -> Solved:
        return Solved(matrix._replace(weight=matrix.weight / 2), None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Negative(Half):
    name = "negative"

    def __call__(self, matrix: Matrix, problem: Any, key: Any) -> Solved:
        return Solved(matrix._replace(weight=-matrix.weight), None)


def test_a_tree_is_its_fields():
    pair = Pair({"a": jnp.ones(2)}, "x", (1.0, None))
    leaves, tree = jax.tree.flatten(pair)
    assert len(leaves) == 2
    again = tree.unflatten(leaves)
    assert (type(again), again.outer, again.last) == (Pair, "x", (1.0, None))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(pair)]
    assert paths == [".inner['a']", ".last[0]"]
    assert structure(pair) == structure(Pair({"a": 0}, "x", (0, None)))
    assert structure(pair) != structure(Pair({"a": 0}, "y", (0, None)))
    assert structure(Pair(1, "x")) != structure(Twin(1, "x"))


def test_methods_with_the_same_settings_are_different_structures():
    """jax gave about one process of a hundred Magnitude's program for Wanda."""
    made = []
    for cls in methods().values():
        names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        amounts = {"sparsity": 0.5} if "sparsity" in names else {}
        made.append(cls(**amounts, **({"bits": 4} if "bits" in names else {})))
    made += [Wanda(0.5, "row", "index"), Magnitude(0.5, "row", "index")]
    assert len(made) > 7
    for a, b in itertools.combinations(made, 2):
        assert (structure(a) == structure(b)) == (a == b), (a, b)
        assert (structure(chain(a)) == structure(chain(b))) == (a == b)
        assert (structure(layerwise(a)) == structure(layerwise(b))) == (a == b)


def test_no_dataclass_is_a_tree_in_jax_s_own_way():
    for package in ("perturb", "theory", "experiments", "figures"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "trees.py":
                assert "register_dataclass" not in path.read_text(), path


def test_methods_from_outside_are_told_apart_by_their_class():
    assert structure(family_of([Half()])) != structure(family_of([Negative()]))


@pytest.mark.parametrize("pair", [(Half(), Negative()), (Negative(), Half())])
def test_one_axis_of_two_classes_runs_both(user_model, images, pair):
    opened = Opened(user_model, [images], policy=Policy("dense"))
    context = opened.context
    start = context.start()
    found = expand(start, pair, context, position=0).versions
    dense = start.one(0).matrices
    for index, method in enumerate(pair):
        factor = 0.5 if type(method) is Half else -1.0
        for name, matrix in found.one(index).matrices.items():
            np.testing.assert_array_equal(matrix.weight, factor * dense[name].weight)
