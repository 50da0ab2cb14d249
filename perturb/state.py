"""A model on its way through compression: its matrices, and how they make up its layers.

A layer's weight is a SUM OF PRODUCTS of named matrices [out, in]:

    plain         ((W,),)          the matrix of the layer's own name
    with LoRA     ((W,), (B, A))   W + B A
    low rank      ((U, V),)        U V
    removed       ()               0
    sharing       two layers name one matrix

Vectors are the other parameters and statistics that stages changed, by ``path.attribute`` of the
module that holds them; the model's own stand for those that are absent. Every leaf may carry
leading axes of versions, the same for all of a state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from perturb.inputs import InputMap
from perturb.trees import STATIC, register_tree
from perturb.types import Array, Matrix, Moments, Problem

HIGHEST = jax.lax.Precision.HIGHEST
ADAPTER = "+"  # in the name of a matrix: beside a layer's weight, left alone unless asked for
FACTORS = (".u", ".v")  # end the names of the matrices that a layer's weight is the product of
Product = tuple[str, ...]  # names of matrices, the one that is applied last first
Zeros = Literal["free", "keep"]


class Parameters(NamedTuple):
    """What of a model differs between its compressed versions."""

    weights: Mapping[str, Array]  # matrices [out, in], by layer
    vectors: Mapping[str, Array]  # by path.attribute; absent: the model's own
    inputs: Mapping[str, InputMap] = {}  # what acts on layers' inputs; absent: nothing


@register_tree
@dataclass(frozen=True)
class State:
    """Matrices and vectors by name; ``terms``: layers that are more, or less, than their matrix.

    kept: of vectors that lost entries, which are still there (False: dropped, and 0).
    inputs: what acts on layers' inputs as the model runs, by layer: its matrices act on the mapped
    inputs. Storage counts none of it.
    """

    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Array] = field(default_factory=dict)
    kept: Mapping[str, Array] = field(default_factory=dict)
    inputs: Mapping[str, InputMap] = field(default_factory=dict)
    terms: tuple[tuple[str, tuple[Product, ...]], ...] = field(default=(), metadata=STATIC)

    @property
    def bare(self) -> State:
        """The same without grids and who laid them: states of all methods have one structure."""
        bare = {n: Matrix(m.weight, m.mask) for n, m in self.matrices.items()}
        return replace(self, matrices=bare)

    def products(self, layer: str) -> tuple[Product, ...]:
        return dict(self.terms).get(layer, ((layer,),))

    def with_matrices(self, matrices: Mapping[str, Matrix]) -> State:
        return replace(self, matrices={**self.matrices, **matrices})

    def with_vectors(self, vectors: Mapping[str, Array]) -> State:
        return replace(self, vectors={**self.vectors, **vectors})

    def with_inputs(self, inputs: Mapping[str, InputMap]) -> State:
        return replace(self, inputs={**self.inputs, **inputs})

    def with_terms(self, layer: str, products: Iterable[Product]) -> State:
        """The layer made of these; matrices that no layer is made of any more are dropped."""
        terms = dict(self.terms) | {layer: tuple(products)}
        if terms[layer] == ((layer,),):
            del terms[layer]
        made = replace(self, terms=tuple(sorted(terms.items())))
        named = {n for _, ps in made.terms for p in ps for n in p}
        named |= {n for n in self.matrices if ADAPTER not in n} - dict(made.terms).keys()
        return replace(made, matrices={n: m for n, m in self.matrices.items() if n in named})


def fresh(weight: Array, zeros: Zeros = "free") -> Matrix:
    """A matrix that nothing has been done to yet, in float32 at least.

    zeros: "keep" takes the weights that are 0 already for pruned ones.
    """
    weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    mask = weight != 0 if zeros == "keep" else jnp.ones(weight.shape, bool)
    return Matrix(weight, mask)


def product(factors: Iterable[Array]) -> Array:
    """``F1 F2 ...`` [..., out, in]."""
    first, *rest = factors
    for factor in rest:
        first = jnp.matmul(first, factor, precision=HIGHEST)
    return first


def layer_weight(state: State, layer: str, shape: tuple[int, int]) -> Array:
    """The layer's weight [..., out, in]: the sum of its products."""
    total: Any = None
    for names in state.products(layer):
        part = product(state.matrices[n].weight for n in names)
        total = part if total is None else total + part
    return jnp.zeros(shape, jnp.float32) if total is None else total


def parameters_of(state: State, shapes: Mapping[str, tuple[int, int]]) -> Parameters:
    """What a model is given to be this version of itself; shapes: (out, in) by layer."""
    weights = {layer: layer_weight(state, layer, shape) for layer, shape in shapes.items()}
    return Parameters(weights, state.vectors, state.inputs)


def transformed(moments: Moments, factor: Array) -> Moments:
    """Moments of ``F x`` from those of x, F [..., rank, in]."""
    flipped = jnp.swapaxes(factor, -2, -1)
    scatter = product((factor, moments.scatter, flipped))
    mean = moments.mean
    if mean is not None:
        mean = jnp.matmul(factor, mean[..., None], precision=HIGHEST)[..., 0]
    count = jnp.broadcast_to(moments.count, scatter.shape[:-2])  # of each version of F
    return Moments(scatter, count, mean)


def uses(state: State, layers: Iterable[str]) -> dict[str, list[tuple[str, Product]]]:
    """Of each matrix: the layers that it is in, and what acts on their inputs before it does."""
    found: dict[str, list[tuple[str, Product]]] = {}
    for layer in layers:
        for names in state.products(layer):
            for i, name in enumerate(names):
                found.setdefault(name, []).append((layer, names[i + 1 :]))
    return found


def inputs_of(
    state: State, places: Iterable[tuple[str, Product]], moments: Mapping[str, Moments]
) -> Moments:
    """Moments of the vectors that a matrix acts on, over all the places it is used in."""
    total: Moments | None = None
    for layer, before in places:
        part = moments[layer]
        if before:
            part = transformed(part, product(state.matrices[n].weight for n in before))
        total = part if total is None else total + part
    assert total is not None
    return total


def problem_of(matrix: Matrix, reference: Array | None, inputs: Moments | None) -> Problem:
    """A matrix that the dense model does not have stands for what it is when a stage begins."""
    return Problem(matrix.weight if reference is None else reference, inputs)


@jax.jit
def take(tree: Any, index: Array) -> Any:
    """One version of a pytree whose leaves have a leading axis of versions."""
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, keepdims=False), tree)


@jax.jit
def stack(trees: tuple[Any, ...]) -> Any:
    """Pytrees of one structure as one with a leading axis."""
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)


@jax.jit
def versions(tree: Any) -> Any:
    """A pytree as one version of itself: leading axis [1]."""
    return jax.tree.map(lambda a: a[None], tree)


@jax.jit
def flatten(tree: Any) -> Any:
    """Leading axes [R, F] as one [R F]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
