"""From records to findings; needs numpy only, no jax: figures read records through this."""

from experiments.analysis.findings import summarize
from experiments.report import render
from experiments.summary import Summary

__all__ = ["Summary", "render", "summarize"]
