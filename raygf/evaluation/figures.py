"""What all figures share, and two of them: accuracy over the rounds, fusion weights over the depth.

Figures are built through ``matplotlib.figure.Figure``: no display, no global state, safe in any thread. Their
colours are those that colour-blind people can tell apart.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from raygf.evaluation.tables import csv_text
from raygf.records import History, Matrix

NAMED_TENSORS = 60
"""Up to so many tensors, a heat map names each; beyond, it counts them."""
MARKED = 25
"""Up to so many points, each point of a line is marked."""

_ABSENT: dict[str, Any] = {"facecolor": "#ececec", "edgecolor": "#bdbdbd", "hatch": "////", "linewidth": 0.0}
"""Cells without a value."""
_ALONE, _BEYOND = "#9a9a9a", 1e9
"""Cells of tensors that belong to one exit alone, and what their weight 1 is drawn as: past any scale."""
_LEAST_SPREAD = 0.05
"""The scale of a heat map of shares reaches at least so far from 1: rounding is not to be seen."""

_RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette (2008), the darker ones first, without its yellow: hard to see on white."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def run_style(index: int, points: int = 0) -> dict[str, Any]:
    """Colour, line and marker of run number ``index``, for print in grey; many ``points`` are not marked."""
    return {
        "color": _RUN_COLOURS[index % len(_RUN_COLOURS)],
        "linestyle": ("-", "--", "-.", ":")[index % 4],
        "marker": "osD^vP"[index % 6] if points <= MARKED else None,
        "markersize": 3.5,
        "linewidth": 1.5,
    }


def plain_axes(axes: Axes) -> None:
    """A light grid, no frame above and on the right."""
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_outside(figure: Figure, axes: Axes, below: int = 0) -> None:
    """What the lines of ``axes`` are, right of all axes of ``figure``, or in ``below`` columns below them."""
    handles, labels = axes.get_legend_handles_labels()
    place: Literal["outside lower center", "outside right center"]
    place = "outside lower center" if below else "outside right center"
    figure.legend(handles, labels, loc=place, ncols=below or 1, frameon=False)


def draw_seeds(axes: Axes, x: NDArray[Any], shares: Matrix, label: str, style: dict[str, Any]) -> None:
    """The mean over the K seeds of ``shares`` (K, R), 0–1, in percent, within ± a standard deviation."""
    percent = 100 * shares
    mean = percent.mean(axis=0)
    if len(percent) > 1:
        label = f"{label}\n(mean of {len(percent)} seeds,\n± standard deviation)"
        spread = percent.std(axis=0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(x, mean, label=label, **style)


def heat_map(axes: Axes, values: Matrix, **options: Any) -> AxesImage:
    """``values`` as coloured cells, hatched where there is none (NaN); ``options`` of ``Axes.imshow``."""
    axes.patch.set(**_ABSENT)  # shows through
    return axes.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="none", **options)


def label_depth(axis: Axis, names: Sequence[str], what: str, first: int = 0, **style: Any) -> None:
    """Name the tensors at ``first``, ``first + 1`` …, shallow to deep; number them if there are many."""
    if len(names) <= NAMED_TENSORS:
        axis.set_ticks(range(first, first + len(names)), names, fontsize=6, **style)
        axis.set_label_text(f"{what}, shallow to deep")
        return
    round_numbers = MaxNLocator(10, integer=True).tick_values(1, len(names))
    numbers = [1, *(int(number) for number in round_numbers if 1 < number <= len(names))]
    axis.set_ticks([first + number - 1 for number in numbers], [str(number) for number in numbers])
    axis.set_label_text(f"{what}, shallow to deep (1 to {len(names)})")


def accuracy_figure(history: History) -> Figure:
    """Validation accuracy of every exit over the rounds, or training accuracy if a round lacks a validation.

    Args:
        history: At least one round; of an entry, ``round``, ``train`` and ``val`` are read.
    """
    split, rounds, accuracy = _accuracies(history)
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    marker = "o" if len(rounds) <= MARKED else None  # one point alone would draw no line
    # Dark (shallow) to light (deep); the lightest yellow is left out, it is hard to see on white.
    colours = colormaps["viridis"](np.linspace(0, 0.9, accuracy.shape[1]))
    for index, colour in enumerate(colours):
        label = f"exit {index + 1}"
        axes.plot(rounds, 100 * accuracy[:, index], color=colour, marker=marker, markersize=3, label=label)
    style: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2, "markersize": 3}
    axes.plot(rounds, 100 * accuracy.mean(axis=1), marker=marker, label="average", **style)
    axes.set_xlabel("round")
    axes.set_ylabel(f"{split} accuracy (%)")
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
    whole_numbers(axes)
    plain_axes(axes)
    legend_outside(figure, axes)
    return figure


def accuracy_csv(history: History) -> str:
    """The numbers of ``accuracy_figure``: one line a round, accuracies 0–1."""
    split, rounds, accuracy = _accuracies(history)
    names = [f"{split}_accuracy_exit_{i + 1}" for i in range(accuracy.shape[1])]
    return csv_text([["round", *names], *([r, *a] for r, a in zip(rounds, accuracy.tolist(), strict=True))])


def _accuracies(history: History) -> tuple[str, list[int], Matrix]:
    """The split that all rounds have, the rounds (R,), and the accuracy (R, n) on that split, 0–1."""
    validated = all(entry["val"] is not None for entry in history)
    rows = [entry["val" if validated else "train"]["accuracy"] for entry in history]
    rounds = [entry["round"] for entry in history]
    return "validation" if validated else "training", rounds, np.array(rows, dtype=np.float64)


def fusion_heatmap(weights: Matrix, tensors: Sequence[str]) -> Figure:
    """Fusion weight of every exit (rows) in every parameter tensor (columns, shallow to deep), on one scale.

    Drawn is the weight times the number of exits that own the tensor: 1 is an equal share, whether two or
    seven share it. An exit that owns a tensor alone has weight 1 by definition; those cells are grey.

    Args:
        weights: (n, T), NaN where the exit does not own the tensor; those cells are hatched.
        tensors: (T,) names.
    """
    exits, count = weights.shape
    named = count <= NAMED_TENSORS
    size = (max(7.0, 2.6 + 0.17 * count), 2.9 + 0.3 * exits) if named else (11.0, 2.0 + 0.3 * exits)
    figure = new_figure(*size)
    axes = figure.add_subplot()
    owned = ~np.isnan(weights)
    owners = owned.sum(axis=0)
    shares = weights * np.where(owners == 1, _BEYOND, owners)
    spread = float(np.max(np.abs(shares - 1), initial=_LEAST_SPREAD, where=owned & (owners > 1)))
    colours = colormaps["PuOr_r"].with_extremes(over=_ALONE)
    image = heat_map(axes, shares, cmap=colours, vmin=1 - spread, vmax=1 + spread)
    axes.set_yticks(range(exits), [f"exit {i + 1}" for i in range(exits)])
    label_depth(axes.xaxis, tensors, "parameter tensor", rotation=90)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.ax.set_ylim(bottom=max(0.0, 1 - spread))  # there are no weights below 0
    bar.set_label("fusion weight × exits\nthat use the tensor")
    axes.set_title("1 = equal share", loc="left", fontsize=9)
    patches = []
    if (owners == 1).any():
        patches.append(Patch(facecolor=_ALONE, label="used by this exit alone (weight 1)"))
    if not owned.all():
        patches.append(Patch(**_ABSENT, label="not used by this exit"))
    if patches:
        figure.legend(handles=patches, loc="outside upper right", frameon=False, fontsize=8, ncols=2)
    return figure


def fusion_csv(weights: Matrix, tensors: Sequence[str]) -> str:
    """The numbers of ``fusion_heatmap``: one line a tensor, empty where an exit does not own it."""
    rows = ([name, *column] for name, column in zip(tensors, weights.T.tolist(), strict=True))
    return csv_text([["tensor", *(f"exit_{i + 1}" for i in range(len(weights)))], *rows])
