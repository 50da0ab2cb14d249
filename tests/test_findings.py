"""Findings in worlds whose truth is known: the statistics by hand, the verdicts, the document."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.analysis import summarize
from experiments.analysis.chains import Chains, chains_of
from experiments.findings import __main__ as findings_main
from experiments.findings import (
    granularity,
    lora,
    mixed,
    others,
    real,
    rotation,
    sharing,
    stages,
    types,
)
from experiments.findings.__main__ import FILE, by_chance, document, main, section
from experiments.findings.catalogue import FINDINGS
from experiments.findings.types import ABSENT, PARTLY, Row, by_model, overall, together
from experiments.readme import ROOT
from experiments.records import RecordLog, decode_sums, load
from experiments.records.condense import GROUPS, condense, store
from experiments.sizes import LARGER, sized
from experiments.study import builtin, find
from experiments.summary import FAILS, HOLDS, NO_VERDICT, Estimate
from figures import claims, style
from figures import stored as stored_figures
from figures.__main__ import main as draw
from figures.manifest import CHAINS
from tests.synthetic import identified, make_chains, make_study

LOG = "neg_nll"
COSTS = {"a": 0.01, "b": 0.03, "c": 0.09}


def of(records: list) -> Chains:
    (held,) = chains_of(records, LOG, replicates=200)
    return held


def all_orders(names: Iterable[str]) -> list[tuple[str, ...]]:
    names = list(names)
    return [c for n in range(1, len(names) + 1) for c in itertools.permutations(names, n)]


def inversions(chain: Sequence[str]) -> int:
    """Pairs of which the stronger stands first."""
    return sum(COSTS[x] > COSTS[y] for x, y in itertools.combinations(chain, 2))


def world(swap: float) -> Chains:
    """Each pair that has the stronger first costs ``swap`` more; trainings differ."""

    def loss(chain: tuple[str, ...], seed: int) -> float:
        total = sum(COSTS[s] for s in chain)
        return total * (1 + 0.1 * seed) + swap * inversions(chain)

    return of(make_chains(loss, all_orders(COSTS)))


# ------------------------------------------------------------------------------- chains


def test_chains_are_compared_run_by_run() -> None:
    held = world(0.02)
    assert held.ids == tuple((seed, 0) for seed in range(5))
    assert set(held.rows) == {(), *all_orders(COSTS)}
    found = held.contrast(("a", "c"), ("c", "a"))
    assert found.value == pytest.approx(0.02, abs=1e-5)
    assert found.low < 0.02 < found.high
    assert held.loss(("b",)).value == pytest.approx(0.03 * 1.2, abs=1e-5)
    a = held.advantage("a", "c", before=("b",))
    np.testing.assert_allclose(a[:, 0], 0.02, atol=1e-5)
    assert held.ratio["a",] == 4.0


def test_a_run_that_lacks_a_chain_is_left_out_of_its_contrasts() -> None:
    records = make_chains(lambda c, s: 0.1 * len(c), [("a",), ("b",)], seeds=(0, 1, 2))
    lacking = [r for r in records if r["label"] != "llama-docs/s2/b"]
    held = of(lacking)
    assert np.isnan(held.rows["b",][2]).all()
    assert held.contrast(("a",), ("b",)).value == pytest.approx(0.0, abs=1e-5)


def test_policies_and_models_are_apart() -> None:
    one = make_chains(lambda c, s: 0.1 * len(c), [("a",)], seeds=(0, 1))
    other = [r | {"cell": r["cell"] + "x", "policy": {"norms": "keep"}} for r in one]
    third = make_chains(lambda c, s: 0.2, [("a",)], seeds=(0, 1), model="m")
    found = chains_of(one + other + third, LOG, replicates=20)
    assert [(c.model, c.policy) for c in found] == [
        ("llama-docs", "norms=unset"),
        ("llama-docs", "norms=keep"),
        ("m", "norms=unset"),
    ]


# ----------------------------------------------------------------------- condensed records


def test_condensed_records_say_the_same_in_a_few_groups(tmp_path: Path) -> None:
    records = make_study(seeds=(0, 1, 2), clusters=400, models={"llama-docs": "text"}, bits=(8, 3))
    path = tmp_path / "s.jsonl.gz"
    store(records, path)
    first = path.read_bytes()
    store(reversed(list(reversed(records))), path)
    assert path.read_bytes() == first
    small = load(path)
    assert len(small) == len(records)
    for record, short in zip(records, small, strict=True):
        before, after = decode_sums(record), decode_sums(short)
        assert len(after["count"]) == GROUPS
        for name, values in before.items():
            assert after[name].sum() == pytest.approx(values.sum(), rel=1e-5)
        assert short["stages"] == record["stages"]
        assert condense(short) == short  # once is enough
    assert len(first) < 0.2 * len("".join(map(repr, records)))
    whole, condensed = (summarize(r, replicates=300) for r in (records, small))
    for one, two in zip(whole.comparisons, condensed.comparisons, strict=True):
        for a, b in zip(one.cells, two.cells, strict=True):
            assert b.advantage == pytest.approx(a.advantage, abs=2e-6)
            if a.low is not None:  # a measure without sums has no interval
                assert 0.4 < (b.high - b.low) / (a.high - a.low) < 2.5


# ------------------------------------------------------------------------------ statistics


def naive_beaten(held: Chains, names: Sequence[str]) -> list[float]:
    """By loops: of every run, the share of other orders worse than the sorted one."""
    shares = []
    for r in range(len(held.ids)):
        best = tuple(sorted(names, key=lambda s: -held.rows[(s,)][r, 0]))
        own = held.rows[best][r, 0]
        rest = [held.rows[c][r, 0] for c in itertools.permutations(names) if c != best]
        shares.append(float(np.mean([own > x for x in rest])))
    return shares


@pytest.mark.parametrize(("swap", "said"), [(0.02, HOLDS), (-0.02, FAILS)])
def test_sorting_is_judged_by_the_orders_that_it_beats(swap: float, said: str) -> None:
    held = world(swap)
    names = stages.five(held)
    assert names == ["a", "b", "c"]
    share = stages.beaten(held, names)
    np.testing.assert_allclose(share[:, 0], naive_beaten(held, names))
    assert share[:, 0].mean() == (1.0 if swap > 0 else 0.0)
    regret = stages.regret(held, names)[:, 0]
    np.testing.assert_allclose(regret, 0.0 if swap > 0 else 1.0, atol=1e-6)
    found = types.row(held, "", "", held.over(share, 0, 1), above=0.5)
    assert found.verdict == said


def test_the_figure_of_all_orders(stored: Callable[..., None]) -> None:
    def loss(chain: tuple[str, ...], seed: int) -> float:
        return sum(COSTS[s] for s in chain) + 0.02 * inversions(chain)

    stored("multistage", make_chains(loss, all_orders(COSTS), study="multistage"))
    assert "of all 6 orders of 3 compressors the one sorted by intensity beats 100%" in drawn(
        "orders"
    )
    assert {r.verdict for r in stages.SORTED.rows()} == {HOLDS}
    assert [r.verdict for r in stages.insertion()] == [HOLDS]


def test_pruning_in_two_parts(stored: Callable[..., None]) -> None:
    halves = [("m-0.25", "rtn-4", "m-0.5"), ("m-0.5", "rtn-4"), ("rtn-4", "m-0.5")]
    losses = dict(zip(halves, (0.1, 0.05, 0.2), strict=True))
    five = [("a", "b"), ("b", "a"), ("a",), ("b",)]
    chains = [*halves, *five, ("m-0.5",), ("m-0.25",), ("rtn-4",)]
    stored("multistage", make_chains(lambda c, s: losses.get(c, 0.1), chains, study="multistage"))
    (held,) = types.chains("multistage", LOG)
    rows = list(stages.halves(held))
    assert [(r.tested.split(",")[0], r.verdict) for r in rows] == [
        ("P→Q→P less P→Q", FAILS),
        ("P→Q→P less Q→P", HOLDS),
    ]


def test_where_order_does_nothing_sorting_is_undecided() -> None:
    draws = np.random.default_rng(3)
    noise = {(c, s): draws.normal(0, 0.01) for c in all_orders(COSTS) for s in range(5)}
    held = of(make_chains(lambda c, s: sum(COSTS[x] for x in c) + noise.get((c, s), 0),
                          all_orders(COSTS)))  # fmt: skip
    share = stages.beaten(held, stages.five(held))
    found = types.row(held, "", "", held.over(share, 0, 1), above=0.5)
    assert found.verdict == NO_VERDICT


def test_a_pairs_order_beside_others_is_counted_over_all_contexts() -> None:
    """Alone the weaker first is better; with c before it, the other way round."""

    def loss(chain: tuple[str, ...], seed: int) -> float:
        flipped = "c" in chain and chain.index("c") == 0
        sign = -1 if flipped else 1
        pairs = [p for p in itertools.combinations(chain, 2) if set(p) == {"a", "b"}]
        return 0.1 * len(chain) + sum(sign * 0.02 * (p == ("b", "a")) for p in pairs)

    held = of(make_chains(loss, all_orders(COSTS), noise=0.0))
    share = stages.kept(held)
    # pairs a-b: behind c flipped, before c kept; the other pairs tie alone: a half each
    contexts = {("a", "b"): [0.0, 1.0]}
    others_ = [0.5, 0.5] * 2
    assert share[:, 0] == pytest.approx(np.mean([*contexts["a", "b"], *others_]))


def test_ranks_of_rows_are_kendalls() -> None:
    from scipy.stats import kendalltau

    draws = np.random.default_rng(0)
    values = np.round(draws.normal(size=(3, 2, 6)), 1)
    found = types.rows_of_ranks(values)
    for r, b in itertools.product(range(3), range(2)):
        assert found[r, b] == pytest.approx(kendalltau(np.arange(6), values[r, b])[0])


# ------------------------------------------------------------------- findings, end to end


CACHED = (types.records, types.chains, types.summary, stored_figures._rows)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts records in the place of a stored study's."""
    for cached in CACHED:
        cached.cache_clear()
    monkeypatch.setattr(types, "STORED", tmp_path)

    def put(study: str, records: list) -> None:
        store(records, tmp_path / f"{study}.jsonl.gz")

    yield put
    for cached in CACHED:
        cached.cache_clear()


TURN, SLEB = "rotate[kind=hadamard]", "remove"


def drawn(name: str) -> str:
    """What the figure of a stored study says; drawn twice, it is the same file."""
    study = CHAINS[name].study
    figures = [CHAINS[name].draw(types.chains(study, LOG)) for _ in range(2)]
    first, second = (style.to_bytes(f, "png") for f in figures)
    assert first == second
    return " ".join(text.get_text().replace("\n", " ") for text in figures[0].texts)


def verdicts(rows: Iterable[Row]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.tested, set()).add(row.verdict)
    return found


@pytest.mark.parametrize("worse", [0.05, -0.05])
def test_what_a_rotation_does_to_pruning(stored: Callable[..., None], worse: float) -> None:
    pruners = ("magnitude-0.2", "sparsegpt-0.5", SLEB)
    chains = [(TURN,), *((p,) for p in pruners), *((TURN, p) for p in pruners), ("gptq-4",)]

    def loss(chain: tuple[str, ...], seed: int) -> float:
        return 0.1 * (len(chain) - (TURN in chain)) + worse * (TURN in chain and len(chain) > 1)

    stored("quarot", make_chains(loss, chains, study="quarot"))
    rows = list(rotation.amplified())
    assert [r.protocol for r in rows] == list(pruners[:2])  # not blocks
    assert {r.verdict for r in rows} == {HOLDS if worse > 0 else FAILS}
    assert [r.value.value for r in rows] == pytest.approx([worse] * 2, abs=1e-4)
    assert rotation.control() == pytest.approx(abs(worse), abs=1e-3)  # here it is none
    told = (
        "more in 2 of 2 settings, less in 0" if worse > 0 else "more in 0 of 2 settings, less in 2"
    )
    assert told in drawn("rotation")


def test_blocks_that_do_not_meet_the_quantizer(stored: Callable[..., None]) -> None:
    """A is 0 exactly for blocks at all widths but 4, never for weights."""
    fine = {"magnitude-0.125": 0.01, "sparsegpt-0.125": 0.02, SLEB: 0.0}
    widths = [f"rtn-{b}" for b in (9, 8, 7, 4)]
    pairs = [o for p in fine for q in widths for o in ((p, q), (q, p))]

    def loss(chain: tuple[str, ...], seed: int) -> float:
        base = 0.1 * len(chain)
        if len(chain) == 2 and chain[0].startswith("rtn"):
            base += fine[chain[1]] + 0.003 * (chain == ("rtn-4", SLEB))
        return base

    singles = [(s,) for s in (*fine, *widths)]
    stored("granularity", make_chains(loss, singles + pairs, study="granularity", noise=0.0))
    (held,) = types.chains("granularity", LOG)
    assert granularity.granularities(held)[SLEB] == "blocks"
    assert (granularity.by_grid(held, SLEB, "rtn", granularity.FINE) == 0).all()
    a = granularity.by_grid(held, "magnitude-0.125", "rtn")
    np.testing.assert_allclose(a[:, 0], -0.01, atol=1e-5)
    found = verdicts(granularity.GRANULARITY.rows())
    assert found["cells at 7 to 9 bits with A = 0 exactly"] == {HOLDS}
    told = next(t for t in found if t.startswith("mean |A|"))
    assert found[told] == {HOLDS}
    assert "A = 0 exactly in 100% of the cells at 7 to 9 bits with RTN" in drawn("granularity")


def test_an_advantage_is_split_as_it_was_made() -> None:
    """Loss 2 E and something besides; owners' errors and what interferes are given."""
    p, q = "magnitude-0.125", "rtn-4"
    errors = {(p,): 0.1, (q,): 0.2, (p, q): 0.31, (q, p): 0.36}
    owned = {(p, q): 0.30, (q, p): 0.33}
    extra = {(q, p): 0.004}
    records = make_chains(lambda c, s: 2 * errors.get(c, 0) + extra.get(c, 0), list(errors))
    for r in records:
        chain = tuple(r["label"].rpartition("/")[2].split(">"))
        layer = {"out_rel": errors.get(chain, 0.0) / 2}
        if chain in owned:
            layer["owned_rel"] = owned[chain] / 2
        r["layers"] = {"a": layer, "b": layer}
    (found,) = granularity.splits(of(records))
    assert (found.pruner, found.grid) == ("weights", "one scale a row")
    assert found.measured == pytest.approx(2 * 0.05 + 0.004, abs=1e-4)
    assert found.ownership == pytest.approx(2 * 0.03, abs=1e-4)
    assert found.interference == pytest.approx(2 * 0.02, abs=1e-4)
    assert found.rest == pytest.approx(0.004, abs=1e-4)


def test_lora_last_and_what_it_keeps(stored: Callable[..., None]) -> None:
    trio = ("magnitude-0.5", "rtn-4", "lora[rank=8]")
    chains = all_orders(trio)

    def loss(chain: tuple[str, ...], seed: int) -> float:
        base = 0.1 * len(chain)
        if trio[0] in chain and trio[1] in chain:
            early = chain.index(trio[1]) < chain.index(trio[0])
            base += 0.04 * early * (0.5 if chain[-1] == trio[2] else 1)
        if trio[2] in chain:
            base -= 0.05 * (chain[-1] == trio[2])
        return base

    stored("lora", make_chains(loss, chains, study="lora"))
    (held,) = types.chains("lora", LOG)
    assert lora.triples(held) == [trio]
    rows = {r.tested: r for r in lora.ADAPTERS.rows()}
    assert {r.verdict for r in rows.values()} == {HOLDS}
    assert rows["LoRA last less LoRA anywhere earlier, nats"].value.value == pytest.approx(
        0.05, abs=2e-3
    )
    smaller = rows["mean |A| without LoRA less that with LoRA behind, nats"]
    assert smaller.value.value == pytest.approx(0.02, abs=2e-3)
    assert "LoRA is best behind both in 1 of 1 pairs" in drawn("lora")


def test_mixed_precision_by_budget_and_its_control(stored: Callable[..., None]) -> None:
    def stage(order: str, budget: float, by: str) -> str:
        told = [f"budget={budget}"] if budget != 4.0 else []
        told += [f"quantizer={by}"] if by != "rtn-4" else []
        told += [f"sensitivity=hessian,order={order}"]
        return f"mixed[{','.join(told)}]"

    gain = {6.0: 0.001, 5.0: 0.01, 4.0: 0.03, 3.0: 0.09}
    chains = {
        (stage(o, b, q),): 0.1 + (gain[b] if o == "strong-first" and q == "gptq-4" else 0)
        for o in ("at-once", "strong-last", "strong-first")
        for b in gain
        for q in ("gptq-4", "rtn-4")
    }
    stored("mixed", make_chains(lambda c, s: chains.get(c, 0.0), list(chains), study="mixed",
                                noise=1e-5))  # fmt: skip
    rows = list(mixed.MIXED.rows())
    assert {r.verdict for r in rows} == {HOLDS}
    assert [r.protocol for r in rows] == [f"{b:g} bits, GPTQ" for b in gain] + ["GPTQ"]
    assert rows[-1].value.value == 1.0
    ((_, control),) = mixed.controls()
    assert control < 1e-3
    assert "8 to 2 bits is better in 4 of 4 budgets" in drawn("mixed")


def test_sharing_goes_by_the_gap_where_it_does(stored: Callable[..., None]) -> None:
    thin = {"lowrank[ratio=0.1,whiten=True]": 0.03, "lowrank[ratio=0.4,whiten=True]": 0.3}
    bits = {"gptq-8": 0.01, "gptq-4": 0.1, "gptq-3": 0.5}
    pairs = [o for p in thin for q in bits for o in ((p, q), (q, p), (q, p, q))]
    cost = thin | bits

    def loss(chain: tuple[str, ...], seed: int) -> float:
        chain = chain[:2] if len(chain) == 3 else chain  # once more costs nothing
        base = sum(cost[s] for s in chain)
        return base + 0.1 * max(0.0, np.subtract(*(cost[s] for s in chain))) * (len(chain) == 2) \
            if len(chain) == 2 else base  # fmt: skip

    singles = [(s,) for s in cost]
    stored("sharing", make_chains(loss, singles + pairs, study="sharing", noise=1e-5))
    (held,) = types.chains("sharing", LOG)
    assert list(sharing.thinned(held, "lowrank")) == [0.1, 0.4]
    assert sharing.others(held)["gptq"] == ["gptq-3", "gptq-4", "gptq-8"]
    assert {r.verdict for r in sharing.SHARING.rows()} == {HOLDS}
    assert "quantizing first does better in 3 of 6 cells" in drawn("sharing")


@pytest.mark.parametrize("between", [True, False])
def test_what_others_claim_of_distilling(stored: Callable[..., None], between: bool) -> None:
    trio = ("magnitude-0.5", "distill[learning_rate=0.001]", "rtn-4")

    def loss(chain: tuple[str, ...], seed: int) -> float:
        base = 0.1 * len(chain) + 0.05 * (len(chain) > 1 and chain[0] == "rtn-4")
        return base - 0.03 * (chain == trio) * (1 if between else -1)

    singles = [("sparsegpt-0.5",), ("gptq-4",)]
    stored("claims", make_chains(loss, all_orders(trio) + singles, study="claims"))
    assert [r.verdict for r in others.between()] == [HOLDS if between else FAILS]
    assert [r.verdict for r in others.early()] == [HOLDS]


def test_three_methods_against_one_at_equal_storage(stored: Callable[..., None]) -> None:
    three = ("lowrank[whiten=True]", "wanda-0.375", "rtn-8")
    losses = {three: 0.1, ("rtn-4",): 0.2, ("wanda-0.75",): 0.05}
    losses |= {("lowrank[ratio=0.75,whiten=True]",): 0.3}
    stored("claims", make_chains(lambda c, s: losses.get(c, 0.01), list(losses), study="claims"))
    rows = list(others.storage())
    assert [r.verdict for r in rows] == [HOLDS, FAILS, HOLDS]
    assert all("4.00× and 4.00×" in r.protocol for r in rows)


def test_joint_methods_against_the_better_order(stored: Callable[..., None]) -> None:
    pair = ("sparsegpt-0.5", "gptq-3")
    losses = {pair: 0.3, pair[::-1]: 0.2, ("obr[bits=3]-0.5",): 0.1, ("joint[bits=3]-0.5",): 0.25}
    losses |= {("sparsegpt-0.5", "gptq-4"): 0.1, ("gptq-4", "sparsegpt-0.5"): 0.2}
    losses |= {("joint-0.5",): 0.15}
    stored("joint", make_chains(lambda c, s: losses.get(c, 0.01), list(losses), study="joint"))
    rows = {r.protocol: r for r in others.joint()}
    assert {p: r.verdict for p, r in rows.items()} == {
        "obr[bits=3]-0.5": HOLDS,
        "joint[bits=3]-0.5": FAILS,
        "joint-0.5": FAILS,
    }
    assert rows["obr[bits=3]-0.5"].value.value == pytest.approx(0.1, abs=2e-3)


# ------------------------------------------------------------------------ a published model


def published(bits: Sequence[int] = (16, 8, 4, 3)) -> list:
    """Pruning half costs 0.4, b bits 2 / 2^b; pruning last costs 0.05 more than quantizing last,
    and 0.03 more for every bit below 8."""

    def loss(chain: tuple[str, ...], seed: int) -> float:
        total = 0.0
        for stage in chain:
            amount = float(stage.rpartition("-")[2])
            total += 0.4 if amount < 1 else 2 / 2**amount
        if len(chain) == 2 and amount < 1:
            width = float(chain[0].rpartition("-")[2])
            total += 0.0 if width == 16 else 0.05 + 0.03 * (8 - width)
        return total

    every: list[tuple[str, ...]] = []
    for p, q in (("sparsegpt-0.5", "gptq[per=64]"), ("magnitude-0.5", "rtn[per=64]")):
        widths = [f"{q}-{b}" for b in bits]
        every += [(p,), *((w,) for w in widths)]
        every += [c for w in widths for c in ((p, w), (w, p))]
    every += [("gptq[per=64]-4", "sparsegpt[on_grid=snap]-0.5")]
    return make_chains(loss, every, seeds=(0,), study="smollm2", model="m.gguf")


def zeros(records: Iterable[dict]) -> list[dict]:
    """3 bits alone zero more than half, more bits nothing."""
    return [r | {"zero_fraction": 0.6 * r["label"].endswith("-3")} for r in records]


def test_a_published_model_is_judged_by_itself(stored: Callable[..., None]) -> None:
    stored("smollm2", zeros(published()))
    (held,) = types.chains("smollm2", LOG)
    assert len(real.pairs(held)) == 9
    rows = {f.key: list(f.rows()) for f in real.FINDINGS}
    every = {r.protocol: r for r in rows["R-1"]}
    at_gap = {name: r for name, r in every.items() if not name.endswith(", M = −KL")}
    in_kl = every["magnitude-0.5 × rtn-4, M = −KL"]  # costs twice what it costs in NLL
    assert in_kl.value.value == pytest.approx(2 * -0.17, abs=0.01)
    assert len(every) == 2 * len(at_gap)
    assert at_gap.keys() == {
        "sparsegpt[on_grid=snap]-0.5 × gptq-4",  # against the one that prunes first
        *(
            f"{pair}-{b}"
            for pair in ("sparsegpt-0.5 × gptq", "magnitude-0.5 × rtn")
            for b in (8, 4, 3)
        ),
    }
    # Pruning costs more than any width here, so that it should come last; it loses 0.17 there.
    blind = at_gap["magnitude-0.5 × rtn-4"]
    assert blind.value.value == pytest.approx(-0.17, abs=0.01)
    assert (blind.verdict, blind.draws) == (FAILS, 1)
    assert at_gap["sparsegpt-0.5 × gptq-4"].verdict == NO_VERDICT  # calibrated once only
    first = {r.protocol: r.value.value for r in rows["R-3"]}
    assert first["magnitude-0.5 × rtn-4"] == pytest.approx(0.17, abs=0.01)
    named = {r.protocol: r.value.value for r in rows["R-4"]}
    assert named["magnitude-0.5 × rtn-4"] == pytest.approx(0.17, abs=0.01)
    assert named["magnitude-0.5 × rtn-3"] == pytest.approx(-0.2, abs=0.01)
    tau = {r.protocol: r.value.value for r in rows["R-2"]}
    curves = ("sparsegpt-0.5 × gptq", "magnitude-0.5 × rtn")
    assert tau == {f"{c}{m}": pytest.approx(1) for c in curves for m in ("", ", M = −KL")}
    assert real.control() == {"m.gguf": pytest.approx(0, abs=1e-2)}
    assert real.costs()["m.gguf"]["gptq[per=64]-4"] == pytest.approx(2 / 16, abs=1e-3)
    (line, _, control, _) = findings_main.of_published_models()
    assert "sparsegpt-0.5" in line
    assert "at 16 bits |A| on m.gguf is at most" in control


def test_a_published_models_trend_along_the_ratio(stored: Callable[..., None]) -> None:
    """A(Q→P) falls with the ratio, by 0.1 nats from each to the next."""

    def loss(chain: tuple[str, ...], seed: int) -> float:
        ratio = sum(float(s.rpartition("-")[2]) for s in chain if s.startswith("magnitude"))
        return 0.1 * len(chain) + (ratio if chain[:1] == ("rtn-4",) else 0.0)

    pruners = [f"magnitude-{s}" for s in (0.3, 0.2, 0.1)]
    every = [("rtn-4",), *((p,) for p in pruners)]
    every += [c for p in pruners for c in ((p, "rtn-4"), ("rtn-4", p))]
    stored("smollm2", make_chains(loss, every, seeds=(0,), study="smollm2", model="m.gguf"))
    rows = {r.protocol: r for r in real.trends()}
    assert rows.keys() == {"magnitude × rtn-4", "magnitude × rtn-4, M = −KL"}
    found = rows["magnitude × rtn-4"]
    assert found.tested == "tau of A with the gap along 3 ratios"
    assert (found.value.value, found.verdict) == (pytest.approx(-1), FAILS)
    assert found.value.low == -1
    said = drawn("published")
    assert "m.gguf: as the gap grows, A falls (tau −1) along the ratio" in said


def test_two_studies_of_one_model_are_told_together(stored: Callable[..., None]) -> None:
    stored("smollm2", zeros(published()))
    alone = [("rotate",), ("rotate", "rtn-4"), ("rotate", "magnitude-0.5")]
    loss = lambda chain, seed: 0.01 * len(chain)  # noqa: E731
    stored("smollm2_quarot", make_chains(loss, alone, study="smollm2_quarot", model="m.gguf"))
    told = real.costs()["m.gguf"]
    assert told["rotate"] == pytest.approx(0.01, abs=1e-3)
    assert told["gptq[per=64]-4"] == pytest.approx(2 / 16, abs=1e-3)
    assert {r.model for r in real.pruning_first("text")} == {"m.gguf"}
    assert not real.pruning_first("images")


def test_a_published_model_stands_beside_the_reported_numbers(
    stored: Callable[..., None],
) -> None:
    turned = ("rotate[kind=hadamard]", "sparsegpt-0.4")

    def loss(chain: tuple[str, ...], seed: int) -> float:
        return 0.1 * ("sparsegpt-0.4" in chain) + 0.05 * (chain == turned)

    every = [("sparsegpt-0.4",), turned[:1], turned]
    stored("smollm2_quarot", make_chains(loss, every, study="smollm2_quarot", model="m.gguf"))
    (amplified,) = real.amplified()
    assert (amplified.model, amplified.protocol) == ("m.gguf", "sparsegpt-0.4")
    assert amplified.value.value == pytest.approx(0.05, abs=0.01)
    ((held, cell, as_it_is, rotated, less),) = real.beside_reported()
    assert cell.said.startswith("8.477, 98.213")
    dense = np.exp(-held.rows[()][:, 0])
    assert as_it_is == pytest.approx(np.mean(dense * np.exp(0.1)), rel=0.02)
    assert rotated / as_it_is == pytest.approx(np.exp(0.05), rel=0.01)
    assert less.value == pytest.approx(as_it_is - rotated)
    assert "8.477, 98.213" in "\n".join(findings_main.of_published_models())


def test_where_nothing_is_left_no_order_is_judged(stored: Callable[..., None]) -> None:
    every = [("magnitude-0.5",), ("rtn-4",), ("rtn-4", "magnitude-0.5"), ("magnitude-0.5", "rtn-4")]
    for cost, judged_pairs in ((0.9, 1), (1.1, 0)):
        stored("smollm2", make_chains(lambda c, s, x=cost: x * len(c), every, study="smollm2"))
        types.records.cache_clear()
        types.chains.cache_clear()
        (held,) = real.models()
        assert len(real.pairs(held)) == judged_pairs


def test_a_removed_block_is_judged_by_all_rules_but_that_of_the_zeros(
    stored: Callable[..., None],
) -> None:
    def loss(chain: tuple[str, ...], seed: int) -> float:
        last = chain == ("rtn-4", "remove")
        return 0.3 * ("remove" in chain) + 0.1 * ("rtn-4" in chain) + 0.05 * last

    every = [("remove",), ("rtn-4",), ("rtn-4", "remove"), ("remove", "rtn-4")]
    stored("smollm2", zeros(make_chains(loss, every, seeds=(0,), study="smollm2")))
    rows = {f.key: {r.protocol: r for r in f.rows()} for f in real.FINDINGS}
    assert rows["R-1"]["remove × rtn-4"].value.value == pytest.approx(-0.05, abs=0.01)
    assert rows["R-3"]["remove × rtn-4"].value.value == pytest.approx(0.05, abs=0.01)
    assert rows["R-3"]["remove × rtn-4"].verdict == NO_VERDICT  # one draw: SLEB looks at data
    assert not rows["R-4"]


def test_two_draws_give_a_published_model_a_verdict(stored: Callable[..., None]) -> None:
    first = zeros(published((4, 3)))
    again = [identified(r | {"calibration": r["calibration"] | {"draw": 1}}) for r in first]
    stored("smollm2", [*first, *again])
    rows = {r.protocol: r for f in real.FINDINGS if f.key == "R-3" for r in f.rows()}
    found = rows["sparsegpt-0.5 × gptq-4"]
    assert (found.verdict, found.seeds, found.draws) == (HOLDS, 1, 2)
    assert not any(f.rows() for f in real.FINDINGS if f.key == "R-2")  # two widths have no trend


# ------------------------------------------------------------------------------ document


def judged(value: float, model: str = "m", seeds: int = 5) -> Row:
    return Row(model, "", "", Estimate(value, value - 0.1, value + 0.1), 0.0, seeds)


def test_several_rows_have_one_verdict() -> None:
    yes, no, open_ = judged(1), judged(-1), judged(0.05)
    assert (overall([yes, yes]), overall([no, no]), overall([open_])) == (HOLDS, FAILS, NO_VERDICT)
    assert overall([yes, no]) == overall([yes, open_]) == PARTLY
    assert overall([no, open_]) == FAILS
    assert overall([]) == ABSENT
    assert judged(1, seeds=1).verdict == NO_VERDICT  # one training says nothing
    assert by_model([yes, judged(-1, "n")]) == {"m": HOLDS, "n": FAILS}


def sure(value: float, p: float, seeds: int = 5) -> Row:
    """A row whose test has this p-value, and the interval that goes with it; 4 degrees."""
    error = abs(value) / stats.t.isf(p / 2, 4)
    half = stats.t.isf(0.025, 4) * error
    found = Estimate(value, value - half, value + half, error, 4.0)
    return Row("m", "", "", found, 0.0, seeds)


def test_rows_that_are_judged_together_need_more_than_one_alone() -> None:
    rows = [sure(1, 0.001), sure(-1, 0.011), sure(-1, 0.04), sure(1, 0.2)]
    assert [r.p for r in rows] == pytest.approx([0.001, 0.011, 0.04, 0.2])
    assert [r.verdict for r in rows] == [HOLDS, FAILS, FAILS, NO_VERDICT]
    # Benjamini and Hochberg's lines for 4 tests: 0.0125, 0.025, 0.0375, 0.05
    assert [r.stands for r in together(rows)] == [HOLDS, FAILS, NO_VERDICT, NO_VERDICT]
    assert [r.alone for r in together(rows)] == [False, False, True, False]
    assert overall(together(rows[1:])) == FAILS
    assert [r.stands for r in together([rows[2]])] == [FAILS]
    # what can have no verdict is no test, and makes the others no weaker
    many = together([*rows[:2], *[sure(1, 1e-4, seeds=1)] * 50])
    assert [r.stands for r in many[:2]] == [HOLDS, FAILS]
    assert together([]) == []
    with pytest.raises(ValueError, match="without its standard error"):
        together([judged(1)])  # never undecided for want of a number


def test_verdicts_of_one_row_alone_are_counted_and_marked() -> None:
    rows = [sure(1, 0.001)] * 3 + [sure(-1, 0.04)] + [sure(1, 0.5)] * 36
    rows = together(rows)
    told = by_chance([*rows, sure(1, 0.001, seeds=1)])[0]
    assert "Each of the 40 rows" in told
    assert "1 would hold and 1 fail by chance" in told
    assert "3 hold, of which 3 stand together; 1 fails, of which 0 stand together" in told
    lines = section(FINDINGS[0], rows[2:5])
    said = [line.split(" | ")[-1].strip(" |") for line in lines if line.startswith("| m ")]
    assert said == ["holds", "fails °", "undecided"]


def test_an_exact_statistic_is_tested_exactly() -> None:
    assert Estimate(1.0, 1.0, 1.0, 0.0, 4.0).p(0.5) == 0
    assert Estimate(0.5, 0.5, 0.5, 0.0, 4.0).p(0.5) == 1
    assert math.isnan(Estimate(1.0, 0.5, 1.5).p(0.0))
    normal = Estimate(1.96, 0.0, 3.92, 1.0)  # no degrees of freedom: the normal law
    assert normal.p(0.0) == pytest.approx(0.05, abs=1e-4)


def test_the_figure_of_what_others_claim() -> None:
    rows = [judged(1), judged(-1), judged(0.05), judged(1)]
    figure = claims.draw([(FINDINGS[-1], rows), (FINDINGS[-2], [])])
    told = " ".join(text.get_text() for text in figure.texts)
    assert "Of 4 tests of what others claim 2 hold and 1 fail" in told
    (ax,) = figure.axes
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [p.get_xdata()[0] for p in points] == [1, -1, 0.05, 1]


def test_every_finding_of_the_paper_has_a_section() -> None:
    keys = [f.key for f in FINDINGS]
    assert keys[:9] == ["F-A", "F-B", "F-C", "T-D", "F-E", "F-F", "F-G", "F-H", "F-I"]
    assert len(set(keys)) == len(keys)
    known = builtin()
    assert all(s in known for f in FINDINGS for s in f.studies)


def test_without_records_a_finding_says_which_study_to_run(stored: Callable[..., None]) -> None:
    for finding in FINDINGS:
        if not {"embedded", "larger", "fashion"} & set(finding.studies):
            assert list(finding.rows()) == []


def test_findings_are_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert document() == FILE.read_text(encoding="utf-8"), "run python -m experiments.findings"
    assert main(["--check"]) == 0
    assert main(["--chek"]) == 2
    assert "there are --check and --store" in capsys.readouterr().err


def test_a_studys_records_are_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kept = tmp_path / "sharing", tmp_path / "kept"
    monkeypatch.setattr(findings_main, "STORED", kept)
    monkeypatch.setattr(findings_main, "FILE", tmp_path / "FINDINGS.md")
    monkeypatch.setattr(findings_main, "document", lambda: "made\n")
    assert main(["--store", str(folder)]) == 2
    assert "no records at" in capsys.readouterr().err
    records = make_chains(lambda c, s: 0.1, [("a",)], study="sharing")
    with RecordLog(folder / "records.jsonl") as log:
        for record in records:
            log.append(record)
    assert main(["--store", str(folder)]) == 0
    assert len(load(kept / "sharing.jsonl.gz")) == len(records)
    assert (tmp_path / "FINDINGS.md").read_text() == "made\n"


# ------------------------------------------------------------------- the repository's figures


def test_a_figure_of_the_repository_is_drawn_in_its_studys_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(["heatmap", "affine", "--out", str(tmp_path), "--format", "png"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [Path(line).relative_to(tmp_path).parts[0] for line in told] == ["embedded", "theory"]
    assert all(Path(line).stat().st_size > 10_000 for line in told)


def test_a_figure_without_records_says_which_study_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stored_figures, "STORED", tmp_path)
    assert draw(["orders", "zeros", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "zeros: no records, python -m experiments run zeros makes them",
        "orders: no records, python -m experiments run multistage makes them",
    ]


def test_chain_figures_of_ones_own_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loss(chain: tuple[str, ...], seed: int) -> float:
        return sum(COSTS[s] for s in chain) + 0.02 * inversions(chain)

    for name, chains in (("good", all_orders(COSTS)), ("bad", [("a",)])):
        with RecordLog(tmp_path / name / "records.jsonl") as log:
            for record in make_chains(loss, chains, study="mine"):
                log.append(record)
    out = ["--out", str(tmp_path / "out"), "--replicates", "50"]
    assert draw(["orders", "--records", str(tmp_path / "good"), *out]) == 0
    assert (tmp_path / "out" / "orders.png").stat().st_size > 10_000
    assert draw(["lora", "--records", str(tmp_path / "bad"), *out]) == 2
    assert "it needs those of the study lora" in capsys.readouterr().err
    assert draw(["orders", "rules", "--records", str(tmp_path / "good"), *out]) == 2


def test_the_manifest_names_every_figures_study_and_verdict() -> None:
    lines = stored_figures.manifest().splitlines()
    assert len(lines) == 6 + len(list(stored_figures.sheets()))
    drawn = ROOT / "figures" / "drawn"
    assert (drawn / "MANIFEST.md").read_text(encoding="utf-8").splitlines() == lines
    linked = re.findall(r"figures/drawn/([\w./-]+)\.png", (ROOT / "README.md").read_text())
    assert all(any(line.startswith(f"| {name} |") for line in lines) for name in linked)


# --------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", ["gpu", "paper"])
def test_studies_on_larger_models(size: str) -> None:
    small = find("quarot")
    large = sized(small, size)
    assert [str(m) for m in large.models] == [
        f"experiments.models.untied:{LARGER[size]['llama-docs-deep'].replace('-', '_')}"
    ]
    assert large.plans == small.plans
    assert len(sized(find("embedded"), size).models) == 3  # two Llamas have one larger
    assert sized(small, "small") == small
    with pytest.raises(ValueError, match="--size huge: choose small, gpu, paper"):
        sized(small, "huge")
