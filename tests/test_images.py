"""Images for published checkpoints: how they are made, which are tested on, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from experiments.__main__ import run
from experiments.data import images
from experiments.data.images import Preparation
from experiments.published import load, plan_of
from experiments.published.images import measures_of, preparation
from experiments.published.mobilenet import LITE_NAME
from experiments.published.task import data_of, task_of
from experiments.study import Checkpoint, Policy, Study, axis, pairs
from perturb import RTN, Drop, RemoveBlocks, Wanda, compress
from perturb.checkpoints import open_checkpoint
from perturb.cli import BadInput

Image = pytest.importorskip("PIL.Image")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RESNET = {
    "architectures": ["ResNetForImageClassification"],
    "layer_type": "bottleneck",
    "embedding_size": 4,
    "hidden_sizes": [8, 12],
    "depths": [2, 1],
    "num_labels": 3,
}
LITE = {"architectures": [LITE_NAME], "variant": "lite0", "num_labels": 3}
MOBILENET = {
    "architectures": ["MobileNetV2ForImageClassification"],
    "depth_multiplier": 0.25,
    "num_labels": 3,
}


def written(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint of random weights with what its plan asks for."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"none": np.zeros(1, np.float32)}, folder / "model.safetensors")
    plan = plan_of(open_checkpoint(folder))
    state = nnx.state(nnx.eval_shape(lambda: plan.config.build(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    held = {}
    for path, leaf in nnx.to_flat_state(state):
        source = plan.sources[".".join(map(str, path))]
        shape = source.shape(tuple(leaf.shape))
        noise = rng.normal(size=shape) * (1.0 if len(shape) == 1 else (2 / shape[1:][0]) ** 0.5)
        about, scale = {"scale": (1, 0.2), "var": (1, 0)}.get(str(path[-1]), (0, 0.5))
        held |= {name: (about + scale * noise).astype(np.float32) for name in source.names}
    save_file(held, folder / "model.safetensors")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures in three subfolders."""
    rng = np.random.default_rng(0)
    for i in range(12):
        place = tmp_path / "pictures" / f"class{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (40, 50 + i, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "pictures"


def test_an_image_is_cropped_scaled_and_normalized() -> None:
    pixels = np.full((40, 80, 3), 9, np.uint8)
    pixels[5:35, 25:55] = [100, 150, 200]  # 30 of 40: the central crop, and all around it is seen
    how = Preparation(10, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop=0.5)
    made = how(Image.fromarray(pixels))
    assert made.shape == (10, 10, 3)
    want = (np.array([100, 150, 200]) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(made[:, :5], np.broadcast_to(want, (10, 5, 3)), atol=1e-5)
    whole = Preparation(10, (0.5,), (0.2,))(Image.fromarray(pixels), (0, 0, 40, 40))
    assert whole.shape == (10, 10, 1)
    np.testing.assert_allclose(whole[0, 0], (9 / 255 - 0.5) / 0.2, atol=1e-5)


def test_subfolders_are_classes_if_there_are_as_many(pictures: Path) -> None:
    how = Preparation(8, (0.5,) * 3, (0.5,) * 3)
    data = images.load(pictures, how, 3)
    assert (len(data.calibration), len(data.test)) == (4, 8)
    assert images.is_labelled(data)
    assert set(measures_of(data)) == {"nll", "correct", "kl", "square"}
    assert len(set(data.test.cluster)) == 8
    by_label = {int(y): x for x, y in zip(data.test.inputs, data.test.targets, strict=True)}
    folder_of = {i: sorted((pictures / f"class{i}").iterdir()) for i in by_label}
    for label, x in by_label.items():
        made = [how(Image.open(f)) for f in folder_of[label]]
        assert any(np.array_equal(x, m) for m in made)
    plain = images.load(pictures, how, 1000)
    assert set(measures_of(plain)) == {"kl", "square"}
    np.testing.assert_array_equal(plain.test.inputs, data.test.inputs)
    inputs = [x.tobytes() for x in (*data.train.inputs, *data.test.inputs)]
    assert len(set(inputs)) == 12  # nothing calibrates that is tested on
    drawn = data.draw(1)
    assert {x.tobytes() for x in drawn.inputs} <= {x.tobytes() for x in data.train.inputs}


def packed(folder: Path, pictures: Path, struct: bool = True, label: bool = True) -> Path:
    """The pictures in two parquet files of several groups of rows, the labels their folders."""
    folder.mkdir()
    files = sorted(pictures.rglob("*.png"))
    for part in range(2):
        mine = files[6 * part : 6 * part + 6]
        held = [f.read_bytes() for f in mine]
        columns: dict[str, Any] = {
            "image": [{"bytes": b, "path": None} for b in held] if struct else held
        }
        if label:
            columns["label"] = [int(f.parent.name[-1]) for f in mine]
        parquet.write_table(pyarrow.table(columns), folder / f"{part}.parquet", row_group_size=4)
    return folder


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_files_hold_what_a_folder_holds(
    pictures: Path, tmp_path: Path, struct: bool
) -> None:
    how = Preparation(8, (0.5,) * 3, (0.5,) * 3)
    expected = images.load(pictures, how, 3)
    data = images.load(packed(tmp_path / "packed", pictures, struct), how, 3)
    for part in ("train", "test"):
        made, want = getattr(data, part), getattr(expected, part)
        np.testing.assert_array_equal(made.inputs, want.inputs)
        np.testing.assert_array_equal(made.targets, want.targets)
    assert images.is_labelled(data)
    for classes in (2, 4):  # those of another data set: fewer, or more
        assert not images.is_labelled(images.load(tmp_path / "packed", how, classes))
    unlabelled = images.load(packed(tmp_path / "bare", pictures, label=False), how, 3)
    assert not images.is_labelled(unlabelled)
    np.testing.assert_array_equal(unlabelled.test.inputs, expected.test.inputs)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"text": ["a"] * 9}, r"a\.parquet: has no column 'image' of encoded images, but text"),
        ({"image": [b"x"] * 9, "label": ["cat"] * 9}, "'label' holds no class numbers"),
        ({"image": [b"x"] * 9}, "image of .*many: cannot be read"),
        ({"image": [b"x"] * 3}, "has 3 images in parquet files, too few: at least 8"),
    ],
)
def test_parquet_files_without_images_are_named(
    tmp_path: Path, table: dict[str, Any], told: str
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    parquet.write_table(pyarrow.table(table), folder / "a.parquet")
    with pytest.raises(ValueError, match=told):
        images.load(folder, Preparation(8, (0.5,) * 3, (0.5,) * 3), 3)
    (folder / "a.parquet").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"a\.parquet: is no parquet file"):
        images.load(folder, Preparation(8, (0.5,) * 3, (0.5,) * 3), 3)


def test_photographs_give_crops_to_one_part(monkeypatch: Any, tmp_path: Path) -> None:
    """Pictures of the right names in place of the packages' own."""
    where: dict[str, list[str]] = {}
    for i, (package, inside) in enumerate(sum(images.SCENES.values(), ())):
        path = tmp_path / package / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((60, 50, 3), 10 * i, np.uint8)).save(path)
        where[package] = [str(tmp_path / package)]
    spec = lambda name: SimpleNamespace(submodule_search_locations=where[name])  # noqa: E731
    monkeypatch.setattr(images.importlib.util, "find_spec", spec)
    how = Preparation(8, (0.0,) * 3, (1.0,) * 3)
    data = images.load("photographs", how, 1000)
    count = len(images.SCENES["test"])
    assert len(data.test) == images.CROPS * count
    assert len(set(data.test.cluster)) == count
    shades = [
        {round(float(v) * 25.5) for v in s.inputs.mean((1, 2, 3))} for s in (data.train, data.test)
    ]
    assert not shades[0] & shades[1]
    assert len(shades[0] | shades[1]) == len(images.SCENES["calibration"]) + count
    by_scene = {
        c: round(float(x.mean()) * 25.5)
        for c, x in zip(data.test.cluster, data.test.inputs, strict=True)
    }
    assert len(set(by_scene.values())) == count
    assert len(set(data.calibration.cluster)) == len(images.SCENES["calibration"])
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"scikit-learn brings .*china.jpg, and is not installed"):
        images.load("photographs", how, 1000)


def test_crops_stay_inside() -> None:
    boxes = list(images._boxes(50, 30, 200, np.random.default_rng(0)))
    sides = [right - left for left, _, right, _ in boxes]
    assert all(a >= 0 and b >= 0 and c <= 50 and d <= 30 for a, b, c, d in boxes)
    assert all(abs((d - b) - (c - a)) < 1e-9 for a, b, c, d in boxes)
    assert 12 <= min(sides) < 15
    assert 27 < max(sides) <= 30


def test_what_a_preprocessor_says(tmp_path: Path) -> None:
    folder = written(tmp_path / "r", RESNET)
    opened = open_checkpoint(folder)
    config = plan_of(opened).config
    assert preparation(opened, config).size == 224
    file = folder / "preprocessor_config.json"
    for told, size in (
        ({"size": {"shortest_edge": 48}, "image_mean": [0.1, 0.2, 0.3]}, 48),
        ({"size": 64, "crop_size": {"height": 56, "width": 56}}, 56),
    ):
        file.write_text(json.dumps(told))
        made = preparation(opened, config)
        assert (made.size, made.mean[0]) == (size, told.get("image_mean", [0.485])[0])
        assert preparation(opened, config, 40).size == 40
    for told, says in (
        ({"do_normalize": False}, "do_normalize = false: only true is supported"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0: only 1/255"),
        ({"image_std": [0.1]}, "image_std = [0.1]: it must be a list of 3 numbers"),
        ({"crop_size": "x"}, "crop_size = 'x': it must be a whole number"),
    ):
        file.write_text(json.dumps(told))
        with pytest.raises(ValueError) as caught:
            preparation(opened, config)
        assert says in str(caught.value)
    file.unlink()
    with pytest.raises(ValueError, match=r"--window 16: .* takes images of 32 x 32 at least"):
        preparation(opened, config, 16)


def test_what_is_refused_before_any_weight(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(written(tmp_path / "r", RESNET))
    monkeypatch.setattr(np, "memmap", None)
    (tmp_path / "few").mkdir()
    for how, says in (
        ({}, "on which images? say --images DIR, or --images photographs"),
        ({"text": "notes.txt"}, "is a model of images: say --images in place of --text"),
        ({"images": str(tmp_path / "none")}, "none: there is no such folder; give one with images"),
        ({"images": str(tmp_path / "few")}, "has 0 images (.jpg, .jpeg"),
    ):
        with pytest.raises(ValueError) as caught:
            data_of(Checkpoint(folder, **how))
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)
    (pictures / "class0" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image .*bad.png: cannot be read"):
        data_of(Checkpoint(folder, images=str(pictures), window=32))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ValueError, match=r"takes the package pillow: .*'.\[images\]'"):
        data_of(Checkpoint(folder, images=str(pictures), window=32))


def test_a_study_of_images(pictures: Path, tmp_path: Path) -> None:
    """Both orders; a model without labels has the distance to the dense one alone."""
    from experiments.records import latest
    from experiments.records import load as records
    from experiments.runner import run_study

    folder = written(tmp_path / "r", RESNET | {"num_labels": 5})
    plans = pairs([axis(Wanda, sparsity=(0.5,))], [axis(RTN, bits=(16, 3))])
    one = Checkpoint(str(folder), window=32)
    study = Study("c", "", (one,), plans, policies=(Policy(norms="keep"),), exclude=("fc",))
    path = run_study(study, tmp_path / "out", images=pictures)
    held = list(latest(records(path)).values())
    assert {r["status"] for r in held} == {"ok"}
    assert {r["data"]["name"] for r in held} == {"pictures"}
    kl = {r["label"].rpartition("/")[2]: r["metrics"]["kl"] for r in held}
    assert set(held[0]["metrics"]) == {"kl", "logit_mse"}
    assert len(kl) == 8
    assert all(v > 0 for k, v in kl.items() if k not in ("dense", "rtn-16"))


@pytest.mark.parametrize("stage", [Drop(ratio=0.5), RemoveBlocks(1)])
@pytest.mark.parametrize("config", [RESNET, MOBILENET], ids=["resnet", "mobilenet"])
def test_a_smaller_net_is_the_simulation(config: Any, stage: Any, tmp_path: Path) -> None:
    """Channels with their windows and norms, and blocks."""
    model = load(written(tmp_path / "m", config)).model
    x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), "float32")
    done = compress(model, stage, x, norms="keep")
    small = done.smaller()
    answer = nnx.jit(lambda m, x: m(x))
    want = np.asarray(answer(done.model, x))
    assert not np.allclose(want, answer(model, x), atol=1e-3)
    np.testing.assert_allclose(answer(small, x), want, atol=1e-4 * max(1, np.abs(want).max()))
    sizes = [sum(p[...].size for _, p in nnx.to_flat_state(nnx.state(m))) for m in (small, model)]
    assert sizes[0] < sizes[1]


def test_the_other_command_takes_images(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from experiments import entry
    from perturb import sources
    from perturb.__main__ import main

    real = sources.entry_points
    point = SimpleNamespace(load=lambda: entry.folder)
    points = lambda group: [point] if group == sources.FOLDERS else real(group=group)  # noqa: E731
    monkeypatch.setattr(sources, "entry_points", points)
    folder = str(written(tmp_path / "r", RESNET))
    stages = ["--stage", "wanda:0.5", "--stage", "rtn:4", "--norms", "keep"]
    data = ["--images", str(pictures), "--window", "32"]
    assert main([folder, *stages, *data, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main([folder, *stages]) == 2
    assert "on which images? say --images DIR" in capsys.readouterr().err
    assert main(["resnet-digits", *stages, *data]) == 2
    assert "only a checkpoint takes it" in capsys.readouterr().err


def test_a_task_says_what_it_is_of(pictures: Path, tmp_path: Path) -> None:
    folder = written(tmp_path / "lite", LITE)
    task, line = task_of(Checkpoint(str(folder), images=str(pictures), window=32))
    assert f"{LITE_NAME}" in line
    assert "8 test images of 8 sources (pictures)" in line
    assert [b.shape for b in task.calibration] == [(4, 32, 32, 3)]
    assert task.data["window"] == 32
    with pytest.raises(BadInput, match="no model of the study takes it"):
        run(["run", "start", "--images", str(pictures)])
