"""What the names of stages in records say: the method, its amount, a setting."""

from __future__ import annotations

import re


def parts(stage: str) -> tuple[str, float]:
    """The method and the amount of a stage's name; a stage without an amount has nan."""
    found = re.fullmatch(r"(.+?)-([\d.]+)", stage)
    return (found[1], float(found[2])) if found else (stage, float("nan"))


def setting(stage: str, name: str) -> str | None:
    """A setting as a stage's name has it; None where it is the usual one."""
    found = re.search(rf"[\[,]{name}='?([\w.-]+)'?[,\]]", stage)
    return found[1] if found else None
