"""Theorem 6 put to random networks: how loose the bound is, how far the predictions reach.

MLPs of one width with He weights, a softmax on top, and M = -KL(dense || compressed) in nats:
the cross-entropy against the network's own outputs, whose minimum is the dense network.
All layers are compressed by rounding to nearest or by magnitude pruning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb.lift import fresh
from perturb.prune.magnitude import Magnitude
from perturb.quantize.rtn import RTN
from theory.chains import lipschitz_bound, spectral_norm
from theory.statement import Finding, Verdict

Array = jax.Array
WIDTH, EXAMPLES, NETS = 32, 64, 8
DEPTHS = (2, 4, 8)
BITS = tuple(range(2, 9))
SPARSITIES = (0.1, 0.3, 0.5, 0.7)
SETTINGS = (*(f"RTN {b}" for b in BITS), *(f"magnitude {100 * p:.0f} %" for p in SPARSITIES))
SMALL = 0.1  # nats; what the findings call a small perturbation of the outputs
WITHIN = 0.1  # what two numbers may differ by, relatively, to be called equal
INSTANCES = 20_000
HALVINGS = 8
Network = Callable[[Array, Array], Array]


def mlp(activation: Callable[[Array], Array]) -> Network:
    """(weights [L, n, n], inputs [x, n]) -> logits [x, n]; no activation on the last layer."""

    def run(weights: Array, x: Array) -> Array:
        for w in weights[:-1]:
            x = activation(x @ w.T)
        return x @ weights[-1].T

    return run


def relu(z: Array) -> Array:
    return jnp.maximum(z, 0)


def compressed(weights: Array) -> Array:
    """Every layer by itself, at all SETTINGS: [settings, L, n, n] of weights [L, n, n]."""
    key = jax.random.key(0)  # of methods that draw; these do not

    def by(method: Any) -> Array:
        return jax.vmap(lambda w: method(fresh(w), None, key).layer.weight)(weights)

    rounded = jax.vmap(lambda b: by(RTN(b)))(jnp.array(BITS))
    pruned = jax.vmap(lambda p: by(Magnitude(p)))(jnp.array(SPARSITIES))
    return jnp.concatenate([rounded, pruned])


def kl(z: Array, y: Array) -> Array:
    """Mean of KL(softmax z || softmax y) in nats over predictions [..., classes].

    With d = y - z and a = log sum p exp(d), the sum of p (e^(d-a) - 1 - (d-a)): every term is
    positive and of second order, where the difference of two log-probabilities is of first.
    """
    log_p, d = jax.nn.log_softmax(z), y - z
    p = jnp.exp(log_p)
    c = d - jax.scipy.special.logsumexp(log_p + d, axis=-1, keepdims=True)
    # below, the series is exact to float32; above, the difference is
    series = c * c * (0.5 + c * (1 / 6 + c / 24))
    return jnp.mean(jnp.sum(p * jnp.where(jnp.abs(c) < 0.03, series, jnp.expm1(c) - c), -1))


def centred(z: Array, v: Array) -> Array:
    """Square root of the softmax Hessian diag(p) - p p^T at logits z, applied to v: its squared
    length is v^T H v; [..., classes] both."""
    p = jax.nn.softmax(z)
    return jnp.sqrt(p) * (v - jnp.sum(p * v, -1, keepdims=True))


def interaction_matrix(z: Array, tangents: Array) -> Array:
    """K_lm = mean_x (J_l dW_l)^T H (J_m dW_m); tangents [L, x, classes] at logits z."""
    u = jax.vmap(lambda v: centred(z, v))(tangents)
    flat = u.reshape(len(u), -1)
    return jnp.matmul(flat, flat.T, precision="highest") / z[..., 0].size


def off_diagonal(k: Any) -> dict[str, float]:
    """How much of K is between layers: with sign (of sum K) and in absolute values."""
    k = np.asarray(k, np.float64)
    diagonal, total = np.trace(k), k.sum()
    absolute = np.abs(k).sum()
    return {
        "signed": float((total - diagonal) / total) if total else 0.0,
        "absolute": float((absolute - np.abs(np.diagonal(k)).sum()) / absolute)
        if absolute
        else 0.0,
    }


def _network(depth: int, key: Array) -> dict[str, Array]:
    """Everything about one random network, a row a setting."""
    run = mlp(relu)
    a, b = jax.random.split(key)
    weights = jax.random.normal(a, (depth, WIDTH, WIDTH)) * jnp.sqrt(2 / WIDTH)
    x = jax.random.normal(b, (EXAMPLES, WIDTH))
    z = run(weights, x)
    inputs = [x]
    for w in weights[:-1]:
        inputs.append(relu(inputs[-1] @ w.T))
    lengths = [jnp.linalg.norm(v, axis=-1) for v in inputs]
    one_layer = jnp.eye(depth)[:, :, None, None]

    def at(after: Array) -> dict[str, Array]:
        change = after - weights
        y = run(after, x)
        moved = jnp.linalg.norm(y - z, axis=-1)
        bound = lipschitz_bound(
            jnp.ones(depth), spectral_norm(change), spectral_norm(after), lengths
        )
        _, push = jax.linearize(lambda w: run(w, x), weights)
        tangents = jax.vmap(push)(one_layer * change)  # [depth, examples, classes]
        alone = jax.vmap(lambda dw: kl(z, run(weights + dw, x)))(one_layer * change)
        return {
            "size": jnp.linalg.norm(change) / jnp.linalg.norm(weights),
            "bound": jnp.max(moved / bound),
            "looseness": jnp.median(bound / moved),
            "mse": jnp.mean(moved**2),
            "mse_predicted": jnp.mean(jnp.sum(jnp.sum(tangents, 0) ** 2, -1)),
            "kl": kl(z, y),
            "kl_alone": jnp.sum(alone),
            "k": interaction_matrix(z, tangents),
        }

    return jax.lax.map(at, compressed(weights))


def measure(
    key: Array, ratios: Callable[[Array], tuple[Array, Array, Array]], size: int
) -> tuple[Finding, ...]:
    """ratios: a point [size] of the cube of chains -> error / Lipschitz bound, error / the bound
    from |x_0| that takes g_l(0) for 0, and whether the chain has g_l(0) != 0 in front."""
    with jax.enable_x64(True):
        found = {}
        for depth in DEPTHS:
            keys = jax.random.split(jax.random.fold_in(key, depth), NETS)
            run = jax.jit(lambda k, depth=depth: jax.lax.map(lambda i: _network(depth, i), k))
            found[depth] = jax.device_get(run(keys))
        return (
            _offsets(key, ratios, size),
            _looseness(found),
            _predictions(found),
            _independence(found),
            _second_order(key),
        )


def _offsets(key: Array, ratios: Callable[[Array], Any], size: int) -> Finding:
    points = jax.random.uniform(jax.random.fold_in(key, 0), (INSTANCES, size), jnp.float64)
    measured, unaware, has = (np.asarray(a) for a in jax.jit(jax.vmap(ratios))(points))
    worst = [float(np.nanmax(a[has])) for a in (measured, unaware)]  # 0/0: nothing was perturbed
    needed = worst[0] > 1 + 1e-12
    return Finding(
        "theorem 6 asks for g_l(0) = 0",
        "holds" if needed else "narrower",
        "largest error / bound on chains with g_l(0) != 0: "
        + ("it is needed" if needed else "not needed where |x_{l-1}| is measured, and only so")
        + "; with |x_0| prod L_k |W_k| for |x_{l-1}| the error is many times the bound",
        {"instances": int(has.sum()), "measured inputs": worst[0], "from |x_0|": worst[1]},
    )


def _looseness(found: dict[int, Any]) -> Finding:
    median = {depth: float(np.median(f["looseness"])) for depth, f in found.items()}
    worst = max(float(f["bound"].max()) for f in found.values())
    rows = tuple((d, float(f"{m:.3g}")) for d, m in median.items())
    return Finding(
        "tightness of the Lipschitz bound on random relu networks",
        "measured",
        f"median bound / error by depth, {NETS} networks, {len(SETTINGS)} settings each",
        {f"depth {d}": m for d, m in median.items()} | {"largest error / bound": worst},
        ("depth", "bound / error"),
        rows,
    )


def _predictions(found: dict[int, Any]) -> Finding:
    rows, reach = [], {"mse": 0.0, "kl": 0.0}
    ratios: dict[str, list[np.ndarray]] = {"mse": [], "kl": []}
    true: dict[str, list[np.ndarray]] = {"mse": [], "kl": []}
    for depth, f in found.items():
        k_half = f["k"].sum((-2, -1)) / 2
        for name, predicted in (("mse", f["mse_predicted"]), ("kl", k_half)):
            ratios[name].append(predicted / f[name])
            true[name].append(f[name])
        for i, setting in enumerate(SETTINGS):
            size = float(np.median(f["size"][:, i]))
            row = [float(np.median(ratios[n][-1][:, i])) for n in reach]
            rows.append((depth, setting, *(float(f"{v:.3g}") for v in (size, *row))))
            for name, value in zip(reach, row, strict=True):
                if abs(value - 1) <= WITHIN:
                    reach[name] = max(reach[name], size)
    numbers = {}
    for name in reach:
        ratio, measured = (np.concatenate([a.ravel() for a in x[name]]) for x in (ratios, true))
        correlation = np.corrcoef(np.log(ratio * measured), np.log(measured))[0, 1]
        numbers |= {
            f"{name}: correlation of logs": float(correlation),
            f"{name}: median predicted / measured": float(np.median(ratio)),
            f"{name}: largest |dW|/|W| within 10 %": reach[name],
        }
    return Finding(
        "first-order and Gauss-Newton predictions on random relu networks",
        "measured",
        "predicted / measured: output MSE from J dW, KL from 1/2 sum K; medians over networks",
        numbers,
        ("depth", "setting", "|dW|/|W|", "MSE ratio", "KL ratio"),
        tuple(rows),
    )


def verdict(everywhere: bool, somewhere: bool) -> Verdict:
    """holds, holds under a further condition, or does not."""
    return "holds" if everywhere else "narrower" if somewhere else "false"


def _independence(found: dict[int, Any]) -> Finding:
    rows, table, equal, small = [], [], [], []
    for depth, f in found.items():
        for i, setting in enumerate(SETTINGS):
            off = [off_diagonal(k) for k in f["k"][:, i]]
            ratio, together = f["kl"][:, i] / f["kl_alone"][:, i], np.median(f["kl"][:, i])
            equal.append(bool(np.all(np.abs(ratio - 1) <= WITHIN)))
            small.append(bool(together <= SMALL))
            numbers = [np.median([o[n] for o in off]) for n in ("signed", "absolute")]
            row = (together, np.median(ratio), *numbers)
            rows.append((depth, setting, *(float(f"{v:.3g}") for v in row)))
            table.append(row)
    smallest, largest = np.min(table, 0), np.max(table, 0)
    agreed, tried = sum(e for e, s in zip(equal, small, strict=True) if s), sum(small)
    return Finding(
        "layer independence (assumption 1a) on random relu networks",
        verdict(all(equal), bool(tried) and agreed == tried),
        "KL of all layers together over the sum of their single KLs, medians over networks; it "
        f"holds where all networks are within {WITHIN:.0%}, narrower if wherever KL <= {SMALL}",
        {
            "settings": len(equal),
            "additive": sum(equal),
            "small settings": tried,
            "additive and small": agreed,
            "smallest ratio": float(smallest[1]),
            "largest ratio": float(largest[1]),
            "largest |off-diagonal| of K": float(largest[3]),
        },
        ("depth", "setting", "KL", "together / sum", "off-diagonal", "|off-diagonal|"),
        tuple(rows),
    )


def halving(run: Network, key: Array) -> Array:
    """e(t) / e(t/2), t = 1, 1/2, ..., of what J dW leaves out of f(W + t dW) - f(W): [HALVINGS]."""
    a, b, c = jax.random.split(key, 3)
    weights = jax.random.normal(a, (4, WIDTH, WIDTH)) * jnp.sqrt(2 / WIDTH)
    change = jax.random.normal(c, weights.shape) / WIDTH
    x = jax.random.normal(b, (EXAMPLES, WIDTH))
    z, push = jax.linearize(lambda w: run(w, x), weights)
    linear = push(change)

    def error(t: Array) -> Array:
        return jnp.linalg.norm(run(weights + t * change, x) - z - t * linear)

    e = jax.lax.map(error, 0.5 ** jnp.arange(HALVINGS + 1.0))
    return e[:-1] / e[1:]


def _second_order(key: Array) -> Finding:
    stream = jax.random.fold_in(key, 1)
    smooth, kinked = (np.asarray(halving(mlp(g), stream)) for g in (jnp.tanh, relu))
    return Finding(
        "the first-order prediction's error is of second order",
        verdict(abs(smooth[-1] - 4) <= 0.01 * 4, False),
        "error(dW) / error(dW/2) -> 4 on a tanh network of depth 4; a relu network for comparison",
        {"tanh, last": float(smooth[-1]), "relu, last": float(kinked[-1])},
        ("dW times", "tanh", "relu"),
        tuple(
            (0.5**i, float(f"{s:.4g}"), float(f"{k:.4g}"))
            for i, (s, k) in enumerate(zip(smooth, kinked, strict=True))
        ),
    )
