"""Every statement: its proof, enumeration, counterexamples and claims, and that they can fail."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pkgutil import iter_modules

import jax
import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

import theory.maths
from theory.engine.law import Law, Picture
from theory.engine.statement import Claim, Sides
from theory.engine.sweep import check
from theory.maths import ownership
from theory.statements.beta import proof as beta_proof
from theory.statements.catalogue import NAMES, statement
from theory.statements.composability import claims as composability
from theory.statements.composability import vectors
from theory.statements.ownership import proof as ownership_proof
from theory.statements.refit import proof as refit_proof
from theory.statements.rounding import proof as rounding_proof
from theory.statements.signlaw import proof as signlaw_proof
from theory.statements.stages import proof as stages_proof
from theory.statements.structured import proof as structured_proof

DECIDING = tuple(name for name in NAMES if statement(name).law is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_statement_says_what_it_is(name):
    s = statement(name)
    assert s.name == name
    assert s.title
    assert s.source
    assert s.assumptions
    assert s.claim
    assert s.latex
    claims = [c.name for f in s.families for c in f.claims]
    assert len(claims) == len(set(claims)) > 0


@pytest.mark.parametrize("name", DECIDING)
def test_a_law_is_a_sentence_and_names_what_narrowed_it(name):
    s = statement(name)
    assert s.law.says.endswith(".")
    assert len(s.law.says) < 200
    dropped = {e.dropped: e.violates for e in s.necessity()}
    assert s.law.verdict(True, dropped) == ("narrower" if s.law.narrower else "proved")


def test_what_became_of_a_law_is_computed():
    law = Law("Prune first.", lambda findings: Picture("p", "A", ()), "it is even")
    assert law.verdict(True, {"it is even": True}) == "narrower"
    assert law.verdict(True, {"it is even": False}) == "proved"
    assert law.verdict(False, {"it is even": True}) == "fails"
    with pytest.raises(KeyError, match="it is even"):
        law.verdict(True, {})


@pytest.mark.parametrize("name", NAMES)
def test_proofs_enumerations_and_counterexamples(name):
    s = statement(name)
    proof, exact, examples = s.prove(), s.exact(), s.necessity()
    assert proof.steps or proof.beyond
    assert [step for step in proof.steps if not step.holds] == []
    assert exact is None or exact.holds
    assert exact is None or exact.cases > 100
    assert examples
    assert [e for e in examples if not e.violates] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_claims_hold_and_flipped_ones_do_not(name):
    """Every claim on random instances; the same with its sides exchanged or of opposite sign."""
    s = statement(name)

    def opposite(claim: Claim) -> Claim:
        """The reverse: beyond rounding for sides that are equal, or 0, by definition."""

        def sides(x):
            left, right, scale = claim.sides(x)
            little = 1e-6 * scale
            if claim.relation == "<=":
                return Sides(right + little, left, scale)
            return Sides(-left + little, right, scale)

        return dataclasses.replace(claim, name=f"not {claim.name}", sides=sides)

    both = [
        dataclasses.replace(f, claims=(*f.claims, *map(opposite, f.claims))) for f in s.families
    ]
    done = check(dataclasses.replace(s, families=tuple(both)), 4000, jax.random.key(1))
    found = {c.claim: c for c in done.claims}
    assert [n for n, c in found.items() if not n.startswith("not ") and not c.holds] == []
    assert [n for n, c in found.items() if n.startswith("not ") and c.holds] == []
    # and the instances are such that the claims could fail
    assert [n for n, c in found.items() if not n.startswith("not ") and not c.enough] == []


LATER = ("refit", "structured", "signlaw", "beta", "stages")
FREE = ("sorted",)  # bounds without a floor: what is below is 0, the sorted order has no inversion
FORMS = [
    (name, form)
    for name in NAMES
    for form in getattr(import_module(f"theory.statements.{name}.claims"), "FORMS", ())
]


def test_every_statement_names_its_closed_forms():
    assert {name for name, _ in FORMS} == set(NAMES)


def home(name: str, form: str):
    """The modules in which a closed form is looked up: the statement's own, and all of maths."""
    own = import_module(f"theory.statements.{name}")
    found = [
        module
        for package in (own, theory.maths)
        for m in iter_modules(package.__path__, f"{package.__name__}.")
        if hasattr(module := import_module(m.name), form)
    ]
    assert found, f"no closed form {form}"
    return [m for m in found if getattr(m, form) is getattr(found[0], form)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_flipped_sign_in_a_closed_form_is_caught(name, form, monkeypatch):
    for module in home(name, form):
        original = getattr(module, form)

        def flipped(*args, _f=original, **kwargs):
            return jax.tree.map(lambda x: -x, _f(*args, **kwargs))

        monkeypatch.setattr(module, form, flipped)
    s = statement(name)
    keys = jax.random.key(2)
    # the families one by one, until one notices
    assert any(
        not check(dataclasses.replace(s, families=(f,)), 2000, keys).holds for f in s.families
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), [x for x in FORMS if x[0] in LATER])
def test_a_closed_form_off_by_two_percent_is_caught(name, form, monkeypatch):
    for module in home(name, form):
        original = getattr(module, form)

        def less(*args, _f=original, **kwargs):
            return jax.tree.map(lambda x: 0.98 * x, _f(*args, **kwargs))

        monkeypatch.setattr(module, form, less)
    s = statement(name)
    keys = jax.random.key(2)
    assert any(
        not check(dataclasses.replace(s, families=(f,)), 2000, keys).holds for f in s.families
    )


@pytest.mark.parametrize("name", NAMES)
def test_bounds_say_how_near_the_attack_has_to_come(name):
    claims = [c for f in statement(name).families for c in f.claims]
    assert all(c.telling > 0 for c in claims)
    bounds = [c for c in claims if c.relation == "<=" and c.name not in FREE]
    assert [c.name for c in bounds if c.tight < 0.8] == []


def test_the_known_extreme_is_the_one_that_is_told():
    """Weights 9, 4.5, 3, 2.5 in blocks of step 3 and 1: 0.893 of the L2 excess bound."""
    with jax.enable_x64(True):
        found = jax.jit(vectors.case)(vectors.extreme(3))
        left, right, _ = composability._exceeds("L2")(found)
    weight = np.sort(np.abs(found.weight))[::-1]
    np.testing.assert_allclose(weight[:6], [9, 4.5, 3, 3, 2.5, 0], atol=1e-8)
    assert not weight[5:].any()
    assert float(left / right) == pytest.approx(0.893, abs=5e-4)


def test_the_known_extreme_of_one_block_attains_its_bound():
    """Weights 3, 3, 3, 1.5 and 0.5 in one block of step 1."""
    with jax.enable_x64(True):
        found = jax.jit(vectors.case)(vectors.extreme(3, one_block=True))
        left, right, _ = composability._exceeds("L2", one_block=True)(found)
    weight = np.sort(np.abs(found.weight))[::-1]
    np.testing.assert_allclose(weight[:6], [3, 3, 3, 1.5, 0.5, 0], atol=1e-8)
    assert float(left / right) == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(
    ("module", "form"),
    [
        (signlaw_proof, "order_advantage"),
        (refit_proof, "fitted_gain"),
        (refit_proof, "fitted_step"),
        (structured_proof.forms, "blocks_advantage"),
        (stages_proof, "stages_advantage"),
        (beta_proof.forms, "beta_advantage"),
    ],
)
def test_a_closed_form_off_by_two_percent_breaks_its_proof(module, form, monkeypatch):
    original = getattr(module, form)
    exact = sympy.Rational(98, 100)
    monkeypatch.setattr(module, form, lambda *args: exact * original(*args))
    proofs = (signlaw_proof, refit_proof, structured_proof, stages_proof, beta_proof)
    (room,) = [r for r in proofs if module in (r, getattr(r, "forms", None))]
    assert not room.prove().holds


def test_an_enumeration_notices_a_law_with_two_modes(monkeypatch):
    monkeypatch.setattr(signlaw_proof, "LAWS", ((0, 0, 1),))
    found = signlaw_proof.exact()
    assert "masses (0, 0, 1)" in found.failure


def test_an_enumeration_notices_a_projection_that_is_not_one(monkeypatch):
    monkeypatch.setattr(
        stages_proof, "_project", lambda h, gone, w: [v * (i != gone) for i, v in enumerate(w)]
    )
    assert not stages_proof.exact().holds


def test_a_flipped_sign_breaks_a_proof(monkeypatch):
    monkeypatch.setattr(rounding_proof, "benefit", lambda w, q: -q * (2 * w - q))
    assert not rounding_proof.prove().holds
    assert not rounding_proof.exact().holds


def test_a_wrong_exact_formula_is_named(monkeypatch):
    def all_units(e1, e2, s12, s21, kappa):
        return kappa * (s21 * (e1 - e2)).sum(-1)

    monkeypatch.setattr(ownership_proof, "advantage_by_ownership", all_units)
    found = ownership_proof.exact(3)
    assert not found.holds
    assert "S12" in found.failure


@given(st.data())
@settings(deadline=None)
def test_ownership_is_an_identity_in_integers(data):
    n = data.draw(st.integers(1, 12))
    errors = st.lists(st.integers(-(10**9), 10**9), min_size=n, max_size=n)
    owners = st.lists(st.integers(0, 1), min_size=n, max_size=n)
    drawn = [np.array(data.draw(s), object) for s in (errors, errors, owners, owners)]
    kappa = data.draw(st.integers(1, 1000))
    by_definition = ownership.advantage_by_definition(*drawn, kappa)
    assert ownership.advantage_by_ownership(*drawn, kappa) == by_definition
