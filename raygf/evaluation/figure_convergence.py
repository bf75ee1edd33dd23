"""How fast the last exit learns (Meta-GF paper, Fig. 3): over rounds, and over what the rounds cost.

A round of Meta-GF costs n + 1 passes over the training images, one of a within-step method costs 1, so the
second panel is the fair one. The training accuracy is that of the network that the run goes on with: for
Meta-GF the fused network's, over the fusion pass (an exit's own training shows a network that is then merged
away); for the others the network's, over the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raygf.evaluation.figure_style import (
    csv_text,
    new_figure,
    plain_axes,
    run_label,
    run_style,
    whole_numbers,
)
from raygf.records import Matrix
from raygf.storage.history import History

_MARKED = 25
"""Up to so many rounds, each is marked."""


@dataclass(frozen=True, eq=False)
class Convergence:
    """K runs of one configuration over the R rounds that all of them know.

    ``rounds``, ``passes`` (R,): passes over the training images up to the end of the round. ``seeds`` (K,).
    ``accuracy`` (K, R): training accuracy of the last exit, 0–1.
    """

    label: str
    seeds: tuple[int, ...]
    rounds: NDArray[np.int64]
    passes: NDArray[np.int64]
    accuracy: Matrix


def convergence(label: str, seeds: Sequence[int], histories: Sequence[History]) -> Convergence | None:
    """What the ``histories`` of one configuration's runs say; None if they share no round."""
    by_round = [{entry["round"]: entry for entry in history} for history in histories]
    rounds = sorted(set.intersection(*(set(known) for known in by_round)))
    if not rounds:
        return None
    return Convergence(
        label,
        tuple(seeds),
        np.array(rounds),
        np.array([by_round[0][r]["training_passes"] for r in rounds]),
        np.array([[_last_accuracy(known[r]) for r in rounds] for known in by_round], dtype=np.float64),
    )


def convergence_figure(curves: Sequence[Convergence]) -> Figure:
    """Two panels, one line a configuration (with seeds: the mean, and a band of ± one standard deviation)."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, curve in enumerate(curves):
        _draw(left, curve.rounds, curve, index)
        _draw(right, curve.passes, curve, index)
    left.set_xlabel("round")
    right.set_xlabel("training passes spent (passes over the training images)")
    left.set_ylabel("training accuracy of the last exit (%)")
    for axes in (left, right):
        whole_numbers(axes)
        plain_axes(axes)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def convergence_csv(curves: Sequence[Convergence]) -> str:
    """The numbers of ``convergence_figure``: one line a run and round, accuracy 0–1."""
    rows: list[list[object]] = [["run", "seed", "round", "training_passes", "last_exit_training_accuracy"]]
    for curve in curves:
        for seed, accuracies in zip(curve.seeds, curve.accuracy.tolist(), strict=True):
            lines = zip(curve.rounds.tolist(), curve.passes.tolist(), accuracies, strict=True)
            rows += [[curve.label, seed, *line] for line in lines]
    return csv_text(rows)


def _last_accuracy(entry: dict[str, dict[str, list[float]]]) -> float:
    source = entry["fusion"] or entry["train"]
    return source["accuracy"][-1]


def _draw(axes: Axes, x: NDArray[np.int64], curve: Convergence, index: int) -> None:
    mean = 100 * curve.accuracy.mean(axis=0)
    style = run_style(index) | ({} if len(x) <= _MARKED else {"marker": None})
    axes.plot(x, mean, label=run_label(curve.label, len(curve.seeds)), **style)
    if len(curve.seeds) > 1:
        spread = 100 * curve.accuracy.std(axis=0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)
