"""Read docstrings out of Python files without importing them. Needs the standard library only.

Run as a script by :mod:`experiments.data.docstrings`, several at a time: a plain script starts
in milliseconds and, unlike multiprocessing, never re-imports the caller's main module.

    python _extract.py < JSON [[module, path], ...]  > one JSON [module, [docstring, ...]] a line
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from pathlib import Path


def docstrings(source: bytes) -> list[str]:
    """The docstrings of the module and of its classes and functions, in order of line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):  # templates, deliberate test files
            return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    found = [ast.get_docstring(node, clean=True) for node in nodes]
    return [text for text in found if text]


def main() -> None:
    for module, path in json.load(sys.stdin):
        print(json.dumps([module, docstrings(Path(path).read_bytes())]), flush=True)


if __name__ == "__main__":
    main()
