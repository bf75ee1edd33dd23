"""Which exits suffer when the parameters important to one exit are pruned (Meta-GF paper, Fig. 4)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from raygf.evaluation.figure_style import ABSENT, csv_text, new_figure
from raygf.evaluation.importance import Importance
from raygf.evaluation.tables import count_unit
from raygf.records import Matrix

_TITLES = ("each exit's alone", "one after the other, top to bottom")


def importance_figure(importance: Importance) -> Figure:
    """Two heat maps, rows: pruned exit, columns: measured exit, cells: accuracy lost in % of what it was."""
    exits = len(importance.baseline)
    figure = new_figure(5.2 + 1.0 * exits, 2.2 + 0.5 * exits)
    left, right = figure.subplots(1, 2, sharey=True)
    image = None
    for axes, title, lost in zip((left, right), _TITLES, (importance.alone, importance.in_turn), strict=True):
        image = _draw(axes, lost)
        axes.set_title(title, fontsize=9)
        names = [f"exit {i + 1}\n({100 * b:.1f} %)" for i, b in enumerate(importance.baseline)]
        axes.set_xticks(range(exits), names, fontsize=7)
    left.set_yticks(range(exits), _row_names(importance), fontsize=7)
    left.set_ylabel("whose important parameters\nare set to zero")
    figure.supxlabel("measured exit (its test accuracy before pruning)", fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=(left, right), pad=0.02)
    bar.set_label("accuracy lost (% of the value before)")
    return figure


def importance_csv(importance: Importance) -> str:
    """The numbers of ``importance_figure``: one line a cell, shares 0–1, empty where there is none."""
    rows: list[list[object]] = [
        ["pruning", "pruned_exit", "segments", "parameters", "measured_exit", "relative_accuracy_loss"]
    ]
    for pruning, matrix in (("alone", importance.alone), ("in_turn", importance.in_turn)):
        for pruned, line in enumerate(matrix.tolist()):
            sizes = importance.segments[pruned], importance.parameters[pruned]
            rows += [
                [pruning, pruned + 1, *sizes, measured + 1, None if np.isnan(lost) else lost]
                for measured, lost in enumerate(line)
            ]
    return csv_text(rows)


def _draw(axes: Axes, lost: Matrix) -> AxesImage:
    """Negative losses (gains) get the colour of zero; the text in the cell tells them apart."""
    axes.patch.set(**ABSENT)
    image = axes.imshow(
        100 * np.ma.masked_invalid(lost),
        cmap="cividis",
        vmin=0,
        vmax=100,
        aspect="auto",
        interpolation="none",
    )
    for (row, column), value in np.ndenumerate(lost):
        text = "–" if np.isnan(value) else f"{100 * value:.0f}".replace("-0", "0")
        colour = "black" if np.isnan(value) or value > 0.55 else "white"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return image


def _row_names(importance: Importance) -> list[str]:
    pairs = zip(importance.segments, importance.parameters, strict=True)
    return [f"exit {i + 1}\n{_amount(*pair)}" for i, pair in enumerate(pairs)]


def _amount(segments: int, parameters: int) -> str:
    if not segments:
        return "nothing"
    unit = count_unit([parameters]) if parameters >= 1000 else None
    shown = f"{parameters}" if unit is None else f"{unit.text(parameters)} {unit.name}"
    return f"{segments} segment{'s' * (segments > 1)},\n{shown} parameters"
