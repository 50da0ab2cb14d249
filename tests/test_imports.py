"""The import rules of the design, read from the source: data flows one way."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import perturb
from perturb.backend import AFFECTED, FLAG

ROOT = Path(__file__).parent.parent
OURS = ("perturb", "theory", "experiments", "figures", "tests")
MAY = {  # which of OURS a package may import, besides itself
    "perturb": set(),
    "theory": {"perturb"},
    "experiments": {"perturb", "theory"},
    "figures": {"theory"},  # and the modules of experiments and perturb below
}
FIGURES_READ = {"records", "analysis", "findings", "summary", "report"}  # of experiments
FIGURES_USE = {"cli", "files"}  # of perturb: the frame of command lines, which needs no jax
NO_JAX = {*FIGURES_USE, "plain", "policy", "backend"}  # of perturb, with its numbers:
NO_JAX |= {f"measure.{name}" for name in ("bootstrap", "intensity", "ranks")}
FRAMEWORKS = {"flax", "optax"}
ONLY = {  # where perturb may import what is neither its own nor jax, numpy or Python's
    "flax": ("perturb/network/*.py",),
    "rich": ("perturb/__main__.py", "perturb/scoring/table.py"),
    "scipy": ("perturb/methods/mixed/allocate.py",),  # an exact solver; jax itself needs scipy
    "gguf": ("perturb/checkpoints/gguf.py",),
}


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
        if own == "figures" and top == "perturb":
            allowed = rest.split(".")[0] in FIGURES_USE
        if own == "figures" and top in {*FRAMEWORKS, "jax"}:
            allowed = False
        if own == "theory" and top in FRAMEWORKS:
            allowed = False
        if own == "perturb" and top not in {"perturb", "jax", "numpy", *sys.stdlib_module_names}:
            allowed = any(fnmatchcase(path.as_posix(), p) for p in ONLY.get(top, ()))
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


def test_theory_has_rooms_and_no_circle():
    """Imports inside functions count, and so do the packages above a module, which run first."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package("theory")
    }

    def head(name: str, parts: int) -> str:
        return ".".join(name.split(".")[:parts])

    uses = {}
    for module, path in files.items():
        names = list(imported(path))
        assert not [n for n in names if n.startswith("importlib")], f"{module}: names unread here"
        heads = {head(n, i + 1) for n in (module, *names) for i in range(n.count(".") + 1)}
        uses[module] = (heads & files.keys()) - {module}
    for module, found in uses.items():
        if head(module, 2) in ("theory.engine", "theory.maths"):
            assert {head(n, 2) for n in found} <= {"theory", head(module, 2)}, module
        elif module not in ("theory.commands", "theory.workers", "theory.statements.catalogue"):
            statements = {head(n, 3) for n in found if n.startswith("theory.statements.")}
            assert statements <= {head(module, 3)}, f"{module} uses another statement"
    TopologicalSorter(uses).prepare()
    with pytest.raises(CycleError):  # what a method once hid
        TopologicalSorter(uses | {"theory.engine.statement": {"theory.engine.sweep"}}).prepare()


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
            top, _, rest = name.partition(".")
            assert top not in {*FRAMEWORKS, "jax"}, f"{path} imports {name}"
            assert not name.startswith(("experiments.models", "experiments.train"))
            if top == "perturb":
                assert any(f"{rest}.".startswith(f"{part}.") for part in NO_JAX), f"{path}: {name}"
            if name.startswith("experiments."):
                todo += files_of(name.split(".")[1])


@pytest.mark.parametrize("module", sorted(NO_JAX))
def test_what_needs_no_jax_imports_none(module):
    path = ROOT / "perturb" / f"{module.replace('.', '/')}.py"
    for name in imported(path):
        top, _, rest = name.partition(".")
        mine = top == "perturb" and any(f"{rest}.".startswith(f"{part}.") for part in NO_JAX)
        assert mine or top in {"numpy", *sys.stdlib_module_names}, f"{path} imports {name}"


# ------------------------------------------------------------------------- names of perturb


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=CLEAN
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CLEAN = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def test_names_are_imported_when_they_are_taken_and_are_all_there():
    run(
        "import sys, perturb\n"
        "assert 'jax' not in sys.modules\n"
        "assert set(perturb.__all__) <= set(dir(perturb))\n"
        "perturb.Policy()\n"
        "assert 'jax' not in sys.modules\n"
        "for name in perturb.__all__:\n"
        "    value = getattr(perturb, name)\n"
        "    assert value.__name__ == name and value.__module__.startswith('perturb.'), name\n"
        "assert 'jax' in sys.modules\n"
        "from perturb import *\n"
        "assert chain(RTN(4), Wanda(0.5)).name == perturb.chain(RTN(4), Wanda(0.5)).name\n"
        "try: perturb.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise AssertionError\n"
    )


@pytest.mark.parametrize(
    "first",
    ["import perturb.scoring", "from perturb import score", "from perturb.scoring import engine"],
)
def test_score_is_the_function_whichever_is_imported_first(first):
    """Importing the module of that name would put it into the package, over the function."""
    run(
        f"{first}\nimport perturb.scoring.engine, perturb\nfrom perturb import score\n"
        "import inspect\n"
        "assert inspect.isfunction(score) and perturb.score is score\n"
    )


def test_no_module_has_the_name_of_a_public_function():
    """Python would put the module into the package, over the function."""
    modules = {path.stem for path in package("perturb")} | {
        path.parent.name for path in package("perturb")
    }
    assert not modules & {*perturb.__all__}


@pytest.mark.parametrize("first", ["perturb.registry", "perturb.measure.errors", "perturb.types"])
def test_the_flag_is_set_whichever_module_comes_first(first):
    """It must be there before jax starts its backend, and nobody need take a name for that."""
    if importlib.util.find_spec("jaxlib") is None or version("jaxlib") not in AFFECTED:
        pytest.skip("this jaxlib needs no flag")
    told = run(f"import os, {first}\nprint(os.environ.get('XLA_FLAGS', ''))")
    assert FLAG in told


def test_what_the_type_checker_sees_is_what_is_there():
    tree = ast.parse((ROOT / "perturb" / "__init__.py").read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    seen = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"perturb.{home}" for name, home in perturb._HOMES.items()}
    assert set(seen) == set(perturb.__all__)


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
        ("figures/a.py", "from perturb import RTN", ["perturb.RTN"]),
        ("figures/a.py", "from perturb import cli", []),
        ("figures/a.py", "from perturb.files import write_atomic", []),
        ("figures/a.py", "import jax.numpy", ["jax.numpy"]),
    ],
)
def test_the_rule_itself_sees_what_it_should(path, source, wrong):
    relative = Path(path)
    assert violations(relative, names_in(ast.parse(source), relative)) == wrong
