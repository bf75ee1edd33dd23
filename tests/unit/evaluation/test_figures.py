"""The figures hold the numbers that they were given, labelled, and mask what is not there."""

import csv
import io

import numpy as np
import pytest

from raygf.evaluation.figures import (
    AccuracyCurves,
    accuracy_csv,
    accuracy_curves,
    accuracy_figure,
    fusion_csv,
    fusion_heatmap,
)
from raygf.records import ExitScore, RoundRecord


def record(number: int, val: tuple[float, ...] | None, train: tuple[float, ...] = (0.1, 0.2)) -> RoundRecord:
    score = None if val is None else ExitScore((1.0,) * len(val), val)
    return RoundRecord(
        number, 9, 3 * number, 0.1, 0.1, ExitScore((1.0, 1.0), train), score, {"train": 1.0}, "c"
    )


RECORDS = [record(1, (0.5, 0.6)), record(2, (0.7, 0.9))]
WEIGHTS = np.array([[0.25, 1.0, np.nan, 0.4], [0.75, np.nan, 1.0, 0.6]])
TENSORS = ("stem.weight", "heads.0.weight", "heads.1.weight", "layer.weight")


def lines_of(figure):
    (axes,) = figure.axes
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_accuracy_lines_are_the_validation_in_percent():
    lines = lines_of(accuracy_figure(RECORDS))
    assert list(lines) == ["exit 1", "exit 2", "average"]
    assert lines["exit 1"] == ([1, 2], pytest.approx([50, 70]))
    assert lines["exit 2"] == ([1, 2], pytest.approx([60, 90]))
    assert lines["average"] == ([1, 2], pytest.approx([55, 80]))


def test_accuracy_axes_name_what_and_unit():
    figure = accuracy_figure(RECORDS)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "validation accuracy (%)")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["exit 1", "exit 2", "average"]
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_without_validation_the_training_is_shown_and_named():
    figure = accuracy_figure([record(1, None), record(2, None)])
    assert figure.axes[0].get_ylabel() == "training accuracy (%)"
    assert lines_of(figure)["exit 2"][1] == pytest.approx([20, 20])


def test_exits_have_colours_of_their_own():
    colours = [line.get_color() for line in accuracy_figure([record(1, (0.1,) * 7)]).axes[0].lines]
    assert len({tuple(colour) for colour in colours}) == 8


def test_earlier_rounds_come_first_and_a_repeated_round_counts_once():
    earlier = AccuracyCurves(np.array([1, 2]), np.array([[0.1, 0.2], [0.3, 0.4]]), "validation")
    curves = accuracy_curves([record(2, (0.7, 0.9)), record(3, (0.8, 0.9))], earlier)
    assert curves.rounds.tolist() == [1, 2, 3]
    assert curves.accuracy.tolist() == [[0.1, 0.2], [0.7, 0.9], [0.8, 0.9]]


def test_earlier_rounds_alone_are_shown():
    earlier = AccuracyCurves(np.array([4]), np.array([[0.1, 0.2]]), "training")
    assert accuracy_curves([], earlier).split == "training"
    assert accuracy_curves([], earlier).accuracy.tolist() == [[0.1, 0.2]]


def test_earlier_rounds_of_another_split_are_left_out():
    earlier = AccuracyCurves(np.array([1]), np.array([[0.1, 0.2]]), "training")
    assert accuracy_curves([record(2, (0.7, 0.9))], earlier).rounds.tolist() == [2]


def test_no_rounds_is_an_error():
    with pytest.raises(ValueError, match="no round to show"):
        accuracy_figure([])


def test_accuracy_csv():
    assert accuracy_csv(RECORDS) == (
        "round,validation_accuracy_exit_1,validation_accuracy_exit_2\n1,0.5,0.6\n2,0.7,0.9\n"
    )


def heat_map_of(figure):
    return figure.axes[0], figure.axes[0].images[0]


def test_heat_map_shows_the_weights_and_masks_what_an_exit_does_not_own():
    _, image = heat_map_of(fusion_heatmap(WEIGHTS, TENSORS))
    shown = image.get_array()
    assert shown.mask.tolist() == np.isnan(WEIGHTS).tolist()
    assert shown.compressed().tolist() == [0.25, 1.0, 0.4, 0.75, 1.0, 0.6]
    assert image.cmap(np.ma.masked_all(1))[0].tolist() == [0, 0, 0, 0]  # the hatch shows through


def test_heat_map_colours_span_the_shared_tensors():
    _, image = heat_map_of(fusion_heatmap(WEIGHTS, TENSORS))
    assert image.get_clim() == (0, 0.75)


def test_heat_map_says_what_is_what():
    figure = fusion_heatmap(WEIGHTS, TENSORS)
    axes, _ = heat_map_of(figure)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["exit 1", "exit 2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(TENSORS)
    assert axes.get_xlabel() == "parameter tensor, shallow to deep"
    assert axes.get_title(loc="left") == "equal weights: 1/2 = 0.500 (white line)"
    assert figure.axes[1].get_ylabel() == "fusion weight"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "used by this exit alone (weight 1)",
        "not used by this exit",
    ]


def test_many_tensors_are_counted_not_named():
    weights = np.full((7, 400), 1 / 7)
    figure = fusion_heatmap(weights, [f"tensor {i}" for i in range(400)])
    axes, _ = heat_map_of(figure)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[0] == "1"
    assert len(labels) <= 12
    assert [int(label) - 1 for label in labels] == list(axes.get_xticks())
    assert axes.get_xlabel() == "parameter tensor, shallow to deep (1 to 400)"
    assert not figure.legends  # every exit owns every tensor: nothing to explain


def test_one_exit_alone_is_drawn():
    _, image = heat_map_of(fusion_heatmap(np.ones((1, 3)), ["a", "b", "c"]))
    assert image.get_clim() == (0, 1)


@pytest.mark.parametrize("shape", [(2, 3), (2, 0), (4,)])
def test_weights_must_fit_the_names(shape):
    with pytest.raises(ValueError, match="do not fit"):
        fusion_heatmap(np.ones(shape), TENSORS)


def test_fusion_csv():
    rows = list(csv.reader(io.StringIO(fusion_csv(WEIGHTS, TENSORS))))
    assert rows[0] == ["tensor", "exit_1", "exit_2"]
    assert rows[1] == ["stem.weight", "0.25", "0.75"]
    assert rows[2] == ["heads.0.weight", "1.0", ""]
