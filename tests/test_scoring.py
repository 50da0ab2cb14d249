"""The score of more than two stages, of stages on models, on held-out inputs, with intervals."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from experiments.models import llama
from perturb import RTN, GlobalMagnitude, Magnitude, chain, compress, score
from perturb.compression import Opened
from perturb.methods.adapt.lora import LoRA
from perturb.methods.rotate.residual import Rotate
from perturb.methods.structure.drop import Drop
from perturb.policy import Policy
from perturb.scoring import orders, outputs
from perturb.scoring.table import render, uncovered
from perturb.scoring.words import percent, sentences
from perturb.stage import expand
from perturb.state import layer_weight
from perturb.types import Matrix, Solved

Array = jax.Array
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Halve:
    """A method without settings, so without array leaves."""

    name = "halve"
    needs_stats = False

    def __call__(self, matrix: Matrix, problem: Any, key: Any) -> Solved:
        return Solved(matrix._replace(weight=matrix.weight / 2), None)


A, B, C = Magnitude(0.5), RTN(3), Halve()
STAGES = {"A": A, "B": B, "C": C}
EVERY = tuple(map("".join, itertools.permutations("ABC")))


class Net(nnx.Module):
    """[batch, 10] -> logits [batch, 4]; its last layer is made first."""

    def __init__(self, classes: int = 4) -> None:
        self.a_head = nnx.Linear(12, classes, rngs=nnx.Rngs(0))
        self.stem = nnx.Linear(10, 12, rngs=nnx.Rngs(1))

    def __call__(self, x: Array) -> Array:
        return self.a_head(nnx.relu(self.stem(x)))


def normal(seed: int, *shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


CALIBRATION, HELDOUT = [normal(0, 32, 10)], [normal(1, 24, 10), normal(2, 16, 10)]


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def scores(told: list[str]) -> Any:
    return score(Net(), [A, B, C], CALIBRATION, heldout=HELDOUT, key=3, tell=told.append)


def test_every_order_is_what_compress_makes_of_the_chain(scores: Any) -> None:
    model = Net()
    x = jnp.concatenate(HELDOUT)
    z = np.asarray(jax.nn.log_softmax(model(x)), np.float64)
    assert tuple(scores.outputs) == tuple(scores.total.variants) == ("A", "B", "C", *EVERY)
    for v in ("A", "C", *EVERY):
        made = compress(model, chain(*(STAGES[s] for s in v)), CALIBRATION, key=3)
        y = np.asarray(jax.nn.log_softmax(made.model(x)), np.float64)
        kl = (np.exp(z) * (z - y)).sum(-1).mean()
        assert scores.outputs[v].kl == pytest.approx(kl, rel=1e-4)
        assert scores.storage[v] == made.storage
        for layer in scores.layers:
            dw = made.matrices[layer.name].weight - getattr(model, layer.name).kernel[...].T
            assert layer[v].fro == pytest.approx(float(jnp.linalg.norm(dw)), rel=1e-5)


def test_beginnings_of_orders_are_run_once_and_every_step_is_told(
    scores: Any, told: list[str]
) -> None:
    steps = [t for t in told if t.startswith("stage ") and t.endswith("from stem")]
    assert len(steps) == 3 + 6 + 6
    assert steps[0] == "stage 1 of 15, A: magnitude on 2 layers from stem"
    assert "stage 3 of 15, A→B→C: halve on 2 layers from stem: measuring its layers" in told
    assert len(set(steps)) == 15


def test_layers_are_in_the_order_of_calls(scores: Any) -> None:
    assert [x.name for x in scores.layers] == ["stem", "a_head"]


def test_of_more_than_two_stages_the_nearest_order_is_compared_with_each_other(scores: Any) -> None:
    kl = {v: scores.outputs[v].kl for v in EVERY}
    assert list(scores.orders) == sorted(EVERY, key=lambda v: kl[v])
    assert scores.best == min(EVERY, key=lambda v: kl[v])
    assert [a.order for a in scores.advantages] == [scores.best] * 5
    assert [a.over for a in scores.advantages] == list(scores.orders)[1:]
    for a in scores.advantages:
        assert a.value == pytest.approx(kl[a.over] - kl[a.order])
        assert a.low <= a.value <= a.high
        assert (a.sign == 1) == (a.low > 0 and a.value > 0)
    for layer in scores.layers:
        assert layer.cosine is layer.order is None
        assert layer.prefers in (min(layer.errors, key=lambda v: layer.errors[v]), "equal")
    row = scores.to_rows()[-1]
    assert row["cba_kl"] == kl["CBA"]
    assert row["prefers"] == scores.total.prefers
    said = json.loads(scores.to_json())
    assert said["best"] == scores.best
    assert said["advantages"][0]["high"] == scores.advantages[0].high
    assert said["stages"]["C"] == {"name": "halve"}
    assert said["storage"]["ABC"]["ratio"] == scores.storage["ABC"].ratio


def test_the_advice_follows_the_intervals(scores: Any) -> None:
    advice = sentences(scores)[2]
    open_ = [a for a in scores.advantages if not a.sign]
    assert "on 40 held-out examples" in advice
    assert f"run {'→'.join(scores.best)}" in advice
    assert ("not told apart from" in advice) == bool(open_)


def test_outputs_are_compared_on_the_calibration_inputs_only_if_there_are_no_others(
    scores: Any,
) -> None:
    assert scores.heldout
    assert scores.examples == 40
    assert not any("heldout" in n for n in scores.notes)
    again = score(Net(), A, B, CALIBRATION)
    assert (again.heldout, again.examples) == (False, 32)
    assert any("on the calibration inputs" in n for n in again.notes)
    assert score(Net(), A, B, CALIBRATION, heldout=CALIBRATION[0]).outputs == again.outputs
    with pytest.raises(ValueError, match=r"held-out batch 1 of shape \(4, 3\)"):
        score(Net(), A, B, CALIBRATION, heldout=[HELDOUT[0], jnp.zeros((4, 3))])


def test_a_chain_is_a_stage_like_another() -> None:
    found = score(Net(), [chain(A, B), C], CALIBRATION, key=3, heldout=HELDOUT)
    assert list(found.outputs) == ["A", "B", "AB", "BA"]
    assert [s["name"] for s in found.stages["A"]["stages"]] == ["magnitude", "rtn"]
    for v, whole in {"A": (A, B), "AB": (A, B, C), "BA": (C, A, B)}.items():
        made = compress(Net(), chain(*whole), CALIBRATION, key=3)
        assert found.storage[v] == made.storage
        dw = made.matrices["stem"].weight - Net().stem.kernel[...].T
        assert found.layers[0][v].fro == pytest.approx(float(jnp.linalg.norm(dw)), rel=1e-5)


@pytest.mark.parametrize(("ratio", "first"), [(0.1, "quantize first"), (0.6, "prune first")])
def test_what_the_quantizer_zeroes_alone_is_set_against_the_ratio(ratio: float, first: str) -> None:
    found = score(Net(), Magnitude(ratio), RTN(2), CALIBRATION)
    zeroed, pruned = found.total["Q"].zero, found.total["P"].pruned
    assert 0.1 <= zeroed < 0.6
    told = "at least" if zeroed >= pruned else "less than"
    expected = (
        f"Quantizing alone sends {percent(zeroed)} % of the weights to 0, {told} the "
        f"{percent(pruned)} % that are pruned: the zero fraction expects {first}."
    )
    assert expected in sentences(found)[1]
    assert "zero fraction" not in sentences(score(Net(), B, C, CALIBRATION))[1]


def test_of_two_stages_without_roles_ownership_has_no_meaning() -> None:
    found = score(Net(), B, C, CALIBRATION)
    assert list(found.outputs) == ["A", "B", "AB", "BA"]
    assert found.total.order.by_ownership is found.total.order.interference is None
    assert found.total.order.owner_changed == 0
    assert -1 <= found.total.cosine <= 1
    assert found.advantages[0].order == "BA"
    one = score(Net(), B, A, CALIBRATION)  # a quantizer and a pruner, whichever comes first
    assert list(one.outputs) == ["P", "Q", "PQ", "QP"]
    assert one.total.order.interference is not None


def test_a_model_with_a_single_output_has_no_kl() -> None:
    found = score(Net(1), A, B, CALIBRATION, heldout=HELDOUT)
    assert found.distance == "logit_mse"
    assert all(math.isnan(x.kl) for x in found.outputs.values())
    mse = {v: x.logit_mse for v, x in found.outputs.items()}
    assert found.advantages[0].value == pytest.approx(mse["PQ"] - mse["QP"], rel=1e-5)
    assert "mean squared error" in sentences(found)[1]
    assert json.loads(found.to_json())["outputs"]["P"]["kl"] is None


def test_performance_of_more_stages_and_of_one_order() -> None:
    def size(net: Any) -> float:
        return -float(jnp.sum(net.stem.kernel[...] ** 2))

    found = score(Net(), [A, B, C], CALIBRATION, performance=size, order="cba,abc")
    assert set(found.intensity.performance) == {"dense", "A", "B", "C", "ABC", "CBA"}
    assert found.intensity.gap is None
    assert set(found.orders) == {"ABC", "CBA"}
    assert found.intensity.performance["C"] == found.intensity.performance["dense"] / 4


def test_tokens_of_weight_0_count_in_no_distance() -> None:
    def forward(model: Any, batch: Any) -> Array:
        return model(batch[0])

    def ones(x: Array) -> tuple[Array, Array]:
        return x.reshape(-1, 4, 10), jnp.ones((x.size // 40, 4))

    x, y = normal(0, 32, 10), normal(1, 24, 10)
    padded = normal(5, 6, 6, 10) * 100
    padded = padded.at[:, :4].set(y.reshape(6, 4, 10))
    mask = jnp.concatenate([jnp.ones((6, 4)), jnp.zeros((6, 2))], -1)
    options: Any = {"forward": forward, "token_weights": lambda b: b[1]}
    plain = score(Net(), A, B, [ones(x)], heldout=[ones(y)], **options)
    weighted = score(Net(), A, B, [ones(x)], heldout=[(padded, mask)], **options)
    assert weighted.examples == plain.examples == 6
    for v, out in plain.outputs.items():
        assert weighted.outputs[v].kl == pytest.approx(out.kl, rel=1e-4)
    assert weighted.advantages[0].low == pytest.approx(plain.advantages[0].low, rel=1e-3, abs=1e-7)


# ------------------------------------------------------------------------ stages on whole models


@pytest.fixture(scope="module")
def small() -> Any:
    config = llama.LlamaConfig(20, 16, 20, 1, 4, 2, head_dim=6)
    model = nnx.jit(lambda: config.build(nnx.Rngs(0)))()
    model.eval()
    return model.untied() if hasattr(model, "untied") else model


TOKENS = [jnp.asarray(np.random.default_rng(3).integers(0, 20, (6, 9)))]


@pytest.mark.parametrize("last", [LoRA(2, steps=2), Drop("*.mlp", 0.25)], ids=lambda s: s.name)
def test_layers_are_measured_against_the_reference_at_that_point(small: Any, last: Any) -> None:
    """Recomputed in float64 from the very states: rotated references, sums of products."""
    stages = {"A": Rotate(), "B": RTN(4), "C": last}
    wanted = ("ABC", "BCA") if last.name == "drop" else ("ABC",)
    release = {"A": Rotate(release=True)} if last.name == "drop" else {}
    stages |= release
    found = score(small, list(stages.values()), TOKENS, key=1, order=",".join(wanted))
    opened = Opened(small, TOKENS, Policy(), 1)
    for v in ("A", "B", "C", *wanted):
        versions = opened.context.start()
        for i, letter in enumerate(v):
            versions = expand(versions, [stages[letter]], opened.context, i).versions
        state, reference = versions.one(0), versions.reference
        for layer in found.layers:
            shape = opened.network.shapes[layer.name]
            w = np.asarray(reference.weights[layer.name], np.float64)
            dw = np.asarray(layer_weight(state, layer.name, shape), np.float64) - w
            m = reference.moments[layer.name]
            gram = np.asarray(m.gram, np.float64) / float(m.count)
            energy = np.trace(w @ gram @ w.T)
            assert layer[v].fro == pytest.approx(np.linalg.norm(dw), rel=1e-4, abs=1e-6)
            expected = np.trace(dw @ gram @ dw.T)
            assert layer[v].out_err == pytest.approx(expected, rel=1e-3, abs=1e-9 * energy)
            assert layer[v].out_rel == pytest.approx(expected / energy, rel=1e-3, abs=1e-9)
    alone = found.total["A"]  # an exact reparametrisation perturbs nothing
    assert alone.out_err == 0
    assert found.outputs["A"].kl < 1e-9
    assert found.total["ABC"].out_rel > 1e-4


def test_a_stage_that_drops_units_is_scored_with_its_storage(small: Any) -> None:
    found = score(small, Drop("*.mlp", 0.5), RTN(4), TOKENS, key=1)
    mlp = [x for x in found.layers if "mlp" in x.name or "gate" in x.name or "up" in x.name]
    assert mlp
    assert all(x["A"].pruned == pytest.approx(0.5) for x in mlp)
    assert found.storage["AB"].ratio > found.storage["B"].ratio
    assert found.total.order.by_ownership is None


def test_methods_on_all_matrices_at_once_are_stages_too() -> None:
    found = score(Net(), GlobalMagnitude(0.5), RTN(3), CALIBRATION)
    assert list(found.outputs) == ["P", "Q", "PQ", "QP"]
    assert found.total["P"].pruned == pytest.approx(0.5, abs=0.01)


def test_a_family_of_a_method_without_array_leaves_is_the_loop() -> None:
    run = Opened(Net(), CALIBRATION, Policy(), 3)
    pruned = expand(run.context.start(), [Magnitude(0.3), Magnitude(0.5)], run.context, 0).versions
    both = expand(pruned, [Halve(), Halve()], run.context, 1).versions
    assert both.size == 4
    for i in range(4):
        for name, matrix in both.one(i).matrices.items():
            before = pruned.one(i // 2).matrices[name]
            np.testing.assert_array_equal(matrix.weight, before.weight / 2)
            np.testing.assert_array_equal(matrix.mask, before.mask)


# -------------------------------------------------------------------------------- the intervals


def test_an_interval_is_that_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    common, count = rng.gamma(2.0, 10.0, 400), np.ones(400)
    gains = rng.normal(0.3, 1.0, 400)
    sums = {"PQ": common + gains, "QP": common}
    (a,) = outputs.intervals(sums, count, [("QP", "PQ")])
    error = 1.96 * gains.std() / 20
    assert a.value == pytest.approx(gains.mean())
    assert a.low == pytest.approx(gains.mean() - error, abs=0.15 * error)
    assert a.high == pytest.approx(gains.mean() + error, abs=0.15 * error)
    assert a.sign == 1
    assert a.turned.turned == a
    assert (a.turned.value, a.turned.low, a.turned.sign) == (-a.value, -a.high, -1)
    (b,) = outputs.intervals(sums, count, [("PQ", "QP")])
    assert (b.order, b.over, b.sign) == ("PQ", "QP", -1)
    assert (b.value, b.low, b.high) == pytest.approx((-a.value, -a.high, -a.low))


def test_rounding_alone_is_no_advantage_and_one_example_no_interval() -> None:
    sums = {"PQ": np.full(50, 1.0) + 1e-7, "QP": np.full(50, 1.0)}
    (a,) = outputs.intervals(sums, np.ones(50), [("QP", "PQ")])
    assert a.low > 0
    assert a.sign == 0
    (one,) = outputs.intervals({"PQ": np.ones(1), "QP": np.zeros(1)}, np.ones(1), [("QP", "PQ")])
    assert math.isnan(one.low)
    assert (one.value, one.sign) == (1.0, 0)


def test_many_examples_are_resampled_in_groups_and_examples_weigh_as_they_are_long() -> None:
    rng = np.random.default_rng(1)
    n = 3 * outputs.CLUSTERS + 7
    count = rng.integers(1, 9, n).astype(float)
    gains = rng.normal(0.1, 1.0, n) * count
    (a,) = outputs.intervals({"PQ": gains, "QP": np.zeros(n)}, count, [("QP", "PQ")])
    assert a.value == pytest.approx(gains.sum() / count.sum())
    residual = gains - a.value * count  # of a ratio estimate
    error = 1.96 * math.sqrt((residual**2).sum()) / count.sum()
    assert a.high - a.low == pytest.approx(2 * error, rel=0.1)


# ------------------------------------------------------------------------- what is not covered


def test_what_is_not_covered_is_told() -> None:
    class Embedded(nnx.Module):
        def __init__(self) -> None:
            self.embed = nnx.Embed(6, 10, rngs=nnx.Rngs(0))
            self.net = Net()
            self.spare = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

        def __call__(self, x: Array) -> Array:
            return self.net(x) + 0 * self.spare(x[:, :4]) + self.embed(jnp.zeros(1, int))[:, :4]

    dead = CALIBRATION[0].at[:, 2:5].set(0)[:9]
    found = score(Embedded(), A, B, dead, exclude=["spare"])
    assert found.inputs["net.stem"].dead == 3
    assert (found.inputs["net.stem"].tokens, found.inputs["net.stem"].inputs) == (9, 10)
    told = uncovered(found)
    assert told[0] == found.coverage.describe()
    text = "\n".join(told)
    assert "fewer tokens than inputs in 2 layers, the fewest in net.a_head (9 for 12)" in text
    assert "in 1 layer, the most in net.stem (3 of 10)" in text
    assert "layers left alone: embed" in text or "layers left alone: spare" in text
    assert "no held-out ones" in text
    assert any("singular" in n for n in found.notes)


# ------------------------------------------------------------------------------ orders, the table


def test_orders_are_read_as_they_are_written() -> None:
    assert orders.orders_of("all", "AB") == orders.orders_of("both", "AB") == ("AB", "BA")
    assert orders.orders_of("cab, abc", "ABC") == ("ABC", "CAB")
    assert len(orders.orders_of("ALL", "ABCD")) == 24
    plan = orders.plan_of([A, B, C, RTN(8)], "all")
    assert plan.runs == 4 + 12 + 24 + 24
    assert orders.plan_of([A, B, C], "abc").runs == 3 + 2
    for wrong in ("", "ab", "abcd", "aab"):
        with pytest.raises(ValueError, match="order must be all, or some of abc, acb"):
            orders.orders_of(wrong, "ABC")


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_of_three_stages_fits_and_shows_every_order(scores: Any, width: int) -> None:
    stream = io.StringIO()
    render(scores, "title", Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in stream.getvalue()
    rows = [line.split()[0] for line in lines if "→" in line.split(" ")[0]]
    rows = [row for row in rows if not row.endswith(",")]  # of a sentence
    assert rows == ["→".join(v) for v in scores.orders]
    assert next(line for line in lines if line.startswith("→".join(scores.best))).endswith("best")
