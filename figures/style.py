"""One look for every figure: light, colour-blind safe, labelled where the eye is.

Colour has one meaning in the whole project: vermilion = pruning first wins (A(Q->P) < 0), blue =
quantizing first wins (A > 0), both from the Okabe-Ito palette. Ordered curves (pruning ratios)
take an ordered, monotone-lightness ramp. Figures are built without pyplot: no global state, no
display, the same bytes from the same data.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from experiments.summary import Comparison, Measure, Summary, short_model

PRUNE_FIRST = "#D55E00"
QUANTIZE_FIRST = "#0072B2"
INK, MUTED, RULE = "#1A1A1A", "#6B6B6B", "#BDBDBD"
DIVERGING = LinearSegmentedColormap.from_list(
    "prune_first_quantize_first", [PRUNE_FIRST, "#F6C9A8", "#FAFAFA", "#A9CFE6", QUANTIZE_FIRST]
)
FOOT = 0.85  # inches below the panels, for the key and how to read the marks
FORMATS = ("png", "svg", "pdf")
_RC = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "svg.hashsalt": "compression-order",  # without it, ids in an SVG are random
    "svg.fonttype": "none",
}


@contextmanager
def look() -> Iterator[None]:
    """The project's matplotlib settings, for the time of a ``with`` block."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)  # type: ignore[arg-type]
        yield


def ramp(count: int) -> list[str]:
    """``count`` ordered colours, light to dark (viridis without its pale yellow end)."""
    viridis = matplotlib.colormaps["viridis"]
    steps = [0.5] if count == 1 else [0.82 - 0.82 * i / (count - 1) for i in range(count)]
    return [matplotlib.colors.to_hex(viridis(step)) for step in steps]


def panels(
    comparisons: Sequence[Comparison],
    width: float,
    height: float,
    title: str,
    subtitle: str,
    share: bool = False,
) -> tuple[Figure, list[tuple[Comparison, Axes]]]:
    """A grid of panels, pruners down and quantizers across, in inches a panel.

    ``title`` is the takeaway, in words; ``subtitle`` what is drawn, in grey below it. Both are
    wrapped to the figure's width.
    """
    pruners = list(dict.fromkeys(c.pruner for c in comparisons))
    quantizers = list(dict.fromkeys(c.quantizer for c in comparisons))
    wide = max(width * len(quantizers), 8.4)
    title = textwrap.fill(title, int(8.4 * wide))  # characters an inch at these sizes
    subtitle = textwrap.fill(subtitle, int(13.5 * wide))
    below = 0.14 + 0.23 * (title.count("\n") + 1)  # inches from the top edge
    head = below + 0.16 * (subtitle.count("\n") + 1) + 0.14
    tall = height * len(pruners) + head + FOOT
    figure = Figure(figsize=(wide, tall), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.0, FOOT / tall, 1.0, 1.0 - (head + FOOT) / tall), h_pad=0.07)
    figure.text(0.012, 1 - 0.12 / tall, title, size=13, weight="bold", va="top", ha="left")
    figure.text(0.012, 1 - below / tall, subtitle, size=8.5, color=MUTED, va="top", ha="left")
    axes = figure.subplots(len(pruners), len(quantizers), squeeze=False, sharex=share, sharey=share)
    placed = []
    for comparison in comparisons:
        ax = axes[pruners.index(comparison.pruner), quantizers.index(comparison.quantizer)]
        placed.append((comparison, ax))
    used = {id(ax) for _, ax in placed}
    for ax in axes.flat:
        ax.set_visible(id(ax) in used)
    return figure, placed


def first_column(ax: Axes) -> bool:
    place = ax.get_subplotspec()
    return place is not None and place.is_first_col()


def last_row(ax: Axes) -> bool:
    place = ax.get_subplotspec()
    return place is not None and place.is_last_row()


def foot(figure: Figure, text: str) -> None:
    """How to read the marks, along the bottom edge."""
    tall = figure.get_figheight()
    figure.text(0.012, 0.10 / tall, text, size=8, color=MUTED, va="bottom", ha="left")


def name(summary: Summary, model: str) -> str:
    """A model as a title says it."""
    told = short_model(model)
    return f"{told} (dense model at chance)" if model in summary.at_chance else told


def unit(measure: Measure) -> str:
    """The unit of A as an axis says it."""
    return {"neg_nll": "nats per example"}.get(measure.name, measure.unit)


def to_bytes(figure: Figure, format: str) -> bytes:
    """The finished file; no dates or versions inside, so equal data give equal bytes."""
    dropped = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with look():
        figure.savefig(buffer, format=format, metadata=dropped[format])
    return buffer.getvalue()
