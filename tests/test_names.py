"""Patterns and short forms of layers' names."""

from __future__ import annotations

import re

import pytest

from perturb.network import fits, short_names

NAMES = [
    *(f"layers.{i}.{part}" for i in range(12) for part in ("attention.query", "mlp.up_proj")),
    *(f"decoder.experts.up[{i}]" for i in range(30)),
    "head",
]


@pytest.mark.parametrize(
    ("name", "pattern", "means"),
    [
        ("experts[3]", "experts[3]", True),
        ("experts[3]", "experts", True),
        ("experts[3]", "exp*", True),
        ("experts[3]", "experts[[]3]", True),
        ("experts[3]", "experts[*]", True),
        ("experts[31]", "experts[3]", False),
        ("experts[31]", "experts[3?]", True),
        ("experts3", "experts[3]", True),  # a choice of characters
        ("layers.1.q", "layers.[12].*", True),
        ("layers.3.q", "layers.[12].*", False),
        ("layers.3.q", "layers", False),
    ],
)
def test_what_a_pattern_means(name: str, pattern: str, means: bool) -> None:
    assert fits(name, pattern) is means


@pytest.mark.parametrize("width", [4, 6, 8, 10, 12, 16, 20, 24, 40])
def test_short_names_are_distinct_and_fit(width: int) -> None:
    short = short_names(NAMES, width)
    assert list(short) == NAMES
    assert len(set(short.values())) == len(NAMES)
    assert all(len(s) <= width for s in short.values())
    assert short == short_names(NAMES, width)
    if width >= 16:
        for name, s in short.items():
            assert re.findall(r"\d+", s) == re.findall(r"\d+", name)
    if width >= 25:
        assert short == {n: n for n in NAMES}


def test_the_words_that_lead_are_cut() -> None:
    assert short_names(["layer1.0.conv2"], 13) == {"layer1.0.conv2": "laye1.0.conv2"}
    assert short_names(["layer1.0.conv2"], 10) == {"layer1.0.conv2": "l1.0.conv2"}
    names = ["layers.10.attention.query", "layers.10.attractor.query", "head"]
    assert list(short_names(names, 20).values()) == [
        "layer.10.atten.query",
        "layer.10.attra.query",
        "head",
    ]
    assert list(short_names(names, 16).values()) == ["l.10.a.query~1", "l.10.a.query~2", "head"]


def test_a_width_in_which_nothing_can_be_told() -> None:
    with pytest.raises(ValueError, match="a width of 3 is too small"):
        short_names(NAMES, 3)
    assert short_names([], 9) == {}
