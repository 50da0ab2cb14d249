"""The data sets: what is independent of what, and clear answers to bad input."""

from __future__ import annotations

import ast
import gzip
import math
import struct
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from experiments.data import digits, docstrings, fashion, textfile
from experiments.data._extract import docstrings as extract
from experiments.data.augment import random_distortions, random_rotations, rotation, warp
from experiments.data.cache import cache_dir
from experiments.data.load import load
from experiments.data.trigram import trigram_bits_per_byte
from experiments.data.types import Split, content_hash
from experiments.data.windows import PARTS, spread, text_dataset, windows

# --- digits


@pytest.fixture(scope="module")
def digit_set():
    return digits.load()


def test_digits_train_and_test_share_no_source(digit_set):
    train, test = set(digit_set.train.cluster), set(digit_set.test.cluster)
    assert not train & test
    assert len(train) + len(test) == 1797
    assert set(digit_set.calibration.cluster) <= train
    images = {image.tobytes() for image in digit_set.train.inputs}
    assert not any(image.tobytes() in images for image in digit_set.heldout.inputs)


def test_digits_clusters_hold_every_version_of_a_source(digit_set):
    test, heldout = digit_set.test, digit_set.heldout
    assert len(test) == 4 * len(heldout) == 2400  # one image is 0.04 %: 0.1 % resolves
    assert set(Counter(test.cluster.tolist()).values()) == {4}
    for source in heldout.cluster[:20]:
        versions = test.take(test.cluster == source)
        original = heldout.take(heldout.cluster == source)
        assert set(versions.targets) == set(original.targets)
        np.testing.assert_array_equal(versions.inputs[0], original.inputs[0])
        distance = np.abs(versions.inputs[1:] - original.inputs).mean(axis=(1, 2, 3))
        assert np.all(distance > 0)
        assert np.all(distance < 0.25)


def test_digits_are_the_same_every_time(digit_set):
    again = digits.load()
    assert again.hash == digit_set.hash
    np.testing.assert_array_equal(again.test.inputs, digit_set.test.inputs)
    assert digit_set.train.inputs.dtype == np.float32
    assert digit_set.train.inputs.min() == 0
    assert digit_set.train.inputs.max() == 1


# --- augmentation


def test_warp_moves_whole_pixels_exactly_and_turns_right_angles():
    images = np.random.default_rng(0).random((2, 5, 5, 1)).astype(np.float32)
    still = rotation(np.zeros(2))
    np.testing.assert_array_equal(warp(images, still, np.zeros((2, 2))), images)
    moved = warp(images, still, np.array([[1.0, 0.0], [0.0, -2.0]]))
    np.testing.assert_allclose(moved[0, 1:], images[0, :-1], atol=1e-6)
    np.testing.assert_array_equal(moved[0, 0], 0)
    np.testing.assert_allclose(moved[1, :, :-2], images[1, :, 2:], atol=1e-6)
    turned = warp(images, rotation(np.full(2, 90.0)), np.zeros((2, 2)))
    np.testing.assert_allclose(turned, np.rot90(images, axes=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    "draw",
    [
        partial(random_rotations, degrees=10, shift=1),
        partial(random_distortions, spread=0.1, shift=1),
    ],
    ids=["rotations", "distortions"],
)
def test_random_copies_follow_their_seed(draw):
    images = np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)
    one, same, other = (draw(images, 2, seed) for seed in (0, 0, 1))
    assert one.shape == (2, 3, 8, 8, 1)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert not np.allclose(one[0], one[1])


# --- windows


def test_windows_are_the_text_and_its_next_bytes():
    text = bytes(range(100)) * 2
    split = windows(text, 16)
    assert len(split) == 200 // 17
    whole = np.concatenate([split.inputs, split.targets[:, -1:]], axis=1)
    assert whole.astype(np.uint8).tobytes() == text[: 17 * 11]
    np.testing.assert_array_equal(split.inputs[:, 1:], split.targets[:, :-1])


def test_spread_covers_the_split_evenly():
    split = windows(bytes(3400), 16)
    chosen = spread(split, 7)
    assert len(chosen) == 7
    assert chosen.cluster[0] == 0
    assert set(np.diff(chosen.cluster)) <= {28, 29}
    assert len(spread(split, 10_000)) == 200


def test_text_dataset_refuses_a_part_without_windows():
    with pytest.raises(ValueError, match=r"calibration text has 9 bytes, too few for 8 windows"):
        text_dataset("x", {**dict.fromkeys(PARTS, bytes(9000)), "calibration": bytes(9)}, 32, {})


# --- text files


def test_a_text_file_is_split_into_contiguous_parts(tmp_path):
    text = np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    path = tmp_path / "text.bin"
    path.write_bytes(text)
    data = load("text", text=path, length=32)
    assert data.kind == "text"
    assert data.info["bytes"] == {"train": 18_000, "calibration": 800, "test": 1200}
    assert data.train.inputs[0].astype(np.uint8).tobytes() == text[:32]
    path.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    assert textfile.load(path, 32).hash != data.hash


def test_unusable_text_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.txt: No such file or directory; give a read"):
        textfile.load(tmp_path / "missing.txt")
    short = tmp_path / "short.txt"
    short.write_text("too short")
    with pytest.raises(ValueError, match=r"9 bytes are too few .* give at least 25800"):
        textfile.load(short)
    with pytest.raises(ValueError, match="--text FILE"):
        load("text")
    with pytest.raises(ValueError, match="choose one of digits, fashion"):
        load("imagenet")


# --- docstrings


def test_docstrings_are_found_in_modules_classes_and_functions():
    source = (
        '"""M."""\nclass C:\n    """C."""\n    async def f(self):\n        """  F.\n        g"""\n'
    )
    assert extract(source.encode()) == ["M.", "C.", "F.\ng"]
    assert extract(b"def broken(:") == []
    assert extract(b"x = 1") == []


def test_equal_docstrings_stay_in_one_part_only():
    modules = [("b", ["two", "one"]), ("a", ["one", "one", "three"]), ("c", ["two"])]
    assert docstrings.deduplicate(modules) == [("a", ["one", "three"]), ("b", ["two"])]
    many = [(f"package.module{i}", [f"text {i}"]) for i in range(2000)]
    parts = docstrings.split_by_module(many)
    count = {part: len(text.split(docstrings.SEPARATOR)) for part, text in parts.items()}
    assert sum(count.values()) == 2000
    assert 80 < count["test"] < 160
    assert 35 < count["calibration"] < 90
    assert docstrings.split_by_module(many) == parts


@pytest.fixture
def small_package(tmp_path, monkeypatch):
    """Two packages on disk instead of the five: the same path through the code, in a moment."""
    for package in ("one", "two"):
        (tmp_path / package / "tests").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text('"""Shared."""')
        (tmp_path / package / "tests" / "test_a.py").write_text('"""A test."""')
        for i in range(300):
            body = f'"""{package} {i} {"words " * 20}"""\nraise RuntimeError("never imported")\n'
            (tmp_path / package / f"m{i}.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstrings, "PACKAGES", ("one", "two"))
    monkeypatch.setattr(docstrings, "version", lambda package: "1.0")
    return tmp_path


def test_docstrings_are_extracted_once_and_again_when_the_cache_is_damaged(
    small_package, tmp_path, monkeypatch
):
    cache = tmp_path / "cache"
    first = docstrings.load(16, cache=cache)
    rows = np.concatenate([first.train.inputs[:, :1], first.train.targets], axis=1)
    text = rows.astype(np.uint8).tobytes()
    assert text.count(b" words words ") > 100
    assert text.count(b"Shared.") <= 1
    assert b"A test." not in text
    (stored,) = (cache / "data").iterdir()

    def never(progress):
        raise AssertionError("extracted although cached")

    with monkeypatch.context() as patch:
        patch.setattr(docstrings, "_extract", never)
        assert docstrings.load(16, cache=cache).hash == first.hash

    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 0xFF
    stored.write_bytes(bytes(content))
    assert docstrings.load(16, cache=cache).hash == first.hash
    assert stored.read_bytes() != bytes(content)


def test_extraction_reads_a_file_of_an_installed_package():
    import scipy

    source = Path(scipy.__file__).read_bytes()
    assert extract(source)[0] == ast.get_docstring(ast.parse(source))


# --- trigram


def naive_trigram(train: Split, test: Split) -> float:
    """Witten-Bell from dictionaries, one byte at a time."""
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for row, last in zip(train.inputs, train.targets[:, -1], strict=True):
        text = [*row.tolist(), int(last)]
        for i, byte in enumerate(text):
            for order in range(3):
                if i >= order:
                    counts[tuple(text[i - order : i])][byte] += 1

    def p(byte: int, history: tuple) -> float:
        lower = p(byte, history[1:]) if history else 1 / 256
        seen = counts.get(history)
        if not seen:
            return lower
        return (seen[byte] + len(seen) * lower) / (sum(seen.values()) + len(seen))

    bits = [
        -math.log2(p(int(target), tuple(row[max(0, i - 1) : i + 1].tolist())))
        for row, targets in zip(test.inputs, test.targets, strict=True)
        for i, target in enumerate(targets)
    ]
    return sum(bits) / len(bits)


def test_trigram_agrees_with_dictionaries():
    rng = np.random.default_rng(0)
    text = rng.choice(list(b"abcab cabd"), 3000).astype(np.uint8).tobytes()
    unseen = rng.choice(list(b"abcxyz"), 500).astype(np.uint8).tobytes()
    train, test = windows(text, 24), windows(unseen, 24)
    assert trigram_bits_per_byte(train, test) == pytest.approx(naive_trigram(train, test))
    # A text that repeats itself is learned; noise costs about its entropy.
    assert trigram_bits_per_byte(windows(b"abcd" * 4000, 24), windows(b"abcd" * 400, 24)) < 0.1


# --- Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion_folder(tmp_path):
    rng = np.random.default_rng(0)
    for names, count in ((fashion.FILES, 300), (fashion.TEST_FILES, 40)):
        images = idx(rng.integers(0, 256, (count, 28, 28)))
        labels = idx(np.arange(count) % 10)
        (tmp_path / f"{names[0]}.gz").write_bytes(gzip.compress(images))
        (tmp_path / names[1]).write_bytes(labels)
    return tmp_path


def test_fashion_reads_plain_and_gzipped_files(fashion_folder):
    data = load("fashion", images_dir=fashion_folder)
    assert data.train.inputs.shape == (300, 28, 28, 1)
    assert data.test.targets.tolist() == [i % 10 for i in range(40)]
    assert data.train.inputs.dtype == np.float32
    assert data.train.inputs.max() == 1
    assert len(data.calibration) == 128
    assert data.hash == load("fashion", images_dir=fashion_folder).hash


def test_fashion_is_compared_on_fewer_images_than_say_how_good_a_model_is(
    fashion_folder, monkeypatch
):
    monkeypatch.setattr(fashion, "TEST", 20)
    data = load("fashion", images_dir=fashion_folder)
    assert data.test.cluster.tolist() == list(range(0, 40, 2))
    assert data.heldout.cluster.tolist() == list(range(40))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", b"", "starts with nothing, not with 000008"),
        ("train-labels-idx1-ubyte", b"\x89PNG....", "starts with 89504e47"),
        ("train-labels-idx1-ubyte", idx(np.arange(300))[:-7], "is cut off or damaged"),
        ("train-labels-idx1-ubyte", b"\0\0\x08\x03\0\0", "is cut off or damaged"),
        ("train-labels-idx1-ubyte", idx(np.zeros(299)), "expected .N, height, width. and .N."),
        ("train-labels-idx1-ubyte", idx(np.full(300, 10)), "label 10: expected classes 0 to 9"),
        ("train-images-idx3-ubyte.gz", b"not gzip", "cannot be read"),
        ("t10k-images-idx3-ubyte.gz", None, "install Debian's package dataset-fashion-mnist"),
    ],
)
def test_unusable_idx_files_are_refused_by_name(fashion_folder, name, content, message):
    if content is None:
        (fashion_folder / name).unlink()
    else:
        (fashion_folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        fashion.load(fashion_folder)
    assert name.removesuffix(".gz") in str(caught.value)
    assert "\n" not in str(caught.value)


# --- small things


def test_hash_sees_types_shapes_and_borders():
    a = np.arange(6, dtype=np.int32)
    assert content_hash(a) == content_hash(a.copy())
    different = [a, a.reshape(2, 3), a.astype(np.int64), a + 1]
    assert len({content_hash(x) for x in different}) == 4
    assert content_hash(b"ab", b"c") != content_hash(b"a", b"bc")


def test_a_split_must_be_consistent():
    with pytest.raises(ValueError, match="2 inputs, 3 targets and 2 clusters"):
        Split(np.zeros(2), np.zeros(3), np.zeros(2))


def test_cache_folder_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PERTURB_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("PERTURB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "compression-order"
