"""What all figures share: colours that colour-blind people can tell apart, axes, CSV.

Figures are built through ``matplotlib.figure.Figure``: no display, no global state, safe in any thread.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

NAMED_TENSORS = 60
"""Up to so many tensors, a heat map names each; beyond, it counts them."""

ABSENT: dict[str, Any] = {"facecolor": "#ececec", "edgecolor": "#bdbdbd", "hatch": "////", "linewidth": 0.0}
"""Cells without a value."""

_RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette (2008), the darker ones first, without its yellow: hard to see on white."""
_RUN_LINES = ("-", "--", "-.", ":")
_RUN_MARKERS = "osD^vP"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def exit_colours(exits: int) -> NDArray[np.float64]:
    """Dark (shallow) to light (deep); the lightest yellow is left out, it is hard to see on white."""
    return np.asarray(colormaps["viridis"](np.linspace(0, 0.9, exits)))


def run_style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the run number ``index``: runs differ in all three, for print in grey."""
    return {
        "color": _RUN_COLOURS[index % len(_RUN_COLOURS)],
        "linestyle": _RUN_LINES[index % len(_RUN_LINES)],
        "marker": _RUN_MARKERS[index % len(_RUN_MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.5,
    }


def run_label(label: str, seeds: int) -> str:
    """``label``, and what the band around a line of several seeds is."""
    return label if seeds == 1 else f"{label}\n(mean of {seeds} seeds,\n± standard deviation)"


def plain_axes(axes: Axes) -> None:
    """A light grid, no frame above and on the right."""
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def counted_ticks(count: int) -> list[int]:
    """At most a dozen numbers from 1 to ``count``, the first one 1, the others round."""
    ticks = MaxNLocator(10, integer=True).tick_values(1, count)
    return [1, *(int(tick) for tick in ticks if 1 < tick <= count)]


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """``rows`` as CSV; None becomes an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
