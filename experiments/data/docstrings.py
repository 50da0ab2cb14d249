"""Text that every installation already has: the docstrings of the scientific packages.

About 14 MB of technical English, formulas and code examples from numpy, scipy, sympy,
matplotlib and jax. Their files are parsed, never imported; tests are skipped (few docstrings,
most of the parsing time). A docstring that occurs twice is kept once, before the split, so that
no test text was trained on; the split is by module, decided by a hash of the module's name, so
that one package's new release does not reshuffle the others.

Windows that are measured on are spread over the whole test text, so hardly two are of one module,
and a window is its own cluster.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.progress import Progress

from experiments.data.cache import cache_dir
from experiments.data.types import Dataset, content_hash
from experiments.data.windows import PARTS, text_dataset
from perturb.files import write_atomic

PACKAGES = ("numpy", "scipy", "sympy", "matplotlib", "jax")
SPLIT_RULE = "sha256(module name) mod 100: 0-5 test, 6-8 calibration, else train"
SEPARATOR = b"\n\n\n"
WORKERS = 2
FORMAT = 1  # raise when the extraction changes, so that caches of the old one are not read


def load(
    length: int = 128, *, cache: Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Docstrings as windows of ``length`` bytes; the first call takes some ten seconds.

    The extracted text is kept in ``cache``, keyed by the packages' versions.
    """
    versions = {package: version(package) for package in PACKAGES}
    key = hashlib.sha256(json.dumps([FORMAT, SPLIT_RULE, versions]).encode()).hexdigest()[:16]
    path = (cache or cache_dir()) / "data" / f"docstrings-{key}.npz"
    texts = _read(path)
    if texts is None:
        texts = split_by_module(deduplicate(_extract(progress)))
        _write(path, texts)
    info = {"source": "docstrings", "versions": versions, "split": SPLIT_RULE}
    return text_dataset("docstrings", texts, length, info)


def deduplicate(modules: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Keep the first of equal docstrings, modules in the order of their names."""
    seen: set[str] = set()
    kept: list[tuple[str, list[str]]] = []
    for module, found in sorted(modules):
        fresh = [text for text in dict.fromkeys(found) if text not in seen]
        seen.update(fresh)
        if fresh:
            kept.append((module, fresh))
    return kept


def part_of(module: str) -> str:
    """The part a module belongs to; see SPLIT_RULE."""
    bucket = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big") % 100
    return "test" if bucket < 6 else "calibration" if bucket < 9 else "train"


def split_by_module(modules: list[tuple[str, list[str]]]) -> dict[str, bytes]:
    """Each part's text: its modules' docstrings in UTF-8, one after the other."""
    texts: dict[str, list[bytes]] = {part: [] for part in PARTS}
    for module, found in modules:
        texts[part_of(module)] += [text.encode("utf-8", "replace") for text in found]
    return {part: SEPARATOR.join(found) for part, found in texts.items()}


def _sources() -> Iterator[tuple[str, str]]:
    """(module name, path) of every Python file of the packages but their tests."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"package {package} is not installed: its docstrings are needed")
        root = Path(next(iter(spec.submodule_search_locations)))
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root.parent).with_suffix("")
            if "tests" not in inside.parts:
                yield ".".join(inside.parts), str(path)


def _extract(progress: Progress | None) -> list[tuple[str, list[str]]]:
    """Parse all files in WORKERS processes; the order of the result is not specified."""
    sources = list(_sources())
    progress = progress or Progress(disable=True)
    task = progress.add_task("reading docstrings (once)", total=len(sources))
    script = str(Path(__file__).with_name("_extract.py"))
    found: list[tuple[str, list[str]]] = []
    codes: list[int] = []

    def work(share: list[tuple[str, str]]) -> None:
        command = [sys.executable, "-I", script]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with process.stdin:
                json.dump(share, process.stdin)
            for line in process.stdout:
                module, texts = json.loads(line)
                found.append((module, texts))
                progress.advance(task)
        codes.append(process.returncode)

    threads = [
        threading.Thread(target=work, args=(sources[start::WORKERS],)) for start in range(WORKERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress.remove_task(task)
    if codes != [0] * WORKERS or len(found) != len(sources):
        raise RuntimeError(
            f"reading docstrings stopped after {len(found)} of {len(sources)} files, "
            f"exit codes {codes}"
        )
    return found


def _write(path: Path, texts: dict[str, bytes]) -> None:
    arrays = {part: np.frombuffer(text, np.uint8) for part, text in texts.items()}
    digest = content_hash(*(texts[part] for part in PARTS))
    buffer = io.BytesIO()
    np.savez(buffer, hash=np.array(digest), **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def _read(path: Path) -> dict[str, bytes] | None:
    """The cached texts, or None when there are none or the file is damaged."""
    try:
        with np.load(path) as stored:
            texts = {part: stored[part].tobytes() for part in PARTS}
            intact = str(stored["hash"]) == content_hash(*(texts[part] for part in PARTS))
    except Exception:  # zipfile, numpy and the file system fail in many ways: extract again
        return None
    return texts if intact else None
