"""Theorem 3: interference, what pruning does to the rounding of the weights that survive it.

A group g is rounded to the multiples of D = max_g |w| / (2^(b-1) - 1), so that nothing is clipped.
Where it is pruned first, the scale is taken over the survivors: D' = max over the survivors / (...)
<= D. Sign convention: the CHANGE is the survivors' squared error at D less that at D', positive
where pruning first helps; the change is what A(P->Q) gains over ownership, A(Q->P) loses it.

    -(survivors - 1) D'^2 / 4  <=  change  <=  survivors D^2 / 4

since a rounding error is at most half a step, and the largest survivor has none at D'. Both ends
are attained: above by survivors of one size (j + 1/2) D; below by w = (1, 2, 3) at 3 bits without
its 3, which has D = 1, D' = 2/3 and 1 = 3/2 D'. Where the absmax survives D' = D and the change
is 0: always for magnitude pruning of single weights, unless a whole group goes. For rounding errors
uniform on a cell (a dither makes them so, whatever the weights) the change is on average

    survivors (D^2 - D'^2) / 12.

Of n iid weights, k kept at random: E D^2 = E max_n^2 / (2^(b-1)-1)^2, E max_n^2 = integral of
2 x (1 - F(x)^n), F the distribution of |w|. Source: derived here; the effect is Kim et al.'s (ICLR
2026, arXiv 2603.18426), who have it depend on the pruning ratio alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from perturb import RTN, GridSpec
from theory.compressors import compress, start
from theory.engine import instances
from theory.engine.statement import ATTAINED, Claim, Family, Sides, Statement
from theory.maths import scales as forms
from theory.maths.densities import Laplace, Uniform
from theory.statements.interference import measure, proof

GROUPS, WIDTH = 2, 6
MOST = 128  # weights a group in the family of closed forms


class Grouped(NamedTuple):
    weight: Array  # [GROUPS, WIDTH]
    kept: Array  # [GROUPS, WIDTH] of 0 and 1, any
    bits: Array
    k: Array  # weights of the layer that magnitude pruning removes
    tie: Array  # [GROUPS * WIDTH]


def _grouped(u: Array) -> Grouped:
    take = instances.Take(u)
    w = instances.weights(take(GROUPS * WIDTH), take(), take()).reshape(GROUPS, WIDTH)
    kept = (take(GROUPS, WIDTH) < take()).astype(jnp.float64)
    bits, k = instances.integer(take(), 2, 8), instances.integer(take(), 0, GROUPS * WIDTH - 1)
    return Grouped(w, kept, bits, k, take(GROUPS * WIDTH))


def _steps(x: Grouped, kept: Array) -> tuple[Array, Array]:
    """D and D' of every group, [GROUPS]; D' of a group without survivors is 0."""
    size = jnp.abs(x.weight)
    return forms.scale_step(jnp.max(size, 1), x.bits), forms.scale_step(
        jnp.max(kept * size, 1), x.bits
    )


def _residual(w: Array, step: Array) -> Array:
    """w less its nearest multiple of step; 0 for a step of 0."""
    some = jnp.where(step == 0, 1, step)
    return jnp.where(step == 0, 0, w - some * jnp.round(w / some))


def _errors(x: Grouped, kept: Array) -> tuple[Array, Array]:
    """The survivors' squared error at D and at D', [GROUPS] each."""
    before, after = (
        jnp.sum(kept * _residual(x.weight, d[:, None]) ** 2, 1) for d in _steps(x, kept)
    )
    return before, after


def _change(x: Grouped, kept: Array) -> Array:
    before, after = _errors(x, kept)
    return before - after


def _shrinks(x: Grouped) -> Sides:
    before, after = _steps(x, x.kept)
    worst = jnp.argmax(after - before)
    return Sides(after[worst], before[worst], jnp.abs(before[worst]))


def _gains(x: Grouped) -> Sides:
    before, _ = _steps(x, x.kept)
    most = jnp.sum(forms.interference_bound(jnp.sum(x.kept, 1), before))
    return Sides(jnp.sum(jnp.abs(_change(x, x.kept))), most, most)


def _loses(x: Grouped) -> Sides:
    _, after = _steps(x, x.kept)
    survivors = jnp.sum(x.kept, 1)
    # a lone survivor cannot lose: 0 <= 0, but for the last bit of w - top (w / top)
    most = jnp.sum(jnp.where(survivors > 1, forms.interference_bound(survivors - 1, after), 0))
    loss = jnp.where(survivors > 1, jnp.maximum(-_change(x, x.kept), 0), 0)
    return Sides(jnp.sum(loss), most, most)


def _unchanged(x: Grouped, kept: Array, judged: Array) -> Sides:
    """The errors at both scales, of the judged groups [GROUPS]."""
    before, after = (jnp.sum(jnp.where(judged, e, 0)) for e in _errors(x, kept))
    most = forms.interference_bound(jnp.sum(kept, 1), _steps(x, kept)[0])
    return Sides(after, before, jnp.sum(jnp.where(judged, most, 0)))


def _absmax_survives(x: Grouped) -> Sides:
    size = jnp.abs(x.weight)
    return _unchanged(x, x.kept, jnp.max(x.kept * size, 1) == jnp.max(size, 1))


def _magnitude(x: Grouped) -> Sides:
    gone = instances.smallest(jnp.abs(x.weight).reshape(-1), x.k, x.tie)
    kept = 1.0 - gone.reshape(x.weight.shape)
    return _unchanged(x, kept, jnp.sum(kept, 1) > 0)


def _dithered(w: Array, step: Array) -> Array:
    """The mean of the squared error of w over all offsets of the grid, exactly.

    In units of the step the error is o + z - round(o + z), o in (0, 1): linear but for one jump, so
    two-point Gauss-Legendre on both sides of it integrates its square.
    """
    z = _residual(w, step) / jnp.where(step == 0, 1, step)  # in [-1/2, 1/2]
    jump = 0.5 - z
    total = jnp.zeros_like(z)
    for low, high in ((jnp.zeros_like(z), jump), (jump, jnp.ones_like(z))):
        for node in (-(3**-0.5), 3**-0.5):
            o = (low + high) / 2 + node * (high - low) / 2
            total += (high - low) / 2 * (o + z - jnp.round(o + z)) ** 2
    return step**2 * total


def _expected_law(x: Grouped) -> Sides:
    steps = _steps(x, x.kept)
    before, after = (jnp.sum(x.kept * _dithered(x.weight, d[:, None]), 1) for d in steps)
    survivors = jnp.sum(x.kept, 1)
    law = jnp.sum(forms.expected_interference(survivors, *steps))
    return Sides(law, jnp.sum(before - after), jnp.sum(survivors * steps[0] ** 2))


class Drawn(NamedTuple):
    n: Array  # weights a group, 1..MOST
    k: Array  # survivors, 1..n
    bits: Array


def _drawn(u: Array) -> Drawn:
    n = instances.integer(u[0], 1, MOST)
    k = jnp.minimum(1 + jnp.floor(u[1] * n), n)
    return Drawn(n.astype(jnp.float64), k, instances.integer(u[2], 2, 8))


def _largest(x: Drawn) -> Sides:
    """Laplace: |w| is exponential, its maximum a sum of exponentials of rates 1..n, so that
    E max^2 = (sum 1/i)^2 + sum 1/i^2."""
    i = jnp.arange(1, MOST + 1)
    rate = jnp.where(i <= x.n, 1 / i, 0)
    true = jnp.sum(rate) ** 2 + jnp.sum(rate**2)
    return Sides(forms.max_square(Laplace(), x.n), true, true)


def _uniform_largest(n: Array) -> Array:
    """E max^2 = n / (n + 2) of n weights uniform on (-1, 1): |w| is, the maximum is Beta(n, 1)."""
    return n / (n + 2)


def _random(x: Drawn) -> Sides:
    codes = 12 * (2.0 ** (x.bits - 1) - 1) ** 2
    found = forms.random_pruning(Uniform(), x.bits, x.n, x.k)
    return Sides(found, x.k * (_uniform_largest(x.n) - _uniform_largest(x.k)) / codes, x.k / codes)


def _random_on_grid(x: Drawn) -> Sides:
    """Against the sum over what is kept: all of it 0 if the largest is (probability k/n)."""
    codes = 12 * (2.0 ** (x.bits - 1) - 1) ** 2
    found = forms.random_pruning_on_grid(Uniform(), x.bits, x.n, x.k)
    # the maximum of all n is E[max_k^2] + what it is more; where it survives, both are one
    with_it, largest = x.k / x.n, _uniform_largest(x.n)
    without = _uniform_largest(x.k) - with_it * largest  # E[max_k^2; the largest is gone]
    true = (1 - with_it) * x.k * largest - (x.k - 1) * without
    return Sides(found, true / codes, x.k / codes)


class Rounded(NamedTuple):
    weight: Array  # [2, 8]
    kept: Array
    bits: Array


def _rounded(u: Array) -> Rounded:
    take = instances.Take(u)
    w = instances.weights(take(16), take(), take()).reshape(2, 8)
    kept = (take(2, 8) < take()).astype(jnp.float64)
    return Rounded(w, kept, instances.integer(take(), 2, 8))


def _perturb(x: Rounded) -> Sides:
    """The change by perturb.RTN, scales of the dense less of the current layer, and by D and D'."""
    pruned = start(x.weight, x.kept)
    errors = []
    for source in ("dense", "current"):
        rtn = RTN(x.bits, GridSpec(per=4, convention="full"), scale_source=source)
        after = compress(rtn, pruned, x.weight).weight
        errors.append(jnp.sum(x.kept * (after - x.weight) ** 2))
    kept = x.kept.reshape(-1, 4)
    groups = Grouped(x.weight.reshape(-1, 4), kept, x.bits, jnp.zeros(()), jnp.zeros(()))
    most = forms.interference_bound(jnp.sum(kept, 1), _steps(groups, kept)[0])
    return Sides(errors[0] - errors[1], jnp.sum(_change(groups, kept)), jnp.sum(most))


FAMILIES = (
    Family(
        "groups",
        f"{GROUPS} groups of {WIDTH} weights (normal, Laplace, t, uniform, log-uniform, lattices), "
        "2 to 8 bits, any survivors; for magnitude any number pruned, with ties",
        3 * GROUPS * WIDTH + 5,
        _grouped,
        (
            Claim("step shrinks", "D' <= D", "<=", _shrinks, 0.2, ATTAINED),
            Claim("change", "|change| <= survivors D^2 / 4", "<=", _gains, 0.8, ATTAINED),
            Claim(
                "loss",
                "-change <= (survivors - 1) D'^2 / 4, if above 1",
                "<=",
                _loses,
                0.6,
                ATTAINED,
            ),
            Claim("absmax survives", "no change where it does", "==", _absmax_survives, 0.3),
            Claim("magnitude", "no change in a group with a survivor", "==", _magnitude, 0.6),
            Claim("expected law", "the mean over a dither is the law", "==", _expected_law, 0.3),
        ),
        smooth=False,  # what is tight lies on the edges between cells, which gradients do not see
    ),
    Family(
        "closed forms",
        f"groups of 1 to {MOST} iid weights, any number of survivors, 2 to 8 bits",
        3,
        _drawn,
        (
            Claim("largest", "E max^2 of Laplace weights, by quadrature", "==", _largest, 0.9),
            Claim("random", "the law for random pruning", "==", _random, 0.8),
            Claim("on grid", "less the largest weight's share", "==", _random_on_grid, 0.8),
        ),
        smooth=False,
        share=0.01,
    ),
    Family(
        "perturb",
        "perturb.RTN on pruned [2, 8] layers, absmax scales per group of 4",
        16 + 2 + 16 + 2,
        _rounded,
        (Claim("perturb", "the real quantizer changes the survivors so", "==", _perturb, 0.4),),
        smooth=False,
        share=0.1,
    ),
)


STATEMENT = Statement(
    name="interference",
    title="Theorem 3: pruning shrinks the step of the survivors, by how much and to what effect",
    source="derived here; the effect is Kim et al.'s, ICLR 2026 (arXiv 2603.18426)",
    assumptions=(
        "scales are absmax: nothing is clipped",
        "nearest rounding, with 0 on the grid",
        "zero change: the criterion keeps each group's absmax, as magnitude pruning of single "
        "weights does",
        "expected law: rounding errors uniform on a cell",
    ),
    claim="the survivors' squared error falls by at most survivors D^2/4 and rises by at most "
    "(survivors - 1) D'^2/4; not at all where the absmax survives; by survivors (D^2 - D'^2)/12 on "
    "average over a dither",
    latex=r"-\tfrac{(m-1)\Delta'^2}{4}\le\sum_{u\in\text{kept}}e_\Delta(u)-e_{\Delta'}(u)\le"
    r"\tfrac{m\Delta^2}{4},\qquad \mathbb E=\tfrac{m(\Delta^2-\Delta'^2)}{12}",
    families=FAMILIES,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
    measure=measure.measure,
)
FORMS = (
    "scale_step",
    "interference_bound",
    "expected_interference",
    "max_square",
    "random_pruning",
    "random_pruning_on_grid",
)
