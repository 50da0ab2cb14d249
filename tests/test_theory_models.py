"""Theorem 6's numerics, and the assumptions as measured on models where the answer is known."""

from __future__ import annotations

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import sources
from perturb.methods.quantize.rtn import RTN
from perturb.state import fresh
from perturb.types import Problem
from tests.conftest import numpy_init
from theory.maths import outputs
from theory.maths.norms import spectral_norm
from theory.models import measure as assumptions
from theory.models import noise, signs
from theory.models.findings import findings, fit
from theory.models.orders import LAWS
from theory.statements.propagation import chains as propagation
from theory.statements.propagation import measure as propagation_measure
from theory.thresholds import SMALL

RNG = np.random.default_rng


# ---------------------------------------------------------------------------------- theorem 6


def test_the_spectral_norm_is_exact():
    w = RNG(0).normal(size=(300, 4, 4))
    w[::3] = w[::3, :, :1] * w[::3, :1]  # rank one
    w[1::3] = np.eye(4) * 10.0 ** RNG(1).uniform(-9, 9, (100, 1, 1))  # all singular values equal
    w[5] = 0
    with jax.enable_x64(True):
        found = np.asarray(spectral_norm(jnp.asarray(w)))
    np.testing.assert_allclose(found, np.linalg.norm(w, 2, axis=(1, 2)), rtol=1e-14)


def test_the_bounds_are_attained_and_offsets_do_no_harm():
    """Two scalars in the corner, all positive; the second network also has g(0) = (5, ...)."""
    corner = np.zeros((3, 4, 4))
    corner[:, 0, 0] = 2, 3, 4
    with jax.enable_x64(True):
        plain = propagation.Chain(
            jnp.asarray(corner),
            jnp.asarray(corner / 10),
            jnp.zeros(3, int),
            jnp.ones(3),
            jnp.zeros((3, 4)),
            jnp.eye(4)[0],
        )
        left, right, _ = propagation.lipschitz_sides(plain)
        assert float(left) == pytest.approx(24 * (1.1**3 - 1), rel=1e-14)
        assert float(right) == pytest.approx(float(left), rel=1e-14)
        shifted = plain._replace(offset=jnp.full((3, 4), 5.0))
        left, right, _ = propagation.lipschitz_sides(shifted)
        assert float(left) <= float(right)
        assert float(propagation.a_priori_sides(shifted).right) >= float(right)
        unaware = propagation.a_priori_sides(plain).right  # of the chain without offsets
        assert float(left) > float(unaware)


def test_what_the_first_order_leaves_out_is_of_second_order():
    with jax.enable_x64(True):
        smooth, kinked = (
            np.asarray(propagation_measure.halving(propagation_measure.mlp(g), jax.random.key(2)))
            for g in (jnp.tanh, propagation_measure.relu)
        )
    assert smooth[-1] == pytest.approx(4, rel=0.01)
    assert kinked[:3].mean() < 3.5  # kinks: 2^1.5 at first


def test_reach_stops_at_the_first_miss():
    size, ratio = np.array([0.1, 0.3, 0.2, 0.4]), np.array([1.05, 1.5, 0.95, 1.0])
    assert propagation_measure.reach(size, ratio) == 0.2
    assert propagation_measure.reach(size, ratio + 1) == 0


# ------------------------------------------------------------------------------------ outputs


@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0, 10.0])
def test_kl_is_right_from_tiny_to_large(step):
    """In float32 against float64, where the textbook formula loses every digit."""
    z = RNG(0).normal(size=(50, 12)).astype(np.float32) * 2
    y = z + step * RNG(1).normal(size=z.shape).astype(np.float32)
    log_p, log_q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in map(np.float64, (z, y)))
    true = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert float(outputs.kl(jnp.asarray(z), jnp.asarray(y))) == pytest.approx(true, rel=5e-3)


@pytest.mark.parametrize("compile_", [False, True])
def test_the_interaction_matrix_is_its_definition(compile_):
    """At a size where jaxlib 0.10.2 compiles the batched form of it wrongly on CPUs."""
    z = RNG(0).normal(size=(4, 64, 256)).astype(np.float32) * 3
    v = RNG(1).normal(size=(3, *z.shape)).astype(np.float32) + 1
    p = np.exp(np.float64(z))
    p /= p.sum(-1, keepdims=True)
    second, first = np.einsum("btc,lbtc,mbtc->lm", p, v, v), np.einsum("btc,lbtc->lbt", p, v)
    true = (second - np.einsum("lbt,mbt->lm", first, first)) / (4 * 64)
    run = jax.jit(outputs.interaction_matrix) if compile_ else outputs.interaction_matrix
    np.testing.assert_allclose(np.asarray(run(z, v)), true, rtol=1e-4, atol=1e-5 * true.max())


def test_off_diagonal_shares():
    assert outputs.off_diagonal(np.eye(3)) == (0, 0)
    assert outputs.off_diagonal(np.ones((2, 2))) == (0.5, 0.5)
    assert outputs.off_diagonal([[1, -0.5], [-0.5, 1]]) == (-1, 1 / 3)
    assert outputs.off_diagonal(np.zeros((2, 2))) == (0, 0)


# -------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(
    ("draw", "uneven", "modes"),
    [
        (lambda rng: rng.normal(size=200_000), 0, 0),
        (lambda rng: rng.laplace(size=200_000), 0, 0),
        (lambda rng: rng.normal(size=200_000) + 0.5, 0.383, 0),  # P(|z| < 1/2)
        # |w| uniform on (1/2, 3/2): a third of it moves below 1/2
        (
            lambda rng: rng.choice([-1, 1], 200_000) * (1 + rng.uniform(-0.5, 0.5, 200_000)),
            0,
            1 / 3,
        ),
    ],
)
def test_laws_of_weights_are_told_apart(draw, uneven, modes):
    found = noise.two_sided(draw(RNG(0)))
    assert found["uneven"] == pytest.approx(uneven, abs=0.01)
    assert found["modes"] == pytest.approx(modes, abs=0.01)


def rounded(w: np.ndarray, bits: int) -> dict[str, float]:
    matrix = fresh(jnp.asarray(w))
    layer = RTN(bits)(matrix, Problem(matrix.weight), jax.random.key(0)).matrix
    return noise.describe(w, layer.weight, np.broadcast_to(layer.grid.scale, w.shape))


def test_a_fine_grid_gives_uniform_noise_and_a_coarse_one_does_not():
    w = RNG(0).normal(size=(64, 256)).astype(np.float32)
    fine, coarse = rounded(w, 8), rounded(w, 2)
    assert abs(fine["explained"]) < 0.01
    assert fine["variance"] == pytest.approx(1, abs=0.03)
    assert max(abs(fine[n]) for n in ("skew", "linear", "size")) < 0.1
    assert coarse["explained"] > 0.4
    assert coarse["zero"] > 0.5 > 20 * fine["zero"]


def test_the_largest_weight_of_a_row_biases_the_mean():
    """It lies half way between two codes and goes down: -D/2 in one of so many weights."""
    for inputs in (4, 16):
        w = RNG(1).normal(size=(20_000, inputs)).astype(np.float32)
        found = rounded(w, 8)
        assert found["mean"] == pytest.approx(found["edge"], rel=0.1)
        assert found["mean"] < -0.8 / inputs
        assert found["t"] < -20


def test_the_correlation_ratio():
    w = RNG(0).normal(size=5000)
    independent = [noise.correlation_ratio(RNG(i).normal(size=5000), w) for i in range(1, 21)]
    assert abs(np.mean(independent)) < 0.002  # without its correction it would be 0.004
    assert noise.correlation_ratio(np.sign(w - np.median(w)), w) > 0.99
    assert noise.correlation_ratio(np.zeros(5000), w) == 0


# ---------------------------------------------------------------------------- the order in a layer


def naive(w: np.ndarray, q: np.ndarray, removed: int, draws: int = 400) -> float:
    """A(Q->P) over ||w||^2 by doing both, ties broken at random."""
    pruned = np.argsort(np.abs(w))[:removed]
    first = q.copy()
    first[pruned] = 0
    lost = [((first - w) ** 2).sum()]
    rng = RNG(5)
    for _ in range(draws):
        order = np.lexsort((rng.random(w.size), np.abs(q)))[:removed]
        second = q.copy()
        second[order] = 0
        lost.append(((second - w) ** 2).sum())
    return (lost[0] - np.mean(lost[1:])) / (w @ w)


@pytest.mark.parametrize("sparsity", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_order_in_a_layer_is_what_doing_both_gives(sparsity, offset):
    w = RNG(1).normal(size=(8, 50))
    step = np.abs(w).max(1, keepdims=True) / 3.5
    q = (np.round(w / step - offset) + offset) * step
    told = signs.order_in_a_layer(w, q, sparsity)
    expected = naive(w.ravel(), q.ravel(), int(w.size * sparsity))
    assert told["advantage"] == pytest.approx(expected, abs=2e-4)
    assert told["zero"] == np.mean(q == 0)


@pytest.mark.parametrize("seed", range(20))
def test_where_rounding_zeroes_the_ratio_quantizing_first_never_loses(seed):
    """Any weights, any steps, a grid with 0: no point is nearer than the nearest."""
    rng = RNG(seed)
    w = rng.standard_t(3, size=(6, 40))
    q = np.round(w / (step := rng.uniform(0.3, 3, size=(6, 1)))) * step
    zero = np.mean(q == 0)
    for sparsity in np.linspace(0.02, zero, 6):
        assert signs.order_in_a_layer(w, q, float(sparsity))["advantage"] >= -1e-15


def test_with_one_step_pruning_first_never_loses():
    w = RNG(2).normal(size=4000)
    q = np.round(w / 0.7) * 0.7
    beyond = [signs.order_in_a_layer(w, q, p)["advantage"] for p in (0.3, 0.4, 0.5, 0.7)]
    assert max(beyond) < 0
    assert signs.order_in_a_layer(w, q, 0.2)["advantage"] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("tied", [-0.5, 0.0, 1.0])
def test_the_beta_law_is_the_known_one(tied):
    """Normal weights, independent noise: A = -2 v t phi(t) a weight (theorem 2b). A quantizer
    whose error the score sees (``tied``) moves beta, and the law follows."""
    rng, v, p = RNG(3), 1e-3, 0.5
    w = rng.normal(size=400_000)
    noise = np.sqrt(v) * rng.normal(size=w.size)
    t, energy = 0.67448975, float(w @ w) / w.size
    q = w + noise
    told = signs.order_in_a_layer(w, q, p)
    density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    assert told["predicted"] * energy == pytest.approx(-2 * v * t * density, rel=0.05)
    assert told["advantage"] == pytest.approx(told["predicted"], rel=0.1)
    a, by_rank = w**2, np.argsort(w**2)
    delta = 0.05 * rng.normal(size=w.size)
    beta, _ = signs.beta_law(a, delta, tied * delta + v, by_rank, int(p * w.size))
    assert beta == pytest.approx(tied, abs=0.01)


def test_nothing_is_predicted_where_nothing_changes():
    w = RNG(4).normal(size=300)
    told = signs.order_in_a_layer(w, w, 0.5)
    assert told["advantage"] == pytest.approx(0, abs=1e-15)
    assert np.isnan(told["predicted"])
    assert signs.order_in_a_layer(w, np.round(w), 0.0)["advantage"] == 0


# ----------------------------------------------------------------------------------- on models


class Sequence(nnx.Module):
    """Linear layers with tanh between them."""

    def __init__(self, *widths: int) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(
            nnx.Linear(a, b, kernel_init=numpy_init, rngs=rngs)
            for a, b in itertools.pairwise(widths)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)


GAIN, OUT = 0.05, 12


def coins(model: Sequence, batch: dict[str, jax.Array]) -> jax.Array:
    """Every output y is a nearly fair coin with logits +- GAIN y."""
    y = GAIN * model(batch["x"])
    return jnp.stack([y, -y], -1)


@pytest.fixture(scope="module")
def toy() -> dict:
    """One linear layer, so the loss is kappa E with kappa = GAIN^2 / (2 OUT), to second order:
    a coin's KL is 1/2 p (1 - p) (2 GAIN dy)^2 = GAIN^2 dy^2 / 2, and there are OUT coins a token.
    """
    x = jnp.asarray(RNG(0).normal(size=(96, 32)), jnp.float32)
    return assumptions.measure_model(Sequence(32, OUT), [{"x": x[:64]}, {"x": x[64:]}], coins)


@pytest.fixture(scope="module")
def deep() -> dict:
    x = RNG(0).normal(size=(128, 20)).astype(np.float32)
    done = []
    result = assumptions.measure_model(
        Sequence(20, 32, 32, 10), jnp.asarray(x), progress=lambda what, part: done.append(part)
    )
    assert done == sorted(done)
    assert len(done) == len(assumptions.SETTINGS) + 1
    return result


def test_kappa_is_the_known_one(toy):
    (layer,) = toy["layers"]
    (fitted,) = toy["linearity"]["all"]["layers"]
    np.testing.assert_allclose(
        np.array(layer["kl"]) / layer["error"], GAIN**2 / (2 * OUT), rtol=0.02
    )
    assert fitted["kappa"] == pytest.approx(GAIN**2 / (2 * OUT), rel=0.01)
    assert fitted["slope"] == pytest.approx(1, abs=0.01)
    assert fitted["r2"] > 0.999
    assert toy["predictions"] == 96 * OUT


def test_a_single_layer_is_independent_of_the_others(toy):
    told = toy["together"]
    np.testing.assert_allclose(told["kl"], told["sum"], rtol=1e-4)
    assert told["off-diagonal"] == [0] * len(toy["settings"])
    verdicts = {f.name.partition(": ")[2]: f.verdict for f in findings({"toy": toy})}
    assert verdicts["layers are independent (assumption 1a)"] == "holds"
    assert verdicts["the loss is kappa E, with one kappa (assumption 1b)"] == "holds"


def test_the_output_error_is_that_of_the_layer(deep):
    """E||dW x||^2 of the first layer, from its own inputs."""
    model, x = Sequence(20, 32, 32, 10), RNG(0).normal(size=(128, 20)).astype(np.float32)
    w = np.asarray(model.layers[0].kernel[...]).T
    matrix = fresh(jnp.asarray(w))
    done = RTN(3)(matrix, Problem(matrix.weight), jax.random.key(0)).matrix
    change = np.asarray(done.weight) - w
    true = ((x @ change.T) ** 2).sum(-1).mean()
    at = deep["settings"].index("RTN 3")
    assert deep["layers"][0]["error"][at] == pytest.approx(true, rel=1e-4)


def test_k_is_the_second_order_of_the_loss(deep):
    told, at = deep["together"], deep["settings"].index("RTN 8")
    assert told["kl predicted"][at] == pytest.approx(told["kl"][at], rel=0.03)
    assert told["sum predicted"][at] == pytest.approx(told["sum"][at], rel=0.03)
    k = np.array(deep["interactions"]["RTN 4"])
    assert k.sum() / 2 == pytest.approx(told["kl predicted"][deep["settings"].index("RTN 4")], 1e-3)
    np.testing.assert_allclose(k, k.T, rtol=1e-4)
    assert k.sum() <= len(k) * np.trace(k)
    assert all(1 <= n <= deep["predictions"] for n in told["effective"])


def test_results_are_small_json_and_judged_the_same_when_read_back(deep):
    text = json.dumps(deep, allow_nan=False)
    assert len(text) < 20_000
    assert findings({"m": json.loads(text)}) == findings({"m": deep})


def test_verdicts_follow_the_numbers(deep):
    def told(result: dict) -> dict[str, str]:
        return {f.name.partition(": ")[2]: f.verdict for f in findings({"m": result})}

    name = "layers are independent (assumption 1a)"
    total = np.geomspace(1e-4, 1, len(deep["settings"]))
    weak = np.where(total <= SMALL, 1.0, 2.0)
    for factor, expected in ((np.ones(len(weak)), "holds"), (weak, "narrower"), (0.5, "false")):
        changed = {"kl": (factor * total).tolist(), "sum": total.tolist()}
        assert told(deep | {"together": deep["together"] | changed})[name] == expected

    def with_noise(**values: float) -> dict:
        quiet = dict.fromkeys(deep["layers"][0]["noise"]["2"], 0.0) | {"edge": -0.1}
        layers = [
            x | {"size": 10**6, "noise": {b: quiet | (values if b == "2" else {}) for b in "2348"}}
            for x in deep["layers"]
        ]
        return deep | {"layers": layers}

    def with_orders(*advantages: float) -> dict:
        zero = [0.1, 0.3, 0.3]
        columns = {"grid": ["row"] * 3, "sparsity": [0.2] * 3, "zero": zero}
        columns |= {"advantage": list(advantages), "predicted": [None, 1.0, -1.0]}
        columns |= {"beta": [None, -1.0, 0.0]}
        return deep | {"layers": [x | {"orders": columns} for x in deep["layers"]]}

    zeros, beta = (f"in a layer alone, {law}" for law in LAWS)
    for advantages, verdicts in (
        ((-1.0, 1.0, 0.0), ("holds", "holds")),
        ((-1.0, 1.0, 1.0), ("holds", "false")),
        ((1.0, 1.0, -1.0), ("false", "false")),
    ):
        judged = told(with_orders(*advantages))
        assert (judged[zeros], judged[beta]) == verdicts

    even = "a layer's weights are even and unimodal (the sign law)"
    for law, expected in (
        ({"uneven": 0.0, "modes": 0.0}, "holds"),
        ({"uneven": 0.0, "modes": 0.3}, "false"),
        ({"uneven": -0.3, "modes": 0.0}, "false"),
    ):
        layers = [x | {"law": law, "size": 10**6} for x in deep["layers"]]
        assert told(deep | {"layers": layers})[even] == expected

    for measure, rule in (
        ("mean", "zero mean"),
        ("skew", "symmetric"),
        ("explained", "independent of w"),
        ("size", "independent of w"),
    ):
        name = f"rounding error is {rule}"
        assert told(with_noise())[name] == "holds"
        assert told(with_noise(**{measure: 0.5, "t": 500.0}))[name] == "narrower"


def test_fits_find_the_power():
    error = np.logspace(-3, 1, 9)
    every = np.ones(9, bool)
    assert fit(error, 3 * error, every)["kappa"] == pytest.approx(3)
    assert fit(error, 3 * error**2, every)["slope"] == pytest.approx(2)
    assert fit(error, error * np.exp(RNG(0).normal(size=9)), every)["r2"] < 0.99
    assert fit(error, error, error > 5) == {}


def test_batches_are_cut_to_what_is_needed(monkeypatch):
    monkeypatch.setattr(assumptions, "PREDICTIONS", 50)
    monkeypatch.setattr(assumptions, "FLOATS", 2 * 20 * 10)  # 20 examples of 2 layers at a time

    def logits(weights: dict, batch: jax.Array) -> jax.Array:
        return jnp.zeros((len(batch), 10))

    cut = assumptions._cut([jnp.zeros((32, 3)), jnp.ones((32, 3))], {"a": 0, "b": 0}, logits)
    assert [len(b) for b in cut] == [20, 12, 18]
    assert float(cut[-1].min()) == 1


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="single output"):
        assumptions.measure_model(Sequence(4, 1), jnp.ones((8, 4)))
    with pytest.raises(sources.BadInput, match="no model of that name"):
        assumptions.measure_named("resnet-digit")
