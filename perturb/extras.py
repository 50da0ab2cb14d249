"""Packages that only some doors need: the extras of this one."""

from __future__ import annotations


def how_to_install(package: str, extra: str) -> str:
    """The end of a message that a package is missing."""
    return f"pip install {package}, or install this package with its extra, '.[{extra}]'"
