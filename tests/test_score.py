"""The score measures what compress does: recomputed here from the compressed models."""

from __future__ import annotations

import csv
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import GPTQ, RTN, Joint, Magnitude, Wanda, chain, compress, network, score

P, Q = Wanda(0.5), GPTQ(3)
CHAINS = {"P": P, "Q": Q, "PQ": chain(P, Q), "QP": chain(Q, P)}


class Net(nnx.Module):
    """[batch, 12] -> logits [batch, 4]; layers of two shapes."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.blocks = nnx.List([nnx.Linear(12, 12, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + nnx.relu(block(x))
        return self.head(x)


@pytest.fixture(scope="module")
def model():
    return Net(nnx.Rngs(0))


@pytest.fixture(scope="module")
def batches():
    mix = jax.random.normal(jax.random.key(2), (12, 12))
    return list(jax.random.normal(jax.random.key(1), (2, 24, 12)) @ mix)


@pytest.fixture(scope="module")
def scores(model, batches):
    return score(model, P, Q, batches, key=3)


@pytest.fixture(scope="module")
def dense(model):
    return network.get_weights(model, network.find_layers(model)[0])


@pytest.fixture(scope="module")
def compressed(model, batches):
    return {
        v: compress(model, f, batches, calibrate="recalibrate", key=3) for v, f in CHAINS.items()
    }


def test_layers_are_measured_on_what_compress_returns(model, batches, scores, dense, compressed):
    specs, _ = network.find_layers(model)
    stats = network.capture(model, specs, batches)
    assert [x.name for x in scores.layers] == list(specs)
    for layer in scores.layers:
        gram = np.asarray(stats[layer.name].gram, np.float64) / float(stats[layer.name].count)
        for v in CHAINS:
            made = compressed[v].matrices[layer.name]
            w = np.asarray(dense[layer.name], np.float64)
            dw = np.asarray(made.weight, np.float64) - w
            expected = {
                "fro": np.linalg.norm(dw),
                "fro_rel": np.linalg.norm(dw) / np.linalg.norm(w),
                "spec": np.linalg.norm(dw, 2),
                "spec_rel": np.linalg.norm(dw, 2) / np.linalg.norm(w, 2),
                "out_err": np.trace(dw @ gram @ dw.T),
                "out_rel": np.trace(dw @ gram @ dw.T) / np.trace(w @ gram @ w.T),
                "snr_db": 20 * np.log10(np.linalg.norm(w) / np.linalg.norm(dw)),
                "pruned": np.mean(~np.asarray(made.mask)),
                "zero": np.mean(np.asarray(made.weight) == 0),
            }
            found = {k: getattr(layer[v], k) for k in expected}
            assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("calibrate", ["sequential", "dense"])
def test_every_calibration_is_that_of_compress(model, batches, dense, calibrate):
    scores = score(model, P, Q, batches, calibrate=calibrate, key=3)
    for v, method in CHAINS.items():
        made = compress(model, method, batches, calibrate=calibrate, key=3)
        for layer in scores.layers:
            dw = made.matrices[layer.name].weight - dense[layer.name]
            assert layer[v].fro == pytest.approx(float(jnp.linalg.norm(dw)), rel=1e-5)


def test_what_the_order_changes(model, batches, scores, dense, compressed):
    specs, _ = network.find_layers(model)
    stats = network.capture(model, specs, batches)
    for layer in scores.layers:
        effect = layer.order
        pq, qp = (compressed[v].matrices[layer.name] for v in ("PQ", "QP"))
        assert effect.advantage == pytest.approx(layer["PQ"].out_err - layer["QP"].out_err)
        assert effect.advantage_rel == pytest.approx(layer["PQ"].out_rel - layer["QP"].out_rel)
        assert effect.prefers == ("QP" if effect.advantage > 0 else "PQ")
        assert effect.owner_changed == pytest.approx(float(jnp.mean(pq.mask != qp.mask)))
        assert effect.by_ownership + effect.interference == pytest.approx(effect.advantage)
        # Theorem 1 by hand: a pruned weight costs h w^2, a quantized one h (q - w)^2
        w = np.asarray(dense[layer.name], np.float64)
        alone = np.asarray(compressed["Q"].matrices[layer.name].weight, np.float64) - w
        h = np.diagonal(stats[layer.name].gram) / float(stats[layer.name].count)
        cost = [(h * np.where(np.asarray(x.mask), alone**2, w**2)).sum() for x in (pq, qp)]
        assert effect.by_ownership == pytest.approx(cost[0] - cost[1], rel=1e-3)
        a, b = (np.ravel(compressed[v].matrices[layer.name].weight - w) for v in ("P", "Q"))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert layer.cosine == pytest.approx(cosine, abs=1e-5)


def test_the_total_is_the_block_diagonal_matrix(scores, dense, compressed):
    from scipy.linalg import block_diag

    total = scores.total
    whole = block_diag(*dense.values())
    dw = {
        v: block_diag(*(c.matrices[n].weight for n in dense)) - whole for v, c in compressed.items()
    }
    for v, d in dw.items():
        assert total[v].fro == pytest.approx(np.linalg.norm(d), rel=1e-5)
        assert total[v].spec == pytest.approx(np.linalg.norm(d, 2), rel=1e-3)
        assert total[v].out_err == pytest.approx(sum(x[v].out_err for x in scores.layers))
        assert total[v].pruned == pytest.approx(compressed[v].sparsity)
    cosine = (dw["P"] * dw["Q"]).sum() / np.linalg.norm(dw["P"]) / np.linalg.norm(dw["Q"])
    assert total.cosine == pytest.approx(cosine, abs=1e-5)
    assert total.order.advantage == pytest.approx(sum(x.order.advantage for x in scores.layers))
    assert total.size == sum(x.size for x in scores.layers) == 2 * 144 + 48


def test_outputs_are_compared_with_the_dense_model(model, batches, scores, compressed):
    x = jnp.concatenate(batches)
    z = np.asarray(model(x), np.float64)

    def log_softmax(a):
        a = a - a.max(-1, keepdims=True)
        return a - np.log(np.exp(a).sum(-1, keepdims=True))

    for v, c in compressed.items():
        y = np.asarray(c.model(x), np.float64)
        log_p, log_q = log_softmax(z), log_softmax(y)
        kl = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
        assert scores.outputs[v].kl == pytest.approx(kl, rel=1e-3)
        assert scores.outputs[v].logit_mse == pytest.approx(((y - z) ** 2).mean(), rel=1e-3)


def test_nothing_to_prune_means_no_order(model, batches):
    scores = score(model, Magnitude(0.0), RTN(4), batches)
    for layer in (*scores.layers, scores.total):
        assert layer["P"].snr_db == math.inf
        assert layer["P"].out_err == layer["P"].fro_rel == layer.cosine == 0
        assert layer.order.prefers == "equal"
        assert layer.order.advantage == layer.order.owner_changed == 0
    assert scores.outputs["PQ"] == scores.outputs["QP"] == scores.outputs["Q"]
    assert scores.outputs["P"].kl == 0
    told = json.loads(scores.to_json())
    assert told["total"]["variants"]["P"]["snr_db"] is None  # JSON has no infinity
    assert float(next(csv.DictReader(io.StringIO(scores.to_csv())))["p_snr_db"]) == math.inf


def test_the_model_is_not_changed_and_the_result_repeats(model, batches, scores):
    before = jax.tree.map(np.asarray, nnx.state(model))
    assert score(model, P, Q, batches, key=3) == scores
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(model)))


@pytest.mark.parametrize(("order", "runs"), [("pq", "PQ"), ("qp", "QP")])
def test_one_order_alone_costs_and_says_less(model, batches, scores, order, runs):
    one = score(model, P, Q, batches, key=3, order=order)
    assert list(one.total.variants) == list(one.outputs) == ["P", "Q", runs]
    assert one.total.order is None
    assert one.total[runs] == scores.total[runs]
    assert one.to_rows()[-1]["advantage"] is None


def test_rows_csv_and_json_say_the_same(scores):
    rows = scores.to_rows()
    assert [r["layer"] for r in rows] == [*(x.name for x in scores.layers), "total"]
    assert len({tuple(r) for r in rows}) == 1
    assert rows[0]["qp_out_rel"] == scores.layers[0]["QP"].out_rel
    assert rows[0]["qp_kl"] is None
    assert rows[-1]["qp_kl"] == scores.outputs["QP"].kl
    read = list(csv.DictReader(io.StringIO(scores.to_csv())))
    assert [{k: "" if v is None else str(v) for k, v in r.items()} for r in rows] == read
    told = json.loads(scores.to_json())
    assert told["stages"]["P"]["name"] == "wanda"
    assert told["stages"]["Q"]["bits"] == 3
    assert told["layers"][1]["variants"]["PQ"]["out_err"] == scores.layers[1]["PQ"].out_err
    assert told["layers"][1]["order"]["prefers"] == scores.layers[1].order.prefers


def test_excluded_layers_stay_dense_and_are_named(model, batches):
    scores = score(model, P, Q, batches, exclude=["head"])
    assert [x.name for x in scores.layers] == ["blocks.0", "blocks.1"]
    assert "head" in scores.skipped


def test_intensities_from_the_callers_performance(model, batches):
    x = jnp.concatenate(batches)
    labels = jnp.argmax(model(x), -1)

    def performance(net):
        return float(jnp.mean(jax.nn.log_softmax(net(x))[jnp.arange(len(x)), labels]))

    scores = score(model, P, Q, batches, performance=performance)
    plain, c_q = scores.intensity, scores.storage["Q"].ratio
    assert 1 < c_q < 16 / 3  # the biases are not compressed
    m = plain.performance
    assert set(m) == {"dense", *CHAINS}
    assert plain.gap == m["Q"] - m["P"]
    assert plain.advantage == m["QP"] - m["PQ"]
    assert plain.equivalent is plain.ratio_gap is None
    curve = ([1.0, c_q, 8.0], [m["dense"], m["Q"], m["P"]])
    found = score(model, P, Q, batches, performance=performance, curve=curve).intensity
    assert found.equivalent.status == "ok"
    assert found.equivalent.value == 8.0
    assert found.ratio_gap == pytest.approx((8 - c_q, 8 - c_q))


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((P,), {}, "two to 4 stages have orders to compare; got 1"),
        (([P] * 5,), {}, "got 5"),
        ((P, Wanda(0.5)), {}, "A and B are both wanda with the same settings"),
        ((P, "gptq:4"), {}, "'gptq:4' is no stage"),
        ((P, RTN), {}, "is no stage"),
        ((P, Q), {"calibration": 1}, "is no stage"),
        ((P, Q), {"order": "both ways"}, "order must be all, or some of pq, qp; got 'both ways'"),
        (([P, Q, Joint(0.3)],), {"order": "ab"}, "some of abc, acb, bac, bca, cab, cba; got 'ab'"),
        ((P, Joint(0.3)), {"curve": ([1], [0]), "performance": id}, "give a pruner, a quantizer"),
        ((P, Q), {"calibrate": "never"}, "calibrate must be one of"),
        ((P, Q), {"exclude": ["tail"]}, "matches no layer"),
        ((P, Q), {"curve": ([1], [0])}, "and performance as well"),
        ((P, Q), {"forward": lambda m, x: (m(x), x)}, "returns tuple instead of one array"),
        ((P, Q), {"forward": lambda m, x: m(x).sum()}, "scalar instead of logits"),
    ],
)
def test_bad_arguments_are_refused(model, batches, arguments, options, says):
    with pytest.raises(ValueError, match=says):
        score(model, *arguments, batches, **options)


def test_an_empty_calibration_set_is_refused(model):
    for nothing in (None, [], jnp.zeros((0, 12))):
        with pytest.raises(ValueError, match="calibration"):
            score(model, Magnitude(0.5), RTN(4), nothing)
