"""Theorem 5: composability. Whether the errors of sparsity and quantization add up, in which norms.

eps_f(x) = x - f(x). q rounds each block to multiples of D = max|x| / (2^(b-1) - 1), s removes the k
smallest |x| (or N of M of them, M dividing the blocks), ties anyhow. Then q o s (sparsify first)
keeps every block's maximum, hence its D, so that eps_{q o s} is eps_s where s removes and eps_q
where it keeps:

    ||eps_{q o s}|| <= ||eps_s|| + ||eps_q||        in every absolute norm,
    ||eps_{q o s}||_2^2 = ||eps_s||_2^2 + ||eps_q on the kept||_2^2.

An absolute norm does not change with the signs of the entries: L1, L2, Linf, weighted or not. The
output error sqrt(x' H x) of correlated inputs is none, nor is the spectral norm: there it fails.

For s o q (quantize first) let S be what s removes of x, T what it removes of q(x), and pair each i
in T \\ S with a j in S \\ T, r pairs in all. From |q_i| <= |q_j|,

    |x_i| <= |q_i| + |e_i| <= |q_j| + |e_i| <= |x_j| + |e_i| + |e_j|,   e = eps_q,

so |eps_{s o q}| is at most |eps_s|, with its entries moved from j to i, + |e| on T \\ S and off T
+ |e| of the js, also moved; Lp norms are blind to moves:

    ||eps_{s o q}||_p - ||eps_s||_p - ||eps_q||_p <= ||eps_q on S \\ T||_p <= r^(1/p) D / 2,

D the largest step in S \\ T. Two weights at the edges of one cell attain it in L1 and Linf.

L2 is different within one block, all of its weights compared. What changes place shares a level c:
|x_i| = (c + u_i) D, |x_j| = (c - v_j) D with u, v in [-1/2, 1/2]. Entries common to both orders
only lower the excess (t^(1/p) is concave), by Minkowski equal u and equal v are the worst, and

    r^(1/p) D [((c + u)^p + v^p)^(1/p) - (c - v) - (u^p + v^p)^(1/p)]

falls with c >= 1 (at c = 0 it is never positive) and rises with u and v. Hence for every p >= 1

    excess <= r^(1/p) (D/2) [(3^p + 1)^(1/p) - 1 - 2^(1/p)],

attained by r pairs (3/2, 1/2) D beside the maximum: a factor of sqrt(10) - 1 - sqrt(2) = 0.748 in
L2. Several blocks approach 1: x_i = 3/2 d D in a block of step d D, x_j = (d - 1/2) D, d large. It
is 0.893 at d = 3 (weights 9, 4.5, 3, 2.5 on steps of 3 and 1), 0.953 at d = 7. Attacks start from
all of these.

As for squares, ||eps_{s o q}||_2^2 - ||eps_{q o s}||_2^2 is the sum over pairs of d_i - d_j, with
d = q (2 x - q) in absolute values, at most 2 r max |q| D over the swapped: 2 r c D^2 for one block.
Source: Harma et al., ICLR 2025 (arXiv 2405.20935) for the two claims; the bounds are derived here.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths import swaps as forms
from theory.maths.swaps import POWERS
from theory.statements.composability import measure, proof
from theory.statements.composability.vectors import (
    GROUP,
    NOISE,
    UNITS,
    Case,
    case,
    extreme,
)

Norm = Callable[[Case, Array], Array]
NORMS: dict[str, Norm] = {
    "L1": lambda x, v: jnp.sum(jnp.abs(v)),
    "L2": lambda x, v: jnp.sqrt(jnp.sum(v**2)),
    "Linf": lambda x, v: jnp.max(jnp.abs(v)),
    "weighted L2": lambda x, v: jnp.sqrt(jnp.sum(x.diagonal * v**2)),
}


def _adds_up(name: str) -> Callable[[Case], Sides]:
    def sides(x: Case) -> Sides:
        norm = NORMS[name]
        right = norm(x, x.s) + norm(x, x.q)
        return Sides(norm(x, x.qs), right, jnp.maximum(right, NOISE * norm(x, x.weight)))

    return sides


def _entrywise(x: Case) -> Sides:
    """Any positive weights of the entries give the same sum, so the entries are the same."""
    left, right = (jnp.sum(x.diagonal * jnp.abs(v)) for v in (x.qs, jnp.where(x.first, x.s, x.q)))
    return Sides(left, right, jnp.maximum(right, NOISE * jnp.sum(x.diagonal * jnp.abs(x.weight))))


def _disjoint(x: Case) -> Sides:
    true = jnp.sum(x.qs**2)
    scale = jnp.maximum(true, NOISE * jnp.sum(x.weight**2))
    return Sides(forms.disjoint_square(x.s, x.q, ~x.first), true, scale)


def _exceeds(name: str, one_block: bool = False) -> Callable[[Case], Sides]:
    def sides(x: Case) -> Sides:
        norm = NORMS[name]
        swapped = x.first & ~x.last
        if one_block:
            swapped = swapped & (x.blocks >= 0.5) & (x.groups >= 0.5)
        step = jnp.max(jnp.where(swapped, x.step, 0))
        bound = forms.one_block_bound if one_block else forms.swap_bound
        right = bound(jnp.sum(swapped), step, POWERS[name])
        # With S = T both orders give the same, which "sparsify first" claims; and S \ T within
        # blocks of zeros is a swap of nothing. Left in, they are 0 <= 0 up to the last bit.
        excess = norm(x, x.sq) - norm(x, x.s) - norm(x, x.q)
        excess = jnp.where(jnp.any(swapped & (x.step > 0)), excess, 0)
        scale = jnp.maximum(jnp.abs(right), NOISE * norm(x, x.weight))
        return Sides(excess, right, scale)

    return sides


def _squares(x: Case) -> Sides:
    swaps = jnp.sum(x.first & ~x.last)
    some = jnp.any((x.first != x.last) & (x.level > 0))  # swaps of zeros cost nothing, as above
    excess = jnp.where(some, jnp.sum(x.sq**2) - jnp.sum(x.qs**2), 0)
    right = forms.square_bound(swaps, jnp.max(jnp.where(x.first != x.last, x.level * x.step, 0)))
    scale = jnp.maximum(jnp.abs(right), NOISE * jnp.sum(x.weight**2))
    return Sides(excess, right, scale)


# the excess bounds in L1 and Linf are attained, in L2 next to it where steps differ much
REACHED = {"L1": ATTAINED, "L2": 0.952, "Linf": ATTAINED}
FAMILIES = (
    Family(
        "vectors",
        f"{UNITS} weights of five distributions, on lattices and on the edges of cells; blocks of "
        f"{GROUP} or {UNITS}, 2 to 4 bits; any number removed, of all or N:{GROUP}; random ties",
        5 * UNITS + UNITS // GROUP + 8,
        case,
        (
            Claim(
                "entrywise", "eps_qs is eps_s where s removes, else eps_q", "==", _entrywise, 0.9
            ),
            *(
                Claim(
                    f"{name}, sparsify first",
                    "the errors add up",
                    "<=",
                    _adds_up(name),
                    0.6,
                    ATTAINED,
                )
                for name in NORMS
            ),
            Claim("disjoint", "squared errors of disjoint supports", "==", _disjoint, 0.9),
            *(
                Claim(
                    f"{name}, quantize first",
                    "excess <= r^(1/p) D/2",
                    "<=",
                    _exceeds(name),
                    0.3,
                    REACHED[name],
                )
                for name in POWERS
            ),
            Claim(
                "L2, quantize first, one block",
                "excess <= 0.748 r^(1/2) D/2",
                "<=",
                _exceeds("L2", one_block=True),
                0.1,
                ATTAINED,
            ),
            Claim(
                "squares", "quantizing first costs <= 2 r max|q| D", "<=", _squares, 0.2, ATTAINED
            ),
        ),
        smooth=False,  # the extremes are known; gradients would cost most to compile
        known=lambda: np.stack([extreme(3), extreme(4), extreme(3, one_block=True)]),
    ),
)


STATEMENT = Statement(
    name="composability",
    title="Theorem 5: sparsify first and errors add up; quantize first and they may do worse",
    source="Harma et al., ICLR 2025 (arXiv 2405.20935); the excess bounds are derived here",
    assumptions=(
        "q rounds to the nearest multiple of the block's maximum over 2^(b-1) - 1",
        "s removes the smallest magnitudes, of all or within N:M groups inside the blocks",
        "sparsify first: the norm is absolute (blind to the signs of the entries)",
        "excess: the norm is an Lp norm (absolute, and blind to the order of the entries)",
    ),
    claim="||eps_qs|| <= ||eps_s|| + ||eps_q|| in every absolute norm, with squares that add up; "
    "||eps_sq||_p exceeds the sum by at most r^(1/p) D/2, r the weights that change places, within "
    "one block by at most (3^p + 1)^(1/p) - 1 - 2^(1/p) of that",
    latex=r"\|\epsilon_{q\circ s}\|\le\|\epsilon_s\|+\|\epsilon_q\|,\qquad "
    r"\|\epsilon_{s\circ q}\|_p\le\|\epsilon_s\|_p+\|\epsilon_q\|_p+r^{1/p}\,\Delta/2",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
FORMS = ("disjoint_square", "swap_bound", "one_block_bound", "square_bound")
