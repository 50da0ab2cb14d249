"""Spaces and blocks of the model families, and the stages on them, by their defining properties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import llama, resnet, vit
from perturb import GPTQ, RTN, Magnitude, Wanda
from perturb.architecture import Block, Space
from perturb.compression import Opened
from perturb.measure.distance import distance
from perturb.methods.adapt.lora import LoRA
from perturb.methods.rotate import learned as learned_rotation
from perturb.methods.rotate.learned import LearnedRotation, cayley
from perturb.methods.rotate.residual import Rotate, hadamard
from perturb.methods.structure.drop import Drop
from perturb.methods.structure.remove import RemoveBlocks
from perturb.network import find_layers, get_vectors, influence, set_vectors, set_weights
from perturb.policy import Policy
from perturb.stage import Versions, expand, layerwise, per_layer
from perturb.state import State

Array = jax.Array
CONFIGS = {
    "llama": llama.LlamaConfig(20, 16, 20, 3, 4, 2, head_dim=6),
    "vit": vit.ViTConfig(8, 4, 1, 3, 12, 2, 3, 10, distilled=True),
    "resnet": resnet.ResNetConfig(2, 3, (2, 1), (4, 6)),
}
SPACES = {  # a space of every kind, with the size of its units' part in the smaller model
    "llama": ("*.heads", "*.mlp"),
    "vit": ("*.heads", "*.mlp"),
    "resnet": ("*.filters",),
}


class Subject(NamedTuple):
    """A model whose norms and biases are not 1 and 0, and inputs."""

    model: Any
    inputs: Array


def build(make: Callable[[], Any], dtype: Any = jnp.float32) -> Any:
    """A model in evaluation mode, its values drawn by numpy: nothing is compiled.

    No norm is 1 and no bias 0, so that nothing cancels that should be taken along.
    """
    draws = np.random.default_rng(5)
    graph, state = nnx.split(nnx.eval_shape(make))
    for path, leaf in nnx.to_flat_state(state):
        noise = draws.normal(size=leaf.shape)
        value = {
            "kernel": noise / np.sqrt(math.prod(leaf.shape[:-1])),
            "embedding": 0.5 * noise,
            "scale": 1 + 0.3 * noise,
            "var": 1 + 0.3 * np.abs(noise),
        }.get(str(path[-1]), 0.3 * noise)
        leaf.set_value(jnp.asarray(value, dtype))
    model = nnx.merge(graph, state)
    model.eval()
    return model


def of(config: Any) -> Callable[[], Any]:
    return lambda: config.build(nnx.Rngs(0))


@nnx.jit
def answer(model: Any, inputs: Array) -> Array:
    return model(inputs)


def inputs_for(kind: str, dtype: Any = jnp.float32) -> Array:
    draws = np.random.default_rng(3)
    if kind == "llama":
        return jnp.asarray(draws.integers(0, 20, (6, 9)))
    return jnp.asarray(draws.normal(size=(8, 8, 8, CONFIGS[kind].channels)), dtype)


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {k: Subject(build(of(c)), inputs_for(k)) for k, c in CONFIGS.items()}


def applied(
    subject: Subject, *stages: Any, policy: Policy | None = None, **options: Any
) -> tuple[Opened, Versions]:
    """The stages one after another, the calibration data being the inputs."""
    opened = Opened(subject.model, subject.inputs, policy or Policy(), **options)
    opened.context.check(stages)
    current = opened.context.start()
    for i, stage in enumerate(stages):
        current = expand(current, [stage], opened.context, i).versions
    return opened, current


def outputs(opened: Opened, version: Versions, inputs: Array, index: int = 0) -> np.ndarray:
    network = opened.network
    return np.asarray(network.outputs(network.state(version.parameters(index)), inputs))


def parameters(model: Any) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(nnx.state(model, nnx.Param)))


def stored(opened: Opened, state: State) -> float:
    """Bits that the whole model takes."""
    found = opened.storage(state)
    return 16 * (found.parameters - found.weights - found.removed) + found.bits


# ------------------------------------------------------------------------ smaller models


def smaller(kind: str, units: dict[str, int]) -> Any:
    """A model with so many units in its spaces, made of smaller layers."""
    config = CONFIGS[kind]
    rngs = nnx.Rngs(0)
    if kind == "llama":
        heads, queries = units["heads"], config.num_heads // config.num_kv_heads
        return replace(
            config,
            num_kv_heads=heads,
            num_heads=heads * queries,
            intermediate_size=units["mlp"],
        ).build(rngs)
    model = config.build(rngs)
    if kind == "vit":
        hidden = config.hidden_size
        for block in model.blocks:
            width = units["heads"] * block.attn.head_size
            block.attn.qkv = nnx.Linear(hidden, 3 * width, rngs=rngs)
            block.attn.proj = nnx.Linear(width, hidden, rngs=rngs)
            block.mlp.fc1 = nnx.Linear(hidden, units["mlp"], rngs=rngs)
            block.mlp.fc2 = nnx.Linear(units["mlp"], hidden, rngs=rngs)
        return model
    for stage in range(1, len(config.widths) + 1):
        for i, block in enumerate(getattr(model, f"layer{stage}")):
            kept = units[f"layer{stage}.{i}"]
            *_, inputs, width = block.conv1.kernel.shape
            stride = block.conv1.strides[0]
            block.conv1 = resnet._conv(config, inputs, kept, 3, stride, rngs)
            block.bn1 = resnet._batch_norm(config, kept, rngs)
            block.conv2 = resnet._conv(config, kept, width, 3, 1, rngs)
    return model


def sliced(small: Any, opened: Opened, state: State) -> Any:
    """What is kept of the state, put into the smaller model."""
    weights = {}
    for name, matrix in state.matrices.items():
        w, mask = np.asarray(matrix.weight), np.asarray(matrix.mask)
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        assert not w[~mask].any()
        weights[name] = jnp.asarray(w[rows][:, columns])
    specs = find_layers(small)[0]
    assert {n: s.shape for n, s in specs.items()} == {n: w.shape for n, w in weights.items()}
    set_weights(small, specs, weights)
    flat = nnx.to_flat_state(nnx.state(small, (nnx.Param, nnx.BatchStat)))
    own = type(small).__name__
    names = [".".join(map(str, path if len(path) > 1 else (own, *path))) for path, _ in flat]
    names = [n for n in names if not n.endswith(".kernel")]
    values = get_vectors(opened.network.given, names) | dict(state.vectors)
    kept = dict(state.kept)
    for n in names:  # statistics go with their norm
        path, _, kind = n.rpartition(".")
        stays = kept.get(f"{path}.scale" if kind in ("mean", "var") else n)
        values[n] = values[n] if stays is None else values[n][np.asarray(stays)]
    set_vectors(small, {n: values[n] for n in names})
    return small


@pytest.mark.parametrize("kind", CONFIGS)
def test_dropping_is_a_smaller_model(subjects: dict[str, Subject], kind: str) -> None:
    """Its outputs, its storage, and exactly the asked-for number of units."""
    subject = subjects[kind]
    ratios = {"*.heads": 0.4, "*.mlp": 0.3, "*.filters": 0.4}
    stages = [Drop(space, ratios[space]) for space in SPACES[kind]]
    opened, after = applied(subject, *stages)
    state = after.one(0)
    units: dict[str, int] = {}
    spaces = opened.context.architecture.spaces
    for stage in stages:
        for space in opened.context.architecture.matching(stage.space, "drop"):
            gone = round(stage.ratio * space.size)
            assert gone > 0
            at, _, part = space.name.rpartition(".")
            units[part if kind != "resnet" else at] = space.size - gone
            for layer in space.reads:  # the unit's columns are gone, and no others
                columns = np.asarray(state.matrices[layer.parameter].mask).any(0)
                left = layer.gathered(jnp.asarray(columns, jnp.int32), space.size)
                assert sorted(np.unique(np.asarray(left))) == [0, layer.per * layer.repeats]
                assert int((np.asarray(left) == 0).sum()) == gone
    assert spaces
    small = sliced(build(lambda: smaller(kind, units)), opened, state)
    simulated = outputs(opened, after, subject.inputs)
    np.testing.assert_allclose(answer(small, subject.inputs), simulated, rtol=2e-5, atol=2e-5)
    dense = outputs(opened, opened.context.start(), subject.inputs)
    assert np.abs(simulated - dense).max() > 1e-2
    assert stored(opened, state) == 16 * parameters(small)


def test_the_smallest_units_go_and_ties_go_by_index(subjects: dict[str, Subject]) -> None:
    model = nnx.clone(subjects["llama"].model)
    for layer in model.layers:
        for of, axis in (
            (layer.mlp.gate_proj, 1),
            (layer.mlp.up_proj, 1),
            (layer.mlp.down_proj, 0),
        ):
            size = np.ones(20)
            size[[3, 7, 8, 15]] = [0.1, 0.2, 0.2, 0.2]  # three alike
            kernel = np.full(of.kernel.shape, 0.5)
            of.kernel[...] = jnp.asarray(kernel * np.expand_dims(size, 1 - axis), jnp.float32)
    subject = Subject(model, subjects["llama"].inputs)
    _, after = applied(subject, Drop("layers.1.mlp", 0.15))
    gone = ~np.asarray(after.one(0).matrices["layers.1.mlp.up_proj"].mask).any(1)
    assert np.flatnonzero(gone).tolist() == [3, 7, 8]
    untouched = after.one(0).matrices["layers.0.mlp.up_proj"]
    assert np.asarray(untouched.mask).all()
    _, more = applied(subject, Drop("layers.1.mlp", 0.15), Drop("layers.1.mlp", 0.2))
    gone = ~np.asarray(more.one(0).matrices["layers.1.mlp.up_proj"].mask).any(1)
    assert np.flatnonzero(gone).tolist() == [3, 7, 8, 15]  # those before count


def test_what_was_dropped_stays_dropped(subjects: dict[str, Subject]) -> None:
    """Through pruning, a rotation, trained adapters and GPTQ with its compensation."""
    subject = subjects["llama"]._replace(model=subjects["llama"].model.untied())
    mlp = "layers.0.mlp.*_proj"
    chain = [
        Drop("layers.0.mlp", 0.3),
        Rotate(),
        layerwise(Wanda(0.4), mlp),
        LoRA(2, 3, 1e-2, mlp),
        per_layer({"layers.0.mlp.down_proj": GPTQ(4, block=16), mlp: RTN(4)}),
    ]
    opened, after = applied(subject, *chain)
    _, dropped = applied(subject, chain[0])
    state = after.one(0)
    for name in ("gate", "up", "down"):
        layer = f"layers.0.mlp.{name}_proj"
        mask = np.asarray(dropped.one(0).matrices[layer].mask)
        assert (~mask).sum() > 0
        matrix = state.matrices[layer]
        assert matrix.grid is not None
        assert not np.asarray(matrix.mask)[~mask].any()
        effective = np.asarray(after.parameters(0).weights[layer])
        assert not effective[~mask].any()
        assert effective[mask].any()
    adapters = {n: m for n, m in state.matrices.items() if "+" in n}
    assert len(adapters) == 6
    kept = sum(int(m.mask.sum()) for m in state.matrices.values())
    assert opened.storage(state).kept == kept
    assert sum(int((~m.mask).sum()) for m in adapters.values()) == 3 * 2 * 6  # 6 of 20 units


def test_what_cannot_be_dropped_is_refused(subjects: dict[str, Subject]) -> None:
    subject = subjects["llama"]
    with pytest.raises(ValueError, match=r"no space 'layers\.9\.mlp' to drop.*layers\.0\.mlp"):
        applied(subject, Drop("layers.9.mlp", 0.5))
    with pytest.raises(ValueError, match="no space 'residual' to drop"):
        applied(subject, Drop("residual", 0.5))
    with pytest.raises(ValueError, match=r"all 2 units of layers.0.heads: choose one below 0.75"):
        applied(subject, Drop("*.heads", 0.8))
    with pytest.raises(ValueError, match=r"left alone \(layers.0.mlp: layers.0.mlp.up_proj\)"):
        applied(subject, Drop("layers.0.mlp", 0.5), exclude=["layers.0.mlp.up_proj"])
    with pytest.raises(ValueError, match="ratio must lie"):
        Drop(ratio=1.0)
    plain = nnx.Sequential(nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"Sequential has no space '\*' to drop.*architecture\(\)"):
        applied(Subject(plain, jnp.ones((2, 3))), Drop())


# ------------------------------------------------------------------------------ blocks


def without_llama(model: Any) -> None:
    model.layers = nnx.List([model.layers[0], model.layers[2]])


def without_vit(model: Any) -> None:
    model.blocks = nnx.List([model.blocks[1]])


def without_resnet(model: Any) -> None:
    model.layer1 = nnx.List([model.layer1[0]])


REMOVED: dict[str, tuple[str, Callable[[Any], None]]] = {
    "llama": ("layers.1", without_llama),
    "vit": ("blocks.0", without_vit),
    "resnet": ("layer1.1", without_resnet),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_removing_a_block_is_a_model_without_it(subjects: dict[str, Subject], kind: str) -> None:
    subject = subjects[kind]
    name, cut = REMOVED[kind]
    policy = Policy(norms="keep")  # the model without the block keeps its statistics
    opened, after = applied(subject, RemoveBlocks(1, name), policy=policy)
    short = nnx.clone(subject.model)
    cut(short)
    found = outputs(opened, after, subject.inputs)
    np.testing.assert_allclose(found, answer(short, subject.inputs), rtol=1e-5, atol=1e-5)
    assert stored(opened, after.one(0)) == 16 * parameters(short)
    with pytest.raises(ValueError, match=f"n = 1, but .* {name!r} and are there are: none"):
        expand(after, [RemoveBlocks(1, name)], opened.context, 1)


def test_blocks_go_by_the_loss_or_from_the_end(subjects: dict[str, Subject]) -> None:
    """Versions may lose different blocks, and stages of one axis different numbers of them."""
    model = nnx.clone(subjects["llama"].model)
    for i, factor in ((0, 1e-3), (1, 1e-2)):  # the less a block adds, the less it is missed
        for of in (model.layers[i].self_attn.o_proj, model.layers[i].mlp.down_proj):
            of.kernel[...] = factor * of.kernel[...]
    opened = Opened(model, subjects["llama"].inputs, Policy())
    family = [RemoveBlocks(1), RemoveBlocks(2), RemoveBlocks(1, score="last")]
    start = opened.context.start()
    found = expand(start, family, opened.context, 0).versions

    def gone(version: Versions, r: int) -> list[int]:
        matrices = version.one(r).matrices
        return [i for i in range(3) if not matrices[f"layers.{i}.mlp.up_proj"].mask.any()]

    assert [gone(found, r) for r in range(3)] == [[0], [0, 1], [2]]
    again = expand(found, [RemoveBlocks(1)], opened.context, 1).versions
    assert [gone(again, r) for r in range(3)] == [[0, 1], [0, 1, 2], [0, 2]]
    with pytest.raises(ValueError, match=r"layers.0, layers.1, layers.2"):
        opened.context.check([RemoveBlocks(4)])


def four_layers() -> Subject:
    config = replace(CONFIGS["llama"], num_layers=4)
    return Subject(build(of(config)), inputs_for("llama"))


def gone_blocks(version: Versions, count: int) -> list[int]:
    matrices = version.one(0).matrices
    return [i for i in range(count) if not matrices[f"layers.{i}.mlp.up_proj"].mask.any()]


def test_the_loss_is_that_of_the_models_without_a_block() -> None:
    """By brute force: every shorter model, one block after another."""
    subject = four_layers()

    def logits(stay: Sequence[int]) -> np.ndarray:
        short = nnx.clone(subject.model)
        short.layers = nnx.List([short.layers[i] for i in stay])
        x = np.asarray(answer(short, subject.inputs), np.float64)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    dense = logits(range(4))
    stay = [0, 1, 2, 3]
    while len(stay) > 2:
        rest = [[i for i in stay if i != out] for out in stay]
        losses = [(np.exp(dense) * (dense - logits(r))).sum(-1).mean() for r in rest]
        assert np.diff(np.sort(losses))[0] > 1e-3 * min(losses)
        stay = rest[int(np.argmin(losses))]
    _, after = applied(subject, RemoveBlocks(2))
    assert gone_blocks(after, 4) == [i for i in range(4) if i not in stay]


def naive_influence(subject: Subject, names: Sequence[str], weights: Any = None) -> list[float]:
    """Each block called by hand with what the one before returned."""
    model = subject.model
    if hasattr(model, "embed_tokens"):
        x = model.embed_tokens(subject.inputs)
        blocks = {f"layers.{i}": block for i, block in enumerate(model.layers)}
    else:
        x = nnx.relu(model.bn1(model.conv1(subject.inputs)))
        blocks = {f"layer1.{i}": block for i, block in enumerate(model.layer1)}
    found = {}
    for name, block in blocks.items():
        y = block(x)
        a, b = (np.asarray(v, np.float64).reshape(-1, v.shape[-1]) for v in (x, y))
        size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        still = (a == 0).all(1) & (b == 0).all(1)
        cosine = np.where(still, 1, (a * b).sum(1) / np.where(size > 0, size, 1))
        w = np.ones(len(a)) if weights is None else np.asarray(weights).reshape(-1)
        found[name], x = 1 - (w * cosine).sum() / w.sum(), y
    return [found[n] for n in names]


def test_influence_is_how_far_a_block_turns_the_stream(subjects: dict[str, Subject]) -> None:
    """Of a convolutional model, too, where tokens are places; and with weights of tokens."""
    subject = four_layers()
    names = [f"layers.{i}" for i in range(4)]
    expected = naive_influence(subject, names)
    batches = [subject.inputs[:2], subject.inputs[2:]]
    found = influence(subject.model, names, batches)
    np.testing.assert_allclose([found[n] for n in names], expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.round(expected, 3))) == 4
    opened = Opened(subject.model, batches, Policy())
    after = expand(opened.context.start(), [RemoveBlocks(2, score="influence")], opened.context, 0)
    assert gone_blocks(after.versions, 4) == sorted(np.argsort(expected)[:2].tolist())
    weights = jnp.asarray(np.random.default_rng(0).integers(0, 3, (6, 9)), jnp.float32)
    found = influence(
        subject.model,
        names[1:3],
        subject.inputs,
        forward=answer,  # inside of nnx.jit
        token_weights=lambda _: weights,
    )
    expected = naive_influence(subject, names[1:3], weights)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5, atol=1e-6)
    image = subjects["resnet"]
    found = influence(image.model, ["layer1.0", "layer1.1"], image.inputs)
    expected = naive_influence(image, list(found))
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-5, atol=1e-6)


def test_equal_influence_goes_to_the_first_of_the_blocks_that_are_there() -> None:
    subject = four_layers()
    for i in (1, 2, 3):
        for layer in (
            subject.model.layers[i].self_attn.o_proj,
            subject.model.layers[i].mlp.down_proj,
        ):
            layer.kernel[...] = 0 * layer.kernel[...]
    least = RemoveBlocks(1, score="influence")
    opened, after = applied(subject, least)
    assert gone_blocks(after, 4) == [1]
    again = expand(after, [least], opened.context, 1).versions
    assert gone_blocks(again, 4) == [1, 2]


class Odd(nnx.Module):
    """Blocks that are no function of one array that keeps its shape."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.steps = nnx.List([Step(kind) for _ in range(2)])

    def __call__(self, x: Array) -> Array:
        for step in self.steps:
            x = step(x, x) if self.kind == "two" else step(x)
            x = x[..., :3]
        return x

    def architecture(self) -> Any:
        name = "steps.{}" if self.kind != "name" else "parts.{}"
        return [], [Block(name.format(i), (f"steps.{i}.layer",)) for i in range(2)]


class Step(nnx.Module):
    def __init__(self, kind: str) -> None:
        self.layer = nnx.Linear(3, 3 if kind != "wide" else 4, rngs=nnx.Rngs(0))

    def __call__(self, x: Array, more: Array | None = None) -> Array:
        return self.layer(x) + (0 if more is None else more)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("two", r"block steps\.0: .* one array in .*; in: \(5, 3\), \(5, 3\), out: \(5, 3\)"),
        ("wide", r"block steps\.0: .* in: \(5, 3\), out: \(5, 4\)"),
        ("name", r"block parts\.0: the model has no module of that name"),
    ],
)
def test_blocks_that_cannot_be_heard_are_refused(kind: str, told: str) -> None:
    subject = Subject(Odd(kind), jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=told):
        applied(subject, RemoveBlocks(1, score="influence"))


# ---------------------------------------------------------------------------- rotations


def rotatable(kind: str, dtype: Any) -> Subject:
    config = replace(CONFIGS[kind], dtype=jnp.dtype(dtype).name)
    if kind == "llama":
        config = replace(config, tie_word_embeddings=False)
    return Subject(build(of(config), dtype), inputs_for(kind, dtype))


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_a_rotation_keeps_the_outputs(kind: str) -> None:
    for x64, tolerance in ((True, 1e-10), (False, 1e-4)):
        with jax.enable_x64(x64):
            subject = rotatable(kind, jnp.float64 if x64 else jnp.float32)
            opened = Opened(subject.model, subject.inputs, Policy())
            start = opened.context.start()
            dense = outputs(opened, start, subject.inputs)
            assert dense.dtype == (np.float64 if x64 else np.float32)
            scale = np.abs(dense).max()
            for stage in (Rotate(), Rotate(kind="hadamard"), Rotate(seed=1)):
                after = expand(start, [stage], opened.context, 0).versions
                found = outputs(opened, after, subject.inputs)
                assert np.abs(found - dense).max() <= tolerance * scale
                # and so does the reference, which is what later stages compare with
                reference = opened.network.state(after.reference.parameters)
                expected = np.asarray(opened.network.outputs(reference, subject.inputs))
                assert np.abs(expected - dense).max() <= tolerance * scale
                for name, w in after.reference.weights.items():
                    np.testing.assert_array_equal(w, after.one(0).matrices[name].weight)
                moved = [
                    name
                    for name, w in after.reference.weights.items()
                    if np.abs(np.asarray(w) - np.asarray(start.reference.weights[name])).max()
                    > 0.05
                ]
                assert len(moved) == len(opened.network.specs)


def test_a_rotation_spreads_an_outlier() -> None:
    """An outlying channel of the stream: every row of the weights that read it has a peak."""
    subject = rotatable("llama", jnp.float32)
    for layer in subject.model.layers:
        kernel = layer.mlp.up_proj.kernel
        kernel[...] = kernel[...].at[5].multiply(30.0)

    def kurtosis(version: Versions) -> float:
        w = np.asarray(version.one(0).matrices["layers.0.mlp.up_proj"].weight, np.float64)
        w = w - w.mean()
        return float((w**4).mean() / (w**2).mean() ** 2)

    opened, rotated = applied(subject, Rotate())
    _, had = applied(subject, Rotate(kind="hadamard"))
    before = kurtosis(opened.context.start())
    assert before > 10
    assert kurtosis(rotated) < before / 2
    assert kurtosis(had) < before / 2


@pytest.mark.parametrize("size", [1, 2, 6, 7, 12, 16])
def test_hadamard_rotations_are_orthogonal(size: int) -> None:
    q = hadamard(size, np.random.default_rng(0))
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-14)
    if size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(q), size**-0.5, rtol=1e-14)


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_a_learned_rotation_is_a_rotation_and_rounds_better(kind: str) -> None:
    with jax.enable_x64(True):
        subject = rotatable(kind, jnp.float64)
        learned = LearnedRotation(bits=3, steps=40, learning_rate=1e-2)
        opened, after = applied(subject, learned)
        dense = np.asarray(answer(subject.model, subject.inputs))
        scale = np.abs(dense).max()
        assert np.abs(outputs(opened, after, subject.inputs) - dense).max() <= 1e-10 * scale
        _, again = applied(subject, learned)
        _, drawn = applied(subject, Rotate(kind="hadamard"))
        _, untrained = applied(subject, replace(learned, steps=0))
        far = {}
        for name, m in after.one(0).matrices.items():
            np.testing.assert_array_equal(m.weight, again.one(0).matrices[name].weight)
            expected = drawn.one(0).matrices[name].weight
            np.testing.assert_array_equal(untrained.one(0).matrices[name].weight, expected)
            far[name] = np.abs(np.asarray(m.weight - expected)).max()
        assert min(far.values()) > 1e-3
        loss = []
        for start in (drawn, after):
            rounded = expand(start, [RTN(3)], opened.context, 1).versions
            made = jnp.asarray(outputs(opened, rounded, subject.inputs))
            total, number = distance(jnp.asarray(dense), made)
            loss.append(float(total / number))
        assert loss[1] < 0.95 * loss[0]


def test_a_cayley_transform_is_orthogonal_and_keeps_a_mean() -> None:
    x = np.random.default_rng(0).normal(size=(6, 6))
    free = Space("stream", 6, (), (), frozenset({"rotate"}))
    for space in (free, replace(free, fixes="mean")):
        turn = cayley(space, x, np)
        np.testing.assert_allclose(turn @ turn.T, np.eye(6), atol=1e-12)
        assert np.abs(turn - np.eye(6)).max() > 0.1
        assert np.allclose(turn @ np.ones(6), np.ones(6)) == (space.fixes == "mean")


def test_a_learned_rotation_says_what_it_cannot_do(
    subjects: dict[str, Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="untie them first"):
        applied(subjects["llama"], LearnedRotation(steps=1))
    monkeypatch.setattr(learned_rotation, "descended", None)  # before any training
    with pytest.raises(ValueError, match=r"destroy the grid of 2 .*fc1.* release=True"):
        applied(subjects["vit"], layerwise(RTN(8), "*.fc1"), LearnedRotation(steps=1))
    for wrong in ({"bits": 1}, {"steps": -1}, {"learning_rate": 0}, {"kind": "butterfly"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LearnedRotation(**wrong)  # type: ignore[arg-type]


def test_a_tied_head_is_refused_until_it_is_untied(subjects: dict[str, Subject]) -> None:
    subject = subjects["llama"]
    with pytest.raises(ValueError, match=r"embed_tokens.embedding .* norm.scale: .*untied\(\)"):
        applied(subject, Rotate())
    free = subject.model.untied()
    expected = answer(subject.model, subject.inputs)
    np.testing.assert_array_equal(answer(free, subject.inputs), expected)
    assert subject.model.config.tie_word_embeddings
    assert parameters(free) == parameters(subject.model) + 20 * 16
    opened, after = applied(subject._replace(model=free), Rotate(), exclude=["lm_head", "*.q_proj"])
    found = outputs(opened, after, subject.inputs)  # layers that are left alone are turned, too
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert "lm_head" not in after.one(0).matrices


def test_a_rotation_destroys_no_mask_or_grid_unasked(subjects: dict[str, Subject]) -> None:
    subject = subjects["vit"]
    with pytest.raises(ValueError, match=r"destroy the mask of 2 .*fc1.* release=True"):
        applied(subject, layerwise(Magnitude(0.5), "*.fc1"), Rotate())
    opened, before = applied(subject, layerwise(RTN(8), "*.fc1"))
    with pytest.raises(ValueError, match=r"destroy the grid of 2 .*fc1.* release=True"):
        expand(before, [Rotate()], opened.context, 1)
    after = expand(before, [Rotate(release=True)], opened.context, 1).versions
    assert all(m.grid is None for m in after.one(0).matrices.values())


def test_a_rotation_keeps_what_was_dropped(subjects: dict[str, Subject]) -> None:
    subject = subjects["vit"]
    opened, before = applied(subject, Drop("*.mlp", 0.3), RemoveBlocks(1, "blocks.1"))
    both = expand(before, [Rotate()], opened.context, 2).versions
    for name, matrix in before.one(0).matrices.items():
        np.testing.assert_array_equal(both.one(0).matrices[name].mask, matrix.mask)
    expected = outputs(opened, before, subject.inputs)
    found = outputs(opened, both, subject.inputs)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert opened.storage(both.one(0)) == opened.storage(before.one(0))


# --------------------------------------------------------------------- architectures


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_axis_fits_its_parameter(subjects: dict[str, Subject], kind: str) -> None:
    """Names exist, lengths agree, and every layer and vector of a block is the block's."""
    model = subjects[kind].model
    opened = Opened(model, subjects[kind].inputs, Policy())
    architecture = opened.context.architecture
    assert architecture.spaces
    assert architecture.blocks
    for space in architecture.spaces.values():
        vectors = get_vectors(model, space.vectors)
        for one in space.axes:
            shape: Sequence[int] = (
                vectors[one.parameter].shape
                if one.parameter in vectors
                else architecture.layers[one.parameter]
            )
            assert shape[one.dim] == space.size * one.per * one.repeats, one
    for block in architecture.blocks.values():
        inside = {n for n in architecture.layers if n.startswith(f"{block.name}.")}
        assert set(block.layers) == inside
        flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
        names = {".".join(map(str, path)) for path, _ in flat}
        mine = {n for n in names if n.startswith(f"{block.name}.") and not n.endswith(".kernel")}
        assert set(block.vectors) == mine
