"""The objective over every swept field: one panel each, a point for every trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raygf.evaluation.figure_style import new_figure, plain_axes
from raygf.sweep.outcome import TrialRow
from raygf.sweep.plan import Plan

_COLUMNS = 3
_LOG_SPAN = 20.0
"""Numbers whose largest is so many times their smallest are drawn on a logarithmic axis."""
_TILTED = 4
"""With more names than this on an axis, they are tilted."""

_KINDS: dict[str, dict[str, Any]] = {
    "finished": {"color": "#0072B2", "marker": "o", "label": "trained to its end"},
    "stopped early": {
        "facecolors": "none",
        "edgecolors": "#D55E00",
        "marker": "s",
        "label": "stopped early (accuracy when it was)",
    },
}


def objective_figure(rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> Figure:
    """Scores over each of ``plan.fields`` that has several values; the ``best`` trial has a ring."""
    scored = [row for row in rows if row.status in _KINDS and row.score is not None]
    fields = [name for name in plan.fields if len({_key(row, name) for row in scored} - {None}) > 1]
    columns = min(_COLUMNS, max(1, len(fields)))
    lines = math.ceil(max(1, len(fields)) / columns)
    figure = new_figure(1.2 + 3.4 * columns, 0.7 + 3.0 * lines)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in grid.flat[len(fields) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, fields, strict=False):
        _draw(axes, name, scored, plan, best)
    for line in grid:
        line[0].set_ylabel(_label(plan.metric))
    _legend(figure, [axes for axes in grid.flat if axes.get_visible()])
    return figure


def _legend(figure: Figure, drawn: Sequence[Axes]) -> None:
    """One legend for all panels, each kind of point once."""
    entries: dict[str, Any] = {}
    for axes in drawn:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if entries:
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False)


def _draw(axes: Axes, name: str, rows: Sequence[TrialRow], plan: Plan, best: TrialRow) -> None:
    having = [row for row in rows if name in row.values]
    names = _names(having, name)
    for status, style in _KINDS.items():
        part = [row for row in having if row.status == status]
        if part:
            axes.scatter(
                [_x(row, name, names) for row in part], [_y(row, plan) for row in part], s=28, **style
            )
    if name in best.values:
        ring: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": "black",
            "linewidths": 1.2,
            "label": "best",
        }
        axes.scatter([_x(best, name, names)], [_y(best, plan)], s=110, **ring)
    if names:
        tilted: dict[str, Any] = {"rotation": 45, "ha": "right"} if len(names) > _TILTED else {}
        axes.set_xticks(range(len(names)), names, **tilted)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif _is_wide([row.values[name] for row in having]):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    plain_axes(axes)


def _names(rows: Sequence[TrialRow], name: str) -> list[str]:
    """What is on the axis if it has names instead of numbers."""
    values = [row.values[name] for row in rows]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return []
    return list(dict.fromkeys(str(value) for value in values))


def _x(row: TrialRow, name: str, names: list[str]) -> float:
    return float(names.index(str(row.values[name]))) if names else float(row.values[name])


def _y(row: TrialRow, plan: Plan) -> float:
    assert row.score is not None
    return 100 * row.score if plan.metric.startswith("val_accuracy") else row.score


def _key(row: TrialRow, name: str) -> str | None:
    return str(row.values[name]) if name in row.values else None


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= _LOG_SPAN


def _label(metric: str) -> str:
    kind, _, which = metric.partition("/")
    whose = "average over exits" if which == "average" else which.replace("_", " ")
    return f"validation {'accuracy (%)' if kind == 'val_accuracy' else 'loss'},\n{whose}"
