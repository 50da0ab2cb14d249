"""Training: the same bits from the same seed, and checkpoints that are right or made again."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.progress import Progress

from experiments import train as training
from experiments.models import checkpoint
from experiments.models.presets import PRESETS, find
from experiments.train import load_or_train

QUIET = Progress(disable=True)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    """Words that repeat, so that forty steps already learn something."""
    rng = np.random.default_rng(0)
    words = [b"matrix", b"prune", b"order", b"grid", b"bits", b"row"]
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_bytes(b" ".join(words[i] for i in rng.integers(0, len(words), 6000)))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def resnet(folder):
    return load_or_train("tiny-resnet", cache=folder, progress=QUIET)


@pytest.fixture(scope="module")
def llama(folder, text_file):
    return load_or_train("tiny-llama", cache=folder, text=text_file, progress=QUIET)


@nnx.jit
def answer(model, inputs):
    """One compilation instead of one an operation."""
    return model(inputs)


def the_file(folder, preset):
    (path,) = folder.glob(f"models/{preset}-seed0-*.safetensors")
    return path


def test_a_checkpoint_gives_back_the_model_that_was_trained(folder, resnet):
    assert not resnet.cached
    again = load_or_train("tiny-resnet", cache=folder, progress=QUIET)
    assert again.cached
    assert again.weights_hash == resnet.weights_hash
    assert again.metrics == resnet.metrics
    assert again.seconds == resnet.seconds > 0
    images = jnp.asarray(resnet.dataset.test.inputs[:16])
    np.testing.assert_array_equal(answer(again.model, images), answer(resnet.model, images))


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    tmp_path, folder, resnet, llama, text_file
):
    words = load_or_train("tiny-llama", cache=tmp_path, text=text_file, progress=QUIET)
    assert not words.cached
    assert words.weights_hash == llama.weights_hash
    other = load_or_train("tiny-resnet", 1, cache=folder, progress=QUIET)
    assert not other.cached
    assert other.weights_hash != resnet.weights_hash


def test_about_half_of_a_batch_is_mirrored():
    images = np.random.default_rng(0).normal(size=(400, 3, 4, 2)).astype(np.float32)
    got = np.asarray(training.mirrored(jax.random.key(0), jnp.asarray(images)))
    same = (got == images).all((1, 2, 3))
    turned = (got == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ turned).all()
    assert 0.4 < turned.mean() < 0.6


def test_mirroring_names_a_checkpoint_only_where_it_is_used():
    """What was trained before there was a choice keeps its name."""
    plain = find("tiny-resnet").training
    assert "flip" not in training._told(plain)
    assert training._told(replace(plain, flip=True)) == {**training._told(plain), "flip": True}


def test_models_come_in_evaluation_mode(folder, resnet):
    """Batch norm uses its running statistics: an answer does not depend on its batch."""
    stored = load_or_train("tiny-resnet", cache=folder, progress=QUIET)
    images = jnp.asarray(resnet.dataset.test.inputs[:16])
    for model in (resnet.model, stored.model):
        together, alone = answer(model, images), answer(model, images[:1])
        np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)
    statistics = nnx.state(resnet.model, nnx.BatchStat)
    assert float(jnp.abs(statistics["bn1"]["mean"][...]).max()) > 0  # they were trained


def test_metrics_are_those_of_the_held_out_examples(resnet, llama):
    heldout = resnet.dataset.heldout
    predicted = np.asarray(answer(resnet.model, heldout.inputs)).argmax(-1)
    assert resnet.metrics["accuracy"] == pytest.approx((predicted == heldout.targets).mean())
    assert resnet.metrics["parameters"] == 1382

    logits = np.asarray(answer(llama.model, llama.dataset.heldout.inputs), np.float64)
    targets = llama.dataset.heldout.targets[..., None]
    normalizer = np.log(np.exp(logits).sum(-1))
    nats = normalizer - np.take_along_axis(logits, targets, -1)[..., 0]
    assert llama.metrics["bits_per_byte"] == pytest.approx(nats.mean() / np.log(2), rel=1e-4)
    assert llama.metrics["trigram_bits_per_byte"] < llama.metrics["bits_per_byte"] < 5


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damage_is_detected(folder, resnet, damage, tmp_path):
    intact = the_file(folder, "tiny-resnet").read_bytes()
    damaged = {
        "cut": intact[: len(intact) // 2],
        "flip": intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:],
        "empty": b"",
        "other": b"<html>not found</html>",
    }[damage]
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(checkpoint.CorruptCheckpoint, match=r"model\.safetensors"):
        checkpoint.read(path, find("tiny-resnet"))


def test_a_damaged_checkpoint_is_reported_and_trained_again_to_the_same_bits(
    folder, resnet, capsys
):
    path = the_file(folder, "tiny-resnet")
    intact = path.read_bytes()
    path.write_bytes(intact[: len(intact) // 2])
    try:
        again = load_or_train("tiny-resnet", cache=folder)
        assert "damaged checkpoint, training again" in capsys.readouterr().err
        assert not again.cached
        assert again.weights_hash == resnet.weights_hash
        assert checkpoint.read(path, find("tiny-resnet")) is not None
    finally:
        path.write_bytes(intact)


def test_weights_of_another_architecture_are_refused(resnet, llama):
    weights = checkpoint.tensors(resnet.model)
    with pytest.raises(checkpoint.CorruptCheckpoint, match="do not match"):
        checkpoint.restore(find("tiny-llama"), weights)
    with pytest.raises(checkpoint.CorruptCheckpoint, match="has shape"):
        checkpoint.restore(
            find("tiny-resnet"), {**weights, "fc.kernel": np.zeros((3, 3), np.float32)}
        )


def test_the_key_of_a_checkpoint_changes_with_what_decides_it(resnet):
    preset, data = find("tiny-resnet"), resnet.dataset
    variants = [
        (preset, 0, data),
        (preset, 1, data),
        (preset, 0, replace(data, hash="other")),
        (replace(preset, training=replace(preset.training, batch=31)), 0, data),
        (replace(preset, config=replace(preset.config, widths=(4, 9))), 0, data),
    ]
    assert len({training._key(*variant) for variant in variants}) == len(variants)
    renamed = replace(preset, description="another description")
    assert training._key(renamed, 0, data) == training._key(preset, 0, data)


def test_a_loss_that_is_not_finite_is_an_error(resnet):
    preset = find("tiny-resnet")
    hot = replace(preset, training=replace(preset.training, learning_rate=float("nan")))
    with pytest.raises(RuntimeError, match=r"not finite from step [1-9]"):
        training.train(hot, resnet.dataset, 0, QUIET)


def test_bad_requests_are_refused(text_file, tmp_path):
    with pytest.raises(ValueError, match="'resnet' is unknown: choose one of resnet-digits"):
        load_or_train("resnet", progress=QUIET)
    with pytest.raises(ValueError, match="trained on docstrings, not on a file"):
        load_or_train("llama-docs", text=text_file, progress=QUIET)
    with pytest.raises(ValueError, match="--text FILE"):
        load_or_train("llama-text", cache=tmp_path, progress=QUIET)


def test_steps_fill_whole_calls():
    for preset in PRESETS.values():
        assert preset.training.steps % preset.training.steps_per_call == 0
