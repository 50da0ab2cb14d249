"""The README is true: its numbers come from the records, its example runs as written."""

from __future__ import annotations

import re
import subprocess
import sys

from experiments.readme import README, ROOT, rendered


def test_generated_parts_are_what_the_records_say() -> None:
    text = README.read_text()
    assert rendered(text) == text, "run python -m experiments.readme"
    assert "**all**" in text


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
