"""Studies: the grammar of their plans, the names of their cells, what is refused in one line."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import experiments.__main__ as door
from experiments.analysis.variants import PREPARING
from experiments.axes import chains, tree
from experiments.labels import chain_name, label, stage_name
from experiments.study import Own, Policy, Study, axis, builtin, find, names, pairs, permutations
from perturb import (
    GPTQ,
    OBR,
    RTN,
    GlobalMagnitude,
    GridSpec,
    Joint,
    LowRank,
    Magnitude,
    NofM,
    SparseGPT,
    Wanda,
    chain,
)
from perturb.stage import layerwise, per_layer

STUDY = """
from functools import partial
from experiments.study import Conditions, Own, Policy, Study, axis, pairs
from perturb import GPTQ, RTN, Magnitude, SparseGPT, Wanda

STUDY = Study(
    name="mine",
    description="for tests",
    models=("tiny-resnet",),
    plans=pairs([axis(Magnitude, sparsity=(0.3, 0.5))], [axis(RTN, bits=(4,))]),
)
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


# -------------------------------------------------------------------------------- study files

MODELS, END = 'models=("tiny-resnet",)', "(4,))]),\n)"
WRONG = {  # what of STUDY becomes what, and what is said of it
    "syntax": ("STUDY = Study(", "STUDY = Study((", "SyntaxError: '(' was never closed (study.py"),
    "raises": (
        "STUDY =",
        "1 / 0\nSTUDY =",
        "ZeroDivisionError: division by zero (study.py, line 6)",
    ),
    "exits": ("STUDY =", "raise SystemExit(0)\nSTUDY =", "SystemExit: 0 (study.py, line 6)"),
    "import": ("STUDY =", "import no_such\nSTUDY =", "No module named 'no_such' (study.py, line"),
    "no study": ("STUDY =", "STUDIES =", "study.py defines no STUDY = "),
    "no Study": ("STUDY = Study(", "STUDY = dict(", "Study(...), got {'name': 'mine'"),
    "missing field": (f"    {MODELS},\n", "", "argument: 'models' (study.py, line 6)"),
    "unknown field": ("plans=", "plan=", "unexpected keyword argument 'plan' (study.py, line 6)"),
    "bare model": (MODELS, 'models="tiny-resnet"', "as in models=('tiny-resnet',)"),
    "bare seed": (MODELS, f"{MODELS}, seeds=3", "as in seeds=(3,)"),
    "bare draw": (MODELS, f"{MODELS}, calibrations=3", "as in calibrations=(3,)"),
    "bare pattern": (MODELS, f'{MODELS}, exclude="fc"', "as in exclude=('fc',)"),
    "bare inclusion": (MODELS, f'{MODELS}, include="fc"', "as in include=('fc',)"),
    "bare policy": (MODELS, f"{MODELS}, policies=Policy()", "as in policies=(Policy("),
    "bare axis": ("pairs([axis", "axis(RTN, bits=4) or ([axis", "plans is axis(rtn-4); it must be"),
    "bits in a set": ("bits=(4,)", "bits={4}", "bits is {4}; it must be a number, or a tuple"),
    "bits in an iterator": ("bits=(4,)", "bits=iter((4,))", "it must be a number, or a tuple"),
    "seeds in a set": (MODELS, f"{MODELS}, seeds={{4}}", "seeds is {4}; it must be a tuple"),
    "ready-made": ("axis(RTN, ", "axis(RTN(4), ", "give a class and what to call it with"),
    "a text": ("axis(RTN, ", "axis('rtn', ", "axis of 'rtn': give a class and what to call it"),
    "no method": ("axis(RTN, bits=", "axis(dict, bits=", "with bits 4: {'bits': 4} is neither"),
    "setting": ("axis(RTN, ", "axis(RTN, msk='free', ", "unexpected keyword argument 'msk'"),
    "setting's value": (
        "axis(Magnitude, ",
        "axis(partial(Magnitude, tie='first'), ",
        "axis of partial(Magnitude, tie='first') with sparsity 0.3: tie must be one of",
    ),
    "damp": ("axis(RTN, ", "axis(partial(GPTQ, damp=-1), ", "damp must be a finite number"),
    "block": ("axis(Magnitude,", "axis(partial(SparseGPT, block=0),", "block must be a whole"),
    "amount in partial": (
        "axis(RTN, ",
        "axis(partial(RTN, bits=4), ",
        "axis of partial(RTN, bits=4): bits is given twice",
    ),
    "no bits": ("bits=(4,)", "bits=None", "bits is None; it must be a number, or a tuple"),
    "no amount": ("axis(RTN, bits=(4,))", "axis(RTN)", "missing 1 required positional argument"),
    "nan": ("(0.3, 0.5)", "(float('nan'),)", "with sparsity nan: sparsity must lie in [0, 1)"),
    "one": ("(0.3, 0.5)", "(0.3, 1.0)", "with sparsity 1.0: sparsity must lie in [0, 1)"),
    "text": ("(0.3, 0.5)", "('0.3',)", "sparsity must lie in [0, 1), got '0.3'"),
    "bits": ("bits=(4,)", "bits=(4, 1)", "with bits 1: bits must be a whole number from 2 to 16"),
    "half bits": ("bits=(4,)", "bits=(4.5,)", "bits must be a whole number from 2 to 16, got 4.5"),
    "bool bits": ("bits=(4,)", "bits=(True,)", "bits must be a whole number"),
    "empty": ("bits=(4,)", "bits=()", "axis of RTN: bits is empty; give at least one value"),
    "twice": ("(0.3, 0.5)", "(0, 0.0)", "with sparsity 0.0 is a stage that is there already"),
    "same plan": ("[axis(RTN", "[axis(RTN, bits=(4,)), axis(RTN", "plans lists a value twice"),
    "no plan": (END, f"(4,))])[:0],\n{END[-1]}", "plans is empty; each must be"),
    "empty plan": (END, f"(4,))]) + ((),),\n{END[-1]}", "plans[2] is (); it must be a tuple of ax"),
    "plan of classes": (END, f"(4,))]) + ((RTN,),),\n{END[-1]}", "it must be a tuple of axes"),
    "huge seed": (MODELS, f"{MODELS}, seeds=(2**32,)", "from 0 to 4294967295"),
    "negative seed": (MODELS, f"{MODELS}, seeds=(-1,)", "seeds[0] is -1"),
    "bool seed": (MODELS, f"{MODELS}, seeds=(True,)", "seeds[0] is True"),
    "negative draw": (MODELS, f"{MODELS}, calibrations=(0, -1)", "calibrations[1] is -1"),
    "draw twice": (MODELS, f"{MODELS}, calibrations=(1, 1)", "calibrations lists a value twice: 1"),
    "model": ("tiny-resnet", "gpt", "unknown model 'gpt'; known: "),
    "model's type": ('"tiny-resnet"', "18", "unknown model 18; known: "),
    "own without Own": ("tiny-resnet", "m.py:f", "or Own('FILE.py:FUNCTION')"),
    "own without function": ('"tiny-resnet"', "Own('m.py')", "Own('m.py'): it must be 'FILE.py:F"),
    "own of no text": ('"tiny-resnet"', "Own(3)", "Own(3): it must be 'FILE.py:FUNCTION'"),
    "own twice": (
        '"tiny-resnet"',
        "Own('a/m.py:f'), Own('b/m.py:f')",
        "models has two that records would call m.py:f: rename one's file",
    ),
    "name": ('"mine"', '"../mine"', "name is '../mine'; it must be a text that can name"),
    "no name": ('"mine"', "None", "name is None; it must be a text that"),
    "description": ('"for tests"', "3", "description is 3; it must be a text"),
    "policy": (MODELS, f"{MODELS}, policies=('dense',)", "policies[0] is 'dense'; it must be a Po"),
    "policy twice": (
        MODELS,
        f"{MODELS}, policies=(Policy(), Policy(norms='reestimate'))",
        "policies lists a value twice",
    ),
    "no policy": (MODELS, f"{MODELS}, policies=()", "policies is empty; each must be a Policy("),
    "calibrate": (
        MODELS,
        f"{MODELS}, policies=(Policy(calibrate='no'),)",
        "calibrate must be one of 'recalibrate', 'sequential', 'dense'; got 'no'",
    ),
    "norms": (MODELS, f"{MODELS}, policies=(Policy(norms='no'),)", "norms must be one of"),
    "zeros": (MODELS, f"{MODELS}, policies=(Policy(zeros=0),)", "zeros must be one of"),
    "examples": (
        MODELS,
        f"{MODELS}, policies=(Conditions(examples=0),)",
        "examples must be a whole number from 1, or None; got 0",
    ),
    "a condition's pattern": (
        MODELS,
        f"{MODELS}, policies=(Conditions(exclude='fc'),)",
        "exclude must be a tuple of shell patterns; got 'fc'",
    ),
    "zeros' type": (MODELS, f"{MODELS}, policies=(Policy(zeros=[]),)", "zeros must be one of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_study_file_is_one_line(case, tmp_path, capsys):
    old, new, says = WRONG[case]
    assert STUDY.count(old) == 1
    (tmp_path / "study.py").write_text(STUDY.replace(old, new))
    assert door.main(["run", "study.py", "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not Path("out").exists()


def test_a_study_file_imports_its_neighbours_and_prints_to_stderr(tmp_path, capsys):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "neighbour.py").write_text("BITS = [4, 3]\n")
    text = f"from neighbour import BITS\nprint('hello')\n{STUDY}".replace("(4,)", "BITS")
    (folder / "near.py").write_text(text)
    study = find("studies/near.py")
    assert study.plans[0][1].names == ("rtn-4", "rtn-3")
    assert capsys.readouterr() == ("", "hello\n")
    sys.modules.pop("neighbour"), sys.modules.pop("near")


def test_every_study_of_the_package_is_one_and_says_what_it_is():
    assert {"start", "embedded", "choices", "conditions", "zeros", "protocols"} <= set(names())
    for name, description in builtin().items():
        study = find(name)
        assert (study.name, study.description) == (name, description)
        if name in {"claims", "joint", "mixed", "multistage", "smollm2", "smollm2_quarot"}:
            continue  # whose plans are no pairs, and not only orders
        assert all(len(plan) >= 2 for plan in study.plans)
        both = {tuple(part.names for part in plan) for plan in study.plans}
        starts = {plan[:1] for plan in both if plan[0][0].startswith(PREPARING)} | {()}
        for start in starts:  # every order against its reverse, after a rotation, too
            after = {p[len(start) :] for p in both if p[: len(start)] == start}
            after = {p for p in after if not p[0][0].startswith(PREPARING)}
            assert {plan[::-1] for plan in after} == after


# -------------------------------------------------------------------------------------- axes


def test_an_axis_is_every_choice_of_the_settings_that_are_tuples():
    made = axis(partial(GPTQ, damp=0.1), bits=(4, 3), mask=("enforce", "free"), on_grid="snap")
    expected = [
        GPTQ(bits, damp=0.1, mask=mask, on_grid="snap")
        for bits, mask in itertools.product((4, 3), ("enforce", "free"))
    ]
    assert list(made.stages) == expected
    assert len(axis(Joint, sparsity=(0.3, 0.5), bits=(4, 3)).stages) == 4
    assert axis(RTN, bits=4).stages == (RTN(4),)
    assert axis(Wanda, scope=(NofM(2, 4), NofM(1, 4))).names == (
        "wanda[scope=2:4]-0.5",
        "wanda[scope=1:4]-0.75",
    )
    rules = axis(lambda b: per_layer({"*.up": RTN(8), "*": RTN(b)}), b=(4, 3))
    assert rules.names == ("rtn-8@*.up+rtn-4@*", "rtn-8@*.up+rtn-3@*")


@pytest.mark.parametrize("values", [[2, 3], range(2, 4), np.array([2, 3]), jnp.array([2, 3])])
def test_what_is_as_good_as_a_tuple(values):
    made = axis(RTN, bits=values)
    assert made.stages == (RTN(2), RTN(3))
    assert {type(stage.bits) for stage in made.stages} == {int}
    assert made == axis(RTN, bits=(np.int32(2), jnp.int32(3)))


def test_equal_amounts_are_one_however_they_are_written():
    """A cell's id is a hash of its stages' settings as JSON, where 0 and 0.0 differ."""
    for bits in (4, 4.0, np.int8(4), np.float64(4), jnp.int32(4)):
        (stage,) = axis(RTN, bits=bits).stages
        assert (type(stage.bits), stage.bits) == (int, 4)
    for sparsity in (0, 0.0, False + 0, np.int64(0), jnp.float32(0)):
        (stage,) = axis(Wanda, sparsity=sparsity).stages
        assert (type(stage.sparsity), stage.sparsity) == (float, 0.0)


@pytest.mark.parametrize(
    ("cls", "amount", "bad"),
    [(Wanda, "sparsity", 1.5), (Wanda, "sparsity", -0.1), (RTN, "bits", 1), (RTN, "bits", 17)],
)
@pytest.mark.parametrize("library", [np, jnp])
def test_amounts_in_arrays_do_not_escape_the_checks(cls, amount, bad, library):
    """A method passes what it cannot look at: a stack of amounts, as families have it."""
    good = {"sparsity": 0.5, "bits": 4}[amount]
    must = rf"{amount} must (lie in|be a whole number)"
    for values in (library.asarray([good, bad]), (library.asarray(bad),), library.asarray(bad)):
        with pytest.raises(ValueError, match=must):
            axis(cls, **{amount: values})
    for values in ((library.asarray([good, bad]),), library.asarray([[good], [bad]])):
        with pytest.raises(ValueError, match=rf"{amount} is .*it must be a number, or a tuple"):
            axis(cls, **{amount: values})


def test_a_chain_is_a_plan_and_no_stage():
    with pytest.raises(ValueError, match="a chain is no stage; make its stages axes of a plan"):
        axis(lambda s: chain(Wanda(s), RTN(4)), s=(0.5,))


# ------------------------------------------------------------------------------- plans, cells

P = axis(Magnitude, sparsity=(0.3, 0.5))
Q = axis(RTN, bits=(4, 3, 2))
R = axis(Wanda, sparsity=(0.1,))


def study_of(*plans: Any, **more: Any) -> Study:
    return Study("a", "", ("tiny-resnet",), plans, **more)


def test_permutations_and_pairs():
    assert set(permutations(P, Q, R)) == set(itertools.permutations((P, Q, R)))
    assert len(permutations(P, Q, R)) == 6
    assert pairs([P, R], [Q]) == ((P, Q), (Q, P), (R, Q), (Q, R))
    assert len(pairs([P, R], [Q, axis(GPTQ, bits=(4,))])) == 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=8))
def test_the_cells_are_all_prefixes_of_all_plans_once(drawn):
    """Against the definition: of every plan, every choice of a stage from each of its axes, and
    all that such a chain begins with."""
    made = [axis(RTN, bits=bits) for bits in ((2, 3), (4,), (5, 6, 7), (8,))]
    plans = [tuple(made[i] for i in plan) for plan in drawn]
    wanted = {
        chosen[: length + 1]
        for plan in plans
        for chosen in itertools.product(*(part.stages for part in plan))
        for length in range(len(plan))
    }
    found = list(chains(tree(plans)))
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert [chain_name(c) for c in found] == list(dict.fromkeys(chain_name(c) for c in found))


def test_the_tree_shares_prefixes_and_is_walked_depth_first():
    roots = tree([(P, Q), (Q, P), (P, R), (P, Q, R)])
    assert [root.axis for root in roots] == [P, Q]
    assert [child.axis for child in roots[0].children] == [Q, R]
    assert [child.axis for child in roots[0].children[0].children] == [R]
    assert [root.depth for root in roots] == [3, 2]
    names = [chain_name(c) for c in chains(roots)]
    assert names[:4] == ["magnitude-0.3", "magnitude-0.5", "magnitude-0.3>rtn-4",
                         "magnitude-0.3>rtn-3"]  # fmt: skip
    after = names.index("magnitude-0.5>rtn-2>wanda-0.1"), names.index("magnitude-0.3>wanda-0.1")
    assert after[0] < after[1]
    # version r F + f of a node is stage f on version r, as perturb.stage.expand has it
    assert names[2:8] == [f"magnitude-{s}>rtn-{b}" for s in (0.3, 0.5) for b in (4, 3, 2)]


def test_axes_may_share_some_of_their_stages():
    few, all_of_it = axis(Magnitude, sparsity=0.5), axis(Magnitude, sparsity=(0.3, 0.5, 0.7))
    roots = tree(pairs([all_of_it], [axis(RTN, bits=4)]) + pairs([few], [axis(RTN, bits=(8, 4))]))
    assert [root.axis for root in roots] == [
        axis(Magnitude, sparsity=(0.3, 0.7)), few, axis(RTN, bits=4), axis(RTN, bits=8)
    ]  # fmt: skip
    names = [chain_name(c) for c in chains(roots)]
    wanted = [(p, 4) for p in (0.3, 0.5, 0.7)] + [(0.5, 8)]
    alone = {f"magnitude-{p}" for p in (0.3, 0.5, 0.7)} | {"rtn-4", "rtn-8"}
    orders = {f"magnitude-{p}>rtn-{b}" for p, b in wanted}
    assert len(names) == len(set(names))
    assert set(names) == alone | orders | {f"rtn-{b}>magnitude-{p}" for p, b in wanted}


def test_a_study_has_every_cell_once_the_dense_model_first():
    grid = partial(RTN, grid=GridSpec(symmetric=False))
    pruners = [axis(m, sparsity=(0.3, 0.5)) for m in (Magnitude, Wanda)]
    quantizers = [axis(m, bits=(4, 3)) for m in (RTN, grid)]
    study = Study(
        "a",
        "",
        ("tiny-resnet", "llama-docs"),
        pairs(pruners, quantizers),
        seeds=(0, 7),
        calibrations=(0, 1, 2),
        policies=(Policy(), Policy(norms="keep")),
    )
    found = study.chains()
    assert found[0] == ()
    assert len(found) == len({chain_name(c) for c in found}) == 1 + 4 + 4 + 2 * 16
    assert study.runs == 2 * 2 * 3 * 2
    assert "rtn[symmetric=False]-3>wanda-0.3" in map(chain_name, found)


def test_axes_alone_could_mean_one_chain_or_many_plans():
    with pytest.raises(
        ValueError, match=r"plans is \(axis.*one plan, \(\(a, b\),\), or plans of one"
    ):
        study_of(P, Q)
    assert study_of((P,), (Q,)).plans == ((P,), (Q,))
    assert study_of((P, Q)).plans == ((P, Q),)
    assert study_of(P).plans == ((P,),)


def test_fields_may_be_lists_ranges_and_numpy_numbers():
    study = Study(
        "a", "", ["tiny-resnet"], [[P, Q], (Q, P), R], seeds=range(2), calibrations=[np.int64(1)]
    )  # type: ignore[arg-type]
    assert study.plans == ((P, Q), (Q, P), (R,))
    assert (study.models, study.seeds, study.calibrations) == (("tiny-resnet",), (0, 1), (1,))
    assert {type(draw) for draw in study.calibrations} == {int}
    same = study.with_options(models=None, seeds=None)
    assert same == study
    assert study.with_options(seeds=(4,)).seeds == (4,)
    with pytest.raises(ValueError, match="unknown model 'gpt'"):
        study.with_options(models=("gpt",))


def test_models_of_ones_own_stand_beside_the_presets():
    mine = Own("folder/mine.py:task")
    study = Study("a", "", (mine, "tiny-resnet", Own("package.module:task")), ((P, Q),))
    assert [str(model) for model in study.models] == ["mine.py:task", "tiny-resnet",
                                                      "package.module:task"]  # fmt: skip


# --------------------------------------------------------------------------- labels and cells


def test_labels_and_names_as_they_stand_in_records():
    assert label(GPTQ(4)) == "gptq"
    grid = GridSpec(symmetric=False, clip="mse")
    assert label(GPTQ(4, grid)) == "gptq[symmetric=False,clip=mse]"
    assert label(RTN(4, GridSpec(per=8, convention="full"))) == "rtn[per=8,convention=full]"
    assert label(SparseGPT(scope=NofM(2, 4), damp=1)) == "sparsegpt[scope=2:4,damp=1.0]"
    assert label(Joint(0.5, 4)) == "joint"
    assert label(Joint(0.5, 3)) == "joint[bits=3]"
    assert chain_name(()) == "dense"
    assert chain_name((Wanda(0.5),)) == "wanda-0.5"
    assert chain_name((RTN(np.int32(4)),)) == "rtn-4"
    assert chain_name((RTN(4), Wanda(1 / 3))) == "rtn-4>wanda-0.3333333333333333"
    assert chain_name((Wanda(0.3333333), RTN(4))) == "wanda-0.3333333>rtn-4"
    assert chain_name((Wanda(0.1 + 0.2), RTN(4), Wanda(0.5))) == (
        "wanda-0.30000000000000004>rtn-4>wanda-0.5"
    )
    assert chain_name((layerwise(RTN(4), "fc*"),)) == "rtn-4@fc*"


def test_amounts_as_jax_numbers_have_the_name_of_their_value():
    assert stage_name(Wanda(jnp.float32(0.5))) == "wanda-0.5"
    assert stage_name(GPTQ(jnp.int32(4))) == "gptq-4"
    assert axis(Wanda, sparsity=(jnp.float32(0.5),)) == axis(Wanda, sparsity=(0.5,))


def _any_of(cls: Any, **choices: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({}, optional=choices).map(lambda chosen: partial(cls, **chosen))


_ties = st.sampled_from(("index", "random", "dense"))
_targets = st.sampled_from(("current", "dense"))
_scopes = st.sampled_from(("row", "layer", NofM(2, 4), NofM(1, 2)))
_damps = st.floats(0, 1, allow_subnormal=False) | st.sampled_from((0.01, 0.0100001, 1, 0))
_blocks = st.integers(1, 300)
_grids = st.builds(
    GridSpec,
    symmetric=st.booleans(),
    per=st.sampled_from(("tensor", "row", 1, 8, 128)),
    clip=st.sampled_from(("absmax", "mse")),
    convention=st.sampled_from(("half", "full")),
)
_shared = {
    "grid": _grids,
    "mask": st.sampled_from(("enforce", "free")),
    "scale_source": _targets,
    "target": _targets,
}
PRUNERS = st.one_of(
    _any_of(GlobalMagnitude, tie=_ties),
    *(_any_of(cls, scope=_scopes, tie=_ties, target=_targets) for cls in (Magnitude, Wanda)),
    _any_of(
        SparseGPT,
        tie=_ties,
        target=_targets,
        on_grid=st.sampled_from(("refit", "snap", "release")),
        damp=_damps,
        block=_blocks,
    ),
    _any_of(Joint, bits=st.integers(2, 16), grid=_grids, tie=_ties, damp=_damps, block=_blocks),
    _any_of(
        OBR,
        bits=st.integers(2, 16),
        grid=_grids,
        tie=_ties,
        damp=_damps,
        alpha=st.floats(0, 1, allow_subnormal=False),
    ),
)
QUANTIZERS = st.one_of(
    _any_of(RTN, **_shared),
    _any_of(GPTQ, **_shared, static_groups=st.booleans(), damp=_damps, block=_blocks),
)
AMOUNTS = st.floats(0, 1, exclude_max=True) | st.sampled_from((0.3333333, 0.3333334, 0.5))


def _labels_tell(one: Any, other: Any) -> None:
    assert (label(one) == label(other)) == (one == other)


@settings(max_examples=300, deadline=None)
@given(PRUNERS, PRUNERS)
def test_pruners_share_a_label_only_if_they_are_the_same(one, other):
    amount = 0.5  # fits both patterns
    _labels_tell(one(amount), other(amount))
    _labels_tell(one(amount), one(amount))


@settings(max_examples=300, deadline=None)
@given(QUANTIZERS, QUANTIZERS, st.sampled_from((2, 4, 16)))
def test_quantizers_share_a_label_only_if_they_are_the_same(one, other, bits):
    _labels_tell(one(bits), other(bits))
    _labels_tell(one(bits), one(bits))


@settings(max_examples=300, deadline=None)
@given(st.lists(PRUNERS | QUANTIZERS, min_size=1, max_size=3), st.data())
def test_chains_share_a_name_only_if_they_are_the_same(templates, data):
    def stage(template: Any) -> Any:
        quantizer = template.func in (RTN, GPTQ)
        return template(4) if quantizer else template(0.5)

    one = tuple(map(stage, templates))
    other = tuple(data.draw(st.permutations(one)))
    assert (chain_name(one) == chain_name(other)) == (one == other)
    assert chain_name(one) != chain_name(one[:-1])


def test_each_setting_alone_changes_the_label():
    """So that the tests above do not rest on what is drawn."""
    grids = [GridSpec(**c) for c in ({"symmetric": False}, {"clip": "mse"}, {"convention": "full"})]
    grids += [GridSpec(per="tensor"), GridSpec(per=8), GridSpec()]
    for cls in (RTN, GPTQ):
        assert len({label(cls(4, grid)) for grid in grids}) == len(grids)


@settings(max_examples=300, deadline=None)
@given(AMOUNTS, AMOUNTS)
def test_amounts_that_differ_name_different_cells(one, other):
    found = {stage_name(Magnitude(s)) for s in (one, other)}
    assert len(found) == len({one, other})
    assert all(float(name.removeprefix("magnitude-")) in (one, other) for name in found)


def test_settings_of_two_nested_ones_are_told_apart():
    @dataclass(frozen=True)
    class Two:
        bits: int
        first: GridSpec = field(default_factory=GridSpec)
        second: GridSpec = field(default_factory=lambda: GridSpec(symmetric=False))
        name = "two"

    same, coarse = GridSpec(), GridSpec(per="tensor")
    made = [Two(4), Two(4, coarse), Two(4, second=same), Two(4, same, GridSpec(False, "tensor"))]
    labels = [label(m) for m in made]
    assert labels[:2] == ["two", "two[first.per=tensor]"]
    assert labels[2:] == ["two[second.symmetric=True]", "two[second.per=tensor]"]


def test_stages_of_no_family_stand_on_axes_of_their_own() -> None:
    """Ranks are shapes: models of two ranks are no versions of one state."""
    low, bits = axis(LowRank, ratio=(0.2, 0.5)), axis(RTN, bits=(4, 3))
    study = Study("s", "", models=("tiny-resnet",), plans=permutations(low, bits))
    assert [[len(part.stages) for part in plan] for plan in study.plans] == [[1, 2]] * 2 + [
        [2, 1]
    ] * 2
    assert len(study.chains()) == 1 + 2 + 2 + 4 + 4
    again = Study("s", "", models=("tiny-resnet",), plans=study.plans)
    assert again.plans == study.plans
    (plan,) = Study("s", "", models=("tiny-resnet",), plans=((bits,),)).plans
    assert plan == (bits,)
