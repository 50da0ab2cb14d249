"""All findings, in the order in which they are told."""

from __future__ import annotations

from itertools import islice

from experiments.findings import (
    granularity,
    language,
    lora,
    mixed,
    others,
    real,
    rotation,
    sharing,
    stages,
)
from experiments.findings.types import Finding, Row, together

FINDINGS: tuple[Finding, ...] = (
    language.LANGUAGE,
    rotation.FOUR,
    rotation.AMPLIFIED,
    granularity.GRANULARITY,
    language.VISION,
    stages.SORTED,
    lora.ADAPTERS,
    sharing.SHARING,
    mixed.MIXED,
    *others.FINDINGS,
    *real.FINDINGS,
)


def judged() -> list[tuple[Finding, list[Row]]]:
    """Every finding with its rows, all judged together."""
    every = [(finding, list(finding.rows())) for finding in FINDINGS]
    rows = iter(together([row for _, mine in every for row in mine]))
    return [(finding, list(islice(rows, len(mine)))) for finding, mine in every]
