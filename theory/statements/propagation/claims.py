"""Theorem 6: from the perturbation of layers to the error of the output, and of the loss.

A chain x_l = g_l(W_l x_{l-1}), l = 1..L, and the same chain on W'_l = W_l + dW_l, from one x_0.

    Lipschitz     |x'_L - x_L| <= sum_l L_l |dW_l|_2 |x_{l-1}| prod_{k>l} L_k |W'_k|_2
    telescoping   W'_L..W'_1 - W_L..W_1 = sum_l W'_L..W'_{l+1} dW_l W_{l-1}..W_1
    first order   ... - sum_l W_L..dW_l..W_1 = sum_{l<m} W'_L..W'_{m+1} dW_m ..W.. dW_l W_{l-1}..W_1
    Gauss-Newton  1/2 E (J dW)^T H (J dW), and K_lm = E (J_l dW_l)^T H (J_m dW_m)

Derived here; nothing asks that layers be independent. What a sum over layers leaves out is the
off-diagonal part of K, and sum K <= L trace K bounds how much that can be. g_l(0) = 0 is needed
only where |x_{l-1}| is not measured but bounded by a product of norms.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from theory.engine.statement import Claim, Family, Finding, Statement
from theory.statements.propagation import measure, proof
from theory.statements.propagation.chains import (
    CHAIN_SIZE,
    DEPTH,
    WIDTH,
    a_priori_sides,
    carried,
    chain,
    lipschitz_sides,
)
from theory.statements.propagation.linear import (
    LINEAR_SIZE,
    depth,
    gram,
    linear,
    one_layer,
    remainder_sides,
    second_telescoping,
    telescoping,
)

FAMILIES = (
    Family(
        "chains",
        f"depth {DEPTH}, width {WIDTH}; identity, relu, tanh or leaky relu a layer, with gain and "
        "offset; weights, perturbations, offsets and inputs each over six decades",
        CHAIN_SIZE,
        chain,
        (
            Claim(
                "lipschitz", "the bound with measured |x_{l-1}|", "<=", lipschitz_sides, 0.9, 0.999
            ),
            Claim(
                "a priori",
                "the same from |x_0|, |W_k| and |g_k(0)|",
                "<=",
                a_priori_sides,
                0.9,
                0.999,
            ),
            Claim(
                "carried", "the change carried layer by layer is f(W') - f(W)", "==", carried, 0.2
            ),
        ),
        smooth=False,  # evolution attains the bounds; gradients would cost most to compile
    ),
    Family(
        "linear",
        f"linear chains of depth {DEPTH}, width {WIDTH}; a quadratic loss at a minimum above 0",
        LINEAR_SIZE,
        linear,
        (
            Claim("telescoping", "product' - product = sum over layers", "==", telescoping, 0.2),
            Claim("remainder", "what the first order leaves out", "==", second_telescoping, 0.2),
            Claim(
                "remainder bound",
                "which is of second order in dW",
                "<=",
                remainder_sides,
                0.9,
                0.999,
            ),
            Claim("gauss-newton", "one layer: 1/2 (J dW)^T H (J dW)", "==", one_layer, 0.08),
            Claim("gram", "1/2 sum K is Gauss-Newton of all layers", "==", gram, 0.2),
            Claim("depth", "sum K <= L trace K", "<=", depth, 0.9, 0.999),
        ),
        smooth=False,
    ),
)


def _measure(key: Array) -> tuple[Finding, ...]:
    def ratios(u: Array) -> tuple[Array, Array, Array]:
        c = chain(u)
        left, right, _ = lipschitz_sides(c)
        unaware = a_priori_sides(c._replace(offset=jnp.zeros_like(c.offset))).right
        return left / right, left / unaware, jnp.any(c.offset[:-1] != 0)

    return measure.measure(key, ratios, CHAIN_SIZE)


STATEMENT = Statement(
    name="propagation",
    title="Theorem 6: from layer perturbations to the error of the output and of the loss",
    source="derived here",
    assumptions=(
        "g_l is L_l-Lipschitz",
        "the bound from |x_0| alone: |g_k(0)| of the layers in front (product form: g_k(0) = 0)",
        "Gauss-Newton is exact for a linear network, one layer, a quadratic loss at a minimum",
        "sum K <= L trace K: a loss convex in the outputs",
    ),
    claim="The output moves by at most the sum of the layers' |dW_l| |x_{l-1}|, carried through "
    "the perturbed layers behind; to second order all layers together cost at most L times the "
    "sum of their single costs",
    latex=r"\|f'-f\|\le\sum_l L_l\|dW_l\|_2\|x_{l-1}\|\prod_{k>l}L_k\|W_k+dW_k\|_2,\qquad "
    r"\tfrac12\,\mathbb E(J\,dW)^\top H(J\,dW)=\tfrac12\sum_{lm}K_{lm}"
    r"\le\tfrac L2\operatorname{tr}K",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=_measure,
)

FORMS = (
    "spectral_norm",
    "lipschitz_bound",
    "input_bounds",
    "telescoped",
    "first_order",
    "remainder",
    "remainder_bound",
    "gauss_newton",
    "interactions",
    "activation_change",
)
