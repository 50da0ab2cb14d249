"""Where PIH's sign is a theorem: the first method keeps what both want, and one is harsher there.

Theorem 1 with contested units C, owned by whichever method goes first, all others by the same one
in both orders: S12 = B + C, S21 = B, so that

    A(f1->f2) = kappa sum_C (e2 - e1),      G(f1,f2) = kappa sum over all units (e2 - e1).

If f2 does at least as much harm as f1 to EVERY unit, both sums have one sign and 0 <= A <= G: the
stronger compressor goes last. If its harm is in proportion, e2 = lambda e1, then A = c G with
c = sum_C e1 / sum e1: PIH's sign and trend at once. Both need the first owner: where the LAST
keeps what both want, every sign is turned, and magnitude pruning after rounding takes what it wants
again, which is why theorems 2a and 2b have no such sign. The smallest change that breaks it: errors
of contested units that move by |A|/kappa in all, as one unit of C does on which f1 is the harsher.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from theory.engine import instances
from theory.engine.statement import Claim, Family, Sides, Statement
from theory.maths import ownership as forms
from theory.statements.intensity import law, proof

UNITS = 16
FORMS = ("advantage_by_ownership", "contested_share")  # of theory.maths.ownership


class Contested(NamedTuple):
    e1: Array  # [UNITS]
    e2: Array
    contested: Array  # [UNITS] of 0 and 1, not all 0
    base: Array  # [UNITS], what f1 owns anyhow
    factor: Array  # e2 = factor e1, in the proportional case
    moved: Array  # [2, UNITS], changes of both errors


def _contested(u: Array) -> Contested:
    take = instances.Take(u)
    e1 = 10 ** (4 * take(UNITS) - 2)
    harsher = jnp.where(take() < 0.5, -1, 1) * instances.log_uniform(take(), 1e-2, 2.0)
    contested = (take(UNITS) < take() * 1.2).astype(jnp.float64).at[0].set(1.0)
    base = (1 - contested) * (take(UNITS) < 0.5)
    moved = (2 * take(2, UNITS) - 1) * instances.log_uniform(take(), 1e-3, 1.0) * e1
    return Contested(e1, e1 * 10 ** (harsher * take(UNITS)), contested, base, 10**harsher, moved)


def _advantage(x: Contested, e1: Array, e2: Array) -> Array:
    return forms.advantage_by_ownership(e1, e2, x.base + x.contested, x.base, 1.0)


def _gap(e1: Array, e2: Array) -> Array:
    return jnp.sum(e2 - e1)


def _stronger_last(x: Contested) -> Sides:
    """Errors of the contested units by the order: that with the stronger method last, the other."""
    first, last = (forms.total_error(x.e1, x.e2, own) for own in (x.base + x.contested, x.base))
    f2_stronger = _gap(x.e1, x.e2) > 0
    left, right = jnp.where(f2_stronger, first, last), jnp.where(f2_stronger, last, first)
    return Sides(left, right, right)


def _at_most(x: Contested) -> Sides:
    gap = jnp.abs(_gap(x.e1, x.e2))
    return Sides(jnp.abs(_advantage(x, x.e1, x.e2)), gap, gap)


def _proportional(x: Contested) -> Sides:
    e2 = x.factor * x.e1
    share = forms.contested_share(x.e1, x.contested)
    law = share * _gap(x.e1, e2)
    return Sides(law, _advantage(x, x.e1, e2), jnp.sum(x.contested * (x.e1 + e2)))


def _smallest_change(x: Contested) -> Sides:
    """A moves by no more than the contested units' errors do: less than |A| cannot turn it."""
    moved = x.contested * x.moved
    after = _advantage(x, x.e1 + moved[0], x.e2 + moved[1])
    size = jnp.sum(jnp.abs(moved))
    scale = size + 1e-2 * jnp.sum(x.contested * (x.e1 + x.e2))
    return Sides(jnp.abs(after - _advantage(x, x.e1, x.e2)), size, scale)


FAMILIES = (
    Family(
        "contested",
        f"{UNITS} units, errors over four decades, one method up to 100 times as harsh, on any "
        "units by any of that; any contested",
        7 * UNITS + 4,
        _contested,
        (
            Claim("stronger last", "has the less error", "<=", _stronger_last, 0.9, 0.999),
            Claim("at most", "|A| <= |G|", "<=", _at_most, 0.7, 0.999),
            Claim("proportional", "A = c G if e2 = lambda e1", "==", _proportional, 0.8),
            Claim("change", "|A' - A| <= what C's errors move", "<=", _smallest_change, 0.7, 0.9),
        ),
        smooth=False,
        share=0.5,
    ),
)

STATEMENT = Statement(
    name="intensity",
    title="PIH's sign, a theorem where the first owner keeps and one method is harsher throughout",
    source="derived here, from theorem 1 of Kim et al., ICLR 2026 (arXiv 2603.18426)",
    assumptions=(
        "errors of units add up, disjoint selectivity (theorem 1)",
        "contested units belong to the method that goes first",
        "one method does at least as much harm as the other to every unit",
    ),
    claim="0 <= A(f1->f2) <= G(f1,f2) where f2 is the harsher: the stronger goes last; in "
    "proportion A = c G; errors of contested units that move by less than |A| do not turn it",
    latex=r"e_2\ge e_1,\ S_{12}=B\cup C,\ S_{21}=B\ \Rightarrow\ "
    r"0\le A(f_1\to f_2)=\kappa\sum_C(e_2-e_1)\le G(f_1,f_2)",
    families=FAMILIES,
    law=law.LAW,
    prove=proof.prove,
    necessity=proof.necessity,
    exact=proof.exact,
)
