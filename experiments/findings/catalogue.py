"""All findings, in the order in which they are told."""

from __future__ import annotations

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
from experiments.findings.types import Finding

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
