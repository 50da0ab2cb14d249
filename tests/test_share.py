"""Shared bases: numpy's truncation of the stack, one matrix for a group, stored once."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perturb import GPTQ, RTN, LoRA, Magnitude, ShareBasis, Wanda, chain, compress, per_layer, score
from perturb.compression import Opened
from perturb.methods.share.basis import Group, groups_of
from perturb.naming import parse
from perturb.policy import Policy
from perturb.stage import expand
from perturb.state import take
from perturb.types import Problem

from .conftest import numpy_init

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WIDTH, HIDDEN, BLOCKS = 12, 20, 5
B = {"block": 16}


class Part(nnx.Module):
    def __init__(self) -> None:
        options: Any = {"kernel_init": numpy_init, "rngs": nnx.Rngs(0)}
        self.up = nnx.Linear(WIDTH, HIDDEN, **options)
        self.down = nnx.Linear(HIDDEN, WIDTH, **options)

    def __call__(self, x: Any) -> Any:
        return x + self.down(nnx.relu(self.up(x)))


class Net(nnx.Module):
    """Five blocks, each with weights of its own, and a head."""

    def __init__(self) -> None:
        self.blocks = nnx.List([Part() for _ in range(BLOCKS)])
        self.head = nnx.Linear(WIDTH, 6, kernel_init=numpy_init, rngs=nnx.Rngs(0))
        draws = np.random.default_rng(4)
        for block in self.blocks:
            for layer in (block.up, block.down):
                drawn = draws.normal(size=layer.kernel.shape) / np.sqrt(layer.kernel.shape[0])
                layer.kernel[...] = jnp.asarray(drawn, jnp.float32)

    def __call__(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def inputs() -> Any:
    draws = np.random.default_rng(0)
    mixed = draws.normal(size=(300, WIDTH)) @ draws.normal(size=(WIDTH, WIDTH))
    return jnp.asarray(mixed * np.geomspace(4, 0.1, WIDTH), jnp.float32)


def weight_of(model: Net, i: int, kind: str) -> np.ndarray:
    return np.asarray(getattr(model.blocks[i], kind).kernel[...], np.float64).T


def heard(model: Net, inputs: Any, kind: str) -> list[np.ndarray]:
    """What each block's layer acts on, by the model's own parts."""
    found, x = [], inputs
    for block in model.blocks:
        found.append(np.asarray(x if kind == "up" else nnx.relu(block.up(x)), np.float64))
        x = block(x)
    return found


def shared(
    w: list[np.ndarray], x: list[np.ndarray] | None, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """The products of the truncated singular value decomposition of the (whitened) stack, and
    the values that were cut."""
    stack = np.concatenate(w)
    root = np.eye(stack.shape[1])
    if x is not None:
        h = sum(t.T @ t for t in x) / sum(len(t) for t in x)
        h += 0.01 * np.trace(h) / len(h) * np.eye(len(h))
        values, vectors = np.linalg.eigh(h)
        root = (vectors * np.sqrt(values)) @ vectors.T
    a, s, b = np.linalg.svd(stack @ root, full_matrices=False)
    return (a[:, :rank] * s[:rank]) @ b[:rank] @ np.linalg.inv(root), s[rank:]


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("group", [2, 3])
def test_it_is_numpys_truncation_of_the_stack_and_stores_one_basis(
    net: Net, inputs: Any, whiten: bool, group: int
) -> None:
    stage = ShareBasis(0.3, group, whiten)
    done = compress(net, stage, inputs if whiten else None)
    kept = 6 * WIDTH  # the head
    for kind, (out, n_in) in (("up", (HIDDEN, WIDTH)), ("down", (WIDTH, HIDDEN))):
        x = heard(net, inputs, kind) if whiten else None
        rank = 7 * group * out * n_in // (10 * (group * out + n_in))
        for start in range(0, BLOCKS - group + 1, group):
            blocks = range(start, start + group)
            w = [weight_of(net, i, kind) for i in blocks]
            expected, cut = shared(w, None if x is None else [x[i] for i in blocks], rank)
            assert cut[0] > 0
            basis = f"blocks.{start}-{start + group - 1}.{kind}.v"
            assert done.matrices[basis].weight.shape == (rank, n_in)
            for i, part in zip(blocks, np.split(expected, group), strict=True):
                name = f"blocks.{i}.{kind}"
                assert done.state.products(name) == ((f"{name}.u", basis),)
                assert name not in done.matrices
                np.testing.assert_allclose(weight_of(done.model, i, kind), part, atol=2e-5)
            kept += rank * (group * out + n_in)
        for i in range(BLOCKS // group * group, BLOCKS):  # left over
            np.testing.assert_array_equal(weight_of(done.model, i, kind), weight_of(net, i, kind))
            kept += out * n_in
    assert done.storage.kept == kept
    assert done.storage.bits == 16 * kept


def test_whitened_is_nearer_on_the_inputs_of_all_its_layers(net: Net, inputs: Any) -> None:
    x = heard(net, inputs, "up")
    errors = []
    for whiten in (False, True):
        done = compress(net, ShareBasis(0.5, whiten=whiten, where="*.up"), inputs)
        change = [weight_of(done.model, i, "up") - weight_of(net, i, "up") for i in (0, 1)]
        errors.append(sum((((x[i]) @ change[i].T) ** 2).sum() for i in (0, 1)))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("calibrate", ["recalibrate", "sequential"])
def test_later_stages_work_on_the_shared_matrices(net: Net, inputs: Any, calibrate: Any) -> None:
    """GPTQ's Hessian for the basis is that of both layers' inputs; where blocks are worked on one
    after another, the last of them settles it."""
    run = Opened(net, [inputs], Policy(calibrate))
    thin = expand(run.context.start(), [ShareBasis(0.2, where="*.up")], run.context, 0).versions
    after = expand(thin, [GPTQ(4, **B)], run.context, 1).versions
    state, before = after.one(0), thin.one(0)
    assert len(state.matrices) == 4 + 2 + 1 + 5 + 1  # u, v, up of the last, down, head
    assert all(m.grid is not None for m in state.matrices.values())
    assert run.storage(state).bits == 4 * run.storage(before).kept
    basis = "blocks.0-1.up.v"
    if calibrate == "recalibrate":
        own = [thin.moments[f"blocks.{i}.up"] for i in (0, 1)]
        moments = take(own[0] + own[1], np.int32(0))
        matrix = before.matrices[basis]
        alone = GPTQ(4, **B)(matrix, Problem(matrix.weight, moments), run.context.key).matrix
        agree = np.isclose(state.matrices[basis].weight, alone.weight, atol=1e-5)
        assert agree.mean() > 0.95  # a rounding may fall the other way
    for i in (0, 1):
        product = state.matrices[f"blocks.{i}.up.u"].weight @ state.matrices[basis].weight
        weight = after.parameters(0).weights[f"blocks.{i}.up"]
        np.testing.assert_allclose(weight, product, atol=1e-6)


def test_storage_after_a_chain_by_hand(net: Net, inputs: Any) -> None:
    r = int(0.8 * 2 * HIDDEN * WIDTH / (2 * HIDDEN + WIDTH))
    done = compress(net, chain(ShareBasis(0.2, where="*.up"), Magnitude(0.5), RTN(4)), inputs)
    pieces = [r * HIDDEN] * 4 + [r * WIDTH] * 2 + [HIDDEN * WIDTH] * 6 + [6 * WIDTH]
    kept = sum(n - n // 2 for n in pieces)
    assert done.storage.kept == kept
    assert done.storage.bits == 4 * kept
    assert done.storage.weights == 10 * HIDDEN * WIDTH + 6 * WIDTH
    rules = per_layer({"blocks.0.*": RTN(8), "blocks.1.*": RTN(4)})
    by_block = compress(net, chain(ShareBasis(0.2, where="*.up"), rules), inputs).matrices
    laid = {n for n, m in by_block.items() if m.grid is not None}
    assert laid == {f"blocks.{i}.{n}" for i in (0, 1) for n in ("up.u", "down")}
    both = compress(net, chain(ShareBasis(0.2), LoRA(1, 0)), inputs)
    assert both.state.products("blocks.1.up")[0] == ("blocks.1.up.u", "blocks.0-1.up.v")


def test_it_is_scored_as_any_stage(net: Net, inputs: Any) -> None:
    found = score(net, ShareBasis(0.3, where="*.up", release=True), RTN(4), inputs)
    alone = compress(net, ShareBasis(0.3, where="*.up"), inputs).model
    for i in range(BLOCKS):
        layer = next(x for x in found.layers if x.name == f"blocks.{i}.up")
        change = weight_of(alone, i, "up") - weight_of(net, i, "up")
        assert layer["A"].fro == pytest.approx(np.linalg.norm(change), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("first", [Magnitude(0.5), RTN(4)], ids=["mask", "grid"])
def test_what_it_would_destroy_is_refused_unless_released(
    net: Net, inputs: Any, first: Any
) -> None:
    what = "mask" if first.name == "magnitude" else "grid"
    told = rf"share would destroy the {what} of 2 matrices \(blocks.0-1.up, blocks.2-3.up\)"
    with pytest.raises(ValueError, match=told):
        compress(net, chain(first, ShareBasis(0.2, where="*.up")), inputs)
    done = compress(net, chain(first, ShareBasis(0.2, whiten=False, release=True)), inputs)
    before = compress(net, first, inputs).model
    w = [weight_of(before, i, "up") for i in (0, 1)]
    expected, _ = shared(w, None, int(0.8 * 2 * HIDDEN * WIDTH / (2 * HIDDEN + WIDTH)))
    np.testing.assert_allclose(weight_of(done.model, 1, "up"), expected[HIDDEN:], atol=1e-5)
    assert all(m.grid is None for n, m in done.matrices.items() if n.endswith((".u", ".v")))


def test_what_a_group_is() -> None:
    shapes = dict.fromkeys([f"h.{i}.up" for i in (0, 1, 2, 4, 5, 6, 7)], (4, 3))
    shapes |= {"h.8.up": (4, 5), "h.10.down": (4, 3), "h.11.down": (4, 3), "head": (4, 3)}
    assert groups_of(shapes, 2) == [
        Group("h.0-1.up", ("h.0.up", "h.1.up")),
        Group("h.4-5.up", ("h.4.up", "h.5.up")),
        Group("h.6-7.up", ("h.6.up", "h.7.up")),
        Group("h.10-11.down", ("h.10.down", "h.11.down")),
    ]
    assert [g.name for g in groups_of(shapes, 3)] == ["h.0-2.up", "h.4-6.up"]
    nested = dict.fromkeys([f"h.{i}.experts.{j}" for i in range(2) for j in range(2)], (4, 3))
    assert groups_of(nested, 2)[1].layers == ("h.0.experts.1", "h.1.experts.1")


def test_wrong_settings_are_refused(net: Net, inputs: Any) -> None:
    assert parse("share:0.3,group=3,where=*.up") == ShareBasis(0.3, 3, where="*.up")
    for ratio in (1.0, -0.1, True, "x"):
        with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\)"):
            ShareBasis(ratio)  # type: ignore[arg-type]
    for group in (1, 2.0, True):
        with pytest.raises(ValueError, match="group must be a whole number of at least 2"):
            ShareBasis(group=group)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the pattern 'x' of share has no layer"):
        compress(net, ShareBasis(where="x"), inputs)
    with pytest.raises(ValueError, match=r"share: no 2 consecutive blocks have .* 'head' names"):
        compress(net, ShareBasis(where="head"), inputs)
    with pytest.raises(ValueError, match="share: no 6 consecutive blocks have"):
        compress(net, ShareBasis(group=6), inputs)
    with pytest.raises(ValueError, match="share looks at the layers' inputs"):
        compress(net, ShareBasis())
    run = Opened(net, [inputs], Policy())
    two = expand(run.context.start(), [Wanda(0.0), Wanda(0.0)], run.context, 0).versions
    once = expand(two, [ShareBasis(0.2)], run.context, 1).versions  # of each version
    assert once.size == 2
    with pytest.raises(
        ValueError, match=r"share: blocks.0.down is made of blocks.0.down.u blocks.0-1"
    ):
        expand(once, [ShareBasis(0.2)], run.context, 2)
