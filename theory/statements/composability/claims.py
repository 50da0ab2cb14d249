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
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths import swaps as forms
from theory.maths.swaps import POWERS
from theory.statements.composability import measure, proof

UNITS, GROUP = 12, 4  # weights; weights in a small block and in an N:M group
LARGEST = 7  # step of a block over that of another; the largest code of 4 bits, too


class Vector(NamedTuple):
    """One block or three, removed by count or N of M."""

    weight: Array  # [UNITS]
    blocks: Array  # < 1/2: blocks of GROUP, else one of UNITS
    groups: Array  # < 1/2: k of every GROUP neighbours go, else k of all
    k: Array
    top: Array  # 2^(b-1) - 1
    tie: Array  # [UNITS], after quantizing
    diagonal: Array  # [UNITS], of a weighted norm, > 0


def _vector(u: Array) -> Vector:
    """Half of them from the five distributions, half near and on the edges of cells.

    Steps of 1 to LARGEST, so that no bound is lost in the rounding of far larger weights.
    """
    take = instances.Take(u)
    w = instances.weights(take(UNITS), take(), take()).reshape(-1, GROUP)
    top = 2.0 ** instances.integer(take(), 1, 3) - 1
    code = jnp.round(top * (2 * take(UNITS) - 1))
    # three in ten end on levels, as many just inside the edges: on them, ties round to even codes
    offset = 2.4 * take(UNITS) - 1.2
    offset = jnp.sign(offset) * jnp.clip(jnp.abs(offset) - 0.35, 0, 0.5 - 1e-9)
    edges = jnp.clip(code + offset, -top, top)
    edges = edges.reshape(-1, GROUP).at[:, 0].set(top)
    blocks, groups = take(), take()
    size = jnp.max(jnp.abs(w), 1, keepdims=True)
    size = jnp.where(blocks < 0.5, size, jnp.max(size))
    w = jnp.where(take() < 0.5, top * w / jnp.where(size > 0, size, 1), edges)
    unit = instances.log_uniform(take(UNITS // GROUP, 1), 1, LARGEST)
    w = w * jnp.where((blocks < 0.5) & (take() < 0.5), unit, 1)
    k = jnp.floor(take() * jnp.where(groups < 0.5, GROUP, UNITS))
    return Vector(w.reshape(-1), blocks, groups, k, top, take(UNITS), 10 ** (2 * take(UNITS) - 1))


def extreme(bits: int, one_block: bool = False) -> np.ndarray:
    """The point of the cube that is x_i = 3/2 d and x_j = d - 1/2 in blocks of step d and 1,
    d = 2^(bits - 1) - 1; or 3/2 and 1/2 in one block of step 1.

    The other weights are 0, or the maximum of their block; the zeros go and one more, where x_i
    (and the maxima of step 1) tie with x_j, against x_i.
    """
    top = 2 ** (bits - 1) - 1
    code, offset = np.zeros((2, UNITS // GROUP, GROUP))
    code[:, 0] = top
    code[0, 1], offset[0, 1] = 1, 0.5  # x_i
    code[1, 1], offset[1, 1] = 1 if one_block else top, -0.5  # x_j
    tie = np.ones(UNITS)
    tie[1] = 0
    anything = np.full(UNITS, 0.5)
    parts = (
        (*anything, 0.5, 0.5),  # weights of a distribution: not taken
        (bits - 1.5) / 3,
        (code / top + 1) / 2,
        (offset + 0.35 * np.sign(offset) + 1.2) / 2.4,
        # blocks small or one, all weights compared, next to the edges of cells
        (0.75 if one_block else 0.25, 0.75, 0.75),
        np.array([np.log(top) / np.log(LARGEST) - 1e-12, 0, 0]),  # rounding may not break the tie
        (0.25, ((code == 0).sum() + 1.5) / UNITS),  # steps that differ; how many go
        tie,
        anything,
    )
    return np.concatenate([np.ravel(part) for part in parts])


def _gone(x: Vector, score: Array, tie: Array) -> Array:
    """What magnitude sparsity removes, by rank among all or among GROUP neighbours."""
    i = jnp.arange(UNITS)
    compared = (x.groups >= 0.5) | (i[:, None] // GROUP == i // GROUP)
    later = (tie[:, None] > tie) | ((tie[:, None] == tie) & (i[:, None] > i))
    ties = (score[:, None] == score) & later
    return jnp.sum(compared & ((score[:, None] > score) | ties), 1) < x.k


def _rounded(x: Vector, w: Array) -> tuple[Array, Array]:
    """q(w) and the step of every weight."""
    size = jnp.abs(w)
    each = jnp.repeat(jnp.max(size.reshape(-1, GROUP), 1), GROUP)
    step = jnp.where(x.blocks < 0.5, each, jnp.max(size)) / x.top
    some = jnp.where(step > 0, step, 1)
    return some * jnp.round(w / some), step


NOISE = 1e-3  # of the norm of x: errors below that are judged by it, x being what is rounded off


class Case(NamedTuple):
    """A :class:`Vector`, and what both orders make of it: computed once for all claims."""

    weight: Array
    blocks: Array
    groups: Array
    k: Array
    top: Array
    tie: Array
    diagonal: Array
    s: Array  # eps_s, and so on, [UNITS]
    q: Array
    qs: Array  # sparsify first
    sq: Array  # quantize first
    first: Array  # S, bool
    last: Array  # T
    step: Array
    level: Array  # |q|


def _case(u: Array) -> Case:
    x = _vector(u)
    w = x.weight
    q, step = _rounded(x, w)
    first = _gone(x, jnp.abs(w), jnp.arange(UNITS) * 1.0)
    last = _gone(x, jnp.abs(q), x.tie)
    sparse = jnp.where(first, 0, w)
    both = (_rounded(x, sparse)[0], jnp.where(last, 0, q))
    return Case(*x, w - sparse, w - q, w - both[0], w - both[1], first, last, step, jnp.abs(q))


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
        _case,
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
