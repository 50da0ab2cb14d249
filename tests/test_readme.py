"""The README is true: its numbers come from the records, its example runs as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from experiments.readme import README, ROOT, rendered


def test_generated_parts_are_what_the_records_say() -> None:
    text = README.read_text()
    assert rendered(text) == text, "run python -m experiments.readme"
    assert "names the winner in" in text


def test_the_example_runs_as_written() -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 1
    code = [line for line in examples[0].splitlines() if line.strip()]
    assert len(code) <= 10
    done = subprocess.run(
        [sys.executable, "-c", examples[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    starts = [line.partition(":")[0] for line in lines]
    assert starts == ["sparsegpt -> gptq", "gptq -> sparsegpt"]
    assert all("sparsity 50%" in line for line in lines)


def snippets() -> list[str]:
    """The examples of the README that are parts of files of one's own."""
    return re.findall(r"```py\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_method_of_ones_own_works_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.study import axis
    from perturb import GPTQ, chain, compress
    from perturb.__main__ import main
    from perturb.registry import METHODS

    code = next(c for c in snippets() if "@method" in c)
    own: dict[str, Any] = {}
    try:
        exec(code, own)
        random = own["Random"]
        model = nnx.Sequential(nnx.Linear(32, 16, rngs=nnx.Rngs(0)))
        x = jax.random.normal(jax.random.key(0), (64, 32))
        done = compress(model, chain(random(0.25), GPTQ(4)), x)
        assert done.sparsity == 0.25
        assert [s.sparsity for s in axis(random, sparsity=(0.3, 0.5)).stages] == [0.3, 0.5]
        loader = """
def load():
    import jax
    from flax import nnx
    model = nnx.Sequential(nnx.Linear(32, 16, rngs=nnx.Rngs(0)))
    return model, [jax.random.normal(jax.random.key(0), (64, 32))]
"""
        (tmp_path / "mine.py").write_text(code + loader)
        monkeypatch.chdir(tmp_path)
        METHODS.pop("random")
        assert main(["mine.py:load", "--stage", "mine.py:Random:0.5", "--stage", "rtn:4"]) == 0
        assert "50.0 % pruned" in capsys.readouterr().out
    finally:
        METHODS.pop("random", None)


def test_the_study_of_ones_own_is_one() -> None:
    code = next(c for c in snippets() if "STUDY" in c)
    made: dict[str, Any] = {}
    exec(code, made)
    study = made["STUDY"]
    assert study.runs == 2 * 3 * 2 * 2
    assert len(study.chains()) == 1 + (2 + 2 + 4 + 4) + (3 + 6 + 6)


def test_links_and_figures_exist() -> None:
    for link in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_ci_runs_the_readmes_own_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "<!-- test command -->" in script
    command = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", README.read_text(), re.DOTALL)
    assert command is not None
    assert "-m pytest" in command[1]
