"""Pruning by hand: which elements go, in which order, and what is divided by what."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_network import space_of

from raygf.evaluation.importance import important_segments, measure_importance, prune, relative_loss
from raygf.training.space import Segments

SPACE = space_of((2, 2), (3,))
ALPHA = torch.tensor([[0.6, 1.0, 0.5], [0.4, 0.0, 0.5]])
OWNED = torch.tensor([[True, True, True], [True, False, True]])


def test_important_is_above_a_half_and_shared():
    """The second segment is the first exit's alone; in the third nobody is above."""
    assert important_segments(ALPHA, OWNED).tolist() == [[True, False, False], [False, False, False]]


def test_segments_of_others_are_never_important():
    """One weight for the whole network may exceed a half although the mask says no."""
    alpha, owned = torch.tensor([[0.7], [0.2], [0.1]]), torch.tensor([[False], [True], [True]])
    assert not important_segments(alpha, owned).any()


@pytest.mark.parametrize(
    ("kind", "mask", "left"),
    [
        ("tensor", [True, False], [0, 0, 0, 0, 5, 6, 7]),
        ("tensor", [False, True], [1, 2, 3, 4, 0, 0, 0]),
        ("channel", [False, True, True, False, False], [1, 2, 0, 0, 0, 6, 7]),
        ("network", [True], [0] * 7),
        ("network", [False], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_pruning_zeroes_exactly_the_segments(kind, mask, left):
    vector = np.arange(1, 8, dtype=np.float32)
    pruned = prune(vector, torch.tensor(mask), Segments(kind, SPACE))
    assert pruned.tolist() == left
    assert pruned.dtype == np.float32
    assert vector.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_relative_loss_by_hand():
    lost = relative_loss(np.array([0.8, 0.5, 0.0]), np.array([0.2, 0.6, 0.0]))
    assert lost[:2].tolist() == pytest.approx([0.75, -0.2])
    assert np.isnan(lost[2])


def test_exit_by_exit_by_hand():
    """Exit 1 is as accurate as tensor 1 is whole, exit 2 as both are."""
    calls = []

    def measure(vector):
        calls.append(vector.tolist())
        first, second = np.count_nonzero(vector[:4]) / 4, np.count_nonzero(vector[4:]) / 3
        return first, (first + second) / 2

    important = torch.tensor([[True, False], [False, True]])
    vector = np.ones(7, dtype=np.float32)
    found = measure_importance(vector, important, Segments("tensor", SPACE), measure)
    assert found.segments == (1, 1) and found.parameters == (4, 3)
    assert found.baseline == (1.0, 1.0)
    assert found.alone.tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert found.in_turn[0].tolist() == [1.0, 0.5]
    assert (
        np.isnan(found.in_turn[1, 0]) and found.in_turn[1, 1] == 1.0
    )  # both gone: relative to what was left
    assert calls[0] == [1] * 7 and calls[-1] == [0] * 7
    assert vector.all()


def test_an_exit_without_important_segments_changes_nothing():
    found = measure_importance(
        np.ones(7, dtype=np.float32),
        torch.zeros(1, 2, dtype=torch.bool),
        Segments("tensor", SPACE),
        lambda vector: [vector.sum() / 7],
    )
    assert found.segments == found.parameters == (0,)
    assert found.alone.tolist() == found.in_turn.tolist() == [[0.0]]
