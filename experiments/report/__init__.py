"""What a person reads of a study's findings."""

from experiments.report.table import render

__all__ = ["render"]
