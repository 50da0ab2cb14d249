"""What is computed becomes what JSON can hold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from perturb.plain import plain, to_json


class Pair(NamedTuple):
    a: int
    b: np.ndarray


@dataclass(frozen=True)
class Held:
    name: str
    pairs: tuple[Pair, ...]
    where: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array(1.5), 1.5),
        (jnp.array([1.5, jnp.nan]), [1.5, None]),
        (jnp.array([1.5], jnp.bfloat16), [1.5]),
        ([float("nan"), float("inf"), np.float32("-inf")], [None, None, None]),
        ({1: (2.0, {"x"}), "y": range(2)}, {"1": [2.0, ["x"]], "y": [0, 1]}),
        (
            Held("h", (Pair(1, np.zeros(1)),), Path("a/b")),
            {"name": "h", "pairs": [[1, [0.0]]], "where": "a/b"},
        ),
    ],
)
def test_values_as_json_knows_them(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, Held, {"a": [lambda: 0]}])
def test_what_json_has_no_form_for_is_refused(value):
    with pytest.raises(TypeError, match="JSON has no form for a"):
        plain(value)


def test_a_text_of_json_ends_in_a_newline():
    assert to_json({"ä": float("nan")}, indent=None) == '{"ä": null}\n'
    assert to_json([1]) == "[\n  1\n]\n"


def test_keys_do_not_swallow_one_another():
    with pytest.raises(ValueError, match="two keys have one text"):
        plain({1: "a", "1": "b"})


def test_it_needs_neither_jax_nor_flax():
    """The file alone: what importing the package brings along is not its doing."""
    path = Path(__file__).parent.parent / "perturb" / "plain.py"
    code = (
        f"import runpy, sys; runpy.run_path({str(path)!r})\n"
        "print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
