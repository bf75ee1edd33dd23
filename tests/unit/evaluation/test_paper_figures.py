"""Figures of past runs hold the numbers that they were given, labelled, legends outside the data."""

import csv
import io

import numpy as np
import pytest
from past_runs import IMPORTANCE, curve, entry

from raygf.evaluation.noise import OrderNoise
from raygf.evaluation.paper_figures import (
    Budgeted,
    budgeted_csv,
    budgeted_figure,
    conflict_curves,
    conflict_figure,
    convergence,
    convergence_csv,
    convergence_figure,
    cosine_csv,
    importance_csv,
    importance_figure,
    noise_csv,
    share_csv,
    validation,
)

TENSORS = ("stem", "head", "stage")


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def lines_of(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def assert_legend_outside(figure):
    figure.draw_without_rendering()
    (legend,) = figure.legends
    for axes in figure.axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    return [text.get_text() for text in legend.get_texts()]


def meta_history(*accuracies):
    """Meta-GF with three passes a round; the exits' own trainings are at 99 %."""
    return [entry(i, 0.99, fused, passes=3) for i, fused in enumerate(accuracies, start=1)]


def test_convergence_is_that_of_the_network_that_the_run_continues_with():
    """Meta-GF: of the fused network, not of the exit's own training."""
    ours = convergence("ours", [0], [meta_history(0.25, 0.5)])
    sgd = convergence("SGD", [0], [[entry(1, 0.125), entry(2, 0.375)]])
    assert ours.accuracy.tolist() == [[0.25, 0.5]] and ours.passes.tolist() == [3, 6]
    left, right = convergence_figure([ours, sgd]).axes
    assert lines_of(left) == {"ours": ([1, 2], [25, 50]), "SGD": ([1, 2], [12.5, 37.5])}
    assert lines_of(right) == {"ours": ([3, 6], [25, 50]), "SGD": ([1, 2], [12.5, 37.5])}
    assert left.get_ylabel() == "training accuracy of the last exit (%)"
    assert left.get_xlabel() == "round" and "training passes" in right.get_xlabel()


def test_validation_is_the_mean_of_the_exits_over_rounds_and_passes():
    ours, nothing = meta_history(0.25, 0.5), [entry(1, 0.5) | {"val": None}]
    found = validation("ours", [0], [ours])
    assert found.accuracy.tolist() == [[0.375, 0.5]] and found.passes.tolist() == [3, 6]
    left, right = convergence_figure([found], "validation accuracy").axes
    assert lines_of(right) == {"ours": ([3, 6], [37.5, 50])}
    assert left.get_ylabel() == "validation accuracy (%)"
    assert convergence_csv([found], "val").splitlines() == [
        *("run,seed,round,training_passes,val", "ours,0,1,3,0.375", "ours,0,2,6,0.5")
    ]
    assert validation("ours", [0], [nothing]) is None


def test_convergence_of_seeds_is_their_mean_with_a_band():
    found = convergence("ours", [0, 1], [meta_history(0.25, 0.5), meta_history(0.75, 0.5, 0.9)])
    assert found.rounds.tolist() == [1, 2]  # those that both know
    figure = convergence_figure([found])
    label = "ours\n(mean of 2 seeds,\n± standard deviation)"
    assert lines_of(figure.axes[0]) == {label: ([1, 2], [50, 50])}
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((50 - 50 / 2**0.5, 50 + 50 / 2**0.5))
    assert assert_legend_outside(figure) == [label]
    assert convergence_csv([found]).splitlines() == [
        "run,seed,round,training_passes,last_exit_training_accuracy",
        *("ours,0,1,3,0.25", "ours,0,2,6,0.5", "ours,1,1,3,0.75", "ours,1,2,6,0.5"),
    ]


COSTS = (1_000_000, 2_000_000)


def test_budgeted_lines_are_means_in_units_with_the_single_exits():
    one = Budgeted("ours", COSTS, (0, 1), (curve(0.5), curve(0.25)), ((0.25, 0.75), (0.25, 0.5)))
    other = Budgeted("SGD", COSTS, (7,), (curve(0.125, scale=2e6),), ((0.25, 0.5),))
    figure = budgeted_figure([one, other])
    (axes,) = figure.axes
    lines = lines_of(axes)
    assert lines["ours\n(mean of 2 seeds,\nthin: each of them)"] == ([1.0, 1.5, 2.0], [37.5, 50, 62.5])
    assert lines["SGD"] == ([2.0, 3.0, 4.0], [12.5, 25, 37.5])
    crosses = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() == "X"]
    assert crosses == [(1, 2, 25, 62.5), (1, 2, 25, 50), ()]
    heights = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((12.5 - 0.95 * 12.5, 12.5 + 0.95 * 12.5))
    assert axes.get_xlabel() == "average cost per image (million operations)"
    assert axes.get_ylabel() == "test accuracy (%)"
    assert assert_legend_outside(figure)[1:] == ["SGD", "95 % of bootstrap\ntest sets", "one exit for all"]
    table = rows(budgeted_csv([other]))
    assert table[0] == [
        *("run", "seed", "p", "operations", "accuracy", "accuracy_low", "accuracy_high"),
        *("share_exit_1", "share_exit_2", "threshold_exit_1", "threshold_exit_2"),
    ]
    assert table[1][:5] == ["SGD", "7", "0.5", "2000000.0", "0.125"]
    assert [float(value) for value in table[1][5:]] == pytest.approx([0.00625, 0.24375, 1, 0, 0.9, -np.inf])
    assert table[3][-2:] == ["inf", "-inf"]
    small = budgeted_figure([Budgeted("x", COSTS, (0,), (curve(scale=1e4),), ((0.5, 0.5),))])
    assert small.axes[0].get_xlabel() == "average cost per image (thousand operations)"
    assert lines_of(small.axes[0])["x"][0] == [10, 15, 20]


def test_conflict_of_a_history_by_hand():
    """Round 2 is missing: its column stays empty, the others keep their place."""
    history = [entry(r, 0.5, 0.5, conflict_before=r / 10, conflict_after=None) for r in (1, 3)]
    found = conflict_curves(history, TENSORS)
    assert cosine_csv(found) == "tensor,round_1,round_2,round_3\nstem,0.5,,0.5\nhead,,,\nstage,-0.25,,-0.25\n"
    assert rows(share_csv(found))[1:] == [["1", "0.1", ""], ["2", "", ""], ["3", "0.3", ""]]


def test_there_is_no_figure_where_there_is_nothing_to_show():
    unshared = [entry(1, 0.5, 0.5, tensor_cosine=[None] * 3, conflict_before=None, conflict_after=None)]
    for history in ([], [entry(1, 0.5)], unshared):
        assert conflict_curves(history, TENSORS) is None
    assert convergence("x", [0], [[]]) is None
    assert convergence("x", [0, 1], [[entry(1, 0.5)], [entry(2, 0.5)]]) is None


def test_conflict_figure_shows_shared_tensors_and_both_shares():
    history = [entry(1, 0.5, 0.5), entry(2, 0.5, 0.5, conflict_before=0.25, conflict_after=0.0)]
    noise = OrderNoise(3, 0.375, 0.25, 0.125)
    figure = conflict_figure(conflict_curves(history, TENSORS), noise)
    above, below = figure.axes[:2]
    (image,) = above.images
    assert image.get_array().tolist() == [[0.5, 0.5], [-0.25, -0.25]]
    assert image.get_clim() == (-0.5, 0.5)  # white is zero
    assert list(image.get_extent()) == [0.5, 2.5, 2.5, 0.5]
    assert [label.get_text() for label in above.get_yticklabels()] == ["stem", "stage"]
    lines = lines_of(below)
    assert lines["before fusion: pairs of exits"] == ([1, 2], [50, 25])
    assert lines["after fusion: exits against the update"] == ([1, 2], [25, 0])
    assert lines["noise floor: one exit, two orders of images"] == ([3], [37.5])
    assert lines["different exits, one order of images"] == ([3], [12.5])
    assert rows(noise_csv(noise))[2] == ["3", "different exits, as trained", "0.25"]
    assert below.get_xlabel() == "round" and below.get_ylabel() == "negative cosines (%)"
    assert "cosine" in figure.axes[2].get_ylabel()
    assert len(assert_legend_outside(figure)) == 5


def test_a_cosine_of_zero_is_white_whatever_the_others():
    zero = conflict_figure(conflict_curves([entry(1, 0.5, 0.5, tensor_cosine=[0.0] * 3)], TENSORS))
    assert zero.axes[0].images[0].get_clim() == (-1, 1)


def test_importance_by_hand():
    figure = importance_figure(IMPORTANCE)
    left, right = figure.axes[:2]
    assert left.images[0].get_array().tolist() == [[75, -10], [0, 0]]
    assert right.images[0].get_array().mask.tolist() == [[False, False], [True, False]]
    assert [text.get_text() for text in left.texts] == ["75", "-10", "0", "0"]
    assert [text.get_text() for text in right.texts] == ["75", "-10", "–", "0"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["exit 1\n(80.0 %)", "exit 2\n(90.0 %)"]
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["exit 1\n1 segment,\n2.50 K parameters", "exit 2\nnothing"]
    assert "(%" in figure.axes[2].get_ylabel()
    tiny = type(IMPORTANCE)((1,), (1,), (0.5,), np.array([[-0.001]]), np.array([[0.0]]))
    assert [text.get_text() for text in importance_figure(tiny).axes[0].texts] == ["0"]  # not -0
    table = rows(importance_csv(IMPORTANCE))
    assert len(table) == 9
    assert table[1] == ["alone", "1", "1", "2500", "1", "0.75"]
    assert table[7] == ["in_turn", "2", "0", "0", "1", ""]
