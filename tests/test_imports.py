"""The import rules of the design, read from the source: data flows one way."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("perturb", "theory", "experiments", "figures", "tests")
MAY = {  # which of OURS a package may import, besides itself
    "perturb": set(),
    "theory": {"perturb"},
    "experiments": {"perturb", "theory"},
    "figures": {"theory"},  # and the modules of experiments below
}
FIGURES_READ = {"records", "analysis", "summary", "report"}  # of experiments
FRAMEWORKS = {"flax", "optax"}


def package(name: str) -> list[Path]:
    return sorted((ROOT / name).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full dotted names of all that a file imports, wherever in it; relative ones resolved."""
    yield from names_in(ast.parse(path.read_text(), str(path)), path.relative_to(ROOT))


def names_in(tree: ast.AST, path: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = (
                node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            )
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def violations(path: Path, names: Iterator[str]) -> list[str]:
    """What of these imports the file's package may not do."""
    own = path.parts[0]
    wrong = []
    for name in names:
        top, _, rest = name.partition(".")
        allowed = top not in OURS or top == own or top in MAY[own]
        if own == "figures" and top == "experiments":
            allowed = rest.split(".")[0] in FIGURES_READ
        if own == "figures" and top in {*FRAMEWORKS, "jax"}:
            allowed = False
        if own == "theory" and top in FRAMEWORKS:
            allowed = False
        if own == "perturb" and top not in {"perturb", "jax", "numpy", *sys.stdlib_module_names}:
            only = {"flax": "perturb/network/*.py", "rich": "perturb/__main__.py"}
            allowed = fnmatchcase(path.as_posix(), only.get(top, ""))
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("name", MAY)
def test_a_package_imports_only_what_it_may(name):
    files = package(name)
    assert files, f"no package {name}: the rule would hold of nothing"
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := violations(path.relative_to(ROOT), imported(path)))
    }
    assert not wrong


def test_flax_meets_perturb_in_one_package():
    users = {
        path.parent.relative_to(ROOT).as_posix()
        for path in package("perturb")
        if any(name.partition(".")[0] == "flax" for name in imported(path))
    }
    assert users == {"perturb/network"}


def files_of(module: str) -> list[Path]:
    """Of a module of experiments, which may be a package."""
    path = ROOT / "experiments" / module
    return [f for f in (path.with_suffix(".py"), *sorted(path.rglob("*.py"))) if f.is_file()]


@pytest.mark.parametrize("module", sorted(FIGURES_READ))
def test_what_figures_read_brings_no_model_along(module):
    """Else figures would import models after all, one step removed."""
    seen: set[Path] = set()
    todo = files_of(module)
    assert todo, f"no module experiments.{module}: the rule would hold of nothing"
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imported(path):
            assert name.partition(".")[0] not in FRAMEWORKS, f"{path} imports {name}"
            assert not name.startswith(("experiments.models", "experiments.train"))
            if name.startswith("experiments."):
                todo += files_of(name.split(".")[1])


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("perturb/a.py", "from experiments import train", ["experiments.train"]),
        ("perturb/a.py", "from flax import nnx", ["flax.nnx"]),
        ("perturb/network/a.py", "from flax import nnx", []),
        ("perturb/network.py", "from flax import nnx", ["flax.nnx"]),
        ("perturb/a.py", "import rich.table", ["rich.table"]),
        ("perturb/a.py", "import scipy", ["scipy"]),
        ("perturb/methods/prune/a.py", "from ..lift import compress", []),
        ("perturb/a.py", "import_module('experiments.train')", ["experiments.train"]),
        ("theory/a.py", "def f():\n    import experiments.train", ["experiments.train"]),
        ("theory/a.py", "import perturb, scipy", []),
        ("experiments/a.py", "from figures.style import save", ["figures.style.save"]),
        ("experiments/a.py", "from tests import reference", ["tests.reference"]),
        ("figures/a.py", "from experiments.models import llama", ["experiments.models.llama"]),
        ("figures/a.py", "from experiments import train", ["experiments.train"]),
        ("figures/a.py", "from experiments.records import load", []),
        ("figures/a.py", "import perturb", ["perturb"]),
        ("figures/a.py", "import jax.numpy", ["jax.numpy"]),
    ],
)
def test_the_rule_itself_sees_what_it_should(path, source, wrong):
    relative = Path(path)
    assert violations(relative, names_in(ast.parse(source), relative)) == wrong
