"""Do the exits still fight? Cosines over depth and rounds; share of conflicts before and after fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from raygf.evaluation.budgeted import BudgetCurve
from raygf.evaluation.figures import (
    ABSENT,
    NAMED_TENSORS,
    counted_ticks,
    csv_text,
    new_figure,
    plain_axes,
    run_label,
    run_style,
    whole_numbers,
)
from raygf.evaluation.importance import Importance
from raygf.evaluation.tables import count_unit
from raygf.records import History, Matrix


@dataclass(frozen=True, eq=False)
class ConflictCurves:
    """R rounds without a gap, T tensors; NaN where nothing is known or shared.

    ``rounds`` (R,). ``cosine`` (T, R): mean over the pairs of exits. ``before``, ``after`` (R,): shares of
    conflicts, 0–1; see ``FusionReport``. ``tensors`` (T,): names, shallow to deep.
    """

    rounds: NDArray[np.int64]
    cosine: Matrix
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    tensors: tuple[str, ...]


def conflict_curves(history: History, tensors: Sequence[str]) -> ConflictCurves | None:
    """The conflict in a checkpoint's history; None if its method fuses nothing, or its exits share nothing.

    Raises:
        ValueError: a round has another number of tensors.
    """
    known = {entry["round"]: entry["fusion"] for entry in history if entry.get("fusion")}
    if not known:
        return None
    rounds = np.arange(min(known), max(known) + 1)
    cosine = np.full((len(tensors), len(rounds)), np.nan)
    shares = np.full((2, len(rounds)), np.nan)
    for round, fusion in known.items():
        column = round - rounds[0]
        cosine[:, column] = np.array(fusion["tensor_cosine"], dtype=np.float64)  # None becomes NaN
        shares[:, column] = np.array([fusion["conflict_before"], fusion["conflict_after"]], dtype=np.float64)
    if np.isnan(cosine).all():
        return None
    return ConflictCurves(rounds, cosine, shares[0], shares[1], tuple(tensors))


def conflict_figure(curves: ConflictCurves) -> Figure:
    """Mean cosine per shared tensor (rows) and round (columns); below, the two shares over the rounds."""
    shared = np.flatnonzero(~np.isnan(curves.cosine).all(axis=1))
    names = [curves.tensors[index] for index in shared]
    named = len(names) <= NAMED_TENSORS
    figure = new_figure(9, (4.4 + 0.11 * len(names)) if named else 7.5)
    ratio = max(1.6, 0.11 * len(names) / 2) if named else 2.2
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(ratio, 1))
    _draw_cosines(figure, above, curves.rounds, curves.cosine[shared])
    _label_depth(above, names, named)
    _draw_shares(below, curves)
    figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def cosine_csv(curves: ConflictCurves) -> str:
    """The numbers of the heat map: one line a tensor, empty where fewer than two exits own it."""
    rows = (
        [name, *(None if np.isnan(value) else value for value in line)]
        for name, line in zip(curves.tensors, curves.cosine.tolist(), strict=True)
    )
    return csv_text([["tensor", *(f"round_{r}" for r in curves.rounds.tolist())], *rows])


def share_csv(curves: ConflictCurves) -> str:
    """The numbers of the lines: one line a round, shares 0–1, empty where unknown."""
    lines = zip(curves.rounds.tolist(), curves.before.tolist(), curves.after.tolist(), strict=True)
    rows = ([round, *(None if np.isnan(share) else share for share in shares)] for round, *shares in lines)
    return csv_text([["round", "negative_share_before_fusion", "negative_share_after_fusion"], *rows])


def _draw_cosines(figure: Figure, axes: Axes, rounds: NDArray[np.int64], cosine: Matrix) -> None:
    axes.patch.set(**ABSENT)
    top = float(np.nanmax(np.abs(cosine))) or 1.0
    first, last = float(rounds[0]), float(rounds[-1])
    image = axes.imshow(
        np.ma.masked_invalid(cosine),
        cmap=colormaps["PuOr"].with_extremes(bad=(0, 0, 0, 0)),
        vmin=-top,
        vmax=top,
        aspect="auto",
        interpolation="none",
        extent=(first - 0.5, last + 0.5, len(cosine) + 0.5, 0.5),
    )
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("mean cosine between exits' deltas\n(negative: conflict)")


def _label_depth(axes: Axes, names: Sequence[str], named: bool) -> None:
    if named:
        axes.set_yticks(range(1, len(names) + 1), names, fontsize=6)
        axes.set_ylabel("shared parameter tensor, shallow to deep")
        return
    numbers = counted_ticks(len(names))
    axes.set_yticks(numbers, [str(number) for number in numbers])
    axes.set_ylabel(f"shared parameter tensor,\nshallow to deep (1 to {len(names)})")


def _draw_shares(axes: Axes, curves: ConflictCurves) -> None:
    labels = ("before fusion: pairs of exits", "after fusion: exits against the update")
    for index, (label, shares) in enumerate(zip(labels, (curves.before, curves.after), strict=True)):
        style = run_style(index) | ({} if len(curves.rounds) <= 20 else {"marker": None})
        axes.plot(curves.rounds, 100 * shares, label=label, **style)
    axes.set_xlabel("round")
    axes.set_ylabel("negative cosines (%)")
    axes.set_ylim(bottom=0)
    whole_numbers(axes)
    plain_axes(axes)


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
        _draw_convergence(left, curve.rounds, curve, index)
        _draw_convergence(right, curve.passes, curve, index)
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


def _draw_convergence(axes: Axes, x: NDArray[np.int64], curve: Convergence, index: int) -> None:
    mean = 100 * curve.accuracy.mean(axis=0)
    style = run_style(index) | ({} if len(x) <= _MARKED else {"marker": None})
    axes.plot(x, mean, label=run_label(curve.label, len(curve.seeds)), **style)
    if len(curve.seeds) > 1:
        spread = 100 * curve.accuracy.std(axis=0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.2, linewidth=0)


_TITLES = ("each exit's alone", "one after the other, top to bottom")


def importance_figure(importance: Importance) -> Figure:
    """Two heat maps, rows: pruned exit, columns: measured exit, cells: accuracy lost in % of what it was."""
    exits = len(importance.baseline)
    figure = new_figure(5.2 + 1.0 * exits, 2.2 + 0.5 * exits)
    left, right = figure.subplots(1, 2, sharey=True)
    image = None
    for axes, title, lost in zip((left, right), _TITLES, (importance.alone, importance.in_turn), strict=True):
        image = _draw_importance(axes, lost)
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


def _draw_importance(axes: Axes, lost: Matrix) -> AxesImage:
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
