"""Accuracy over average operations per image (Meta-GF paper, Fig. 2), several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from raygf.evaluation.budgeted import BudgetCurve
from raygf.evaluation.figure_style import csv_text, new_figure, plain_axes, run_label, run_style
from raygf.evaluation.tables import count_unit


@dataclass(frozen=True, eq=False)
class Budgeted:
    """The curves of one configuration's runs, one a seed."""

    label: str
    seeds: tuple[int, ...]
    curves: tuple[BudgetCurve, ...]


def budgeted_figure(runs: Sequence[Budgeted]) -> Figure:
    """One line a configuration; with seeds, accuracy and operations are means at every setting p."""
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    unit = count_unit([round(float(c.operations.min())) for run in runs for c in run.curves])
    for index, run in enumerate(runs):
        operations = np.mean([curve.operations for curve in run.curves], axis=0) / unit.scale
        accuracy = 100 * np.array([curve.accuracy for curve in run.curves])
        style = run_style(index)
        axes.plot(operations, accuracy.mean(axis=0), label=run_label(run.label, len(run.curves)), **style)
        if len(run.curves) > 1:
            mean, spread = accuracy.mean(axis=0), accuracy.std(axis=0, ddof=1)
            axes.fill_between(
                operations, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0
            )
    name = {"M": "million", "K": "thousand"}[unit.name]
    axes.set_xlabel(f"average cost per image ({name} operations)")
    axes.set_ylabel("test accuracy (%)")
    plain_axes(axes)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def budgeted_csv(runs: Sequence[Budgeted]) -> str:
    """The numbers of ``budgeted_figure``: one line a run and setting; accuracy and shares 0–1."""
    exits = max(curve.share.shape[1] for run in runs for curve in run.curves)
    names = [f"{what}_exit_{i + 1}" for what in ("share", "threshold") for i in range(exits)]
    rows: list[list[object]] = [["run", "seed", "p", "operations", "accuracy", *names]]
    for run in runs:
        for seed, curve in zip(run.seeds, run.curves, strict=True):
            rows += _lines(run.label, seed, curve, exits)
    return csv_text(rows)


def _lines(label: str, seed: int, curve: BudgetCurve, exits: int) -> list[list[object]]:
    """One line a setting; thresholds of ±∞ (nobody, everybody) are written as inf and -inf."""
    padding = [None] * (exits - curve.share.shape[1])
    columns = (curve.p, curve.operations, curve.accuracy, curve.share, curve.thresholds)
    return [
        [label, seed, p, operations, accuracy, *share, *padding, *thresholds, *padding]
        for p, operations, accuracy, share, thresholds in zip(*(c.tolist() for c in columns), strict=True)
    ]
