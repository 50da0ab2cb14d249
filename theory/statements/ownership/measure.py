"""Theorem 1 in numbers: what became of the claim of Kim et al."""

from __future__ import annotations

from jax import Array

from theory.engine.statement import Finding
from theory.statements.ownership.proof import exact


def measure(key: Array) -> tuple[Finding, ...]:
    return (
        Finding(
            "Theorem 1 of Kim et al. (ownership)",
            "holds" if exact().holds else "false",
            "an identity for any errors, owner sets and granularity; it says nothing about the "
            "sign of A, and needs the interference term wherever scales are refitted",
            {},
        ),
    )
