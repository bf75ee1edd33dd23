"""Two figures of a run, and their numbers: accuracy over the rounds, fusion weights over the depth."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raygf.records import Matrix, RoundRecord

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


_ALONE = "white"


@dataclass(frozen=True)
class AccuracyCurves:
    """``rounds`` (R,), ascending; ``accuracy`` (R, n), 0–1; ``split``: what it was measured on."""

    rounds: NDArray[np.int64]
    accuracy: Matrix
    split: str


def accuracy_curves(records: Sequence[RoundRecord], earlier: AccuracyCurves | None = None) -> AccuracyCurves:
    """Validation accuracy of every exit, or training accuracy if a record lacks a validation.

    Args:
        records: The rounds known in full; of a round that comes twice, the later counts.
        earlier: Rounds known from elsewhere (before a resume); left out where ``records`` has the round too,
            or where it was measured on another split.

    Raises:
        ValueError: there is nothing to show.
    """
    validated = all(record.val is not None for record in records)
    split = "validation" if validated else "training"
    rows: dict[int, Sequence[float]] = {}
    if earlier is not None and (not records or earlier.split == split):
        split = earlier.split
        rows.update(zip(earlier.rounds.tolist(), earlier.accuracy.tolist(), strict=True))
    for record in records:
        score = record.val if validated and record.val is not None else record.train
        rows[record.round] = score.accuracy
    if not rows:
        raise ValueError("accuracy_curves: no round to show")
    rounds = sorted(rows)
    return AccuracyCurves(np.array(rounds), np.array([rows[r] for r in rounds], dtype=np.float64), split)


def accuracy_figure(records: Sequence[RoundRecord], earlier: AccuracyCurves | None = None) -> Figure:
    """Accuracy of every exit over the rounds; arguments and errors as ``accuracy_curves``."""
    curves = accuracy_curves(records, earlier)
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    marker = "o" if len(curves.rounds) <= 20 else None  # one point alone would draw no line
    for index, colour in enumerate(exit_colours(curves.accuracy.shape[1])):
        values = 100 * curves.accuracy[:, index]
        axes.plot(curves.rounds, values, color=colour, marker=marker, markersize=3, label=f"exit {index + 1}")
    mean = 100 * curves.accuracy.mean(axis=1)
    axes.plot(
        curves.rounds,
        mean,
        color="black",
        linestyle="--",
        linewidth=1.2,
        marker=marker,
        markersize=3,
        label="average",
    )
    axes.set_xlabel("round")
    axes.set_ylabel(f"{curves.split} accuracy (%)")
    axes.set_xlim(curves.rounds[0] - 0.5, curves.rounds[-1] + 0.5)
    whole_numbers(axes)
    plain_axes(axes)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def accuracy_csv(records: Sequence[RoundRecord], earlier: AccuracyCurves | None = None) -> str:
    """The numbers of ``accuracy_figure``: one line a round, accuracies 0–1."""
    curves = accuracy_curves(records, earlier)
    names = [f"{curves.split}_accuracy_exit_{i + 1}" for i in range(curves.accuracy.shape[1])]
    rows = ([r, *values] for r, values in zip(curves.rounds.tolist(), curves.accuracy.tolist(), strict=True))
    return csv_text([["round", *names], *rows])


def fusion_heatmap(weights: Matrix, tensors: Sequence[str]) -> Figure:
    """Fusion weight of every exit (rows) in every parameter tensor (columns, shallow to deep).

    The colours span the weights of tensors that exits share; an exit that owns a tensor alone has weight 1 by
    definition, which would drown the rest: those cells are white.

    Args:
        weights: (n, T), NaN where the exit does not own the tensor; those cells are hatched.
        tensors: (T,) names.

    Raises:
        ValueError: the shapes do not fit.
    """
    exits, count = _checked_shape(weights, tensors)
    named = count <= NAMED_TENSORS
    size = (max(7.0, 2.6 + 0.17 * count), 2.9 + 0.3 * exits) if named else (11.0, 2.0 + 0.3 * exits)
    figure = new_figure(*size)
    axes = figure.add_subplot()
    axes.patch.set(**ABSENT)  # shows through where a weight is NaN
    top, clipped = _colour_limit(weights)
    image = axes.imshow(
        np.ma.masked_invalid(weights),
        cmap=_colours(),
        vmin=0,
        vmax=top,
        aspect="auto",
        interpolation="none",
    )
    axes.set_yticks(range(exits), [f"exit {i + 1}" for i in range(exits)])
    _label_tensors(axes, tensors, named)
    _add_colour_bar(figure, axes, image, equal=1 / exits, clipped=clipped)
    _explain_special_cells(figure, absent=bool(np.isnan(weights).any()), alone=clipped)
    return figure


def fusion_csv(weights: Matrix, tensors: Sequence[str]) -> str:
    """The numbers of ``fusion_heatmap``: one line a tensor, empty where an exit does not own it."""
    exits, _ = _checked_shape(weights, tensors)
    rows = (
        [name, *("" if np.isnan(weight) else float(weight) for weight in column)]
        for name, column in zip(tensors, weights.T, strict=True)
    )
    return csv_text([["tensor", *(f"exit_{i + 1}" for i in range(exits))], *rows])


def _checked_shape(weights: Matrix, tensors: Sequence[str]) -> tuple[int, int]:
    if weights.ndim != 2 or 0 in weights.shape or weights.shape[1] != len(tensors):
        raise ValueError(f"fusion weights {weights.shape} do not fit {len(tensors)} tensor names")
    return weights.shape[0], weights.shape[1]


def _colour_limit(weights: Matrix) -> tuple[float, bool]:
    """The largest weight in shared tensors, and whether a weight exceeds it."""
    shared = weights[:, (~np.isnan(weights)).sum(axis=0) > 1]
    if shared.size == 0:
        return 1.0, False
    top = float(np.nanmax(shared))
    return (top, bool(np.nanmax(weights) > top)) if top > 0 else (1.0, False)


def _colours() -> Colormap:
    return colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0), over=_ALONE)


def _explain_special_cells(figure: Figure, absent: bool, alone: bool) -> None:
    handles = []
    if alone:
        handles.append(Patch(facecolor=_ALONE, edgecolor="grey", label="used by this exit alone (weight 1)"))
    if absent:
        handles.append(Patch(**ABSENT, label="not used by this exit"))
    if handles:
        figure.legend(handles=handles, loc="outside upper right", frameon=False, fontsize=8, ncols=2)


def _label_tensors(axes: Axes, tensors: Sequence[str], named: bool) -> None:
    if named:
        axes.set_xticks(range(len(tensors)), tensors, rotation=90, fontsize=6)
        axes.set_xlabel("parameter tensor, shallow to deep")
        return
    numbers = counted_ticks(len(tensors))
    axes.set_xticks([number - 1 for number in numbers], [str(number) for number in numbers])
    axes.set_xlabel(f"parameter tensor, shallow to deep (1 to {len(tensors)})")


def _add_colour_bar(figure: Figure, axes: Axes, image: AxesImage, equal: float, clipped: bool) -> None:
    bar = figure.colorbar(image, ax=axes, extend="max" if clipped else "neither", pad=0.02)
    bar.set_label("fusion weight")
    note = f"equal weights: 1/{round(1 / equal)} = {equal:.3f}"
    if equal <= image.norm.vmax:  # type: ignore[operator]
        bar.ax.axhline(equal, color="white", linewidth=1.5)
        note += " (white line)"
    axes.set_title(note, loc="left", fontsize=9)
