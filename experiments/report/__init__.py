"""What a person reads of a study's findings."""

from experiments.report.point import parse_point, point_json, render_point
from experiments.report.table import render

__all__ = ["parse_point", "point_json", "render", "render_point"]
