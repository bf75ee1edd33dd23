"""The figures hold the numbers that they were given, labelled, and mask what is not there."""

import math
from itertools import pairwise

import numpy as np
import pytest
from past_runs import entry

from raygf.evaluation.figures import (
    accuracy_csv,
    accuracy_figure,
    fusion_csv,
    fusion_heatmap,
    run_style,
)

HISTORY = [entry(1, 0.2), entry(2, 0.4)]
WEIGHTS = np.array([[0.25, 1.0, np.nan, 0.4], [0.75, np.nan, 1.0, 0.6]])
TENSORS = ("stem.weight", "heads.0.weight", "heads.1.weight", "layer.weight")


def lines_of(figure):
    (axes,) = figure.axes
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_accuracy_is_the_validation_in_percent_with_its_average():
    figure = accuracy_figure(HISTORY)
    (axes,) = figure.axes
    assert lines_of(figure) == {
        "exit 1": ([1, 2], [50, 50]),
        "exit 2": ([1, 2], [25, 50]),
        "average": ([1, 2], [37.5, 50]),
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("round", "validation accuracy (%)")
    assert len({tuple(line.get_color()) for line in axes.lines}) == 3
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert texts(legend.get_texts()) == ["exit 1", "exit 2", "average"]
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert accuracy_csv(HISTORY) == (
        "round,validation_accuracy_exit_1,validation_accuracy_exit_2\n1,0.5,0.25\n2,0.5,0.5\n"
    )


def test_without_a_validation_of_every_round_the_training_is_shown_and_named():
    skipped = entry(3, 0.0) | {"train": {"accuracy": [None, math.nan]}}
    history = [entry(1, 0.2) | {"val": None}, entry(2, 0.4), skipped]
    figure = accuracy_figure(history)
    assert figure.axes[0].get_ylabel() == "training accuracy (%)"
    assert lines_of(figure)["exit 2"][1] == pytest.approx([20, 40, math.nan], nan_ok=True)
    assert accuracy_csv(history).splitlines()[1:] == ["1,0.0,0.2", "2,0.0,0.4", "3,,"]


def test_runs_differ_in_colour_line_and_marker():
    styles = [run_style(index) for index in range(6)]
    assert len({style["color"] for style in styles}) == 6
    assert all(a["linestyle"] != b["linestyle"] and a["marker"] != b["marker"] for a, b in pairwise(styles))


def texts(labels):
    return [label.get_text() for label in labels]


def test_heat_map_shows_the_weights_says_what_is_what_and_masks_what_an_exit_does_not_own():
    figure = fusion_heatmap(WEIGHTS, TENSORS)
    axes, bar = figure.axes
    (image,) = axes.images
    shown = image.get_array()
    assert shown.mask.tolist() == np.isnan(WEIGHTS).tolist()
    alone = 1e9  # beyond the scale
    assert shown.compressed().tolist() == [0.5, alone, 0.8, 1.5, alone, 1.2]
    assert image.cmap(np.ma.masked_all(1))[0].tolist() == [0, 0, 0, 0]  # the hatch shows through
    assert image.get_clim() == (0.5, 1.5)  # of the shared tensors, 1 in the middle
    assert texts(axes.get_yticklabels()) == ["exit 1", "exit 2"]
    assert texts(axes.get_xticklabels()) == list(TENSORS)
    assert axes.get_xlabel() == "parameter tensor, shallow to deep"
    assert axes.get_title(loc="left") == "1 = equal share"
    assert bar.get_ylabel() == "fusion weight × exits\nthat use the tensor" and bar.get_ylim() == (0.5, 1.5)
    (legend,) = figure.legends
    assert texts(legend.get_texts()) == ["used by this exit alone (weight 1)", "not used by this exit"]


def test_many_tensors_are_counted_not_named_and_one_exit_alone_is_drawn():
    weights = np.full((7, 400), 1 / 7)
    figure = fusion_heatmap(weights, [f"tensor {i}" for i in range(400)])
    axes = figure.axes[0]
    labels = texts(axes.get_xticklabels())
    assert labels[0] == "1" and len(labels) <= 12
    assert [int(label) - 1 for label in labels] == list(axes.get_xticks())
    assert axes.get_xlabel() == "parameter tensor, shallow to deep (1 to 400)"
    assert not figure.legends  # every exit owns every tensor: nothing to explain
    alone = fusion_heatmap(np.ones((1, 3)), ["a", "b", "c"])
    assert alone.axes[0].images[0].get_clim() == (0.95, 1.05)


def test_an_equal_share_has_one_colour_whatever_the_number_of_owners():
    weights = np.array([[1 / 3, 0.5, 0.9], [1 / 3, 0.5, 0.05], [1 / 3, np.nan, 0.05]])
    figure = fusion_heatmap(weights, ["three", "two", "uneven"])
    (image,) = figure.axes[0].images
    assert image.get_array().compressed() == pytest.approx([1, 1, 2.7, 1, 1, 0.15, 1, 0.15])
    assert image.get_clim() == pytest.approx((-0.7, 2.7))
    assert figure.axes[1].get_ylim() == pytest.approx((0, 2.7))  # no weight is below 0


def test_fusion_csv():
    lines = fusion_csv(WEIGHTS, TENSORS).splitlines()
    assert lines[:3] == ["tensor,exit_1,exit_2", "stem.weight,0.25,0.75", "heads.0.weight,1.0,"]
