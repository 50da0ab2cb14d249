"""A verification that could not fail would say nothing: mistakes put in on purpose, one by one.

``python -m tests.test_theory_mutations`` tries the list of :mod:`tests.mutations` and prints the
score. Each is verified by the part that is to notice it, on few instances; the same part passes
without it.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

from perturb.backend import compile_quickly
from perturb.programs import cache_programs
from tests.mutations import EXACT, FINDINGS, MUTATIONS, PROOF, Edit, Mutation

INSTANCES = 2000
POINTS = 250  # a call of a program: one claim has a population of its own, no larger than in verify
ROOT = Path(__file__).parents[1]


def edited(edits: tuple[Edit, ...]) -> dict[str, str]:
    """Sources of modules after these edits, each of which has one place."""
    sources: dict[str, str] = {}
    for edit in edits:
        name = f"theory.{edit.module}"
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        text = sources.get(name) or Path(spec.origin).read_text()
        assert text.count(edit.old) == 1, f"{name}: {edit.old!r}, {text.count(edit.old)} times"
        sources[name] = text.replace(edit.old, edit.new)
    return sources


class Mutants(MetaPathFinder, Loader):
    """Imports modules from these sources."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name in self.sources else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.sources[module.__name__], module.__name__, "exec"), module.__dict__)


@contextmanager
def mutated(edits: tuple[Edit, ...]) -> Iterator[None]:
    """Inside, ``theory`` is imported anew, with these edits; what was imported comes back after."""
    finder = Mutants(edited(edits))

    def ours() -> list[str]:
        return [n for n in sys.modules if n.partition(".")[0] == "theory"]

    kept = {name: sys.modules.pop(name) for name in ours()}
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in ours():
            del sys.modules[name]
        sys.modules.update(kept)


@cache
def failures(statement: str, part: str, *edits: Edit) -> tuple[str, ...]:
    """What one part of the verification of a statement finds wrong: a claim, alone, or all of a
    proof, an enumeration or the findings."""
    with mutated(edits):
        engine = importlib.import_module("theory.engine.verify")
        engine.sweep.CHUNK = POINTS
        s = importlib.import_module(f"theory.statements.{statement}.claims").STATEMENT
        if part == PROOF:
            return tuple(step.says for step in s.prove().steps if not step.holds)
        if part == EXACT:
            return () if s.exact().holds else (s.exact().failure,)
        if part == FINDINGS:
            found = s.measure(jax.random.fold_in(jax.random.key(0), 2))
            return tuple(f.name for f in found if f.required and f.verdict != "holds")
        families = [replace(f, claims=(c,)) for f in s.families for c in f.claims if c.name == part]
        assert len(families) == 1, f"{statement} has no claim {part!r}"
        only = replace(
            s,
            families=families,
            prove=lambda: importlib.import_module("theory.engine.statement").Proof(()),
            exact=lambda: None,
            measure=lambda key: (),
            necessity=lambda: (),
            law=None,
        )
        count = round(INSTANCES / families[0].share)
        return tuple(engine.verify(only, count, 0)["failures"])


def caught(m: Mutation) -> bool:
    """Whether the part fails; of a verdict, whether it no longer turns with the data."""
    if m.contrary is None:
        assert failures(m.statement, m.caught_by) == (), f"{m.statement} fails without {m}"
        return bool(failures(m.statement, m.caught_by, m.edit))
    turns = failures(m.statement, m.caught_by, m.contrary)
    return bool(turns) and failures(m.statement, m.caught_by, m.contrary, m.edit) != turns


def main() -> int:
    """Try all; the exit code is 1 if one is not caught and not listed, or listed and caught."""
    compile_quickly()
    cache_programs()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    score = wrong = 0
    for m in MUTATIONS:
        found = caught(m)
        score += found
        wrong += found == bool(m.unseen)
        if not found:
            print(f"not caught: {m.kind}, {m}: {m.unseen or 'and no reason why'}", flush=True)
        elif m.unseen:
            print(f"caught after all: {m}", flush=True)
    print(f"{score} of {len(MUTATIONS)} mutations caught")
    return int(wrong > 0)


@pytest.mark.slow
def test_mutations_are_caught_or_listed():
    """In a process of its own, which compiles as ``python -m theory`` does: about a minute."""
    argv = [sys.executable, "-m", "tests.test_theory_mutations"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = sum(bool(m.unseen) for m in MUTATIONS)
    told = f"{len(MUTATIONS) - listed} of {len(MUTATIONS)} mutations caught"
    assert done.stdout.splitlines()[-1] == told


def test_the_list_is_long_and_of_every_kind():
    kinds = Counter(m.kind for m in MUTATIONS)
    assert set(kinds) == {"closed form", "claim", "family", "measure", "verdict"}
    assert min(kinds.values()) >= 5
    assert len({(m.edit, m.contrary) for m in MUTATIONS}) == len(MUTATIONS)
    for m in MUTATIONS:
        assert edited((m.edit,))
        assert m.contrary is None or edited((m.contrary, m.edit))


if __name__ == "__main__":
    sys.exit(main())
