"""Figures of past runs, and their numbers as CSV.

Figures 2–4 of the Meta-GF paper (budgeted batches, convergence, importance), and the conflict between exits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raygf.evaluation.budgeted import BudgetCurve, band
from raygf.evaluation.figures import (
    NAMED_TENSORS,
    draw_seeds,
    heat_map,
    label_depth,
    legend_outside,
    new_figure,
    plain_axes,
    run_style,
    whole_numbers,
)
from raygf.evaluation.importance import Importance
from raygf.evaluation.noise import OrderNoise
from raygf.evaluation.outputs import Calibration
from raygf.evaluation.tables import count_unit, csv_text
from raygf.records import Entry, History, Matrix


@dataclass(frozen=True, eq=False)
class Budgeted:
    """The curves of one configuration's runs, one for each of K seeds.

    ``operations`` (n,) up to every exit; ``top1`` (K, n): its test accuracy alone, 0–1.
    """

    label: str
    operations: tuple[int, ...]
    seeds: tuple[int, ...]
    curves: tuple[BudgetCurve, ...]
    top1: tuple[tuple[float, ...], ...]


def budgeted_figure(runs: Sequence[Budgeted]) -> Figure:
    """Accuracy over average operations per image (Fig. 2), one line a configuration; crosses: single exits.

    With seeds, accuracy and operations are means at every setting p, and every seed is a thin line. The band
    is what other test images would have given: it holds 95 % of the means over bootstrap samples of them.
    """
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    unit = count_unit([round(float(c.operations.min())) for run in runs for c in run.curves])
    for index, run in enumerate(runs):
        _draw_budgeted(axes, run, unit.scale, run_style(index))
    axes.fill_between([], [], [], color="grey", alpha=0.3, linewidth=0, label="95 % of bootstrap\ntest sets")
    axes.plot([], [], color="grey", label="one exit for all", **_SINGLE)
    name = {"M": "million", "K": "thousand"}[unit.name]
    axes.set_xlabel(f"average cost per image ({name} operations)")
    axes.set_ylabel("test accuracy (%)")
    plain_axes(axes)
    legend_outside(figure, axes)
    return figure


_SINGLE: dict[str, Any] = {"linestyle": "none", "marker": "X", "markersize": 9, "markeredgecolor": "black"}
"""A single exit in the budgeted figure."""


def _draw_budgeted(axes: Axes, run: Budgeted, scale: float, style: dict[str, Any]) -> None:
    operations = np.array([curve.operations for curve in run.curves]) / scale
    percent = 100 * np.array([curve.accuracy for curve in run.curves])
    low, high = 100 * band(np.mean([curve.resampled for curve in run.curves], axis=0))
    x, colour, label = operations.mean(axis=0), style["color"], run.label
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if len(run.curves) > 1:
        label = f"{label}\n(mean of {len(run.curves)} seeds,\nthin: each of them)"
        axes.plot(operations.T, percent.T, color=colour, alpha=0.5, linewidth=0.6)
    axes.plot(x, percent.mean(axis=0), label=label, **style)
    axes.plot(np.array(run.operations) / scale, 100 * np.mean(run.top1, axis=0), color=colour, **_SINGLE)


def budgeted_csv(runs: Sequence[Budgeted]) -> str:
    """The numbers of ``budgeted_figure``: one line a run and setting; accuracy, its band and shares 0–1.

    A threshold that no image reaches is written as inf, one that every image reaches as -inf.
    """
    exits = max(curve.share.shape[1] for run in runs for curve in run.curves)
    names = [f"{what}_exit_{i + 1}" for what in ("share", "threshold") for i in range(exits)]
    rows: list[list[object]] = [
        ["run", "seed", "p", "operations", "accuracy", "accuracy_low", "accuracy_high", *names]
    ]
    for run in runs:
        for seed, curve in zip(run.seeds, run.curves, strict=True):
            padding = [None] * (exits - curve.share.shape[1])
            means = (curve.p, curve.operations, curve.accuracy, *band(curve.resampled))
            columns = (*means, curve.share, curve.thresholds)
            for *numbers, share, thresholds in zip(*(c.tolist() for c in columns), strict=True):
                rows.append([run.label, seed, *numbers, *share, *padding, *thresholds, *padding])
    return csv_text(rows)


def calibration_figure(calibration: Calibration) -> Figure:
    """Accuracy over confidence of the images of every bin, an exit a line, before and after scaling."""
    figure = new_figure(9, 4.5)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, exits, errors in zip(
        panels, ("as trained", "scaled"), calibration.bins, calibration.error, strict=True
    ):
        axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8)
        for exit, (bins, error) in enumerate(zip(exits, errors, strict=True)):
            label = f"exit {exit + 1}: {100 * error:.1f} %"
            axes.plot(*(100 * bins[:, 1:][bins[:, 0] > 0]).T, label=label, **run_style(exit))
        axes.set_title(f"{name}; expected error of calibration:", fontsize=9)
        axes.set_xlabel("confidence (%)")
        axes.legend(fontsize=7, frameon=False, loc="upper left")
        plain_axes(axes)
    panels[0].set_ylabel("test accuracy (%)")
    return figure


def calibration_csv(calibration: Calibration) -> str:
    """The numbers of ``calibration_figure``: one line a bin, with the exit's temperature and error."""
    rows: list[list[object]] = [
        ["scaled", "exit", "temperature", "expected_error", "bin", "share", "confidence", "accuracy"]
    ]
    for (scaled, exit), error in np.ndenumerate(calibration.error):
        start = [bool(scaled), exit + 1, calibration.temperatures[exit] if scaled else 1.0, float(error)]
        bins = calibration.bins[scaled, exit].tolist()
        rows += [[*start, place, *numbers] for place, numbers in enumerate(bins, start=1)]
    return csv_text(rows)


@dataclass(frozen=True, eq=False)
class Convergence:
    """K runs of one configuration over the R rounds that all of them know.

    ``rounds``, ``passes`` (R,): training passes up to the end of the round. ``seeds`` (K,).
    ``accuracy`` (K, R): training accuracy, 0–1, of the last exit of the network that the run continues with:
    for Meta-GF the fused network's, over the fusion pass (an exit's own training shows a network that is then
    merged away); for the others the network's, over the epoch.
    """

    label: str
    seeds: tuple[int, ...]
    rounds: NDArray[np.int64]
    passes: Matrix
    accuracy: Matrix


def fused_accuracy(entry: Entry) -> Any:
    """Training accuracy of the last exit of the network that the run continues with; None where unknown."""
    return (entry["fusion"] or entry["train"])["accuracy"][-1]


def convergence(
    label: str,
    seeds: Sequence[int],
    histories: Sequence[History],
    shown: Callable[[Entry], Any] = fused_accuracy,
) -> Convergence | None:
    """What is ``shown`` of every round of one configuration's runs; None if they share no round."""
    by_round = [{entry["round"]: entry for entry in history} for history in histories]
    rounds = sorted(set.intersection(*(set(known) for known in by_round)))
    if not rounds:
        return None
    passes = [by_round[0][r]["training_passes"] for r in rounds]
    accuracy = [[shown(known[r]) for r in rounds] for known in by_round]
    return Convergence(
        label, tuple(seeds), np.array(rounds), np.array(passes, np.float64), np.array(accuracy, np.float64)
    )


def validation(label: str, seeds: Sequence[int], histories: Sequence[History]) -> Convergence | None:
    """As ``convergence``, of the validation accuracy averaged over the exits; None without a validation."""
    known = [[entry for entry in history if entry["val"]] for history in histories]
    return convergence(label, seeds, known, lambda entry: np.mean(entry["val"]["accuracy"]))


def convergence_figure(
    curves: Sequence[Convergence], what: str = "training accuracy of the last exit"
) -> Figure:
    """How fast ``what`` grows (Fig. 3: the last exit's): over the rounds, and over what the rounds cost.

    Rounds cost what their methods take: n + 1 epochs of joint SGD those of Meta-GF. So the second panel is
    the fair one.
    """
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    for index, curve in enumerate(curves):
        for axes, x in ((left, curve.rounds), (right, curve.passes)):
            draw_seeds(axes, x, curve.accuracy, curve.label, run_style(index, len(x)))
    left.set_xlabel("round")
    right.set_xlabel("training passes spent (epochs of joint SGD)")
    left.set_ylabel(f"{what} (%)")
    for axes in (left, right):
        whole_numbers(axes)
        plain_axes(axes)
    legend_outside(figure, left)
    return figure


def convergence_csv(curves: Sequence[Convergence], accuracy: str = "last_exit_training_accuracy") -> str:
    """The numbers of ``convergence_figure``: one line a run and round, the ``accuracy`` 0–1."""
    rows: list[list[object]] = [["run", "seed", "round", "training_passes", accuracy]]
    for curve in curves:
        for seed, accuracies in zip(curve.seeds, curve.accuracy.tolist(), strict=True):
            lines = zip(curve.rounds.tolist(), map("{:g}".format, curve.passes), accuracies, strict=True)
            rows += [[curve.label, seed, *line] for line in lines]
    return csv_text(rows)


@dataclass(frozen=True, eq=False)
class ConflictCurves:
    """R rounds without a gap, T tensors; NaN where nothing is known or shared.

    ``rounds`` (R,). ``cosine`` (T, R): mean over the pairs of exits. ``before``, ``after`` (R,): shares of
    conflicts before and after fusion, 0–1, as defined by ``FusionReport``. ``tensors`` (T,): names, shallow
    to deep.
    """

    rounds: NDArray[np.int64]
    cosine: Matrix
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    tensors: tuple[str, ...]


def conflict_curves(history: History, tensors: Sequence[str]) -> ConflictCurves | None:
    """The conflict in a checkpoint's history; None if it fuses or its exits share nothing."""
    known = {entry["round"]: entry["fusion"] for entry in history if entry.get("fusion")}
    if not known:
        return None
    rounds = np.arange(min(known), max(known) + 1)
    missing = {"tensor_cosine": [None] * len(tensors), "conflict_before": None, "conflict_after": None}
    reports = [known.get(round, missing) for round in rounds.tolist()]
    cosine, before, after = (np.array([each[name] for each in reports], np.float64) for name in missing)
    if np.isnan(cosine).all():  # None became NaN
        return None
    return ConflictCurves(rounds, cosine.T, before, after, tuple(tensors))


def conflict_figure(curves: ConflictCurves, noise: OrderNoise | None = None) -> Figure:
    """Mean cosine per shared tensor (rows) and round (columns); below, the two shares over the rounds.

    Beside them stands what the order of the images alone does, as far as it was measured.
    """
    shared = np.flatnonzero(~np.isnan(curves.cosine).all(axis=1))
    count, named = len(shared), len(shared) <= NAMED_TENSORS
    figure = new_figure(9, (4.4 + 0.11 * count) if named else 7.5)
    ratio = max(1.6, 0.11 * count / 2) if named else 2.2
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(ratio, 1))
    cosine = curves.cosine[shared]
    top = float(np.nanmax(np.abs(cosine))) or 1.0
    extent = (curves.rounds[0] - 0.5, curves.rounds[-1] + 0.5, count + 0.5, 0.5)
    image = heat_map(above, cosine, cmap="PuOr", vmin=-top, vmax=top, extent=extent)
    bar = figure.colorbar(image, ax=above, pad=0.02)
    bar.set_label("mean cosine between exits' deltas\n(negative: conflict)")
    label_depth(above.yaxis, [curves.tensors[index] for index in shared], "shared parameter tensor", first=1)
    if not named:
        above.set_ylabel(above.get_ylabel().replace(", ", ",\n"))
    labels = ("before fusion: pairs of exits", "after fusion: exits against the update")
    for index, (label, shares) in enumerate(zip(labels, (curves.before, curves.after), strict=True)):
        below.plot(curves.rounds, 100 * shares, label=label, **run_style(index, len(curves.rounds)))
    if noise is not None:
        for index, (label, share) in enumerate(noise.shares().items(), start=2):
            style = run_style(index) | {"linestyle": "none", "markersize": 7, "clip_on": False}
            below.plot([noise.round], [100 * share], label=label, **style)
    below.set_xlabel("round")
    below.set_ylabel("negative cosines (%)")
    below.set_ylim(bottom=0)
    whole_numbers(below)
    plain_axes(below)
    legend_outside(figure, below, below=2)
    return figure


def cosine_csv(curves: ConflictCurves) -> str:
    """The numbers of the heat map: one line a tensor, empty where fewer than two exits own it."""
    rows = ([name, *line] for name, line in zip(curves.tensors, curves.cosine.tolist(), strict=True))
    return csv_text([["tensor", *(f"round_{r}" for r in curves.rounds.tolist())], *rows])


def share_csv(curves: ConflictCurves) -> str:
    """The numbers of the lines: one line a round, shares 0–1, empty where unknown."""
    rows = zip(curves.rounds.tolist(), curves.before.tolist(), curves.after.tolist(), strict=True)
    return csv_text([["round", "negative_share_before_fusion", "negative_share_after_fusion"], *rows])


def noise_csv(noise: OrderNoise) -> str:
    """The numbers of the single marks: one line each, shares 0–1."""
    rows = ([noise.round, label, share] for label, share in noise.shares().items())
    return csv_text([["round", "deltas_of", "negative_share"], *rows])


def importance_figure(importance: Importance) -> Figure:
    """Which exits suffer when the parameters important to one exit are pruned (Fig. 4).

    Two heat maps, rows: pruned exit, columns: measured exit, cells: accuracy lost in % of what it was.
    """
    exits = len(importance.baseline)
    figure = new_figure(5.2 + 1.0 * exits, 2.2 + 0.5 * exits)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"exit {i + 1}\n({100 * b:.1f} %)" for i, b in enumerate(importance.baseline)]
    titles = "each exit's alone", "one after the other, top to bottom"
    for axes, lost, title in zip((left, right), (importance.alone, importance.in_turn), titles, strict=True):
        axes.set_xticks(range(exits), names, fontsize=7)
        axes.set_title(title, fontsize=9)
        image = heat_map(axes, 100 * lost, cmap="cividis", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(lost):  # the text tells gains from zeros, the colour not
            text = "–" if np.isnan(value) else f"{100 * value:.0f}".replace("-0", "0")
            colour = "black" if np.isnan(value) or value > 0.55 else "white"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    rows = []
    for exit, (segments, count) in enumerate(zip(importance.segments, importance.parameters, strict=True), 1):
        shown = f"{count_unit([count]).text(count)} {count_unit([count]).name}" if count >= 1000 else count
        size = f"{segments} segment{'s' * (segments > 1)},\n{shown} parameters" if segments else "nothing"
        rows.append(f"exit {exit}\n{size}")
    left.set_yticks(range(exits), rows, fontsize=7)
    left.set_ylabel("whose important parameters\nare set to zero")
    figure.supxlabel("measured exit (its test accuracy before pruning)", fontsize=9)
    bar = figure.colorbar(image, ax=(left, right), pad=0.02)
    bar.set_label("accuracy lost (% of the value before)")
    return figure


def importance_csv(importance: Importance) -> str:
    """The numbers of ``importance_figure``: one line a cell, shares 0–1, empty where there is none."""
    rows: list[list[object]] = [
        ["pruning", "pruned_exit", "segments", "parameters", "measured_exit", "relative_accuracy_loss"]
    ]
    for pruning, matrix in (("alone", importance.alone), ("in_turn", importance.in_turn)):
        for (pruned, measured), lost in np.ndenumerate(matrix):
            sizes = importance.segments[pruned], importance.parameters[pruned]
            rows.append([pruning, pruned + 1, *sizes, measured + 1, float(lost)])
    return csv_text(rows)
