"""Do the exits still fight? Cosines over depth and rounds; share of conflicts before and after fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raygf.evaluation.figure_style import (
    ABSENT,
    NAMED_TENSORS,
    counted_ticks,
    csv_text,
    new_figure,
    plain_axes,
    run_style,
    whole_numbers,
)
from raygf.records import Matrix
from raygf.storage.history import History


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
